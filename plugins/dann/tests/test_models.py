"""The convolutional networks and the bottleneck classifier."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_dann import BottleneckClassifier, DannConvNet, DomainAdversarial


def layers(model: nn.Module, kind: type[nn.Module]) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, kind)]


def test_the_mnist_network_is_the_papers() -> None:
    model = DannConvNet()
    assert layers(model, nn.Conv2d) == [(32, 3, 5, 5), (48, 32, 5, 5)]
    assert layers(model, nn.Linear) == [(100, 768), (100, 100), (10, 100)]
    assert model.num_features == 48 * 4 * 4
    assert (model.domain_hidden, model.domain_dropout) == ((100,), 0.0)


def test_the_svhn_network_is_the_papers() -> None:
    with torch.device("meta"):
        model = DannConvNet("svhn")
    assert layers(model, nn.Conv2d) == [(64, 3, 5, 5), (64, 64, 5, 5), (128, 64, 5, 5)]
    assert [shape[0] for shape in layers(model, nn.Linear)] == [3072, 2048, 10]
    assert [pool.kernel_size for pool in model.modules() if isinstance(pool, nn.MaxPool2d)] == [3, 3]
    assert {layer.p for layer in model.head.modules() if isinstance(layer, nn.Dropout)} == {0.5}
    assert model.domain_hidden == (1024, 1024)


def test_the_gtsrb_network_is_the_papers() -> None:
    with torch.device("meta"):
        model = DannConvNet("gtsrb")
    assert layers(model, nn.Conv2d) == [(96, 3, 5, 5), (144, 96, 3, 3), (256, 144, 5, 5)]
    assert [shape[0] for shape in layers(model, nn.Linear)] == [512, 43]
    assert model.domain_hidden == (1024, 1024)


@pytest.mark.parametrize(("preset", "size"), [("mnist", 28), ("svhn", 32), ("gtsrb", 40), ("mnist", 32)])
def test_features_bottleneck_and_logits_fit_together(preset: str, size: int) -> None:
    with torch.device("meta"):
        model = DannConvNet(preset, size=size)
        features = model.forward_features(torch.empty(2, 3, size, size))
        assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
        assert model(torch.empty(2, 3, size, size)).shape == (2, model.num_classes)


def test_the_domain_head_of_a_preset_is_built_by_the_objective() -> None:
    model = DannConvNet(size=16, in_channels=1)
    data = gw.Dataset({"train": gw.TensorSamples(image=torch.rand(2, 1, 16, 16), label=torch.zeros(2, dtype=torch.long))})
    objective = DomainAdversarial()
    objective.setup(model, data)
    assert layers(objective.heads, nn.Linear) == [(100, model.num_features), (1, 100)]


def test_other_sizes_are_refused() -> None:
    with pytest.raises(gw.InterfaceError, match="built for images of 28x28 and got 32x30: set `size`"):
        DannConvNet()(torch.zeros(1, 3, 32, 30))
    with pytest.raises(ValueError, match="images of 8x8 are too small for the preset mnist"):
        DannConvNet(size=8)


def test_any_backbone_gets_a_bottleneck_and_a_new_classifier(tower: nn.Module) -> None:
    model = BottleneckClassifier(tower.float(), num_classes=31)
    assert model.inputs == ("features",)
    features = model.forward_features(torch.randn(2, 4))
    assert model.forward_head(features, pre_logits=True).shape == (2, 256)
    assert model(torch.randn(2, 4)).shape == (2, 31)
    assert model.bottleneck.weight.std().item() == pytest.approx(0.005, rel=0.1)
    assert model.bottleneck.bias.unique().tolist() == pytest.approx([0.1])
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_new_layers_learn_faster(tower: nn.Module) -> None:
    backbone, weights, biases = BottleneckClassifier(tower, 31).param_groups(0.001)
    assert "lr" not in backbone
    assert (weights["lr"], biases["lr"], biases["weight_decay"]) == pytest.approx((0.01, 0.02, 0.0))
    assert {tuple(p.shape) for p in weights["params"]} == {(256, 6), (31, 256)}


def test_domain_heads_attach_to_the_bottleneck(tower: nn.Module, data: gw.Dataset) -> None:
    model = BottleneckClassifier(tower.float(), num_classes=3)
    objective = DomainAdversarial(preset="office-caffe")
    objective.setup(model, data)
    assert objective.heads["bottleneck"].hidden[0][0].in_features == 256
    train = gw.TrainConfig.model_validate(
        {
            "steps": 2,
            "batch_size": 8,
            "optimizer": {"use": "sgd", "lr": 0.001},
            "feeds": {"source": "source/train", "target": "target/train"},
        }
    )
    engine = gw.Engine(model, DomainAdversarial(preset="office-caffe"), data, train, device="cpu")
    assert sorted({group["lr"] for group in engine.optimizers[""].param_groups}) == pytest.approx([0.001, 0.01, 0.02])
    engine.fit()


def test_bad_sizes_are_refused(tower: nn.Module) -> None:
    with pytest.raises(ValueError, match="bottleneck_dim and both factors are above 0"):
        BottleneckClassifier(tower, 31, bottleneck_dim=0)


def test_a_timm_backbone_works_in_this_form() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    torch.manual_seed(0)
    model = BottleneckClassifier(timm.create_model("resnet10t", num_classes=0), num_classes=5)
    data = gw.Dataset({"train": gw.TensorSamples(image=torch.rand(4, 3, 64, 64), label=torch.zeros(4, dtype=torch.long))})
    objective = DomainAdversarial(hidden=[8], attach=["bottleneck", "backbone.layer3"])
    objective.setup(model, data)
    batches = {
        "source": {"image": torch.rand(3, 3, 64, 64), "label": torch.tensor([0, 1, 2])},
        "target": {"image": torch.rand(2, 3, 64, 64)},
    }
    objective(model, batches, 0.5).total.backward()
    assert all(p.grad is not None for p in model.parameters())
