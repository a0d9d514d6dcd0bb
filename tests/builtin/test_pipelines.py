"""The builtin components together, from a document to numbers."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

import graftwork as gw

image_library = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Noisy images of three colours, a folder each."""
    generator = numpy.random.default_rng(0)
    for name, colour in (("blue", (60, 60, 190)), ("green", (60, 190, 60)), ("red", (190, 60, 60))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(20):
            array = generator.normal(colour, 40, (16, 16, 3)).clip(0, 255).astype(numpy.uint8)
            image_library.fromarray(array).save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path / "images"


def document(folder: Path) -> dict:
    images = {"use": "image-folder", "root": str(folder)}
    train = {"steps": 15, "batch_size": 12, "optimizer": {"use": "adam", "lr": 0.003}}
    probes = [{"use": "linear-probe"}, {"use": "knn-probe", "k": 5}, {"use": "retrieval", "gallery": "train", "recall_at": [1]}]
    return {
        "stages": {
            "teacher": {
                "dataset": {"use": "class-balanced-batches", "data": images, "classes": 3, "instances": 4},
                "model": {"use": "small-cnn", "num_classes": 3, "width": 8},
                "objective": "cross-entropy",
                "train": train,
                "evaluate": ["accuracy", *probes],
            },
            "student": {
                "dataset": {"use": "few-shot-subset", "data": images, "shots": 4},
                "model": {"use": "mlp", "in_features": 768, "hidden": [16], "num_classes": 3, "input": "image"},
                "objective": {"use": "distillation", "teacher": {"from": "teacher"}, "alpha": 1.0},
                "train": train,
                "evaluate": "accuracy",
            },
        }
    }


def test_a_teacher_is_trained_probed_and_distilled(folder: Path, tmp_path: Path) -> None:
    result = gw.Pipeline.from_dict(document(folder)).run(tmp_path / "run", device="cpu")
    for metric in ("accuracy", "linear-probe-accuracy", "knn-accuracy", "recall@1"):
        assert result.metrics[f"teacher/{metric}"] > 0.9, metric  # chance is a third
    assert result.metrics["student/accuracy"] > 0.8
    assert (tmp_path / "run" / "stages" / "teacher" / "accuracy" / "confusion.png").stat().st_size > 1000


def test_mistakes_are_found_before_anything_trains(folder: Path) -> None:
    wrong = document(folder)
    wrong["stages"]["teacher"]["model"]["grid"] = 0
    wrong["stages"]["student"]["dataset"]["shots"] = 50
    wrong["stages"]["student"]["evaluate"] = "regression-error"
    with pytest.raises(gw.PipelineError) as raised:
        gw.Pipeline.from_dict(wrong).run(device="cpu")
    assert "greater than or equal to 1; found 0" in str(raised.value)
    del wrong["stages"]["teacher"]["model"]["grid"]
    with pytest.raises(gw.PipelineError) as raised:
        gw.Pipeline.from_dict(wrong).run(device="cpu")
    assert 'class 0 has 14 samples in split "train"; 50 shots were asked for' in str(raised.value)
    wrong["stages"]["student"]["dataset"]["shots"] = 4
    with pytest.raises(gw.PipelineError) as raised:
        gw.Pipeline.from_dict(wrong).run(device="cpu")
    assert 'evaluator "regression-error" reads "target"; the samples of "test" have image, label' in str(raised.value)
