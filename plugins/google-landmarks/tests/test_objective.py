"""Margins in closed form, and the objective that trains with them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import graftwork as gw
from graftwork_google_landmarks import ArcFaceClassification, adacos_scale, arcface_cosines, cosface_cosines, cosines, random_crops


class Embedding(nn.Module):
    inputs = ("features",)
    embedding_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def embed(self, features: Tensor) -> Tensor:
        return self.norm(self.layer(features))


def points(samples: int = 60, classes: int = 4) -> gw.Dataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % classes
    features = torch.randn(classes, 6, generator=generator)[labels] + 0.3 * torch.randn(samples, 6, generator=generator)
    split = gw.TensorSamples(features=features, label=labels)
    return gw.Dataset({"train": split, "test": split}, gw.DatasetInfo(classes=tuple("abcdefgh"[:classes])))


def ready(**settings) -> tuple[ArcFaceClassification, Embedding]:
    torch.manual_seed(0)
    objective, model = ArcFaceClassification(**settings), Embedding()
    objective.setup(model, points())
    return objective, model


def drawn(rows: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=generator), torch.arange(rows) % 4


@pytest.mark.parametrize("margin", [0.1, 0.3, 1.0])
def test_the_margin_is_added_to_the_angle_of_the_label_alone(margin: float) -> None:
    angles = torch.linspace(0.05, math.pi - margin - 0.01, 30, dtype=torch.float64)
    cosine = torch.stack([angles.cos(), torch.full_like(angles, 0.3)], dim=1)
    found = arcface_cosines(cosine, torch.zeros(30, dtype=torch.long), margin)
    torch.testing.assert_close(found[:, 0], (angles + margin).cos(), atol=1e-12, rtol=0)
    assert torch.equal(found[:, 1], cosine[:, 1])


def test_beyond_pi_less_the_margin_there_is_none() -> None:
    angles = torch.tensor([math.pi - 0.31, math.pi - 0.29, math.pi - 0.1], dtype=torch.float64)
    found = arcface_cosines(angles.cos()[:, None], torch.zeros(3, dtype=torch.long), 0.3)[:, 0]
    assert found[0] == pytest.approx(math.cos(math.pi - 0.01))
    assert torch.equal(found[1:], angles.cos()[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [1.0, -1.0, 1 - 1e-7])
def test_gradients_are_finite_where_the_arc_cosine_has_none(value: float, dtype) -> None:
    cosine = torch.tensor([[value, 0.0]], dtype=dtype, requires_grad=True)
    arcface_cosines(cosine, torch.tensor([0]), 0.1).sum().backward()
    assert cosine.grad.isfinite().all()
    assert float(arcface_cosines(torch.ones(1, 1), torch.tensor([0]), 0.1)) == pytest.approx(math.cos(0.1), abs=1e-6)


def test_without_a_margin_the_loss_is_the_cross_entropy_of_scaled_cosines() -> None:
    embeddings, labels = drawn()
    expected = None
    for loss in ("arcface", "cosface"):
        objective, _ = ready(loss=loss, margin=0.0, scale=12.0)
        expected = cross_entropy(12 * normalize(embeddings, dim=1) @ normalize(objective.weight, dim=1).T, labels)
        torch.testing.assert_close(objective.classification_loss(embeddings, labels).total, expected)
    assert expected > 0


def test_cosface_takes_its_margin_off_the_label_alone() -> None:
    cosine = torch.tensor([[0.5, 0.2], [0.1, -0.3]])
    assert torch.allclose(cosface_cosines(cosine, torch.tensor([0, 1]), 0.4), torch.tensor([[0.1, 0.2], [0.1, -0.7]]))


def test_losses_agree_with_pytorch_metric_learning() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason="needs pytorch-metric-learning to compare with")
    embeddings, labels = drawn(32)
    for loss, kind, theirs in (("arcface", losses.ArcFaceLoss, math.degrees(0.3)), ("cosface", losses.CosFaceLoss, 0.3)):
        objective, _ = ready(loss=loss, margin=0.3, scale=20.0)
        peer = kind(num_classes=4, embedding_size=5, margin=theirs, scale=20.0)
        peer.W.data = objective.weight.detach().T.clone()
        torch.testing.assert_close(objective.classification_loss(embeddings, labels).total, peer(embeddings, labels))


def test_adacos_scale_in_closed_form() -> None:
    cosine = torch.tensor([[0.9, 0.1, -0.2], [0.3, 0.8, 0.0], [0.5, 0.5, 0.95]])
    labels, scale = torch.tensor([0, 1, 2]), torch.tensor(5.0)
    average = sum(math.exp(5 * value) for value in (0.1, -0.2, 0.3, 0.0, 0.5, 0.5)) / 3
    angle = min(math.pi / 4, math.acos(0.9))
    assert float(adacos_scale(cosine, labels, scale)) == pytest.approx(math.log(average) / math.cos(angle))
    assert float(adacos_scale(-cosine, labels, scale)) == pytest.approx(
        math.log(sum(math.exp(-5 * value) for value in (0.1, -0.2, 0.3, 0.0, 0.5, 0.5)) / 3) / math.cos(math.pi / 4)
    )


def test_the_scale_of_adacos_moves_while_training_and_is_part_of_the_state() -> None:
    objective, _ = ready(loss="adacos")
    start = float(objective.scale)
    assert start == pytest.approx(math.sqrt(2) * math.log(3))
    embeddings, labels = drawn()
    two = objective.classification_loss(embeddings, labels).total + objective.classification_loss(embeddings, labels).total
    two.backward()  # the first step's scale is not overwritten by the second's
    moved = float(objective.scale)
    assert moved != start
    objective.eval()
    objective.classification_loss(embeddings, labels)
    assert float(objective.scale) == moved == float(objective.state_dict()["scale"])


def test_defaults_are_delgs() -> None:
    objective, _ = ready()
    assert (objective.margin, float(objective.scale)) == (0.1, pytest.approx(45.25, abs=0.01))
    assert not isinstance(objective.scale, nn.Parameter)
    assert objective.weight.shape == (4, 5)
    bound = math.sqrt(6 / 9)
    assert bound * 0.7 < objective.weight.abs().max() <= bound
    assert isinstance(ready(learn_scale=True)[0].scale, nn.Parameter)


def test_half_precision_embeddings_are_classified_in_float32() -> None:
    assert cosines(torch.randn(2, 5, dtype=torch.bfloat16), torch.randn(3, 5)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert cosines(torch.randn(2, 5), torch.randn(3, 5)).dtype == torch.float32


def test_batch_norm_is_frozen_on_request_and_its_scale_trained() -> None:
    objective, model = ready(freeze_batch_norm=True)
    batch = points()["train"].__getitems__(list(range(8)))
    objective(model, {"train": batch}, 0.0).total.backward()
    assert not model.norm.running_mean.any()
    assert model.norm.weight.grad.abs().sum() > 0
    objective, model = ready()
    objective(model, {"train": batch}, 0.0)
    assert model.norm.running_mean.any()


@pytest.mark.parametrize("loss", ["arcface", "cosface", "adacos"])
def test_training_through_the_engine_learns_the_classes_and_hands_on_the_model(loss: str) -> None:
    data = points()
    torch.manual_seed(0)
    objective, model = ArcFaceClassification(loss, scale=None if loss == "adacos" else 10.0), Embedding()
    settings = gw.TrainConfig(steps=60, batch_size=20, optimizer={"use": "sgd", "lr": 0.1, "momentum": 0.9}, log_every=1)
    rows = []
    engine = gw.Engine(model, objective, data, settings, device="cpu", log=lambda step, row: rows.append(row))
    assert engine.fit() is model
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["accuracy"] > 0.9
    assert not any("weight" in key and value.shape == (4, 5) for key, value in model.state_dict().items() if "layer" not in key)


def test_a_backbone_is_classified_by_its_pooled_features() -> None:
    objective = ArcFaceClassification(num_classes=7)
    backbone = gw.model("mlp", in_features=6, hidden=[9])
    objective.setup(backbone, gw.Dataset({}))
    assert objective.weight.shape == (7, 9)
    batch = points()["train"].__getitems__([0, 1, 2])
    assert objective(backbone, {"train": batch}, 0.0).total > 0


def coordinates(height: int = 30, width: int = 40) -> Tensor:
    """An image whose two channels are each pixel's place, as shares of width and height."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y])[None]


def test_random_crops_cover_the_area_and_the_shapes_that_are_asked_for() -> None:
    images = coordinates().expand(3000, -1, -1, -1)
    found = random_crops(images, 16, generator=torch.Generator().manual_seed(0))
    assert found.shape == (3000, 2, 16, 16)
    sides = (found[:, :, -1, -1] - found[:, :, 0, 0]) * 16 / 15
    inside = (found > 0.03).all(dim=(1, 2, 3)) & (found < 0.97).all(dim=(1, 2, 3))  # where nothing is clamped at the border
    across, down = sides[inside].unbind(1)
    area, ratio = across * down, (across * 40) / (down * 30)
    assert area.min() > 0.075
    assert area.max() < 1
    assert 0.74 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.35
    assert found.min() > 0
    assert found.max() < 1


def test_a_crop_of_all_of_a_square_image_is_the_image() -> None:
    square = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(random_crops(square, 20, (1.0, 1.0), (1.0, 1.0)), square)
    wide = coordinates(10, 40)
    whole = random_crops(wide, 10, (1.0, 1.0), (1.0, 1.0))  # no square of that area fits: the whole image
    torch.testing.assert_close(whole[0, 0, 0], (torch.arange(10) + 0.5) / 10, atol=1e-6, rtol=0)


def test_crops_are_of_training_only_and_of_the_side_that_is_asked_for() -> None:
    class Seen(nn.Module):
        embedding_dim = 5

        def embed(self, image: Tensor) -> Tensor:
            self.shape = image.shape
            return image.mean(dim=(2, 3)) @ torch.ones(3, 5)

    objective, model = ArcFaceClassification(random_crop=9, num_classes=3), Seen()
    objective.setup(model, gw.Dataset({}))
    batch = {"image": torch.rand(2, 3, 12, 14), "label": torch.tensor([0, 2])}
    objective(model, {"train": batch}, 0.0)
    assert model.shape == (2, 3, 9, 9)
    objective.eval()
    objective(model, {"train": batch}, 0.0)
    assert model.shape == (2, 3, 12, 14)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0,), "size is at least 1; found 0"),
        ((4, (0.5, 0.2)), "area is a range"),
        ((4, (0.1, 1.0), (0.0, 1.0)), "ratio is a range above 0"),
    ],
)
def test_crops_out_of_range_are_refused(arguments, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        random_crops(coordinates(), *arguments)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"random_crop": 0}, "random_crop is at least 1; found 0"),
        ({"loss": "sphereface"}, 'loss is one of arcface, cosface, adacos; found "sphereface"'),
        ({"margin": -0.1}, "margin is at least 0 and below pi; found -0.1"),
        ({"margin": 4.0}, "margin is at least 0 and below pi; found 4.0"),
        ({"scale": 0.0}, "scale is above 0; found 0.0"),
        ({"num_classes": 1}, "num_classes is at least 2; found 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing is in \[0, 1\); found 1.0"),
        ({"loss": "adacos", "margin": 0.1}, "adacos has no margin"),
    ],
)
def test_parameters_out_of_range_are_refused(settings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ArcFaceClassification(**settings)


def test_models_and_data_that_do_not_fit_are_refused() -> None:
    with pytest.raises(gw.InterfaceError, match="Linear offers neither"):
        ArcFaceClassification().setup(nn.Linear(2, 2), points())
    with pytest.raises(gw.DataError, match="the data set names 0 classes: give num_classes"):
        ArcFaceClassification().setup(Embedding(), gw.Dataset({}))
    objective, _ = ready()
    with pytest.raises(gw.DataError, match="labels 0 to 4 do not fit 4 classes"):
        objective.classification_loss(drawn(2)[0], torch.tensor([0, 4]))
    with pytest.raises(RuntimeError, match="setup has not been called"):
        ArcFaceClassification().classification_loss(*drawn())
