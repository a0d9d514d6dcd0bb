"""How far decoding stays behind the best, and what the bounds say, by enumerating every text of a small vocabulary."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from graftwork import DataError, Dataset, Evaluator, Figure, Report, Table
from graftwork.interfaces import CausalLM, Reward, require
from graftwork.kinds.evaluator import evaluating
from graftwork_transfer_q_star.figure import draw_gaps
from graftwork_transfer_q_star.models import end_tokens, transformers_model
from graftwork_transfer_q_star.scoring import score_texts
from graftwork_transfer_q_star.tabular import TabularModel, Tree, enumerate_model, optimum, random_model, sequences, transfer_values

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["METHODS", "Gap", "QStarGap", "analyse"]

METHODS = ("transfer", "indirect", "uncorrected", "controlled")
"""Whose values tilt the reference: rollouts of rho*, of a baseline of another reward with weights, the same without, the reference's."""

LARGEST = 2**20
"""Texts that are enumerated at most."""

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Gap:
    """One way to decode one problem, all of it exact.

    Args:
        method: of `METHODS`.
        alpha: strength of the pull to the reference.
        best: V*, the expected reward of rho*.
        value: V^alg, that of the decoded policy.
        divergence: h, KL(rho_alg || rho_sft), which is the expected sum of the token divergences.
        recalled: beta KL(rho* || rho_sft) - alpha h, the paper's bound on V* - V^alg as it is commonly stated.
        proved: alpha (sum of E_alg KL(pi* || pi_sft) - h), which bounds V* - V^alg where the values are Q*: see `analyse`.
        divergence_bound: (1/beta + T/alpha) r_max, the paper's bound on h.
    """

    method: str
    alpha: float
    best: float
    value: float
    divergence: float
    recalled: float
    proved: float
    divergence_bound: float

    @property
    def gap(self) -> float:
        """V* - V^alg; below 0 where decoding earns more than rho*, which is itself held near the reference."""
        return self.best - self.value


def analyse(reference: TabularModel, rewards: Tensor, baseline_rewards: Tensor, alphas: Sequence[float], beta: float) -> list[Gap]:
    """Every method at every alpha on one problem.

    The bound called proved follows from the tilt's optimality. At each state E_pi*[Q*] - alpha KL(pi* || pi_sft) is at most the same of
    pi_alg; summed over the states that pi_alg visits, the left sides' first terms less the right sides' make V* - V^alg.

    Args:
        reference: rho_sft.
        rewards: r, (V^T,), between 0 and r_max.
        baseline_rewards: r_BL, (V^T,), that the baseline of the indirect methods is aligned to.
        alphas: strengths of the pull to the reference.
        beta: of rho* and of the baseline.
    """
    best = optimum(reference, rewards, beta)
    baseline = optimum(reference, baseline_rewards, beta)
    values: dict[str, Tree] = {
        "transfer": transfer_values(best, rewards),
        "indirect": transfer_values(baseline, rewards, baseline_rewards, beta),
        "uncorrected": transfer_values(baseline, rewards),
        "controlled": transfer_values(reference, rewards),
    }
    highest, optimal = best.value(rewards), best.token_divergence(reference)
    found = []
    for alpha in alphas:
        for method in METHODS:
            policy = reference.tilted(values[method], alpha)
            spent = policy.token_divergence(reference)
            numbers = (
                highest,
                policy.value(rewards),
                spent,
                beta * optimal - alpha * spent,
                alpha * (best.token_divergence(reference, policy) - spent),
                (1 / beta + reference.horizon / alpha) * rewards.max(),
            )
            found.append(Gap(method, alpha, *(number.item() for number in numbers)))
    return found


class QStarGap(Evaluator):
    """V*, V^alg, the gap between them and the paper's two bounds, by enumerating every text (Chakraborty et al., 2024, theorem 1).

    Either over random models and rewards, or over a causal language model restricted to its likeliest tokens after a prompt. The bounds
    are reported with both sides and never clipped: in the form that is commonly stated the first can fail; see `Gap.proved`.

    Args:
        vocabulary: V, tokens.
        horizon: T, steps; there are V^T texts.
        problems: random models to draw; a prompt is one problem.
        alphas: strengths of the pull to the reference.
        beta: of the aligned policies.
        scale: standard deviation of random logits.
        prompt: analyse the stage's model after this text.
        reward: of texts, with a prompt.
        baseline_reward: r_BL, with a prompt; random by default.
        end: whether the end of text is one of the tokens, with a prompt.

    Raises:
        ValueError: if a parameter is out of range, or a prompt has no reward.
    """

    def __init__(
        self,
        vocabulary: Annotated[int, Field(ge=2)] = 4,
        horizon: Annotated[int, Field(ge=1)] = 4,
        problems: Annotated[int, Field(ge=1)] = 30,
        alphas: Annotated[list[Positive], Field(min_length=1)] = [0.1, 0.5, 2.0],  # noqa: B006 - read only
        beta: Positive = 0.7,
        scale: Annotated[float, Field(ge=0)] = 1.0,
        prompt: str | None = None,
        reward: Reward | None = None,
        baseline_reward: Reward | None = None,
        end: bool = True,
    ):
        if vocabulary < 2 or horizon < 1 or vocabulary**horizon > LARGEST:
            raise ValueError(f"vocabulary is at least 2, horizon at least 1 and V^T at most {LARGEST}; found {vocabulary} and {horizon}")
        if problems < 1 or scale < 0:
            raise ValueError(f"problems is at least 1 and scale at least 0; found {problems} and {scale}")
        if not alphas or min(alphas) <= 0 or beta <= 0:
            raise ValueError(f"alphas and beta are above 0; found {alphas} and {beta}")
        if (prompt is None) != (reward is None):
            raise ValueError("prompt and reward go together: random problems have rewards of their own")
        self.vocabulary, self.horizon, self.problems, self.alphas, self.beta = vocabulary, horizon, problems, list(alphas), beta
        self.scale, self.prompt, self.reward, self.baseline_reward, self.end = scale, prompt, reward, baseline_reward, end
        if prompt is not None:
            self.needs = CausalLM

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """For each method and alpha, means over problems: `<method>/gap@<alpha>`, `/recalled-bound@`, `/proved-bound@`,
        `/divergence@`, `/divergence-bound@`, and the shares of problems where a bound is broken, `/recalled-broken@`,
        `/proved-broken@` and `/divergence-broken@`. Two tables and a figure.

        Raises:
            DataError: if a reward is not finite or the prompt is empty.
        """
        generator = torch.Generator().manual_seed(0 if run is None else run.seed)
        problems = [self._drawn(generator) for _ in range(self.problems)] if self.prompt is None else [self._read(model, generator)]
        found = [one for problem in problems for one in analyse(*problem, self.alphas, self.beta)]
        metrics: dict[str, float] = {}
        rows = []
        for alpha in self.alphas:
            for method in METHODS:
                several = [one for one in found if one.method == method and one.alpha == alpha]
                named = _summary(several)
                metrics |= {f"{method}/{name}@{alpha:g}": value for name, value in named.items()}
                rows.append([method, alpha, *(round(value, 4) for value in named.values())])
        columns = ["values from", "alpha", *_summary(found)]
        caption = (
            f"Means over {len(problems)} problems of {self.vocabulary} tokens and {self.horizon} steps; broken: share of problems where "
            "the left side exceeds the right. The first two bounds are of V* - V^alg, for the values of Q*; the third is of the KL."
        )
        picture = Figure(draw_gaps(found), "V* - V^alg by alpha; for the values of Q* against the bound: above the line it is broken.")
        return Report(metrics, {"gaps": Table(columns, rows, caption)}, {"gaps": picture})

    def _drawn(self, generator: torch.Generator) -> tuple[TabularModel, Tensor, Tensor]:
        reference = random_model(self.vocabulary, self.horizon, generator, self.scale)
        rewards = torch.rand(2, self.vocabulary**self.horizon, generator=generator, dtype=torch.float64)
        return reference, rewards[0], rewards[1]

    def _read(self, model: Any, generator: torch.Generator) -> tuple[TabularModel, Tensor, Tensor]:
        """The stage's model after the prompt, and both rewards moved to start at 0."""
        require(model, CausalLM, "q-star-gap")
        inner, prompt = transformers_model(model), model.tokenizer(self.prompt, verbose=False)["input_ids"]
        if not prompt:
            raise DataError("the prompt has no token")
        ends = end_tokens(inner, model.tokenizer)[:1] if self.end else []
        with evaluating(inner):
            likeliest = inner(torch.tensor([prompt], device=inner.device)).logits[0, -1].argsort(descending=True).tolist()
            tokens = (ends + [token for token in likeliest if token not in ends])[: self.vocabulary]
            reference = enumerate_model(inner, prompt, tokens, self.horizon, 0 if ends else None)
            texts = self._texts(model.tokenizer, tokens, bool(ends))
            rewards = _moved(self._scored(self.reward, texts))
            if self.baseline_reward is None:
                return reference, rewards, torch.rand(len(texts), generator=generator, dtype=torch.float64) * rewards.max()
            return reference, rewards, _moved(self._scored(self.baseline_reward, texts))

    def _texts(self, tokenizer: Any, tokens: list[int], ended: bool) -> list[str]:
        """Every text, cut at its end."""
        rows = sequences(self.vocabulary, self.horizon).tolist()
        kept = [row[: row.index(0)] if ended and 0 in row else row for row in rows]
        spelt = [[tokens[position] for position in row] for row in kept]
        return tokenizer.batch_decode(spelt, skip_special_tokens=True, clean_up_tokenization_spaces=False)  # type: ignore[no-any-return]

    def _scored(self, reward: Any, texts: list[str]) -> Tensor:
        distinct = list(dict.fromkeys(texts))
        scores = score_texts(reward, distinct, [str(self.prompt)] * len(distinct))
        number = {text: index for index, text in enumerate(distinct)}
        return scores[torch.tensor([number[text] for text in texts])]


def _moved(rewards: Tensor) -> Tensor:
    return rewards - rewards.min()


def _summary(found: list[Gap]) -> dict[str, float]:
    tolerance = 1e-12
    return {
        "gap": statistics.fmean(one.gap for one in found),
        "recalled-bound": statistics.fmean(one.recalled for one in found),
        "recalled-broken": statistics.fmean(one.gap > one.recalled + tolerance for one in found),
        "proved-bound": statistics.fmean(one.proved for one in found),
        "proved-broken": statistics.fmean(one.gap > one.proved + tolerance for one in found),
        "divergence": statistics.fmean(one.divergence for one in found),
        "divergence-bound": statistics.fmean(one.divergence_bound for one in found),
        "divergence-broken": statistics.fmean(one.divergence > one.divergence_bound + tolerance for one in found),
    }
