from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_unified_petl import Modification, petl_of

SMALL = {"reparameterisation": None}
CODE = {
    "petl": ({"spec": [{"form": "adapter", "site": "ffn", "layers": [0]}]}, [Modification("adapter", "ffn", layers=(0,))]),
    "prefix-tuning": ({}, [Modification("prefix", "heads", composition="concatenated", bottleneck=200, reparameterisation=800)]),
    "prefix-gated-add": ({}, [Modification("prefix", "heads", composition="gated", bottleneck=200, reparameterisation=800)]),
    "prefix-vanilla-add": ({}, [Modification("prefix", "heads", layernorm="in", bottleneck=200, reparameterisation=800)]),
    "sequential-adapter": (
        {},
        [
            Modification("adapter", "attention", insertion="sequential", layernorm="in", bottleneck=200),
            Modification("adapter", "ffn", insertion="sequential", bottleneck=200),
        ],
    ),
    "parallel-adapter": ({"site": "attention"}, [Modification("adapter", "attention", bottleneck=512)]),
    "scaled-parallel-adapter": (
        {"scale": "learnable"},
        [Modification("adapter", "ffn", composition="scaled", scale="learnable", init="lora", bottleneck=512)],
    ),
    "multi-head-parallel-adapter": (
        {"scale": 2.0, **SMALL},
        [Modification("multi-head", "heads", composition="scaled", scale=2.0, layernorm="in", bottleneck=30)],
    ),
    "lora-attn": (
        {},
        [Modification("lora", one, composition="scaled", scale=2.0, init="lora", dropout=0.1) for one in ("query", "value")],
    ),
    "lora-ffn": (
        {"rank": 4, "alpha": 8},
        [Modification("lora", one, "parallel", "scaled", 4, 2.0, "lora", dropout=0.1) for one in ("ffn-in", "ffn-out")],
    ),
    "mam-adapter": (
        {},
        [
            Modification("prefix", "heads", composition="concatenated", bottleneck=30, reparameterisation=800),
            Modification("adapter", "ffn", composition="scaled", bottleneck=512, scale=4.0, init="lora"),
        ],
    ),
}


@pytest.mark.parametrize("name", CODE)
def test_a_component_is_the_modification_that_the_authors_code_has_by_default(name: str, make: Callable, measure: Callable) -> None:
    parameters, expected = CODE[name]
    backbone = make("bert")
    model = gw.model(name, backbone=backbone, seed=3, **parameters)
    assert model is backbone
    assert list(petl_of(model).modifications) == expected
    assert measure(model, "bert").shape == (2, 3)


@pytest.mark.parametrize(("placement", "sites"), [("pfeiffer", ["layer"]), ("attention", ["attention"]), ("ffn", ["ffn"])])
def test_placements_of_sequential_adapters(placement: str, sites: list, make: Callable) -> None:
    model = gw.model("sequential-adapter", backbone=make("bert"), placement=placement)
    assert [one.site for one in petl_of(model).modifications] == sites


def test_baselines_are_built_by_name(make: Callable, measure: Callable) -> None:
    for name, parameters in (("prompt-tuning", {"length": 4}), ("bitfit", {})):
        assert measure(gw.model(name, backbone=make("bert"), **parameters), "bert").shape == (2, 3)


@pytest.mark.parametrize(("name", "parameters", "message"), [
    ("mam-adapter", {"bottleneck": 0}, "bottleneck: input should be greater than or equal to 1; found 0"),
    ("prefix-tuning", {"length": 0}, "length: input should be greater than or equal to 1; found 0"),
    ("lora-attn", {"alpha": 0}, "alpha: input should be greater than 0; found 0"),
    ("petl", {"spec": [{"form": "prefix", "site": "heads", "insertion": "sequential"}]}, "heads have no output of their own"),
])  # fmt: skip
def test_bad_parameters_are_named(name: str, parameters: dict, message: str, make: Callable) -> None:
    with pytest.raises(gw.ConfigError, match=message):
        gw.model(name, backbone=make("bert"), **parameters)


def test_a_prefix_needs_attention() -> None:
    with pytest.raises(gw.InterfaceError, match="SmallCNN has no transformer layer with attention"):
        gw.model("prefix-tuning", backbone="small-cnn")


def trained(objective: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    stage = {
        "dataset": {"use": "digits"},
        "model": {
            "use": "mam-adapter",
            "backbone": {"use": "zoo/digit-source", "variant": "vit-clean"},
            "length": 2,
            "bottleneck": 3,
            "reparameterisation": 8,
        },
        "objective": objective,
        "train": {"steps": 2, "batch_size": 8, "optimizer": {"use": "sgd", "lr": 0.1}, "feeds": {"train": "train"}},
        "evaluate": ["petl-parameter-count"],
    }
    result = gw.Pipeline.from_dict({"stages": {"tuned": stage}}).run(device="cpu")
    assert result.metrics["tuned/new"] == result.metrics["tuned/by-formula"]
    return result.models["tuned"], gw.model("zoo/digit-source", variant="vit-clean").state_dict()


def test_training_in_a_pipeline_moves_what_is_new_and_the_head_alone() -> None:
    pytest.importorskip("graftwork_testbed", reason="needs the test bed's digits and networks")
    model, start = trained("cross-entropy")
    moved = {key for key, one in model.state_dict().items() if key in start and not torch.equal(one, start[key])}
    assert moved == {"model.classifier.weight", "model.classifier.bias"}
    started_at_zero = [one for name, one in petl_of(model).named_parameters() if name.endswith("up.weight")]
    assert len(started_at_zero) == 4
    assert all(one.any() for one in started_at_zero)


def test_the_recipe_assembles() -> None:
    pytest.importorskip("graftwork_testbed", reason="needs the test bed's digits and networks")
    gw.Pipeline.from_yaml(str(files("graftwork_unified_petl") / "recipes" / "unified-petl.yaml")).assemble()
