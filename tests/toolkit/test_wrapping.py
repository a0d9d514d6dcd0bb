"""An objective around another passes on all that the inner one says, and refuses one that owns the step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork.builtin.networks import SmallCNN
from graftwork.toolkit.wrapping import Around


class Inner(gw.Objective):
    """Says something of its own on every count."""

    feeds = ("left", "right")
    keys = {"left": ("image",)}
    needs = nn.Module

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def setup(self, model, data):
        self.seen.append("setup")

    def forward(self, model, batches, progress):
        return torch.tensor(progress)

    def after_step(self, model):
        self.seen.append("stepped")

    def optimizers(self, model, make):
        return {"mine": make(list(model.parameters()))}

    def export(self, model):
        return "exported"


class Owner(Inner):
    def update(self, engine, batches):
        return gw.Loss(torch.zeros(()))


class Looping(Inner):
    def fit(self, engine):
        pass


def test_it_says_what_the_inner_one_says() -> None:
    inner, model = Inner(), nn.Linear(2, 2)
    outer = Around(inner, "outer")
    assert (outer.feeds, outer.keys, outer.needs) == (inner.feeds, inner.keys, inner.needs)
    outer.setup(model, gw.Dataset({}))
    outer.after_step(model)
    assert inner.seen == ["setup", "stepped"]
    assert outer(model, {}, 0.25).total.item() == 0.25
    assert list(outer.optimizers(model, lambda groups: torch.optim.SGD(groups, lr=0.1))) == ["mine"]
    assert outer.export(model) == "exported"
    assert not outer.exports_model
    assert Around(None, "outer").exports_model


def test_the_inner_ones_parameters_are_its_own() -> None:
    inner = Inner()
    inner.scale = nn.Parameter(torch.ones(()))
    assert "base.scale" in Around(inner, "outer").state_dict()


def test_a_model_that_lacks_what_the_inner_one_needs_is_refused() -> None:
    inner = Inner()
    inner.needs = gw.Backbone
    outer = Around(inner, "outer")
    outer.setup(SmallCNN(num_classes=3), gw.Dataset({}))
    with pytest.raises(gw.InterfaceError, match=r"Inner needs .*Backbone"):
        outer.setup(nn.Linear(2, 2), gw.Dataset({}))


@pytest.mark.parametrize(("inner", "what"), [(Owner(), "step"), (Looping(), "loop")])
def test_an_inner_one_that_owns_its_step_or_loop_is_refused(inner: gw.Objective, what: str) -> None:
    with pytest.raises(gw.ConfigError, match=f"outer owns the step, and so does {type(inner).__name__}, which brings a {what} of its own"):
        Around(inner, "outer")
