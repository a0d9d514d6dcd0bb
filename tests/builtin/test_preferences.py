"""Text classifiers and rewards, the Bradley-Terry objective and reward-score, against transformers, closed forms and loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork.builtin.from_config import transformers_from_config
from graftwork.builtin.preferences import PairwisePreference, RewardScore, pairwise_preference_loss, preferred_pairs
from graftwork.builtin.sequence_classifiers import TransformersReward, TransformersTextClassifier
from graftwork.interfaces import Reward, classify

transformers = pytest.importorskip("transformers")

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 16}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
SIZES = {"BertForSequenceClassification": BERT, "GPT2ForSequenceClassification": GPT2}
TEXTS = ["a red three", "seven left of a blue three", "a"]


def make(words: str, architecture: str = "BertForSequenceClassification", labels: int = 1, **options: Any) -> Any:
    torch.manual_seed(0)
    config = {**SIZES[architecture], "num_labels": labels, "initializer_range": 0.3}
    return transformers_from_config(architecture, config, words, options=options).eval()


class Length(nn.Module):
    """The reward of a text, or of tokens, is a weight times its length."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight, self.asked = nn.Parameter(torch.tensor(weight)), []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.weight * attention_mask.sum(dim=1)

    def score(self, samples: list[str], prompts: list[str] = ()) -> torch.Tensor:
        self.asked.append((len(samples), self.training, torch.is_grad_enabled()))
        joined = [prompt + text for prompt, text in zip(prompts, samples, strict=True)] if prompts else samples
        return self.weight * torch.tensor([float(len(text)) for text in joined])


def of_split(**columns: Any) -> gw.Dataset:
    return gw.Dataset({"test": gw.TensorSamples(**columns)})


# -- classifiers and rewards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", SIZES)
@torch.no_grad()
def test_texts_and_tokens_give_the_librarys_own_logits_alone_and_padded(architecture: str, words: str) -> None:
    model = make(words, architecture, labels=3)
    assert (type(model), model.num_classes) == (TransformersTextClassifier, 3)
    of_tokens = make(words, architecture, labels=3, input="input_ids")
    tokens = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    found = classify(model, {"text": TEXTS})
    torch.testing.assert_close(classify(of_tokens, dict(tokens)), found)
    for text, logits in zip(TEXTS, found, strict=True):
        own = model.model(**{k: v for k, v in model.tokenizer(text, return_tensors="pt").items() if k != "token_type_ids"}).logits[0]
        torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-5)
    assert model(["a " * 50]).shape == (1, 3)  # cut after 16 tokens


@pytest.mark.parametrize("architecture", SIZES)
@torch.no_grad()
def test_a_reward_scores_each_text_after_its_prompt(architecture: str, words: str) -> None:
    model = make(words, architecture)
    assert isinstance(model, Reward)
    prompts = ["a ", "blue ", "left of "]
    found = model.score(TEXTS, prompts)
    assert found.shape == (3,)
    torch.testing.assert_close(found, model.score([p + t for p, t in zip(prompts, TEXTS, strict=True)], []))
    torch.testing.assert_close(model.score(TEXTS), classify(model, {"text": TEXTS}))
    assert not torch.allclose(found, model.score(TEXTS))
    with pytest.raises(gw.DataError, match="there are 3 texts but 2 prompts"):
        model.score(TEXTS, prompts[:2])


def test_a_reward_is_made_from_a_language_model_only_when_a_new_head_is_wanted(words: str, tmp_path: Path) -> None:
    language = transformers_from_config("GPT2LMHeadModel", GPT2, words)
    language.save_pretrained(tmp_path)
    with pytest.raises(gw.GraftworkError, match=r'reward ".*" has no weights for score\.weight; for a new head set new_head'):
        TransformersReward(str(tmp_path))
    reward = TransformersReward(str(tmp_path), new_head=True)
    assert torch.equal(reward.model.transformer.wte.weight, language.model.transformer.wte.weight)
    assert reward.score(TEXTS).shape == (3,)
    assert reward.model.config.pad_token_id == 0
    with pytest.raises(gw.GraftworkError, match=r'text classifier ".*" has no weights for score\.weight; for a new head give num_classes'):
        TransformersTextClassifier(str(tmp_path))
    assert TransformersTextClassifier(str(tmp_path), num_classes=4)(TEXTS).shape == (3, 4)


def test_a_classifier_of_several_outputs_is_no_reward(words: str, tmp_path: Path) -> None:
    make(words, labels=3).save_pretrained(tmp_path)
    with pytest.raises(gw.GraftworkError, match="a reward has one output; this BertForSequenceClassification has 3: set new_head"):
        TransformersReward(str(tmp_path))
    assert TransformersReward(str(tmp_path), new_head=True).score(TEXTS).shape == (3,)


def test_half_precision_is_read_as_float32(words: str, tmp_path: Path) -> None:
    make(words).half().save_pretrained(tmp_path)
    assert {p.dtype for p in TransformersReward(str(tmp_path)).parameters()} == {torch.float32}


def test_a_classifier_learns_from_texts(words: str) -> None:
    torch.manual_seed(0)
    model = transformers_from_config("BertForSequenceClassification", BERT, words)
    texts = ["a red three", "a blue three", "red seven", "blue seven"] * 4
    data = gw.Dataset({"train": gw.TensorSamples(text=texts, label=torch.tensor([0, 1, 0, 1] * 4))})
    config = gw.TrainConfig(steps=30, batch_size=16, optimizer={"use": "adamw", "lr": 5e-3})
    trained = gw.Engine(model, gw.objective("cross-entropy"), data, config, device="cpu").fit()
    assert gw.evaluator("accuracy", split="train").evaluate(trained, data).metrics["accuracy"] == 1.0


# -- the objective ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_the_loss_is_the_mean_of_log_one_plus_exp_in_float64(margin: float) -> None:
    chosen, rejected = numpy.random.default_rng(0).normal(size=(2, 9)) * 3
    expected = numpy.mean([math.log(1 + math.exp(-(c - r - margin))) for c, r in zip(chosen, rejected, strict=True)])
    assert pairwise_preference_loss(torch.tensor(chosen), torch.tensor(rejected), margin).item() == pytest.approx(expected, rel=1e-12)
    each = pairwise_preference_loss(torch.tensor(chosen), torch.tensor(rejected), torch.full((9,), margin))
    assert each.item() == pytest.approx(expected, rel=1e-6)


def test_equal_rewards_cost_log_two_and_a_hopeless_pair_its_difference() -> None:
    assert pairwise_preference_loss(torch.ones(4), torch.ones(4)).item() == pytest.approx(math.log(2))
    assert pairwise_preference_loss(torch.tensor([-500.0]), torch.tensor([500.0])).item() == 1000  # no overflow
    assert pairwise_preference_loss(torch.tensor([500.0]), torch.tensor([-500.0])).item() == 0


def test_the_gradient_is_that_of_float64_and_half_precision_is_raised() -> None:
    chosen, rejected = torch.randn(2, 5, dtype=torch.float64).requires_grad_().unbind(0)
    counted = torch.tensor([True, False, True, True, False])
    assert torch.autograd.gradcheck(lambda c, r: pairwise_preference_loss(c, r, 0.3, counted), (chosen, rejected))
    (gradient,) = torch.autograd.grad(pairwise_preference_loss(chosen, rejected), chosen)
    torch.testing.assert_close(gradient, -(rejected - chosen).sigmoid() / 5)
    assert pairwise_preference_loss(torch.randn(5).half(), torch.randn(5).half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "preferred", "pairs"),
    [
        ([1, 0, 1, 0], None, {(0, 1), (0, 3), (2, 1), (2, 3)}),
        ([2, 0, 1], None, {(0, 1), (0, 2), (2, 1)}),
        ([2, 0, 1], 0, {(1, 0), (1, 2)}),
        ([1, 1], None, set()),
    ],
)
def test_every_preferred_sample_is_paired_with_every_other(labels: list[int], preferred: int | None, pairs: set[tuple[int, int]]) -> None:
    assert {tuple(pair) for pair in preferred_pairs(torch.tensor(labels), preferred).nonzero().tolist()} == pairs


def test_pairs_from_labels_equal_a_loop_over_pairs() -> None:
    model, label = Length(0.3), torch.tensor([0, 2, 1, 2, 0])
    lengths = [3, 5, 6, 1, 2]
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    loss = PairwisePreference(pairs="labels", margin=0.2)(
        model, {"train": {"input_ids": mask, "attention_mask": mask, "label": label}}, 0.0
    )
    pairs = [(i, j) for i in range(5) for j in range(5) if label[i] > label[j]]
    differences = [0.3 * (lengths[i] - lengths[j]) for i, j in pairs]
    assert loss.total.item() == pytest.approx(sum(math.log(1 + math.exp(0.2 - d)) for d in differences) / len(pairs), rel=1e-6)
    assert loss.parts["preference-accuracy"].item() == pytest.approx(sum(d > 0 for d in differences) / len(pairs))
    assert loss.parts["reward-difference"].item() == pytest.approx(sum(differences) / len(pairs), rel=1e-6)


def test_a_batch_of_one_label_costs_nothing() -> None:
    ones = torch.ones(3, 2).long()
    model = Length()
    loss = PairwisePreference(pairs="labels")(model, {"train": {"input_ids": ones, "attention_mask": ones, "label": torch.ones(3)}}, 0.0)
    loss.total.backward()
    assert loss.total == 0
    assert model.weight.grad == 0


def test_given_pairs_of_texts_tokens_and_prompts_are_scored_alike() -> None:
    model = Length(0.1)
    texts = {"chosen": ["abcd", "ab"], "rejected": ["ab", "abc"], "prompt": ["x", "xyz"]}
    expected = (math.log(1 + math.exp(-0.2)) + math.log(1 + math.exp(0.1))) / 2
    assert PairwisePreference()(model, {"train": texts}, 0.0).total.item() == pytest.approx(expected, rel=1e-6)
    assert PairwisePreference(prompted=True)(model, {"train": texts}, 0.0).total.item() == pytest.approx(expected, rel=1e-6)
    tokens = {}
    for side in ("chosen", "rejected"):
        mask = (torch.arange(4) < torch.tensor([len(text) for text in texts[side]])[:, None]).long()
        tokens |= {f"{side}_input_ids": mask, f"{side}_attention_mask": mask}
    objective = PairwisePreference(input="input_ids")
    assert set(objective.keys["train"]) == set(tokens)
    assert objective(model, {"train": tokens}, 0.0).total.item() == pytest.approx(expected, rel=1e-6)
    assert PairwisePreference().keys == {"train": ("chosen", "rejected")}
    assert PairwisePreference(prompted=True).keys == {"train": ("chosen", "rejected", "prompt")}


def test_training_a_transformers_reward_orders_the_pairs(words: str) -> None:
    torch.manual_seed(0)
    model = transformers_from_config("BertForSequenceClassification", {**BERT, "num_labels": 1}, words)
    pairs = {"chosen": ["a red three", "red seven"] * 4, "rejected": ["a blue three", "blue seven"] * 4}
    data = gw.Dataset({"train": gw.TensorSamples(**pairs)})
    config = gw.TrainConfig(steps=30, batch_size=8, optimizer={"use": "adamw", "lr": 5e-3})
    trained = gw.Engine(model, gw.objective("pairwise-preference"), data, config, device="cpu").fit()
    with torch.no_grad():
        assert (trained.score(pairs["chosen"]) > trained.score(pairs["rejected"])).all()


def test_the_objective_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"chosen, rejected and counted differ in shape: \(2,\), \(3,\)"):
        pairwise_preference_loss(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="margin is at least 0; found -1"):
        PairwisePreference(margin=-1)
    with pytest.raises(ValueError, match="prompted goes with texts that are given in pairs; found pairs labels and input text"):
        PairwisePreference(pairs="labels", prompted=True)
    with pytest.raises(ValueError, match="preferred goes with pairs made from labels; found pairs given"):
        PairwisePreference(preferred=1)
    three = nn.Linear(2, 3)
    three.inputs = ("features",)
    with pytest.raises(gw.DataError, match=r"Linear gives \(4, 3\) where one reward a sample is expected"):
        PairwisePreference(pairs="labels")(three, {"train": {"features": torch.zeros(4, 2), "label": torch.zeros(4)}}, 0.0)


# -- reward-score -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [3, 64])
def test_mean_spread_and_quantiles_are_numpys(batch_size: int) -> None:
    lengths = [3, 1, 4, 1, 5, 9, 2, 6]
    data = of_split(text=["x" * n for n in lengths])
    report = RewardScore(quantiles=[0.1, 0.9], batch_size=batch_size).evaluate(Length(2.0), data)
    expected = 2 * numpy.array(lengths)
    assert report.metrics == pytest.approx(
        {"reward-mean": expected.mean(), "reward-std": expected.std(), "reward-median": numpy.median(expected)}
    )
    assert report.tables["quantiles"].rows == [["10%", pytest.approx(numpy.quantile(expected, 0.1))], ["90%", pytest.approx(13.8)]]
    assert "rewards" in report.figures


def test_prompts_limits_and_a_reward_of_ones_own() -> None:
    data = of_split(answer=["a", "bb", "ccc"], question=["xx", "", ""])
    evaluator = RewardScore(reward=Length(), key="answer", prompt="question", limit=2)
    assert evaluator.keys == ("answer", "question")
    assert evaluator.evaluate(object(), data).metrics["reward-mean"] == pytest.approx(2.5)
    assert evaluator.needs is object
    assert RewardScore().needs is Reward


def test_a_reward_is_asked_in_batches_without_gradients_and_left_in_its_mode() -> None:
    model = Length().train()
    RewardScore(batch_size=2).evaluate(model, of_split(text=["a", "b", "c"]))
    assert model.asked == [(2, False, False), (1, False, False)]
    assert model.training


def test_reward_score_names_what_does_not_fit() -> None:
    with pytest.raises(gw.DataError, match='split "test" is empty'):
        RewardScore().evaluate(Length(), gw.Dataset({"test": []}))
    with pytest.raises(gw.DataError, match='Length gives rewards that are not finite on split "test"'):
        RewardScore().evaluate(Length(math.nan), of_split(text=["a"]))
    with pytest.raises(ValueError, match=r"quantiles are between 0 and 1; found \[2\]"):
        RewardScore(quantiles=[2])


def test_reward_score_runs_on_a_transformers_model(words: str) -> None:
    model = make(words)
    report = RewardScore(batch_size=2).evaluate(model, of_split(text=TEXTS))
    with torch.no_grad():
        assert report.metrics["reward-mean"] == pytest.approx(model.score(TEXTS).mean().item(), rel=1e-5)


def test_preference_accuracy_is_the_share_of_pairs_in_order_with_ties_counting_half() -> None:
    texts, labels = ["a" * n for n in (5, 5, 3, 9, 1)], [1, 0, 0, 1, 0]
    report = RewardScore(preferred=1).evaluate(Length(), of_split(text=texts, label=torch.tensor(labels)))
    rated = list(zip(texts, labels, strict=True))
    pairs = [(len(a) > len(b)) + (len(a) == len(b)) / 2 for a, la in rated for b, lb in rated if la == 1 and lb == 0]
    assert report.metrics["preference-accuracy"] == pytest.approx(sum(pairs) / len(pairs))
    assert "label" in RewardScore(preferred=1).keys
    with pytest.raises(gw.DataError, match='0 of 5 samples of split "test" have label 7: nothing to rank'):
        RewardScore(preferred=7).evaluate(Length(), of_split(text=texts, label=torch.tensor(labels)))
