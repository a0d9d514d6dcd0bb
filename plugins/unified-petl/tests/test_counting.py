from __future__ import annotations

from collections.abc import Callable

import pytest

import graftwork as gw
from graftwork_unified_petl import (
    BitFit,
    Modification,
    PetlParameterCount,
    PromptTuning,
    attach,
    count_by_formula,
    fold,
    parameters_of,
    petl_of,
)

D, LAYERS, WIDE = 16, 2, 24
EMPTY = gw.Dataset({})
BERT = {
    "prefix": ([Modification("prefix", "heads", bottleneck=5)], LAYERS * 2 * 5 * D),
    "adapter": ([Modification("adapter", "ffn", bottleneck=5)], LAYERS * (2 * 5 * D + 5 + D)),
    "LoRA at attention": ([Modification("lora", site, bottleneck=5) for site in ("query", "value")], LAYERS * 4 * 5 * D),
    "LoRA at the FFN": ([Modification("lora", site, bottleneck=5) for site in ("ffn-in", "ffn-out")], LAYERS * 2 * 5 * (D + WIDE)),
    "multi-head PA": ([Modification("multi-head", "heads", bottleneck=5, layernorm="in")], LAYERS * (2 * 5 * D + 2 * D)),
    "learnable scale": (
        [Modification("adapter", "ffn", bottleneck=5, composition="scaled", scale="learnable", layernorm="in")],
        LAYERS * (2 * 5 * D + 5 + D + 2 * D + 1),
    ),
    "reparameterised": (
        [Modification("prefix", "heads", bottleneck=5, reparameterisation=7)],
        5 * D + (D * 7 + 7) + (7 * 2 * LAYERS * D + 2 * LAYERS * D),
    ),
    "prompt": ([PromptTuning(5)], 5 * D),
}


@pytest.mark.parametrize("row", BERT)
def test_the_count_is_the_formula(row: str, make: Callable) -> None:
    spec, expected = BERT[row]
    model = attach(make("bert"), spec, seed=0)
    assert petl_of(model).count() == sum(one.numel() for one in petl_of(model).parameters()) == expected
    assert count_by_formula(model, spec) == expected


def test_at_the_papers_width_lora_at_the_ffn_has_ten_r_d() -> None:
    assert parameters_of(Modification("lora", "ffn-in", bottleneck=16), 768, 4 * 768) == 5 * 16 * 768
    with pytest.raises(ValueError, match="a prefix is counted by l and the heads"):
        parameters_of(Modification("prefix", "heads"), 16, 16)


def test_every_family_counts_by_formula(every_model: str, make: Callable) -> None:
    spec = [
        Modification("prefix", "heads", composition="concatenated", reparameterisation=6),
        Modification("adapter", "attention", layernorm="out"),
        Modification("adapter", "layer", insertion="sequential"),
        *(Modification("lora", site) for site in ("query", "key", "value", "attention-output", "ffn-in", "ffn-out")),
    ]
    model = attach(make(every_model), spec, seed=0)
    assert petl_of(model).count() == count_by_formula(model, spec)


def test_the_report_counts_a_prefix_as_it_is_kept(make: Callable) -> None:
    spec = [Modification("prefix", "heads", bottleneck=5, reparameterisation=7), Modification("adapter", "ffn", bottleneck=3)]
    model = attach(make("bert"), spec, seed=0)
    kept, trained = (PetlParameterCount(folded).evaluate(model, EMPTY).metrics for folded in (True, False))
    assert kept["new"] == kept["by-formula"] == BERT["prefix"][1] + LAYERS * (2 * 3 * D + 3 + D)
    assert trained["new"] == trained["by-formula"] > kept["new"]
    assert kept["heads"] == D * 3 + 3
    assert kept["share"] == kept["new"] / kept["frozen"]
    assert petl_of(model).modifications[0].reparameterisation is not None
    fold(model)
    assert PetlParameterCount().evaluate(model, EMPTY).metrics == kept


def test_the_report_shows_each_site_and_layer(make: Callable) -> None:
    spec = [Modification("prefix", "heads", composition="concatenated", bottleneck=5), Modification("adapter", "ffn", bottleneck=3)]
    report = PetlParameterCount().evaluate(attach(make("bart"), spec, seed=0), EMPTY)
    rows = report.tables["sites"].rows
    assert len(rows) == 6 + 4  # three kinds of attention and two kinds of FFN, in two layers
    assert sum(row[-1] for row in rows) == report.metrics["new"]
    axes = report.figures["parameters"].figure.axes[0]
    assert [one.get_text() for one in axes.get_legend().get_texts()] == ["heads", "ffn"]
    assert len(axes.get_yticklabels()) == 4


def test_with_bitfit_the_biases_are_what_is_counted(make: Callable) -> None:
    model = attach(make("bert"), [BitFit()])
    metrics = PetlParameterCount().evaluate(model, EMPTY).metrics
    biases = sum(one.numel() for name, one in model.named_parameters() if "bias" in name and not name.startswith("classifier"))
    assert metrics["new"] == metrics["by-formula"] == biases
    assert metrics["heads"] == D * 3 + 3


def test_an_unmodified_model_is_refused(make: Callable) -> None:
    with pytest.raises(gw.InterfaceError, match="has no modifications"):
        PetlParameterCount().evaluate(make("bert"), EMPTY)
