"""Decoders side by side on the same prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graftwork as gw
from graftwork_transfer_q_star import DecodingAlignment, FunctionReward, RewardGuidedSearch, TransferQStar, complete, encode_prompts

TEXTS = ["w3 w7 w9 w4", "w5 w2", "w8 w8 w4 w6", "w2 w3 w4", "w9 w9"]


@pytest.fixture
def data() -> gw.Dataset:
    return gw.Dataset({"test": gw.TensorSamples(text=TEXTS)})


class Lengths:
    def encode(self, texts: Any) -> torch.Tensor:
        return torch.tensor([[1.0, float(len(text.split()))] for text in texts])


@pytest.fixture
def report(reference, baseline, reward, other_reward, data) -> gw.Report:
    transfer = TransferQStar(FunctionReward(reward), baseline, horizon=3, top_k=4, alpha=0.1)
    search = RewardGuidedSearch(FunctionReward(reward), top_k=4, alpha=0.1)
    evaluator = DecodingAlignment(
        FunctionReward(reward),
        {"transfer": transfer, "search": search},
        {"baseline": baseline},
        judge=FunctionReward(other_reward),
        encoder=Lengths(),
        compare=["transfer/search", "search/plain"],
        max_new_tokens=5,
        batch_size=2,
    )
    return evaluator.evaluate(reference, data)


def expected_divergence(lm: Any, reference: Any, found: list) -> float:
    """KL of a model's own distribution to the reference's, nats per token, one position after another."""
    total, count = 0.0, 0
    for text, one in zip(TEXTS, found, strict=True):
        ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
        for token in one.tokens[0][one.counted[0]].tolist():
            mine, theirs = (each.model(ids).logits[0, -1].double().log_softmax(-1) for each in (lm, reference))
            total, count = total + (mine.exp() * (mine - theirs)).sum().item(), count + 1
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return total / count


def test_metrics_are_those_of_the_responses(report, reference, baseline, reward, other_reward) -> None:
    """Plain decoding and the baseline, again and by hand, one prompt at a time."""
    for name, lm in (("plain", reference), ("baseline", baseline)):
        found = [complete(lm, *encode_prompts(lm, [text]), max_new_tokens=5) for text in TEXTS]
        texts = [one.texts[0] for one in found]
        assert report.metrics[f"{name}/reward"] == pytest.approx(reward(texts, TEXTS).mean().item(), abs=1e-6)
        assert report.metrics[f"{name}/tokens"] == sum(int(one.counted.sum()) for one in found) / len(TEXTS)
        assert report.metrics[f"{name}/divergence"] == pytest.approx(expected_divergence(lm, reference, found), abs=1e-5)
    table = report.tables["responses"].rows
    judged = {name: other_reward([row[2] for row in table if row[1] == name], TEXTS) for name in ("transfer", "search")}
    wins = (judged["transfer"] > judged["search"]).float().mean().item()
    assert report.metrics["transfer-vs-search/win"] == pytest.approx(wins)
    assert report.metrics["transfer-vs-search/win-tie"] == pytest.approx((judged["transfer"] >= judged["search"]).float().mean().item())


def test_guided_decoders_report_divergence_and_calls(report) -> None:
    assert report.metrics["transfer/divergence"] > 0.01
    assert report.metrics["transfer/rewards-per-token"] == pytest.approx(4.0)
    assert report.metrics["search/rollout-tokens-per-token"] == 0
    assert "plain/rewards-per-token" not in report.metrics
    assert {f"{name}/coherence" for name in ("plain", "transfer", "search", "baseline")} <= set(report.metrics)


def test_the_divergence_is_the_kl_of_each_steps_distribution(reference, baseline, reward) -> None:
    guidance = TransferQStar(FunctionReward(reward), baseline, horizon=2, top_k=3, alpha=0.2)
    ids, mask = encode_prompts(reference, TEXTS[:1])
    with guidance.attach(reference):
        found = complete(reference, ids, mask, divergence=True, max_new_tokens=4, eos_token_id=None)
        output = reference.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, output_scores=True, return_dict_in_generate=True,
            eos_token_id=None,
        )  # fmt: skip
    expected = 0.0
    for step, scores in enumerate(output.scores):
        policy = torch.distributions.Categorical(logits=scores[0].double())
        own = reference.model(output.sequences[:, : ids.shape[1] + step]).logits[0, -1].double().log_softmax(-1)
        inside = policy.probs > 0
        expected += (policy.probs[inside] * (policy.probs[inside].log() - own[inside])).sum().item()
    assert found.divergence.item() == pytest.approx(expected, abs=1e-5)


def test_the_figure_and_the_tables_name_every_decoder(report) -> None:
    names = ["plain", "transfer", "search", "baseline"]
    assert [row[0] for row in report.tables["decoders"].rows] == names
    left, right = report.figures["decoders"].figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == names
    assert len(right.get_legend().get_texts()) == 4
    assert len(report.tables["responses"].rows) == 4 * len(TEXTS)


def test_strengths_of_one_method_are_joined_to_a_curve(reference, reward, data) -> None:
    decoders = {f"search@{alpha}": RewardGuidedSearch(FunctionReward(reward), alpha=alpha, top_k=4) for alpha in (2.0, 0.05, 0.5)}
    report = DecodingAlignment(FunctionReward(reward), decoders, max_new_tokens=3).evaluate(reference, data)
    right = report.figures["decoders"].figure.axes[1]
    curve = right.get_lines()[1]  # behind `plain`
    across = sorted(report.metrics[f"{name}/divergence"] for name in decoders)
    assert curve.get_xdata().tolist() == pytest.approx(across)
    assert len(set(across)) == 3
    assert len(right.get_legend().get_texts()) == 2
    assert {text.get_text() for text in right.texts} == {"", "2.0", "0.05", "0.5"}


def test_models_and_random_state_are_left_as_they_were(reference, reward, data) -> None:
    reference.train()
    before = torch.get_rng_state()
    evaluator = DecodingAlignment(FunctionReward(reward), max_new_tokens=3, do_sample=True, prompt_tokens=2, limit=3)
    first, again = (evaluator.evaluate(reference, data).metrics["plain/reward"] for _ in range(2))
    assert first == again
    assert reference.training
    assert torch.equal(before, torch.get_rng_state())


def test_sampled_rollouts_follow_the_run_and_not_torchs_seed_before_it(reference, baseline, reward, data) -> None:
    guidance = TransferQStar(FunctionReward(reward), baseline, horizon=3, rollouts=2, top_k=4, alpha=0.2)
    evaluator = DecodingAlignment(FunctionReward(reward), {"transfer": guidance}, max_new_tokens=3)
    found = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found.append(evaluator.evaluate(reference, data).metrics["transfer/divergence"])
    assert found[0] == found[1]


def test_prompts_are_drawn_by_the_runs_seed_and_cut(reference, reward, data) -> None:
    class Run:
        def __init__(self, seed: int):
            self.seed = seed

    evaluator = DecodingAlignment(FunctionReward(reward), max_new_tokens=2, prompt_tokens=2, limit=3, shuffle=True)
    shown = [[row[0] for row in evaluator.evaluate(reference, data, Run(seed)).tables["responses"].rows] for seed in (1, 2, 1)]
    assert shown[0] == shown[2] != shown[1]
    assert all(len(prompt.split()) == 2 for prompt in shown[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": {"plain": None}}, "plain is the stage's model; found plain twice"),
        ({"models": {"a/b": None}}, "a decoder's name has no slash; found a/b"),
        ({"compare": ["plain"]}, 'compare names pairs of decoders as "first/second", of plain; found plain'),
        ({"compare": ["plain/other"]}, "found plain/other"),
        ({"temperature": 0.0}, "temperature is above 0; found 0.0"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(reward, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodingAlignment(FunctionReward(reward), **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"limit": 9}, 'split "test" has 5 samples; 9 prompts were asked for'),
        ({"key": "prompt"}, "have no prompt; they have text"),
    ],
)
def test_too_few_prompts_are_refused(reference, reward, data, given: dict, message: str) -> None:
    with pytest.raises(gw.DataError, match=message):
        DecodingAlignment(FunctionReward(reward), **given).evaluate(reference, data)


def test_rewards_that_are_not_finite_are_refused(reference, data) -> None:
    endless = FunctionReward(lambda samples, _: torch.full((len(samples),), torch.inf))
    with pytest.raises(gw.DataError, match="gave 5 of 5 rewards that are not finite"):
        DecodingAlignment(endless, max_new_tokens=2).evaluate(reference, data)


def test_a_model_of_another_tokenizer_is_refused(reference, small_vocabulary, reward, data) -> None:
    with pytest.raises(gw.InterfaceError, match="must share a tokenizer; got sizes 9, 14"):
        DecodingAlignment(FunctionReward(reward), models={"other": small_vocabulary(9, 0)}).evaluate(reference, data)
