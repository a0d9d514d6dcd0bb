from __future__ import annotations

import json

import pytest

import graftwork as gw
import graftwork_testbed
from graftwork import ConfigError
from graftwork.config import json_schema
from graftwork_testbed.plugin import graftwork_datasets, graftwork_models
from graftwork_testbed.text.blocks import TextBlocks

NAMES = ("pydoc-text", "docstring-text", "template-text", "paraphrase-pairs", "query-passage")
WRAPPERS = ("text-blocks", "tokenized")


@pytest.mark.parametrize("name", [*NAMES, *WRAPPERS])
def test_every_text_data_set_is_registered_and_builds_from_its_example(name):
    component = next(component for component in graftwork_datasets() if component.name == name)
    data = gw.dataset(name, **component.example)
    assert list(data) == ["train", "val", "test"]
    assert all(len(samples) for samples in data.values())
    assert data.info.description


def test_the_sentence_encoder_is_registered():
    assert "minilm" in [component.name for component in graftwork_models()]
    assert gw.model("minilm", layers=1).embedding_dim == 384


def test_wrappers_take_a_tokenizer_by_name_and_a_data_set_by_reference():
    data = gw.dataset("tokenized", data={"use": "template-text", "samples": 100}, tokenizer="minilm", max_length=12)
    assert data["train"][0]["input_ids"].shape == (12,)
    schema = json.loads(json.dumps(json_schema(TextBlocks)))["properties"]
    assert schema["tokenizer"]["type"] == "string"
    assert schema["data"]["x-reference"] == "dataset"


@pytest.mark.parametrize(
    ("name", "parameters", "place"),
    [
        ("pydoc-text", {"areas": ["networking"]}, "areas.0: "),
        ("pydoc-text", {"max_words": 2}, "max_words: "),
        ("docstring-text", {"owners": ["method"]}, "owners.0: "),
        ("template-text", {"negation": 2}, "negation: "),
        ("template-text", {"held_out": "all"}, "held_out: "),
        ("paraphrase-pairs", {"samples": 1}, "samples: "),
        ("query-passage", {"negatives": 0}, "negatives: "),
        ("text-blocks", {"data": "template-text", "block_size": 1}, "block_size: "),
        ("tokenized", {"data": "template-text", "tokenizer": "no/such/folder"}, ""),
    ],
)
def test_configuration_refuses_what_is_out_of_range(name, parameters, place):
    with pytest.raises((ConfigError, gw.DataError), match=place or "there is no folder"):
        gw.dataset(name, **parameters)


def test_public_names_are_loaded_from_the_package():
    assert graftwork_testbed.sentiment_of("The hat that my aunt wore in spring was nowhere near awesome.") == "negative"
    for name in ("pydoc_text", "docstring_text", "TextBlocks", "Tokenized", "draw_texts", "train_byte_pair_tokenizer", "counterfactual"):
        assert callable(getattr(graftwork_testbed, name))
