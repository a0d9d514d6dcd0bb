from __future__ import annotations

import pytest
from transformers import CLIPTokenizer, T5Tokenizer

from graftwork_testbed.scenes.grammar import BACKGROUND_WORDS
from graftwork_testbed.scenes.vocabulary import COLOURS, COUNTS, DIGITS, PLURALS
from graftwork_testbed.zoo.tokenizers import LENGTH, caption_corpus, clip_tokenizer, t5_tokenizer

OTHERS = ("an", "left", "right", "of", "above", "below", "with", "and", "on")
WORDS = sorted({*COLOURS, *DIGITS, *PLURALS, *COUNTS[2:], *BACKGROUND_WORDS, *OTHERS})
LONGEST = "a purple three right of a yellow seven, with an orange nine and a white eight on regolith, sketch"


@pytest.fixture(scope="module", params=[clip_tokenizer, t5_tokenizer], ids=["clip", "t5"])
def tokenizer(request):
    return request.param()


@pytest.mark.parametrize("word", WORDS)
def test_each_word_of_the_grammar_is_one_token(tokenizer, word):
    assert len(tokenizer.tokenize(f"a {word}")) == 2


def test_words_differ_in_their_tokens(tokenizer):
    assert len({tokenizer.tokenize(f"a {word}")[1] for word in WORDS}) == len(WORDS)


def test_the_longest_caption_fits(tokenizer):
    assert len(tokenizer(LONGEST).input_ids) <= LENGTH
    assert len(tokenizer(LONGEST, padding="max_length", truncation=True).input_ids) == LENGTH


def test_other_words_are_spelt_not_lost(tokenizer):
    pieces = tokenizer.tokenize("a zebra")
    assert len(pieces) > 2
    assert tokenizer.unk_token not in pieces or isinstance(tokenizer, CLIPTokenizer)
    assert "".join(pieces[1:]).replace("</w>", "").strip("▁") == "zebra"


def test_it_is_the_same_after_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    kind = CLIPTokenizer if isinstance(tokenizer, CLIPTokenizer) else T5Tokenizer
    again = kind.from_pretrained(tmp_path)
    captions = [*caption_corpus()[::50], LONGEST, "a zebra"]
    assert again(captions).input_ids == tokenizer(captions).input_ids
    assert again.model_max_length == LENGTH


def test_it_is_made_alike_each_time(tokenizer):
    again = type(tokenizer)
    made = (clip_tokenizer if again is CLIPTokenizer else t5_tokenizer)()
    assert made.get_vocab() == tokenizer.get_vocab()


def test_clip_ends_a_text_with_its_end_token():
    tokenizer = clip_tokenizer()
    ids = tokenizer("a red three").input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
