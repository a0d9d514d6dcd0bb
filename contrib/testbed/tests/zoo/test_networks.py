from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig

import graftwork as gw
from graftwork import GraftworkError
from graftwork.interfaces import Backbone, CausalLM, Detector, DiffusionPipeline, DualEncoder, Reward, Segmenter, classify
from graftwork_testbed.scenes.dataset import digit_scenes
from graftwork_testbed.text.template_text import template_text
from graftwork_testbed.zoo import networks
from graftwork_testbed.zoo.catalogue import CARDS, VARIANTS
from graftwork_testbed.zoo.networks import folder

EVERY = [*(name for name in CARDS if name not in VARIANTS), *(f"{name}/{one}" for name in VARIANTS for one in VARIANTS[name])]
OFFERS = {
    "scene-diffusion": DiffusionPipeline,
    "scene-flow": DiffusionPipeline,
    "scene-clip": DualEncoder,
    "scene-resnet": Backbone,
    "scene-vit": Backbone,
    "scene-colour": Backbone,
    "digit-source": Backbone,
    "tiny-lm": CausalLM,
    "sentiment-reward": Reward,
    "formality-reward": Reward,
    "scene-segmenter": Segmenter,
    "scene-detector": Detector,
}
MEGABYTE = 1_000_000


def load(name):
    component, _, variant = name.partition("/")
    return gw.model(f"zoo/{component}", **({"variant": variant} if variant else {}))


def modules(model):
    return [part for part in model.components.values() if isinstance(part, torch.nn.Module)] if hasattr(model, "components") else [model]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFTWORK_CACHE", str(tmp_path_factory.mktemp("cache")))
        return digit_scenes(max_digits=1, train=1, val=1, test=200)["test"]


@pytest.mark.parametrize("name", EVERY)
def test_it_loads_by_name_in_float32_and_offers_what_its_kind_does(name):
    model = load(name)
    assert isinstance(model, OFFERS.get(name.partition("/")[0], torch.nn.Module))
    floating = [parameter for part in modules(model) for parameter in part.parameters() if parameter.is_floating_point()]
    assert {parameter.dtype for parameter in floating} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in floating)


@pytest.mark.parametrize("name", EVERY)
def test_it_loads_by_the_librarys_own_from_pretrained(name):
    card = CARDS[name.partition("/")[0]]
    module, _, loader = card.loader.rpartition(".")
    theirs = getattr(importlib.import_module(module or card.library), loader).from_pretrained(folder(name))
    ours = load(name)
    pairs = zip(modules(theirs), modules(ours) if hasattr(ours, "components") else [getattr(ours, "model", ours)], strict=True)
    for their, our in pairs:
        state = our.state_dict()
        for key, value in their.state_dict().items():
            assert torch.equal(value.float(), state[key].float()), key


@pytest.mark.parametrize("name", EVERY)
def test_its_card_says_how_it_was_made_and_what_it_is_worth(name):
    card = (folder(name) / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0")
    measured = card.partition("## Measured on held-out data")[2]
    assert "| metric | value |" in measured
    assert "seed" in card
    assert "`zoo/" in card


def test_all_weights_are_float16_safetensors_and_take_at_most_30_mb():
    root = folder("scene-resnet").parent
    files = [path for path in root.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30 * MEGABYTE
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".txt", ".jinja"}
    for path in root.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 - a safetensors file is no mapping
        assert {kind for kind in kinds if kind.is_floating_point} <= {torch.float16}, path


def test_no_configuration_names_code_or_a_path_of_the_machine_that_made_it():
    root = folder("scene-resnet").parent
    for path in root.rglob("*.json"):
        text = path.read_text()
        assert "auto_map" not in text, path
        if path.name != "tokenizer.json":
            assert not {key for key, value in json.loads(text).items() if isinstance(value, str) and value.startswith("/")}, path


@pytest.mark.parametrize(
    ("name", "column", "least"),
    [("scene-resnet", "label", 0.9), ("scene-vit", "label", 0.9), ("scene-colour", "colours", 0.9)],
)
def test_classifiers_read_scenes(name, column, least, scenes):
    batch = scenes.__getitems__(range(200))
    with torch.no_grad():
        guesses = classify(load(name).eval(), {"image": batch["image"]}).argmax(1)
    assert (guesses == batch[column].flatten()).float().mean() >= least


def test_the_dual_encoder_prefers_the_captions_own_colour(scenes):
    model, batch = load("scene-clip").eval(), scenes.__getitems__(range(200))
    captions = sorted(set(batch["caption"]))
    with torch.no_grad():
        images, texts = (
            torch.nn.functional.normalize(side, dim=1) for side in (model.encode_image(batch["image"]), model.encode(captions))
        )
    found = [captions[index].split()[1] for index in (images @ texts.T).argmax(1).tolist()]
    right = [caption.split()[1] == word for caption, word in zip(batch["caption"], found, strict=True)]
    assert sum(right) / len(right) > 0.5  # by chance an eighth


@pytest.mark.parametrize("name", ["sentiment", "formality"])
def test_rewards_rank_sentences(name):
    data = template_text(label=name, samples=1000, seed=7)["test"]
    texts, labels = data.columns["text"], data.columns["label"]
    with torch.no_grad():
        scores = load(f"{name}-reward").eval().score(texts)
    liked, others = scores[labels == 1], scores[labels == 0]
    assert (liked[:, None] > others[None]).float().mean() > 0.9


def test_the_language_model_continues_a_text():
    model = load("tiny-lm/base").eval()
    tokens = model.tokenizer("The statement", return_tensors="pt")
    generated = model.generate(**tokens, min_new_tokens=8, max_new_tokens=8, do_sample=False)
    assert generated.shape == (1, tokens.input_ids.shape[1] + 8)


def test_the_detector_finds_a_digit(scenes):
    batch = scenes.__getitems__(range(32))
    with torch.no_grad():
        found = load("scene-detector").eval().detect(batch["image"])
    hits = 0
    for one, box in zip(found, batch["boxes"], strict=True):
        best = one["boxes"][one["scores"].argmax()] if len(one["scores"]) else torch.zeros(4)
        low, high = torch.maximum(best[:2], box[0, :2]), torch.minimum(best[2:], box[0, 2:])
        inter = (high - low).clamp(min=0).prod()
        union = (best[2:] - best[:2]).prod() + (box[0, 2:] - box[0, :2]).prod() - inter
        hits += bool(inter / union > 0.5)
    assert hits >= 24


@pytest.mark.parametrize(
    ("name", "guided"), [("scene-diffusion", {"guidance_scale": 5.0}), ("scene-flow", {"true_cfg_scale": 5.0, "negative_prompt": ""})]
)
def test_generators_draw_and_are_deterministic(name, guided):
    pipeline = load(name)

    def draw():
        noise = torch.Generator().manual_seed(1)
        return pipeline("a red three", height=64, width=64, num_inference_steps=4, generator=noise, output_type="pt", **guided).images

    image = draw()
    assert image.shape == (1, 3, 64, 64)
    assert torch.equal(image, draw())


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(GraftworkError, match=r'the zoo has no "scene-difusion" \(did you mean "scene-diffusion"\?\)'):
        folder("scene-difusion")


def test_lost_weights_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "files", lambda package: tmp_path)
    with pytest.raises(GraftworkError, match=r'weights of "scene-vit" are not in .*reinstall graftwork-testbed'):
        folder("scene-vit")


def test_a_folder_that_is_no_model_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(GraftworkError, match="cannot be loaded"):
        gw.model("transformers-image-classifier", name=str(tmp_path))


def test_configurations_are_transformers_own():
    assert AutoConfig.from_pretrained(folder("scene-clip")).model_type == "clip"


@pytest.mark.parametrize(("package", "name"), [("diffusers", "scene-diffusion"), ("transformers", "scene-resnet")])
def test_a_package_that_is_missing_is_named(package, name, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(GraftworkError, match=rf'{package} cannot be imported .*pip install "graftwork\[{package}\]"'):
        load(name)
