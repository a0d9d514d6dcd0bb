"""All of it through graftwork: real transformers models from folders, image folders as source sets, fine-tuning, truth, correlation."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import graftwork as gw
from graftwork_osborn import Reading, read_outputs

transformers = pytest.importorskip("transformers", reason="needs transformers")

RESNET = {"embedding_size": 4, "hidden_sizes": [6], "depths": [1], "layer_type": "basic", "num_labels": 3}
VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 16, "patch_size": 8}
PYRAMID = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_encoder_blocks": 2, "num_attention_heads": [1, 2], "sr_ratios": [2, 1]}
SEGFORMER = {**PYRAMID, "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 16, "num_labels": 4}


@pytest.fixture
def stored(tmp_path: Path):
    """stored("ResNetForImageClassification", config): the folder of a tiny model, as `save_pretrained` leaves it."""
    from graftwork.builtin.from_config import transformers_from_config

    def store(architecture: str, config: dict[str, Any], size: int = 16, seed: int = 0) -> str:
        folder = tmp_path / f"{architecture}-{seed}"
        torch.manual_seed(seed)
        transformers_from_config(architecture, config, processor={"size": size}).save_pretrained(folder)
        return str(folder)

    return store


def write_images(root: Path, seed: int, count: int = 8) -> str:
    """An image folder of three classes that differ in colour, in train and test."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    generator = numpy.random.default_rng(seed)
    for split in ("train", "test"):
        for channel, name in enumerate(("red", "green", "blue")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 120, (16, 16, 3), dtype=numpy.uint8)
                pixels[:, :, channel] += 100
                image.fromarray(pixels).save(folder / f"{index}.png")
    return str(root)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler")
def test_a_pool_of_transformers_is_estimated_fine_tuned_and_compared(stored, tmp_path) -> None:
    two = {"resnet": stored("ResNetForImageClassification", RESNET), "vit": stored("ViTForImageClassification", {**VIT, "num_labels": 5})}
    two["other"] = stored("ResNetForImageClassification", RESNET, seed=1)
    models = {name: {"use": "transformers-image-classifier", "name": folder} for name, folder in two.items()}
    target, source = (write_images(tmp_path / name, seed) for seed, name in enumerate(("target", "source")))
    train = {"steps": 4, "batch_size": 8, "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9}}
    estimate = {
        "use": "osborn",
        "pool": models,
        "sources": dict.fromkeys(models, "train"),
        "source_data": {name: {"use": "image-folder", "root": source} for name in models},
        "k": 2,
        "reading": {"samples": 15},
    }
    stages: dict[str, Any] = {"target": {"dataset": {"use": "image-folder", "root": target}, "evaluate": [estimate]}}
    for name, model in models.items():
        tuned = {**model, "num_classes": 3}
        stages[name] = {"dataset": {"from": "target"}, "model": tuned, "objective": "cross-entropy", "train": train}
    tuned = {name: {"from": name} for name in models}
    stages["truth"] = {"dataset": {"from": "target"}, "evaluate": [{"use": "ensemble-accuracy", "pool": tuned, "k": 2}]}
    again = {"use": "osborn", "measured": {"from": "target/table"}, "terms": ["e-leep", "cohesion"], "k": 2}
    stages["again"] = {"evaluate": [again]}
    chosen = {"use": "averaged-ensemble", "models": [{"from": "resnet"}, {"from": "vit"}]}
    stages["chosen"] = {"dataset": {"from": "target"}, "model": chosen, "evaluate": [{"use": "accuracy", "split": "test"}]}
    result = gw.Pipeline.from_dict({"stages": stages}).run(tmp_path / "run", device="cpu")

    assert (tmp_path / "run/stages/target/osborn/pool.png").exists()
    accuracies = gw.Artifact.load(tmp_path / "run/stages/truth/ensemble-accuracy/accuracies")
    assert accuracies.tensors["values"][0] == pytest.approx(result.metrics["chosen/accuracy"])  # resnet and vit stand first
    scores = gw.Artifact.load(tmp_path / "run/stages/target/osborn/scores")
    assert scores.data["names"] == list(models)
    assert scores.dataset == accuracies.dataset
    assert result.metrics["again/best-score"] != result.metrics["target/best-score"]


def test_a_segmenter_of_transformers_gives_what_its_last_layer_takes(stored) -> None:
    model = gw.model("transformers-segmenter", name=stored("SegformerForSemanticSegmentation", SEGFORMER, 32))
    generator = torch.Generator().manual_seed(0)
    image, mask = torch.rand(3, 3, 32, 32, generator=generator), torch.randint(3, (3, 32, 32), generator=generator)
    data = gw.Dataset({"train": gw.TensorSamples(image=image, mask=mask)})
    found = read_outputs(model, data, "train", Reading(samples=40, batch_size=2))
    assert found.features.shape == (40, 16)
    assert found.probabilities.shape == (40, 4)
    # both are bilinear between the cells of one map, and the classifier is linear
    weight, bias = model.model.decode_head.classifier.weight[:, :, 0, 0], model.model.decode_head.classifier.bias
    torch.testing.assert_close((found.features @ weight.T + bias).softmax(dim=1), found.probabilities, rtol=1e-3, atol=1e-5)
    report = gw.evaluator("osborn", pool={"one": model}, sources={"one": "train"}, k=1, reading={"samples": 30}).evaluate
    with pytest.warns(UserWarning, match='model "one" was trained on the target: .* samples of "train" are in its source set "train"'):
        assert report(None, data).metrics["greedy-rank"] == 1


def test_the_recipe_assembles_with_ten_models_three_targets_and_all_ablations() -> None:
    pytest.importorskip("graftwork_testbed", reason="needs the test bed's digits and networks")
    from graftwork.document import Document

    data = Document.read(Path(str(files("graftwork_osborn") / "recipes" / "osborn.yaml"))).data
    targets = ("digits", "colours", "textures")
    pool = data["stages"]["digits"]["evaluate"][0]["pool"]
    assert len(pool) == 10
    for target in targets:
        assert {f"{target}-{name}" for name in pool} <= set(data["stages"])
        assert set(data["stages"][f"{target}-truth"]["evaluate"][0]["pool"]) == set(pool)
    compared = {pair[side].partition("/")[0] for pair in data["claim"]["compare"] for side in ("method", "baseline")}
    assert compared == {"osborn", "ms-leep", "e-leep", "without-cohesion"}
