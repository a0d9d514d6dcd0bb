"""The three methods as objectives around another with several losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_denoising_task_clustering import (
    ClusteredDenoising,
    NashMTLObjective,
    PCGradObjective,
    UncertaintyWeightingObjective,
    gradient_matrix,
    gram_matrix,
    nash_weights,
    pcgrad,
    projection_orders,
)

NAMES = ["near", "far", "sum"]


class Three(gw.Objective):
    """Three losses of one linear layer and of a scale that the objective owns; figures that are no losses beside them."""

    keys = {"train": ("features",)}
    needs = nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, model, batches, progress):
        out = model(batches["train"]["features"]) * self.scale
        parts = {"near": (out - 4).square().mean(), "far": (out + 4).square().mean(), "sum": out.square().sum() / 50}
        return gw.Loss(sum(parts.values()), {**parts, "size": out.detach().abs().mean()})


@pytest.fixture
def setup():
    torch.manual_seed(0)
    samples = gw.TensorSamples(features=torch.randn(16, 4))
    return nn.Linear(4, 2), gw.Dataset({"train": samples, "test": samples})


def flat(model, objective) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in (*model.parameters(), objective.base.scale)])


def losses_of(model, base, data) -> torch.Tensor:
    parts = base(model, {"train": data["train"].__getitems__(list(range(16)))}, 0.0).parts
    return torch.stack([parts[name] for name in NAMES])


def stepped(objective, setup, train, **settings):
    model, data = setup
    start = flat(model, objective)
    gradients = gradient_matrix(losses_of(model, objective.base, data), [*model.parameters(), objective.base.scale])
    engine = train(objective, model, data, steps=1, batch_size=16, **settings)
    return (start - flat(model, objective)) / 0.01, gradients, engine


def test_pcgrad_around_an_objective_is_surgery_on_its_parts(setup, train) -> None:
    objective = PCGradObjective(Three())
    moved, gradients, engine = stepped(objective, setup, train)
    orders = projection_orders(3, torch.Generator().manual_seed(objective.balancer.generator.initial_seed()))
    torch.testing.assert_close(moved, pcgrad(gradients / 3, orders), rtol=1e-3, atol=1e-4)
    assert engine.rows[0]["conflicts"] > 0
    assert not torch.allclose(moved, gradients.mean(0), rtol=1e-2)


def test_pcgrad_in_chunks_takes_the_same_step(setup, train) -> None:
    objective = PCGradObjective(Three(), chunks=2)
    moved, gradients, _ = stepped(objective, setup, train)
    orders = projection_orders(3, torch.Generator().manual_seed(objective.balancer.generator.initial_seed()))
    torch.testing.assert_close(moved, pcgrad(gradients / 3, orders), rtol=1e-3, atol=1e-4)


def test_nash_around_an_objective_weighs_its_parts(setup, train) -> None:
    moved, gradients, _ = stepped(NashMTLObjective(Three(), NAMES, max_norm=None), setup, train)
    gram = gram_matrix(gradients)
    torch.testing.assert_close(moved, nash_weights(gram).float() @ gradients / 3, rtol=1e-3, atol=1e-4)


def test_uncertainty_weighting_around_an_objective_starts_at_a_half_over_k(setup, train) -> None:
    objective = UncertaintyWeightingObjective(Three(), NAMES)
    moved, gradients, engine = stepped(objective, setup, train)
    torch.testing.assert_close(moved, 0.5 * gradients.mean(0), rtol=1e-3, atol=1e-4)
    assert engine.optimizers["uncertainty"].param_groups[0]["params"][0] is objective.balancer.log_variances
    assert objective.balancer.log_variances.detach().abs().min() > 0


def test_only_the_named_losses_are_tasks(setup, train) -> None:
    model, data = setup
    objective = PCGradObjective(Three(), losses=["near", "sum"])
    gradients = gradient_matrix(losses_of(model, objective.base, data), [*model.parameters(), objective.base.scale])[[0, 2]]
    start = flat(model, objective)
    train(objective, model, data, steps=1, batch_size=16)
    orders = projection_orders(2, torch.Generator().manual_seed(objective.balancer.generator.initial_seed()))
    torch.testing.assert_close((start - flat(model, objective)) / 0.01, pcgrad(gradients / 2, orders), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["pcgrad", "nash-mtl", "uncertainty-weighting"])
def test_a_builtin_objective_of_several_losses_trains_in_a_pipeline(name, train) -> None:
    torch.manual_seed(0)

    class Segmenter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def segment(self, image):
            return self.layer(image)

    samples = gw.TensorSamples(image=torch.rand(8, 3, 6, 6), mask=torch.randint(3, (8, 6, 6)))
    data = gw.Dataset({"train": samples}, gw.DatasetInfo(classes=("a", "b", "c")))
    base = {"use": "segmentation-cross-entropy", "dice": 1.0}
    engine = train(gw.objective(name, base=base, losses=["cross-entropy", "dice"]), Segmenter(), data, batch_size=8, steps=20)
    assert engine.rows[-1]["loss"] < engine.rows[0]["loss"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PCGradObjective(Three(), ["near", "near"]), r"pcgrad needs at least 2 losses, each named once; found \['near', 'near'\]"),
        (lambda: PCGradObjective(Three(), ["near", "fat"]), r'losses: "fat" is no part \(did you mean "far"\?\) of Three'),
        (lambda: PCGradObjective(Three(), ["near", "size"]), 'losses: "size" is not differentiable of Three'),
        (lambda: PCGradObjective(ClusteredDenoising()), "pcgrad owns the step, and so does ClusteredDenoising"),
        (
            lambda: PCGradObjective(gw.objective("mse")),
            "pcgrad needs at least 2 losses; MeanSquaredError has the differentiable parts none",
        ),
    ],
)
def test_bad_bases_and_losses_are_refused(make, message, setup, train) -> None:
    model, _ = setup
    both = gw.TensorSamples(features=torch.randn(16, 4), target=torch.zeros(16, 2))
    model.num_features, model.inputs = 2, ("features",)
    model.forward_features, model.forward_head = model.forward, lambda x, pre_logits=False: x
    with pytest.raises(gw.ConfigError, match=message):
        train(make(), model, gw.Dataset({"train": both}), batch_size=16)
