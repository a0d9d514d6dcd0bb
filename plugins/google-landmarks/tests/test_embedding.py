"""GeM, the descriptor, its scales, and a real backbone saved and loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graftwork as gw
from graftwork.interfaces import Backbone, Embedder, embed
from graftwork_google_landmarks import GeM, LandmarkEmbedding, embed_samples, gem, nearest_samples


class Conv(nn.Module):
    """A Backbone whose map has a quarter of the image's side; it keeps the last image it was shown."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, 4)
        self.shown = torch.empty(0)

    def forward_features(self, x: Tensor) -> Tensor:
        self.shown = x
        return self.conv(x).relu()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x.mean(dim=(2, 3))


def embedding(**settings) -> LandmarkEmbedding:
    torch.manual_seed(0)
    return LandmarkEmbedding(Conv(), 8, **settings).eval()


def images(count: int = 3, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_gem_is_the_mean_at_1_and_tends_to_the_maximum() -> None:
    features = torch.rand(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gem(features, 1.0), features.mean(dim=(2, 3)))
    torch.testing.assert_close(gem(features, 200.0), features.amax(dim=(2, 3)), rtol=0.02, atol=0)
    expected = (features.double() ** 3).mean(dim=(2, 3)) ** (1 / 3)
    torch.testing.assert_close(gem(features).double(), expected, rtol=1e-5, atol=0)


def test_gem_raises_what_is_below_its_floor_and_keeps_half_precision_from_overflowing() -> None:
    torch.testing.assert_close(gem(torch.full((1, 1, 2, 2), -3.0), eps=1e-3), torch.full((1, 1), 1e-3))
    large = torch.full((1, 1, 2, 2), 100.0, dtype=torch.float16)
    assert gem(large, 3.0).item() == pytest.approx(100, rel=1e-3)


def test_gems_power_is_learned_only_on_request() -> None:
    assert not list(filter(lambda p: p.requires_grad, GeM().parameters()))
    pool = GeM(learn=True)
    pool(torch.rand(1, 2, 3, 3)).sum().backward()
    assert pool.power.grad.abs() > 0
    with pytest.raises(ValueError, match="power is above 0; found 0"):
        GeM(0)


def test_a_descriptor_is_the_projected_pool_at_unit_length() -> None:
    model, batch = embedding(), images()
    found = model.embed(batch)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    features = model.backbone.conv((batch * 255 - 128) / 128).relu()
    expected = nn.functional.normalize(model.projection(gem(features)), dim=1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model.forward_head(model.forward_features(batch)), expected)
    torch.testing.assert_close(model.forward_head(model.forward_features(batch), pre_logits=True), gem(features))
    assert isinstance(model, Backbone)
    assert isinstance(model, Embedder)
    assert (model.embedding_dim, model.num_features) == (8, 6)


def test_pixels_are_normalised_as_delg_does_or_left() -> None:
    model = embedding()
    model.embed(torch.full((1, 3, 8, 8), 1.0))
    assert model.backbone.shown.max() == pytest.approx(127 / 128)
    model = embedding(pixel_range="unit")
    model.embed(torch.full((1, 3, 8, 8), 1.0))
    assert model.backbone.shown.max() == 1


def test_several_scales_are_averaged_before_unit_length_and_only_in_eval_mode() -> None:
    several, one, batch = embedding(scales=[0.75, 1.0, 1.25]), embedding(), images()
    sizes = []
    several.backbone.conv.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(inputs[0].shape[-2:])))
    found = several.embed(batch)
    assert sizes == [(24, 24), (32, 32), (40, 40)]
    parts = [
        one._project(one.forward_features(nn.functional.interpolate(batch, (side, side), mode="bilinear", align_corners=True)))
        for side in (24, 32, 40)
    ]
    torch.testing.assert_close(found, nn.functional.normalize(torch.stack(parts).mean(dim=0), dim=1))
    sizes.clear()
    several.train().embed(batch)
    assert sizes == [(32, 32)]


def test_scaled_sides_are_multiples_of_the_stride_and_no_smaller_than_asked() -> None:
    model = embedding(scales=[0.3, 1.0, 1.3], stride=8, min_side=16)
    sizes = []
    model.backbone.conv.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(inputs[0].shape[-2:])))
    model.embed(images(1, 36))
    assert sizes == [(16, 16), (32, 32), (40, 40)]


def test_half_precision_runs_and_gives_float32_of_unit_length() -> None:
    model = embedding().to(torch.bfloat16)
    found = model.embed(images().bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_batch_norm_and_dropout_stand_where_the_winners_have_them() -> None:
    model = embedding(batch_norm=True, dropout=0.5).train()
    model.embed(images())
    assert model.norm.running_mean.any()
    assert model.dropout.p == 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scales": []}, r"scales are one or more numbers above 0; found \[\]"),
        ({"scales": [0.0]}, "scales are one or more"),
        ({"stride": 0}, "stride and min_side are at least 1; found 0 and 1"),
        ({"pixel_range": "imagenet"}, 'pixel_range is "delg" or "unit"; found "imagenet"'),
        ({"gem_power": 0.0}, "power is above 0; found 0.0"),
    ],
)
def test_parameters_out_of_range_are_refused(settings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LandmarkEmbedding(Conv(), 8, **settings)
    with pytest.raises(ValueError, match="embedding_dim is at least 1; found 0"):
        LandmarkEmbedding(Conv(), 0)


def test_a_backbone_without_a_map_is_refused() -> None:
    with pytest.raises(gw.InterfaceError, match=r"pools a feature map \(B, C, h, w\); MLP.forward_features gives \(1, 8\)"):
        LandmarkEmbedding(gw.model("mlp", in_features=3 * 64 * 64, hidden=[8], input="image"), 4)


def test_a_resnet_of_transformers_is_saved_loaded_and_embeds_the_same(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3}
    torch.manual_seed(0)
    made = gw.model("transformers-from-config", architecture="ResNetForImageClassification", config=config, processor={"size": 32})
    made.save_pretrained(tmp_path / "resnet")
    loaded = gw.model(
        "landmark-embedding",
        backbone={"use": "transformers-image-classifier", "name": str(tmp_path / "resnet")},
        embedding_dim=12,
        pixel_range="unit",
    )
    ours = LandmarkEmbedding(made, 12, pixel_range="unit")
    ours.projection.load_state_dict(loaded.projection.state_dict())
    batch = images(2)
    torch.testing.assert_close(embed(loaded.eval(), {"image": batch}), ours.eval().embed(batch))
    assert loaded.num_features == 16
    ours.load_state_dict(loaded.state_dict())


def test_a_model_of_timm_is_a_backbone_here() -> None:
    timm = pytest.importorskip("timm", reason="needs timm, which does not go with the CPU build of torch")
    model = LandmarkEmbedding(timm.create_model("resnet18", pretrained=False), 16)
    assert (model.num_features, model.eval().embed(images()).shape) == (512, (3, 16))


def test_images_of_different_sizes_are_embedded_one_by_one() -> None:
    model = embedding()
    samples = [{"image": images(1, side)[0], "image_id": str(side)} for side in (32, 24, 40)]
    found = embed_samples(model, samples, batch_size=2)
    torch.testing.assert_close(found[1], model.embed(samples[1]["image"][None])[0].detach())
    assert found.shape == (3, 8)


def test_the_nearest_samples_are_those_whose_descriptors_are_most_alike() -> None:
    model = embedding()
    gallery = [{"image": image} for image in images(20)]
    queries = [{"image": image} for image in images(5)]
    found = nearest_samples(model, queries, np.array([4, 0]), gallery, 3, batch_size=2)
    asked, held = (embed_samples(model, samples) for samples in (queries, gallery))
    scores, order = (asked[[4, 0]] @ held.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.indices, order[:, :3])
    torch.testing.assert_close(found.scores, scores[:, :3])


def test_embedding_leaves_the_model_as_it_was_and_refuses_what_is_not_finite() -> None:
    model = embedding().train()
    embed_samples(model, [{"image": images()[0]}])
    assert model.training
    with torch.no_grad():
        model.projection.bias.fill_(float("nan"))
    with pytest.raises(gw.DataError, match="LandmarkEmbedding gives descriptors that are not finite"):
        embed_samples(model, [{"image": images()[0]}])
    with pytest.raises(gw.DataError, match="there is no image to embed"):
        embed_samples(model, [])
