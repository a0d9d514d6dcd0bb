from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import graftwork as gw
from graftwork_testbed.zoo.catalogue import CARDS, VARIANTS

RECIPES = sorted((Path(__file__).resolve().parents[2] / "src" / "graftwork_testbed" / "zoo" / "recipes").glob("*.yaml"))
FEW = {
    "digit-scenes": {"train": 8, "val": 2, "test": 4},
    "template-text": {"samples": 200},
    "text-corpus": {"sentences": 200, "docstrings": False},
}


def shrunk(value: Any) -> Any:
    """A document whose data sets hold a few samples."""
    if isinstance(value, list):
        return [shrunk(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: shrunk(item) for key, item in value.items()} | FEW.get(value.get("use", ""), {})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_assembles(path, tmp_path):
    document = shrunk(yaml.safe_load(path.read_text()))
    small = tmp_path / path.name
    small.write_text(yaml.safe_dump(document, sort_keys=False))
    plan = gw.Pipeline.from_yaml(small).assemble()
    assert list(plan.stages) == list(document["stages"])


def test_every_network_has_a_recipe_and_is_measured():
    stages = {stage for path in RECIPES for stage in gw.Pipeline.from_yaml(path).document.data["stages"]}
    names = [*(name for name in CARDS if name not in VARIANTS), *(f"{name}-{one}" for name in VARIANTS for one in VARIANTS[name])]
    assert set(names) <= stages
    assert {CARDS[name].recipe.partition("/")[2] for name in CARDS} <= {path.stem for path in RECIPES}
