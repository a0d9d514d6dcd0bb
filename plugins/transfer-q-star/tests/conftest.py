"""Tiny language models of the real classes, and rewards that can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedTokenizerFast,
)

from graftwork.builtin.language_models import TransformersCausalLM
from graftwork.builtin.sequence_classifiers import TransformersReward

END, PADDING = 0, 1


def tokenizer_of(words: int = 14) -> PreTrainedTokenizerFast:
    """`</s>`, `<pad>` and one token a word: w2, w3, ..."""
    vocabulary = {"</s>": END, "<pad>": PADDING, **{f"w{number}": number for number in range(2, words)}}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # a space between words
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", model_max_length=48)


def gpt2(words: int = 14, seed: int = 0, positions: int = 48) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=words,
        n_positions=positions,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.6,
        eos_token_id=END,
        pad_token_id=PADDING,
    )
    return GPT2LMHeadModel(config)


def rotary(kind: str = "llama", words: int = 14, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {"vocab_size": words, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "max_position_embeddings": 48, "initializer_range": 0.6, "eos_token_id": END, "pad_token_id": PADDING}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, **more, bos_token_id=END))
    return MistralForCausalLM(MistralConfig(**sizes, **more, bos_token_id=END, sliding_window=4))


def uncached(words: int = 14, seed: int = 0) -> Any:
    """A class of transformers that keeps no keys and values."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": words, "n_positions": 48, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.6}
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(**sizes, eos_token_id=END, pad_token_id=PADDING))


MAKERS = {"gpt2": gpt2, "llama": rotary, "mistral": lambda seed: rotary("mistral", seed=seed), "uncached": uncached}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of()


@pytest.fixture
def reference(tokenizer: Any) -> TransformersCausalLM:
    return TransformersCausalLM.wrap(gpt2(seed=0), tokenizer).eval()


@pytest.fixture
def baseline(tokenizer: Any) -> TransformersCausalLM:
    return TransformersCausalLM.wrap(gpt2(seed=1), tokenizer).eval()


@pytest.fixture
def make_lm(tokenizer: Any) -> Callable[..., TransformersCausalLM]:
    def make(kind: str = "gpt2", seed: int = 0) -> TransformersCausalLM:
        return TransformersCausalLM.wrap(MAKERS[kind](seed=seed), tokenizer).eval()

    return make


@pytest.fixture
def small_vocabulary() -> Callable[[int, int], TransformersCausalLM]:
    return lambda words, seed: TransformersCausalLM.wrap(gpt2(words, seed), tokenizer_of(words)).eval()


def _worth(texts: Sequence[str], scale: float, shift: int) -> torch.Tensor:
    numbers = [[int(word[1:]) for word in text.split()] for text in texts]
    return torch.tensor([sum(((number + shift) % 5 - 2) * (place + 1) for place, number in enumerate(row)) * scale for row in numbers])


@pytest.fixture(scope="session")
def reward() -> Callable[..., torch.Tensor]:
    """Depends on every word of prompt and response, and on its place."""
    return lambda samples, prompts: _worth([f"{prompt} {text}" for prompt, text in zip(prompts, samples, strict=True)], 0.05, 0)


@pytest.fixture(scope="session")
def other_reward() -> Callable[..., torch.Tensor]:
    return lambda samples, prompts: _worth([f"{prompt} {text}" for prompt, text in zip(prompts, samples, strict=True)], 0.04, 2)


@pytest.fixture
def reward_model(tokenizer: Any) -> TransformersReward:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=14,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        num_labels=1,
        pad_token_id=PADDING,
        initializer_range=0.5,
    )
    return TransformersReward.wrap(BertForSequenceClassification(config), tokenizer, max_length=64).eval()


@pytest.fixture
def prompts() -> torch.Tensor:
    return torch.tensor([[3, 7, 9], [5, 2, 12], [8, 8, 4]])


@pytest.fixture
def saved(tmp_path: Path, reference: Any, baseline: Any, reward_model: Any) -> dict[str, str]:
    """Folders of the reference, the baseline and a reward model."""
    for name, one in (("reference", reference), ("baseline", baseline), ("reward", reward_model)):
        one.save_pretrained(tmp_path / name)
    return {name: str(tmp_path / name) for name in ("reference", "baseline", "reward")}
