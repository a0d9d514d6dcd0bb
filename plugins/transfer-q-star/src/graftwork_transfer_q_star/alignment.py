"""What ways to decode a language model gain and cost, side by side on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from graftwork import Dataset, Evaluator, Figure, Guidance, Report, Split, Table
from graftwork.interfaces import CausalLM, Reward, TextEncoder, device_of
from graftwork.kinds.evaluator import evaluating
from graftwork_transfer_q_star.completion import complete, encode_prompts
from graftwork_transfer_q_star.figure import draw_decoders
from graftwork_transfer_q_star.models import check_shared_tokenizer
from graftwork_transfer_q_star.prompts import prompts_of
from graftwork_transfer_q_star.scoring import score_texts
from graftwork_transfer_q_star.text_metrics import coherence, diversity, win_rates, words

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["PLAIN", "DecodingAlignment"]

PLAIN = "plain"
"""The stage's model without guidance; it is always among the decoders."""

SHOWN = 8
"""Prompts whose responses are shown."""

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


@dataclass
class _Decoded:
    """One decoder's responses to all prompts."""

    texts: list[str] = field(default_factory=list)
    divergence: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    calls: dict[str, float] = field(default_factory=dict)


class DecodingAlignment(Evaluator):
    """Mean reward, win and tie rates, diversity, coherence, divergence from the reference, speed and calls of several decoders
    (Chakraborty et al., 2024, section 5).

    The stage's model is the reference; `plain` decodes from it as it is.

    Args:
        reward: of responses.
        decoders: name -> guidance that is attached to the stage's model. The figure joins those that are named alike before an "@",
            such as `transfer@4` and `transfer@1`, by a line.
        models: name -> another language model of the same tokenizer, decoded from as it is: an aligned baseline, say.
        judge: reward that decides who wins; the same as `reward` by default.
        encoder: of prompts and responses, for coherence; without, there is none.
        compare: pairs of names whose win rates are reported, "first/second"; by default each decoder against `plain`.
        tie: rewards that differ by no more are a tie.
        split: of the prompts.
        key: sample key of the prompts.
        prompt_tokens: cut each after so many tokens, so that whole texts can serve; none leaves them whole.
        limit: so many prompts; all by default.
        shuffle: draw them at random by the run's seed; else they are the first.
        max_new_tokens: of a response.
        do_sample: sample; else every decoder takes its likeliest token.
        temperature: of sampling.
        top_k: draw among so many likeliest tokens when sampling, with and without guidance; 0 among all. Guidance with fewer
            candidates draws among these, so set it to theirs to compare like with like.
        batch_size: prompts that are decoded at once.

    Raises:
        ValueError: if a parameter is out of range, or a name is unknown or taken twice.
    """

    needs = CausalLM

    def __init__(
        self,
        reward: Reward,
        decoders: dict[str, Guidance] = {},  # noqa: B006 - read only
        models: dict[str, CausalLM] = {},  # noqa: B006 - read only
        judge: Reward | None = None,
        encoder: TextEncoder | None = None,
        compare: list[str] | None = None,
        tie: Annotated[float, Field(ge=0)] = 0.0,
        split: Split = "test",
        key: str = "text",
        prompt_tokens: Count | None = None,
        limit: Count | None = None,
        shuffle: bool = False,
        max_new_tokens: Count = 128,
        do_sample: bool = False,
        temperature: Positive = 0.7,
        top_k: Annotated[int, Field(ge=0)] = 0,
        batch_size: Count = 16,
    ):
        names = [PLAIN, *decoders, *models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"decoders and models are named apart, and {PLAIN} is the stage's model; found {', '.join(twice)} twice")
        if odd := [name for name in names if "/" in name]:
            raise ValueError(f"a decoder's name has no slash; found {', '.join(odd)}")
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size), ("temperature", temperature)):
            if not value > 0:
                raise ValueError(f"{name} is above 0; found {value}")
        pairs = [f"{name}/{PLAIN}" for name in names[1:]] if compare is None else compare
        self.pairs = [tuple(pair.split("/", 1)) for pair in pairs]
        if wrong := [pair for pair, sides in zip(pairs, self.pairs, strict=True) if len(sides) != 2 or not set(sides) <= set(names)]:
            raise ValueError(f'compare names pairs of decoders as "first/second", of {", ".join(names)}; found {", ".join(wrong)}')
        self.reward, self.decoders, self.models, self.judge, self.encoder = reward, dict(decoders), dict(models), judge, encoder
        self.tie, self.split, self.key, self.prompt_tokens, self.limit, self.shuffle = tie, split, key, prompt_tokens, limit, shuffle
        self.settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "do_sample": do_sample,
            "temperature": temperature,
            "top_k": top_k,
        }
        self.batch_size, self.keys = batch_size, (key,)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """For each decoder `<name>/reward`, `diversity`, `divergence` (KL to the stage's model, nats per token), `tokens` and
        `tokens-per-second`, for guidances their calls per token, with an encoder `coherence`; for each pair `<first>-vs-<second>/win`,
        `tie` and `win-tie`. Tables of the metrics and of responses, and a figure. Every decoder starts from the same random state, and
        torch's own is left as it was.

        Raises:
            DataError: if there are too few prompts, or a reward is of a wrong shape or not finite.
            InterfaceError: if another model has another tokenizer.
        """
        seed = 0 if run is None else run.seed
        prompts = prompts_of(data, self.split, self.key, self.limit, seed if self.shuffle else None)
        if self.prompt_tokens is not None:
            rows = [row[: self.prompt_tokens] for row in model.tokenizer(prompts, verbose=False)["input_ids"]]
            prompts = model.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ways: dict[str, tuple[Any, Guidance | None]] = {PLAIN: (model, None)}
        ways |= {name: (model, guidance) for name, guidance in self.decoders.items()}
        ways |= {name: (other, None) for name, other in self.models.items()}
        for other in self.models.values():
            check_shared_tokenizer(other, model)
        decoded = {name: self._decode(one, guidance, prompts, seed, model) for name, (one, guidance) in ways.items()}
        rewards = {name: score_texts(self.reward, one.texts, prompts) for name, one in decoded.items()}
        metrics = {name: self._measure(one, rewards[name], prompts) for name, one in decoded.items()}
        judged = {name: score_texts(self.judge, one.texts, prompts) for name, one in decoded.items()} if self.judge else rewards
        wins = {pair: win_rates(judged[pair[0]], judged[pair[1]], self.tie) for pair in self.pairs}
        flat = {f"{name}/{key}": value for name, found in metrics.items() for key, value in found.items()}
        for (first, second), (win, tie) in wins.items():
            flat |= {f"{first}-vs-{second}/{key}": value for key, value in (("win", win), ("tie", tie), ("win-tie", win + tie))}
        tables = {"decoders": _table_of_metrics(metrics), "responses": _table_of_responses(prompts, decoded, rewards)}
        if wins:
            rows = [[*pair, *(round(share, 4) for share in found)] for pair, found in wins.items()]
            tables["wins"] = Table(["decoder", "against", "wins", "ties"], rows, f"Shares of {len(prompts)} prompts, by the judge.")
        caption = f"Responses to {len(prompts)} prompts of {self.split}."
        return Report(flat, tables, {"decoders": Figure(draw_decoders(rewards, metrics), caption)})

    def _decode(self, model: Any, guidance: Guidance | None, prompts: list[str], seed: int, reference: Any) -> _Decoded:
        found = _Decoded()
        device = device_of(model)
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
            torch.manual_seed(seed)  # before a guidance is attached, which takes the seed of its rollouts from it
            for one in (evaluating(model), evaluating(reference), nullcontext() if guidance is None else guidance.attach(model)):
                stack.enter_context(one)
            for start in range(0, len(prompts), self.batch_size):
                given = encode_prompts(model, prompts[start : start + self.batch_size])
                part = complete(model, *given, divergence=True, reference=None if model is reference else reference, **self.settings)
                found.texts += part.texts
                found.divergence += part.divergence.sum().item()
                found.tokens += int(part.counted.sum())
                found.seconds += part.seconds
        calls = getattr(guidance, "calls", None)
        if calls is not None:
            found.calls = {f"{name}-per-token": value for name, value in calls.per_token().items()}
        return found

    def _measure(self, one: _Decoded, rewards: Tensor, prompts: list[str]) -> dict[str, float]:
        metrics = {
            "reward": rewards.mean().item(),
            "diversity": sum(diversity(words(text)) for text in one.texts) / len(one.texts),
            "divergence": one.divergence / max(one.tokens, 1),
            "tokens": one.tokens / len(one.texts),
            "tokens-per-second": one.tokens / max(one.seconds, 1e-9),
            **one.calls,
        }
        if self.encoder is not None:
            with evaluating(self.encoder):
                parts = [
                    coherence(self.encoder, prompts[start : start + 64], one.texts[start : start + 64])
                    for start in range(0, len(one.texts), 64)
                ]
            metrics["coherence"] = torch.cat(parts).double().mean().item()
        return metrics


def _table_of_metrics(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    columns = list(dict.fromkeys(key for found in metrics.values() for key in found))
    rows = [[name, *(round(found[key], 4) if key in found else "" for key in columns)] for name, found in metrics.items()]
    return Table(["decoder", *columns], rows, "Means over responses; calls and divergence for each token that was emitted.")


def _table_of_responses(prompts: list[str], decoded: Mapping[str, _Decoded], rewards: Mapping[str, Tensor]) -> Table:
    rows = [
        [prompts[index], name, one.texts[index], round(rewards[name][index].item(), 3)]
        for index in range(min(SHOWN, len(prompts)))
        for name, one in decoded.items()
    ]
    return Table(["prompt", "decoder", "response", "reward"], rows, "The first responses.")
