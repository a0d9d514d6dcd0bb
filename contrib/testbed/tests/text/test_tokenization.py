from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import pairwise

import pytest
from transformers import AutoTokenizer

from graftwork import DataError, GraftworkError
from graftwork_testbed.text.template_text import template_text
from graftwork_testbed.text.tokenization import END_OF_TEXT, PADDING, byte_tokenizer, load_tokenizer, train_byte_pair_tokenizer

TEXTS = template_text(samples=600)["train"].columns["text"]
TOKENIZER = train_byte_pair_tokenizer(TEXTS, vocab_size=500, special_tokens=["<|formal|>"])
ODD = ["naïve café — “x”", "日本語 and русский", "tabs\tand\n\nlines  ", "🙂\u200d🙃", "", " leading space", "CamelCase_and_snake 3.14"]


def merges_of(tokenizer):
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_tokenizer()], ids=["trained", "byte"])
@pytest.mark.parametrize("text", ODD)
def test_any_text_is_encoded_and_decoded_exactly(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_every_merge_joins_a_pair_that_is_most_frequent_at_its_time():
    splitter = TOKENIZER.backend_tokenizer.pre_tokenizer
    words = Counter(tuple(word) for text in TEXTS for word, _ in splitter.pre_tokenize_str(text))
    for first, second in merges_of(TOKENIZER)[:40]:
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        assert pairs[first, second] == max(pairs.values())
        joined = Counter()
        for word, count in words.items():
            joined[_merge(word, first, second)] += count
        words = joined


def _merge(word, first, second):
    merged, place = [], 0
    while place < len(word):
        if word[place : place + 2] == (first, second):
            merged.append(first + second)
            place += 2
        else:
            merged.append(word[place])
            place += 1
    return tuple(merged)


def test_training_depends_on_the_texts_and_not_on_their_order():
    again = train_byte_pair_tokenizer(reversed(TEXTS), vocab_size=500, special_tokens=["<|formal|>"])
    assert again.get_vocab() == TOKENIZER.get_vocab()
    assert merges_of(again) == merges_of(TOKENIZER)


def test_sizes_and_special_tokens():
    assert len(TOKENIZER) == 500
    assert [TOKENIZER.convert_tokens_to_ids(token) for token in (END_OF_TEXT, PADDING, "<|formal|>")] == [0, 1, 2]
    assert TOKENIZER.bos_token == TOKENIZER.eos_token == TOKENIZER.unk_token == END_OF_TEXT
    assert (TOKENIZER.pad_token, TOKENIZER.model_max_length) == (PADDING, 1024)
    assert len(byte_tokenizer()) == 258
    ids = TOKENIZER("<|formal|>the soup<|endoftext|>")["input_ids"]
    assert (ids[0], ids[-1]) == (2, 0)


def test_common_words_are_one_token():
    assert len(TOKENIZER(" my sister")["input_ids"]) < len(byte_tokenizer()(" my sister")["input_ids"]) == 10


def test_it_is_saved_as_json_and_loaded_the_same(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".txt", ".jinja"}
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert loaded(TEXTS[:50])["input_ids"] == TOKENIZER(TEXTS[:50])["input_ids"]
        assert (loaded.eos_token_id, loaded.pad_token_id, loaded.model_max_length) == (0, 1, 1024)


def test_a_tokenizer_without_padding_pads_with_its_end_in_a_copy():
    bare = byte_tokenizer()
    bare.pad_token = None
    assert load_tokenizer(bare).pad_token_id == bare.eos_token_id
    assert bare.pad_token is None
    assert load_tokenizer(TOKENIZER) is TOKENIZER


def test_a_tokenizer_with_nothing_to_pad_with_is_told():
    bare = byte_tokenizer()
    bare.pad_token = bare.eos_token = None
    with pytest.raises(DataError, match="neither a padding token nor an end of text to pad with"):
        load_tokenizer(bare)


def test_what_is_no_tokenizer_is_told(tmp_path):
    with pytest.raises(DataError, match=f'tokenizer "{tmp_path}" cannot be loaded; tried the folder {tmp_path}'):
        load_tokenizer(str(tmp_path))
    with pytest.raises(DataError, match=f'tokenizer "{tmp_path}/absent": there is no folder {tmp_path}/absent'):
        load_tokenizer(f"{tmp_path}/absent")
    with pytest.raises(DataError, match="a tokenizer is a folder, a Hugging Face id or a tokenizer of transformers; found int"):
        load_tokenizer(3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"texts": "one"}, "texts are many strings; found one"),
        ({"vocab_size": 257}, "vocab_size must hold 256 bytes and 2 special tokens; found 257"),
        ({"vocab_size": 258, "special_tokens": ["<a>"]}, "256 bytes and 3 special tokens; found 258"),
        ({"special_tokens": ["<a>", "<a>"]}, "special_tokens names a token twice"),
        ({"special_tokens": [PADDING]}, "or one that is there already"),
        ({"min_frequency": 0}, "min_frequency must be positive; found 0"),
        ({"model_max_length": 0}, "model_max_length must be positive; found 0"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        train_byte_pair_tokenizer(**{"texts": ["a b"], **parameters})


@pytest.mark.parametrize("module", ["tokenizers", "transformers"])
def test_a_missing_library_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(GraftworkError, match=rf'{module} cannot be imported .*pip install "graftwork-testbed\[text\]"'):
        load_tokenizer("byte")
