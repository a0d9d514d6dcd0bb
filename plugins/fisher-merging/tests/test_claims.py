"""What a recipe's claim cannot say: that two numbers are near each other."""

from __future__ import annotations

from importlib.resources import files

import pytest

import graftwork as gw


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_models_merged_are_within_a_point_of_the_ensemble_of_their_predictions() -> None:
    pytest.importorskip("graftwork_testbed", reason="needs the test bed's digits and networks")
    path = files("graftwork_fisher_merging") / "recipes" / "seeds.yaml"
    metrics = gw.Pipeline.from_yaml(str(path)).run(device="cpu").metrics
    assert metrics["ensemble/forward-passes"] == 5
    for merge in ("fisher", "isotropic"):
        assert abs(metrics[f"{merge}/accuracy"] - metrics["ensemble/accuracy"]) <= 0.01
