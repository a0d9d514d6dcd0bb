from __future__ import annotations

from pathlib import Path

import pytest

import graftwork as gw
from graftwork import config
from graftwork.spec import PipelineSpec
from graftwork_testbed.zoo.catalogue import CARDS, VARIANTS

RECIPES = sorted((Path(__file__).resolve().parents[2] / "src" / "graftwork_testbed" / "zoo" / "recipes").glob("*.yaml"))


def parts(value):
    """Every `{use: ...}` of a document, with its kind unknown."""
    if isinstance(value, dict):
        if "use" in value:
            yield value
        for inner in value.values():
            yield from parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from parts(inner)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_component_of_a_recipe_is_installed_and_takes_its_parameters(path):
    data = gw.Pipeline.from_yaml(path).document.data
    PipelineSpec.model_validate(data)
    for part in parts([[stage.get(key) for key in ("dataset", "model", "objective", "evaluate")] for stage in data["stages"].values()]):
        bare = part["use"].rpartition("/")[2]
        kinds = [kind for kind in ("dataset", "model", "objective", "evaluator") if bare in gw.installed().names(kind)]
        assert kinds, part["use"]
        known = {name for kind in kinds for name in config.parameters(gw.installed().find(kind, part["use"]).load())}
        assert set(part) - {"use", "as"} <= known, part


def test_every_network_has_a_recipe_and_is_measured():
    stages = {stage for path in RECIPES for stage in gw.Pipeline.from_yaml(path).document.data["stages"]}
    names = [*(name for name in CARDS if name not in VARIANTS), *(f"{name}-{one}" for name in VARIANTS for one in VARIANTS[name])]
    assert set(names) <= stages
    assert {CARDS[name].recipe.partition("/")[2] for name in CARDS} <= {path.stem for path in RECIPES}
