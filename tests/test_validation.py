"""Validation while training: which weights are handed on, when training ends, and what it leaves as it was."""

from __future__ import annotations

import torch

import graftwork as gw
from graftwork.kinds.evaluator import evaluating

from .small_training import Fit, train


class Decaying(gw.Evaluator):
    """A validation figure that is best at its second measurement."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[torch.Tensor] = []

    def evaluate(self, model, data, run=None):
        self.count += 1
        self.kept.append(model.head.weight.detach().clone())
        with evaluating(model):
            return gw.Report({"score": 1.0 if self.count == 2 else 0.0})


def test_the_weights_that_were_best_on_validation_are_handed_on() -> None:
    validator = Decaying()
    engine = train(Fit(), validator=validator, epochs=4, validate={"evaluate": "decaying"})
    assert [value for _, value in engine.history] == [0.0, 1.0, 0.0, 0.0]
    assert torch.equal(engine.model.head.weight, validator.kept[1])
    assert not torch.equal(engine.model.head.weight, validator.kept[3])


def test_the_lowest_is_best_when_lower_is_better_and_patience_ends_training() -> None:
    validator = Decaying()
    engine = train(Fit(), validator=validator, epochs=9, validate={"evaluate": "decaying", "direction": "lower", "patience": 2})
    assert validator.count == 3
    assert torch.equal(engine.model.head.weight, validator.kept[0])


def test_validation_leaves_the_training_mode_as_it_was() -> None:
    modes: list[bool] = []

    class Watching(Fit):
        def forward(self, model, batches, progress):
            modes.append(model.training)
            return super().forward(model, batches, progress)

    train(Watching(), validator=Decaying(), validate={"evaluate": "decaying"})
    assert all(modes)


def test_after_step_follows_each_optimiser_step_once_and_comes_before_validation() -> None:
    told: list[str] = []

    class Following(Fit):
        def after_step(self, model):
            told.append("stepped")

    class Looking(Decaying):
        def evaluate(self, model, data, run=None):
            told.append("validated")
            return super().evaluate(model, data, run)

    train(Following(), validator=Looking(), validate={"evaluate": "decaying"}, epochs=None, steps=4, accumulate=2)
    assert told.count("stepped") == 4
    assert told[-2:] == ["stepped", "validated"]
