"""What the objective is put around: tasks, labelled and mixed feeds; and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import graftwork as gw
from graftwork import INPUTS, Loss, Objective
from graftwork.interfaces import embed
from graftwork_dann import DomainAdversarial, reversal_coefficient

# -- tasks ---------------------------------------------------------------------------------------------------------------------


class Contrast(Objective):
    """Binomial deviance on the cosine similarity of all pairs, as the paper's descriptors are trained."""

    keys = {"train": (INPUTS, "label")}

    def forward(self, model: Any, batches: Any, progress: float) -> Loss:
        unit = functional.normalize(embed(model, batches["train"]), dim=1)
        label = batches["train"]["label"]
        sign = torch.where(label[:, None] == label, 1.0, -1.0)
        return Loss(functional.softplus(-2 * sign * (unit @ unit.T - 0.5)).mean())


def test_descriptors_are_adapted_with_a_metric_loss_inside(
    tower: nn.Module, batches: dict, built: Callable, gradients: Callable, same: Callable, written_out: Callable
) -> None:
    objective = built(tower, task=Contrast())
    found = objective(tower, batches, 0.5)
    alone = Contrast()(tower, {"train": batches["source"]}, 0.5).total
    assert torch.allclose(found.parts["task"], alone)
    _, domain = written_out(tower, objective.heads["bottleneck"], batches)
    assert same(gradients(found.total, tower), gradients(alone - reversal_coefficient(0.5) * domain, tower))


def test_an_embedders_bottleneck_is_its_embedding(batches: dict) -> None:
    class Embedding(nn.Module):
        inputs, embedding_dim = ("features",), 6

        def __init__(self) -> None:
            super().__init__()
            self.num_features, self.layer = 6, nn.Linear(4, 6, dtype=torch.float64)
            del self.num_features

        def embed(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    class Descriptor(Contrast):
        needs = gw.interfaces.Embedder

    for joint in (True, False):
        objective = DomainAdversarial(task=Descriptor(), hidden=[5], dropout=0.0, joint_forward=joint)
        objective.build_heads({"bottleneck": 6})
        assert objective.needs is gw.interfaces.Embedder
        assert objective.double()(Embedding(), batches, 0.5).total.isfinite()


class Siamese(Contrast):
    """Runs the model twice in a step."""

    def forward(self, model: Any, batches: Any, progress: float) -> Loss:
        first, second = (model(batches["train"]["features"]) for _ in range(2))
        assert len(first) == len(second) == len(batches["train"]["label"])
        return Loss((first - second).square().sum() + first.square().mean())


def test_a_task_may_run_the_model_more_than_once(tower: nn.Module, batches: dict, built: Callable) -> None:
    found = built(tower, task=Siamese())(tower, batches, 0.5)
    assert torch.allclose(found.parts["task"], tower(batches["source"]["features"]).square().mean())


def test_labelled_target_samples_join_the_task_loss_alone(tower: nn.Module, batches: dict, built: Callable, written_out: Callable) -> None:
    few = {"features": torch.randn(2, 4, dtype=torch.float64), "label": torch.tensor([2, 0])}
    objective = built(tower, labelled=["source", "few"])
    assert objective.feeds == ("source", "target", "few")
    for joint in (True, False):
        objective.joint_forward = joint
        parts = objective(tower, {**batches, "few": few}, 0.5).parts
        rows = torch.cat([few["features"], batches["source"]["features"]])
        labels = torch.cat([few["label"], batches["source"]["label"]])
        assert torch.allclose(parts["task"], functional.cross_entropy(tower(rows), labels))
        _, domain = written_out(tower, objective.heads["bottleneck"], batches)
        assert torch.allclose(parts["domain"], domain)


def test_any_number_of_domains_is_told_apart(tower: nn.Module, batches: dict, built: Callable) -> None:
    more = {**batches, "third": {"features": torch.randn(4, 4, dtype=torch.float64)}}
    objective = built(tower, domains=["source", "target", "third"])
    parts = objective(tower, more, 0.5).parts
    logits = [objective.heads["bottleneck"](tower.trunk(more[feed]["features"])) for feed in ("source", "target", "third")]
    expected = sum(functional.cross_entropy(rows, torch.full((len(rows),), number)) for number, rows in enumerate(logits))
    assert torch.allclose(parts["domain"], expected)


def test_every_domain_may_be_labelled(tower: nn.Module, batches: dict, built: Callable) -> None:
    both = {**batches, "target": {**batches["target"], "label": torch.tensor([0, 1, 2])}}
    parts = built(tower, labelled=["source", "target"])(tower, both, 0.5).parts
    rows, labels = (torch.cat([both[feed][key] for feed in ("source", "target")]) for key in ("features", "label"))
    assert torch.allclose(parts["task"], functional.cross_entropy(tower(rows), labels))


# -- one feed with domain ids --------------------------------------------------------------------------------------------------


def mixed(batches: dict, label: int = 0) -> dict:
    rows = torch.cat([batches["target"]["features"], batches["source"]["features"]])
    labels = torch.cat([torch.full((3,), label), batches["source"]["label"]])
    return {"train": {"features": rows, "label": labels, "domain": torch.tensor([1, 1, 1, 0, 0, 0, 0, 0])}}


def test_one_feed_with_domain_ids_gives_what_two_feeds_give(
    tower: nn.Module, batches: dict, built: Callable, gradients: Callable, same: Callable
) -> None:
    one, two = built(tower, mixed=True), built(tower)
    first, second = one(tower, mixed(batches), 0.5), two(tower, batches, 0.5)
    assert torch.allclose(first.total, second.total)
    assert same(gradients(first.total, tower), gradients(second.total, tower))


def test_labels_of_unlabelled_domains_are_masked(tower: nn.Module, batches: dict, built: Callable) -> None:
    objective = built(tower, mixed=True)
    first, second = (objective(tower, mixed(batches, label), 0.5).total for label in (0, 2))
    assert torch.equal(first, second)


def test_a_batch_of_one_domain_is_refused(tower: nn.Module, batches: dict, built: Callable) -> None:
    batch = mixed(batches)["train"]
    with pytest.raises(gw.DataError, match='needs at least two domains in a batch; this one has "source" alone'):
        built(tower, mixed=True)(tower, {"train": {**batch, "domain": torch.zeros(8, dtype=torch.long)}}, 0.5)
    with pytest.raises(gw.DataError, match=r"`domain` is the place in source, target, 0 to 1; the batch has \[0, 4\]"):
        built(tower, mixed=True)(tower, {"train": {**batch, "domain": batch["domain"] * 4}}, 0.5)


# -- what is refused -----------------------------------------------------------------------------------------------------------


def test_no_target_data_is_refused(tower: nn.Module, batches: dict, built: Callable) -> None:
    with pytest.raises(gw.DataError, match="needs at least two domains, here source, target; the batches have source and lack target"):
        built(tower)(tower, {"source": batches["source"]}, 0.5)
    with pytest.raises(ValueError, match="needs at least two domains; found source"):
        DomainAdversarial(domains=["source"])


def test_target_labels_are_refused(tower: nn.Module, batches: dict, built: Callable) -> None:
    with pytest.raises(gw.DataError, match='batch of "target" brings labels, which must not be seen'):
        built(tower)(tower, {**batches, "target": {**batches["target"], "label": torch.zeros(3)}}, 0.5)


def test_domains_of_different_size_are_passed_apart(tower: nn.Module, batches: dict, built: Callable) -> None:
    odd = {**batches, "target": {"features": torch.randn(3, 5, dtype=torch.float64)}}
    with pytest.raises(gw.DataError, match=r"differ in shape, \(4,\) and \(5,\): pass them apart with joint_forward: false"):
        built(tower)(tower, odd, 0.5)


def test_a_task_that_bypasses_the_attachment_point_is_named(tower: nn.Module, batches: dict, built: Callable) -> None:
    class Aside(Contrast):
        def forward(self, model: Any, batches: Any, progress: float) -> Loss:
            return Loss(model.trunk(batches["train"]["features"]).sum())

    with pytest.raises(gw.InterfaceError, match='attachment point "bottleneck" saw 0 of 8 rows: Aside does not pass'):
        built(tower, task=Aside())(tower, batches, 0.5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"domains": ["a", "a"]}, "at least two domains"),
        ({"domains": ["a", "b", "a"]}, "named twice"),
        ({"labelled": []}, "labelled names at least one feed"),
        ({"attach": []}, "attach names one or more points"),
        ({"gamma": 0.0}, "gamma is above 0"),
        ({"high": float("nan")}, "low and high are finite"),
        ({"domain_loss_weight": -1.0}, "domain_loss_weight is finite and not negative; found -1"),
        ({"max_iter": 0}, "max_iter is at least 1"),
        ({"hidden": [0]}, "hidden widths"),
        ({"dropout": 1.0}, "dropout is in"),
        ({"head_lr": 0.0}, "head_lr and head_bias_lr are above 0"),
        ({"mixed": True, "task": Contrast()}, "only cross-entropy understands"),
        ({"task": DomainAdversarial()}, "draws from one feed; DomainAdversarial draws from source, target"),
    ],
)
def test_bad_values_are_refused(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DomainAdversarial(**parameters)
