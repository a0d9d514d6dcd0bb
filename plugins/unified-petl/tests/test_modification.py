from __future__ import annotations

import dataclasses
import itertools
import json
from typing import get_args

import pytest

from graftwork.config import validate
from graftwork_unified_petl import BitFit, Modification, PromptTuning, petl
from graftwork_unified_petl.modification import Composition, Form, Insertion, Site, modification_from_json

ROWS = {
    "prefix tuning": {"form": "prefix", "site": "heads", "composition": "gated"},
    "adapter": {"form": "adapter", "site": "ffn", "insertion": "sequential"},
    "LoRA": {"form": "lora", "site": "query", "composition": "scaled", "scale": 2.0},
    "parallel adapter": {"form": "adapter", "site": "ffn"},
    "multi-head PA": {"form": "multi-head", "site": "heads"},
    "scaled PA": {"form": "adapter", "site": "ffn", "composition": "scaled", "scale": 4.0},
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_papers_table_is_a_crossing(row: str) -> None:
    made = Modification(**ROWS[row])
    assert modification_from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(("fields", "message"), [
    ({"form": "adapter", "site": "heads", "insertion": "sequential"}, "sequential, site heads, add: heads have no output"),
    ({"form": "prefix", "site": "heads", "insertion": "sequential"}, "insert in parallel"),
    ({"form": "adapter", "site": "ffn", "composition": "gated"}, "the gate is a ratio of softmax sums, which only a prefix has"),
    ({"form": "multi-head", "site": "heads", "composition": "gated"}, "which only a prefix has"),
    ({"form": "prefix", "site": "ffn"}, "reads each head's query"),
    ({"form": "adapter", "site": "heads"}, "per head it is multi-head"),
    ({"form": "adapter", "site": "layer"}, "Pfeiffer's"),
    ({"form": "prefix", "site": "heads", "composition": "concatenated", "layernorm": "in"}, "with a layernorm use gated"),
    ({"form": "prefix", "site": "heads", "layernorm": "out"}, "layernorm at its query"),
    ({"form": "lora", "site": "ffn", "reparameterisation": 8}, "only prefixes are generated"),
    ({"form": "prefix", "site": "heads", "reparameterisation": 8, "init": "lora"}, "initialised by its network"),
    ({"form": "adapter", "site": "fnn"}, 'site is one of heads, attention, query, .*, layer; found "fnn"'),
    ({"form": "adaptor", "site": "ffn"}, 'form is one of prefix, multi-head, adapter, lora; found "adaptor"'),
    ({"form": "adapter", "site": "ffn", "bottleneck": 0}, "bottleneck .* is at least 1; found 0"),
    ({"form": "prefix", "site": "heads", "bottleneck": -1}, "l of a prefix.* is at least 1; found -1"),
    ({"form": "prefix", "site": "heads", "reparameterisation": 0}, "reparameterisation is at least 1; found 0"),
    ({"form": "adapter", "site": "ffn", "dropout": 1.0}, r"dropout is in \[0, 1\); found 1.0"),
    ({"form": "adapter", "site": "ffn", "scale": 2.0}, 'scale 2.0 needs composition "scaled"; found "add"'),
    ({"form": "adapter", "site": "ffn", "composition": "scaled", "scale": 0.0}, "positive number"),
    ({"form": "adapter", "site": "ffn", "composition": "scaled", "scale": "learned"}, 'or "learnable"; found "learned"'),
    ({"form": "adapter", "site": "ffn", "attentions": ["self"]}, 'attentions are of encoder, decoder, cross; found "self"'),
    ({"form": "adapter", "site": "ffn", "layers": []}, "layers names none"),
])  # fmt: skip
def test_what_does_not_exist_is_refused_with_its_reason(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Modification(**fields)


def test_all_four_dimensions_cross_freely_outside_of_the_stated_rules() -> None:
    found = set()
    for form, site, insertion, composition in itertools.product(*(get_args(one) for one in (Form, Site, Insertion, Composition))):
        try:
            found.add(dataclasses.astuple(Modification(form, site, insertion, composition))[:4])
        except ValueError:
            continue
    bottlenecks = 2 * 2 * (2 * 8 + 1)  # adapter, lora; add, scaled; eight sites both ways, Pfeiffer's one way
    assert len(found) == bottlenecks + 4 + 2  # a prefix in four compositions, multi-head in two


def test_a_specification_in_yaml_is_checked_like_one_in_python() -> None:
    values, invalid = validate(petl, {"backbone": "small-cnn", "spec": [{"form": "adapter", "site": "ffn", "layers": [0, -1]}]})
    assert not invalid
    assert values["spec"] == [Modification("adapter", "ffn", layers=(0, -1))]
    _, invalid = validate(petl, {"backbone": "small-cnn", "spec": [{"form": "adapter", "site": "ffn", "botleneck": 3}]})
    assert (invalid[0].path, invalid[0].message) == (("spec", 0, "botleneck"), "unexpected keyword argument; found 3")
    _, invalid = validate(petl, {"backbone": "small-cnn", "spec": [{"form": "adapter", "site": "layer"}]})
    assert "Pfeiffer" in invalid[0].message


def test_baselines_come_back_from_json() -> None:
    assert modification_from_json(PromptTuning(5).to_json()) == PromptTuning(5)
    assert modification_from_json(BitFit().to_json()) == BitFit()
    with pytest.raises(ValueError, match="length is at least 1; found 0"):
        PromptTuning(0)
    with pytest.raises(ValueError, match='unknown method "ia3"'):
        modification_from_json({"method": "ia3"})
    with pytest.raises(ValueError, match="cannot be read"):
        modification_from_json({"form": "adapter", "site": "ffn", "rank": 3})
