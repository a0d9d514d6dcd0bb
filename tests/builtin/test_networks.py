"""The two small networks: their surface, their shapes, and that they learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork.builtin.networks import MLP, SmallCNN
from graftwork.interfaces import Backbone, classify, embed


@pytest.mark.parametrize(
    ("model", "shape", "map_shape", "width"),
    [
        (MLP(5, hidden=[7, 6], num_classes=3), (4, 5), (4, 6), 6),
        (MLP(5, hidden=[], num_classes=3), (4, 5), (4, 5), 5),
        (MLP(48, hidden=[9], num_classes=3, input="image"), (4, 3, 4, 4), (4, 9), 9),
        (SmallCNN(num_classes=3), (4, 3, 32, 32), (4, 48, 8, 8), 768),
        (SmallCNN(num_classes=3), (4, 3, 20, 28), (4, 48, 5, 7), 768),
        (SmallCNN(in_channels=1, num_classes=3, width=8, depth=3, grid=1, batch_norm=True), (4, 1, 32, 32), (4, 18, 4, 4), 18),
    ],
)
def test_networks_offer_the_backbone_surface(model: nn.Module, shape: tuple[int, ...], map_shape: tuple[int, ...], width: int) -> None:
    assert isinstance(model, Backbone)
    x = torch.rand(shape)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert (features.shape, pooled.shape) == (map_shape, (4, width))
    assert model.num_features == width
    torch.testing.assert_close(model(x), model.head(pooled))
    key = model.inputs[0] if hasattr(model, "inputs") else "image"
    assert classify(model, {key: x}).shape == (4, 3) == (4, model.num_classes)
    torch.testing.assert_close(embed(model, {key: x}), pooled)


def test_every_hidden_layer_has_its_activation_and_dropout() -> None:
    model = MLP(5, hidden=[7, 6], activation="tanh", dropout=0.25)
    kinds = [type(layer) for layer in model.trunk]
    assert kinds == [nn.Flatten, nn.Linear, nn.Tanh, nn.Dropout, nn.Linear, nn.Tanh, nn.Dropout]
    assert model.trunk[3].p == 0.25


def test_a_linear_model_is_an_mlp_without_hidden_layers() -> None:
    model, x = MLP(5, hidden=[], num_classes=2), torch.randn(3, 5)
    torch.testing.assert_close(model(x), x @ model.head.weight.T + model.head.bias)


def test_batch_norm_replaces_the_bias() -> None:
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in SmallCNN().trunk)
    normed = SmallCNN(batch_norm=True)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in normed.trunk) == 2
    assert all(layer.bias is None for layer in normed.trunk if isinstance(layer, nn.Conv2d))


def test_a_class_activation_map_can_be_read_from_the_last_map() -> None:
    model, image = SmallCNN(), torch.rand(2, 3, 32, 32)
    features = model.forward_features(image)
    (gradient,) = torch.autograd.grad(model.forward_head(features)[:, 0].sum(), features)
    assert gradient.shape == (2, 48, 8, 8)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", ["mlp", "small-cnn"])
def test_the_networks_learn_handwritten_digits(name: str) -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    image = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    label = torch.tensor(digits.target)
    if name == "small-cnn":
        image = nn.functional.interpolate(image, size=16, mode="bilinear")
    torch.manual_seed(0)
    model = SmallCNN(in_channels=1, width=16) if name == "small-cnn" else MLP(64, input="image")
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for start in [*range(0, 1280, 64)] * 4:
        loss = nn.functional.cross_entropy(model(image[start : start + 64]), label[start : start + 64])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (model.eval()(image[1300:]).argmax(1) == label[1300:]).float().mean()
    assert accuracy > 0.8  # chance is 0.1


def test_parameters_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(gw.ConfigError, match=r"(?s)in_features.*greater than or equal to 1.*activation"):
        gw.model("mlp", in_features=0, activation="step")
