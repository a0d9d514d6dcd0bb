from __future__ import annotations

import torch

from graftwork_testbed.zoo.captions import caption_encoder, spread_words
from graftwork_testbed.zoo.tokenizers import LENGTH, clip_tokenizer


def test_an_encoder_knows_the_tokenizers_words_and_length():
    tokenizer = clip_tokenizer()
    model = caption_encoder(tokenizer, width=16, layers=1, heads=2)
    tokens = tokenizer(["a red three"], padding="max_length", return_tensors="pt").input_ids
    assert model(tokens).last_hidden_state.shape == (1, LENGTH, 16)
    assert model.config.vocab_size == len(tokenizer)


def test_untrained_words_lie_further_apart_than_places():
    torch.manual_seed(0)
    model = caption_encoder(clip_tokenizer(), width=32, layers=1)
    widths = {name.rsplit(".")[-2]: value.std().item() for name, value in model.named_parameters() if "embedding" in name}
    assert 4.5 < widths["token_embedding"] / widths["position_embedding"] < 5.5


def test_words_spread_by_the_factor():
    model = caption_encoder(clip_tokenizer(), width=16, layers=1, heads=2)
    before = {name: value.clone() for name, value in model.named_parameters()}
    spread_words(model, 3.0)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name] * (3.0 if "token_embedding" in name else 1.0))
