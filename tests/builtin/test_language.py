"""Causal language models, their objective and perplexity, against transformers, closed forms and plain loops."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork.builtin.from_config import transformers_from_config
from graftwork.builtin.language_evaluators import Bigrams, Perplexity, next_token_nll
from graftwork.builtin.language_models import TransformersCausalLM
from graftwork.builtin.language_objectives import CausalLanguageModelling, causal_language_modelling_loss, next_token_targets
from graftwork.interfaces import CausalLM, classify

transformers = pytest.importorskip("transformers")

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "initializer_range": 0.3}
LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 16}
TEXTS = ["a red three", "seven left of a blue three", "a"]


def gpt2(words: str, **settings: Any) -> TransformersCausalLM:
    torch.manual_seed(0)
    return transformers_from_config("GPT2LMHeadModel", {**GPT2, **settings}, words).eval()


def tokens(count: int = 6, length: int = 9, vocabulary: int = 11, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens, padded on the right to various lengths of at least two."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, length + 1, (count,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, vocabulary, (count, length), generator=generator) * mask, "attention_mask": mask}


def to_the_left(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same texts with their padding on the left."""
    shift = batch["attention_mask"].shape[1] - batch["attention_mask"].sum(dim=1)
    place = (torch.arange(batch["attention_mask"].shape[1]) - shift[:, None]) % batch["attention_mask"].shape[1]
    return {key: value.gather(1, place) for key, value in batch.items()}


def of_split(batch: dict[str, Any], **more: Any) -> gw.Dataset:
    return gw.Dataset({"test": gw.TensorSamples(**batch, **more)})


class Table(nn.Module):
    """A language model whose logits are those of its last token's row."""

    inputs = ("input_ids", "attention_mask")
    tokenizer = None

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits, self.seen = nn.Parameter(logits), []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.seen.append((len(input_ids), self.training, torch.is_grad_enabled()))
        return SimpleNamespace(logits=self.logits[input_ids])

    def generate(self) -> None:
        """Not used here."""


# -- the model ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_the_librarys_own(words: str) -> None:
    model = gpt2(words)
    assert isinstance(model, CausalLM)
    batch = tokens()
    mask = batch["attention_mask"].bool()
    expected = model.model(**batch).logits
    torch.testing.assert_close(classify(model, batch)[mask], expected[mask])
    assert classify(model, batch).shape == (6, 9, 11)


@pytest.mark.parametrize(("architecture", "config"), [("GPT2LMHeadModel", GPT2), ("LlamaForCausalLM", LLAMA), ("OPTForCausalLM", None)])
@torch.no_grad()
def test_a_text_has_the_same_logits_alone_and_padded_on_either_side(architecture: str, config: dict[str, Any] | None, words: str) -> None:
    torch.manual_seed(0)
    settings = config or {**{k: v for k, v in LLAMA.items() if k != "intermediate_size"}, "ffn_dim": 48, "word_embed_proj_dim": 32}
    model, batch = transformers_from_config(architecture, settings, words).eval(), tokens()
    right, left = model(**batch), model(**to_the_left(batch))
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        alone = model(batch["input_ids"][row : row + 1, :length])[0]
        torch.testing.assert_close(right[row, :length], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(left[row, -length:], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_greedy_generation_takes_the_likeliest_token_each_time(words: str) -> None:
    model = gpt2(words, eos_token_id=None)
    ids = torch.tensor([[2, 4, 5]])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=0)
    for _ in range(4):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(found, ids)


def test_half_precision_is_read_as_float32_unless_asked_for(words: str, tmp_path: Path) -> None:
    model = gpt2(words)
    model.half().save_pretrained(tmp_path)
    again = TransformersCausalLM(str(tmp_path))
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(again.model.transformer.wte.weight, model.model.transformer.wte.weight.float())
    assert {p.dtype for p in TransformersCausalLM(str(tmp_path), dtype="bfloat16").parameters()} == {torch.bfloat16}


def test_a_text_is_cut_after_the_positions_there_are_or_as_told(words: str, tmp_path: Path) -> None:
    model = gpt2(words)
    assert model.max_length == 16
    model.save_pretrained(tmp_path)
    assert TransformersCausalLM(str(tmp_path), max_length=5).max_length == 5


def test_a_tokenizer_may_come_from_elsewhere_and_pads_with_the_end_of_text(words: str, tmp_path: Path, save_tokenizer: Any) -> None:
    gpt2(words).save_pretrained(tmp_path / "a")
    elsewhere = save_tokenizer(tmp_path / "b", words=("x",))
    settings = (tmp_path / "b/tokenizer_config.json").read_text()
    (tmp_path / "b/tokenizer_config.json").write_text(settings.replace('"pad_token": "[PAD]",', ""))
    model = TransformersCausalLM(str(tmp_path / "a"), tokenizer=elsewhere)
    assert len(model.tokenizer) == 5
    assert model.tokenizer.pad_token == "[EOS]"


def test_a_checkpoint_of_another_kind_is_refused(words: str, tmp_path: Path) -> None:
    transformers_from_config("BertModel", LLAMA, words).save_pretrained(tmp_path / "lacks")
    with pytest.raises(gw.GraftworkError, match=r'causal language model ".*lacks" has no weights for cls\.'):
        TransformersCausalLM(str(tmp_path / "lacks"))
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=11, **LLAMA)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "ahead")
    transformers.AutoTokenizer.from_pretrained(words).save_pretrained(tmp_path / "ahead")
    with pytest.raises(gw.InterfaceError, match="BertLMHeadModel is no causal language model: a token's logits depend on later tokens"):
        TransformersCausalLM(str(tmp_path / "ahead"))


# -- the objective ------------------------------------------------------------------------------------------------------------


def test_the_loss_is_transformers_own_with_padding_masked_out(words: str) -> None:
    model, batch = gpt2(words), tokens()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = model.model(**batch, labels=labels).loss
    assert CausalLanguageModelling()(model, {"train": batch}, 0.0).total.item() == pytest.approx(expected.item(), abs=1e-6)


def test_with_a_completion_mask_it_is_transformers_own_with_the_prompt_masked_out(words: str) -> None:
    model, batch = gpt2(words), tokens()
    completion = (torch.arange(9) >= torch.tensor([0, 1, 2, 3, 1, 1])[:, None]).long() * batch["attention_mask"]
    expected = model.model(**batch, labels=batch["input_ids"].masked_fill(completion == 0, -100)).loss
    objective = CausalLanguageModelling(completion_only=True)
    assert objective.keys == {"train": ("input_ids", "attention_mask", "completion_mask")}
    found = objective(model, {"train": {**batch, "completion_mask": completion}}, 0.0).total
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    assert found != CausalLanguageModelling()(model, {"train": batch}, 0.0).total


def test_the_side_of_the_padding_does_not_matter(words: str) -> None:
    model, batch = gpt2(words), tokens()
    right, left = (CausalLanguageModelling()(model, {"train": each}, 0.0) for each in (batch, to_the_left(batch)))
    torch.testing.assert_close(left.total, right.total)
    assert left.parts["token-accuracy"] == right.parts["token-accuracy"]


def test_equal_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    batch = tokens()
    loss = causal_language_modelling_loss(torch.zeros(6, 9, 11, dtype=torch.float64), **batch)
    assert loss.item() == pytest.approx(math.log(11), rel=1e-12)


def test_token_accuracy_counts_no_padding() -> None:
    batch = {"input_ids": torch.tensor([[1, 2, 1, 1], [2, 1, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
    after = torch.tensor([[0.0, 0, 0], [0, 0, 9], [0, 9, 0]])  # 1 is followed by 2, 2 by 1
    parts = CausalLanguageModelling()(Table(after), {"train": batch}, 0.0).parts
    assert parts["token-accuracy"].item() == pytest.approx(3 / 4)  # 1 2, 2 1 and 2 1 hit, 1 1 misses


def test_the_gradient_is_that_of_float64_and_none_goes_to_padding() -> None:
    batch, logits = tokens(), torch.randn(6, 9, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: causal_language_modelling_loss(x, **batch), logits)
    (gradient,) = torch.autograd.grad(causal_language_modelling_loss(logits, **batch), logits)
    _, counted = next_token_targets(**batch)
    assert gradient[:, :-1][counted].abs().sum(dim=-1).min() > 0
    assert not gradient[:, :-1][~counted].any()
    assert not gradient[:, -1].any()


def test_half_precision_logits_are_compared_in_float32() -> None:
    batch, logits = tokens(), torch.randn(6, 9, 11).bfloat16()
    found = causal_language_modelling_loss(logits, **batch)
    assert found.dtype == torch.float32
    assert torch.equal(found, causal_language_modelling_loss(logits.float(), **batch))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert causal_language_modelling_loss(logits, **batch).dtype == torch.float32


def test_a_batch_in_which_nothing_counts_costs_nothing() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = causal_language_modelling_loss(logits, torch.ones(2, 3).long(), torch.tensor([[1, 0, 0], [0, 0, 1]]))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_training_learns_what_always_follows_and_the_saved_model_loads(words: str, tmp_path: Path) -> None:
    ids = 1 + (torch.arange(16)[:, None] + torch.arange(9)) % 10  # each token has one successor: the least loss is 0
    data = gw.Dataset({"train": gw.TensorSamples(input_ids=ids, attention_mask=torch.ones_like(ids))})
    config = gw.TrainConfig(steps=40, batch_size=16, optimizer={"use": "adamw", "lr": 1e-2})
    trained = gw.Engine(gpt2(words), gw.objective("causal-language-modelling"), data, config, device="cpu").fit()
    assert Perplexity(split="train").evaluate(trained, data).metrics["perplexity"] < 2
    trained.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(gw.model("transformers-causal-lm", name=str(tmp_path))(**tokens()), trained(**tokens()))


def test_masks_of_another_shape_and_ragged_batches_are_refused() -> None:
    batch = tokens()
    with pytest.raises(ValueError, match=r"completion_mask \(6, 8\) and input_ids \(6, 9\) differ in shape"):
        next_token_targets(**batch, completion_mask=torch.ones(6, 8))
    with pytest.raises(ValueError, match=r"logits \(6, 8, 11\) are not \(B, T, V\) for input_ids \(6, 9\)"):
        causal_language_modelling_loss(torch.zeros(6, 8, 11), **batch)
    ragged = {"input_ids": [torch.ones(2), torch.ones(3)], "attention_mask": [torch.ones(2), torch.ones(3)]}
    with pytest.raises(gw.DataError, match="the samples differ in their number of tokens: pad input_ids and attention_mask"):
        CausalLanguageModelling()(Table(torch.zeros(3, 3)), {"train": ragged}, 0.0)


# -- perplexity ---------------------------------------------------------------------------------------------------------------


def test_perplexity_equals_a_loop_over_tokens_in_float64_whatever_the_batches() -> None:
    logits, batch = torch.randn(11, 11, generator=torch.Generator().manual_seed(3)), tokens(20)
    logp = logits.double().log_softmax(1)
    nats = [
        -logp[ids[at - 1], ids[at]].item()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        for at in range(1, int(mask.sum()))
    ]
    for size in (3, 64):
        report = Perplexity(batch_size=size).evaluate(Table(logits), of_split(batch))
        assert report.metrics["token-nll"] == pytest.approx(sum(nats) / len(nats), rel=1e-6)
        assert report.metrics["perplexity"] == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-6)
        assert report.tables["counts"].rows == [[20, len(nats)]]


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    assert Perplexity().evaluate(Table(torch.zeros(11, 11)), of_split(tokens())).metrics["perplexity"] == pytest.approx(11)


def test_a_model_beyond_all_measure_has_an_infinite_perplexity() -> None:
    batch = {"input_ids": torch.tensor([[0, 1]]), "attention_mask": torch.ones(1, 2).long()}
    metrics = Perplexity().evaluate(Table(torch.tensor([[1000.0, 0], [0, 0]])), of_split(batch)).metrics
    assert metrics == {"perplexity": math.inf, "token-nll": 1000}


def test_bits_per_byte_divide_by_the_bytes_of_the_text() -> None:
    batch = {"input_ids": torch.tensor([[0, 1, 2], [0, 3, 3]]), "attention_mask": torch.ones(2, 3).long()}
    report = Perplexity(bits_per_byte=True).evaluate(Table(torch.zeros(4, 4)), of_split(batch, text=["aé", "bcd"]))
    assert report.metrics["bits-per-byte"] == pytest.approx(4 * 2 / 6)  # four tokens of two bits over 3 + 3 bytes


def test_only_completions_count_where_asked_for() -> None:
    batch = {"input_ids": torch.tensor([[1, 2, 1, 2]]), "attention_mask": torch.ones(1, 4).long()}
    logits = torch.tensor([[0.0, 0, 0], [0, 0, math.log(2)], [0, 0, 0]])  # p(2 | 1) is 1/2, p(1 | 2) is 1/3
    data = of_split(batch, completion_mask=torch.tensor([[0, 0, 0, 1]]))
    assert Perplexity(completion_only=True).evaluate(Table(logits), data).metrics["perplexity"] == pytest.approx(2)
    assert Perplexity().evaluate(Table(logits), data).metrics["perplexity"] == pytest.approx((2 * 3 * 2) ** (1 / 3))


@pytest.mark.parametrize("add", [1.0, 0.1])
def test_bigrams_equal_a_count_by_hand(add: float) -> None:
    train, test = tokens(30, seed=1), tokens(9, seed=2)

    def texts(batch: dict[str, torch.Tensor]) -> list[list[int]]:
        return [ids[: int(mask.sum())].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]

    pairs = Counter((text[i], text[i + 1]) for text in texts(train) for i in range(len(text) - 1))
    firsts = Counter(first for (first, _), count in pairs.items() for _ in range(count))
    expected = [
        -math.log((pairs[text[i], text[i + 1]] + add) / (firsts[text[i]] + 11 * add)) for text in texts(test) for i in range(len(text) - 1)
    ]
    for batch in (test, to_the_left(test)):
        found = Bigrams([tuple(train.values())], 11, add).nll(**batch)
        assert found.tolist() == pytest.approx(expected, rel=1e-12)
    data = gw.Dataset({"train": gw.TensorSamples(**train), "test": gw.TensorSamples(**test)})
    report = Perplexity(baseline="train", add=add).evaluate(Table(torch.zeros(11, 11)), data)
    assert report.metrics["bigram-perplexity"] == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-9)


def test_smoothed_bigrams_sum_to_one_also_after_a_token_never_seen() -> None:
    bigrams = Bigrams([tuple(tokens(5, vocabulary=8).values())], 11, 0.5)
    for first in (3, 10):
        pairs = torch.stack([torch.full((11,), first), torch.arange(11)], dim=1)
        assert bigrams.nll(pairs, torch.ones_like(pairs)).neg().exp().sum().item() == pytest.approx(1, rel=1e-12)


def test_a_large_vocabulary_needs_no_table_of_its_square() -> None:
    ids = torch.tensor([[99_999, 5, 99_999, 5]])
    found = Bigrams([(ids, torch.ones_like(ids))], 100_000).nll(ids, torch.ones_like(ids))
    assert found.exp().tolist() == pytest.approx([100_002 / 3, 100_001 / 2, 100_002 / 3])


def test_the_model_is_left_in_its_mode_and_asked_without_gradients() -> None:
    model = Table(torch.zeros(11, 11)).train()
    Perplexity(batch_size=4).evaluate(model, of_split(tokens()))
    assert model.seen == [(4, False, False), (2, False, False)]
    assert model.training
    assert model.logits.grad is None


def test_perplexity_names_what_does_not_fit() -> None:
    one = {"input_ids": torch.ones(2, 1).long(), "attention_mask": torch.ones(2, 1).long()}
    with pytest.raises(gw.DataError, match='split "test" has no token that follows another and counts'):
        Perplexity().evaluate(Table(torch.zeros(3, 3)), of_split(one))
    data = gw.Dataset(
        {"test": gw.TensorSamples(**tokens(vocabulary=5)), "train": gw.TensorSamples(**tokens()), "one": gw.TensorSamples(**one)}
    )
    with pytest.raises(gw.DataError, match=r'bigrams cannot be fitted on split "train": token \d+ is beyond a vocabulary of 5'):
        Perplexity(baseline="train").evaluate(Table(torch.zeros(5, 5)), data)
    with pytest.raises(gw.DataError, match='bigrams cannot be fitted on split "one": no token follows another'):
        Perplexity(baseline="one").evaluate(Table(torch.zeros(5, 5)), data)
    with pytest.raises(ValueError, match="add is above 0; found 0"):
        Perplexity(add=0)
    with pytest.raises(ValueError, match="bits_per_byte is of whole texts and does not go with completion_only"):
        Perplexity(completion_only=True, bits_per_byte=True)
    with pytest.raises(ValueError, match="add is above 0; found -1"):
        Bigrams([], 3, -1)


def test_nll_of_half_precision_logits_is_float32() -> None:
    losses, _ = next_token_nll(torch.randn(6, 9, 11).half(), **tokens())
    assert losses.dtype == torch.float32
