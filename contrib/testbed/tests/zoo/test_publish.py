from __future__ import annotations

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from graftwork import GraftworkError
from graftwork_testbed.zoo.catalogue import CARDS, VARIANTS
from graftwork_testbed.zoo.publish import main, measure, publish


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    model = folder / "stages" / "scene-vit" / "model"
    model.mkdir(parents=True)
    save_file({"weight": torch.tensor([1.0, 1 / 3]), "steps": torch.tensor(7)}, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"architectures": ["ViTForImageClassification"], "dtype": "float32"}))
    results = {
        "seed": 3,
        "seconds": {"vit-on-digits": 60.0, "scene-vit": 150.0, "scene-colour": 900.0},
        "results": {"scene-vit": {"accuracy": 0.98765}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "pipeline.yaml").write_text("stages: {vit-on-digits: {}, scene-vit: {model: {from: vit-on-digits}}, scene-colour: {}}")
    surroundings = {"gpus": [], "threads": 1, "versions": {"graftwork": "0.1.0", "graftwork-dann": "0.1.0", "torch": "2.13.0"}}
    (folder / "environment.json").write_text(json.dumps(surroundings))
    return folder


def test_weights_become_float16_and_counters_stay(run, tmp_path):
    target = publish(run, "scene-vit", "scene-vit", tmp_path / "zoo")
    state = load_file(target / "model.safetensors")
    assert state["weight"].dtype == torch.float16
    assert state["weight"].tolist() == pytest.approx([1.0, 0.33325], abs=1e-4)
    assert state["steps"].item() == 7
    assert json.loads((target / "config.json").read_text())["dtype"] == "float16"


def test_the_card_says_how_it_was_made_and_what_was_measured(run, tmp_path):
    card = (publish(run, "scene-vit", "scene-vit", tmp_path / "zoo") / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\n")
    for said in (
        "`zoo/scene-classifiers`, stage `scene-vit`, seed 3",
        "| accuracy | 0.9877 |",
        "CPU, 1 thread)",
        "torch 2.13.0",
        "| 4 min, on",
    ):
        assert said in card
    assert "graftwork-dann" not in card


def test_a_variant_is_named_in_its_card(run, tmp_path):
    card = (publish(run, "scene-vit", "digit-source/vit-photo", tmp_path / "zoo") / "README.md").read_text()
    assert 'gw.model("zoo/digit-source", variant="vit-photo")' in card
    assert 'folder("digit-source/vit-photo")' in card


def test_a_pipeline_keeps_the_card_of_the_network_inside_and_the_plain_class(run, tmp_path):
    model = run / "stages" / "scene-vit" / "model"
    (model / "vae").mkdir()
    (model / "model_index.json").write_text(json.dumps({"_class_name": "ShortPromptFluxPipeline", "_name_or_path": "/somewhere"}))
    inner = tmp_path / "zoo" / "scene-flow" / "vae"
    inner.mkdir(parents=True)
    (inner / "README.md").write_text("its own card")
    target = publish(run, "scene-vit", "scene-flow", tmp_path / "zoo")
    assert (target / "vae" / "README.md").read_text() == "its own card"
    assert json.loads((target / "model_index.json").read_text()) == {"_class_name": "FluxPipeline"}


def test_a_network_that_cannot_be_put_in_leaves_the_old_one_whole(run, tmp_path):
    target = publish(run, "scene-vit", "scene-vit", tmp_path / "zoo")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    (run / "stages" / "scene-vit" / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(SafetensorError):
        publish(run, "scene-vit", "scene-vit", tmp_path / "zoo")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_a_tokenizer_loses_its_white_space_and_nothing_else(run, tmp_path):
    content = {"model": {"vocab": {"é": 0, "a b": 1}}}
    (run / "stages" / "scene-vit" / "model" / "tokenizer.json").write_text(json.dumps(content, indent=2))
    text = (publish(run, "scene-vit", "scene-vit", tmp_path / "zoo") / "tokenizer.json").read_text()
    assert json.loads(text) == content
    assert "\n" not in text


def test_what_is_shipped_is_measured_anew(run, tmp_path):
    target = publish(run, "scene-vit", "scene-vit", tmp_path / "zoo")
    quality = tmp_path / "quality"
    quality.mkdir()
    found = {"scene-vit": {"accuracy": 0.5, "blur/accuracy": 0.25}, "scene-resnet": {"accuracy": 1.0}}
    (quality / "results.json").write_text(json.dumps({"results": found}))
    assert measure(quality, tmp_path / "zoo") == ["scene-vit"]
    card = (target / "README.md").read_text()
    assert "| accuracy | 0.5 |\n| blur/accuracy | 0.25 |" in card
    assert "0.9877" not in card
    assert card.count("## Limits") == 1


def test_what_is_missing_is_told(run, tmp_path, capsys):
    with pytest.raises(GraftworkError, match='no card for "scene-vat"'):
        publish(run, "scene-vit", "scene-vat", tmp_path)
    with pytest.raises(GraftworkError, match="holds no safetensors: stage other"):
        publish(run, "other", "scene-vit", tmp_path)
    (run / "results.json").unlink()
    assert main([str(run), "scene-vit", "scene-vit", "--into", str(tmp_path)]) == 1
    assert "is no finished run" in capsys.readouterr().err


def test_every_component_of_the_zoo_has_a_card():
    from graftwork_testbed.zoo.plugin import NETWORKS

    assert {name for name, *_ in NETWORKS} == set(CARDS)
    assert set(VARIANTS) <= set(CARDS)
