"""Rewards of finished responses: as token ids where reward and language model share a tokenizer, else as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graftwork import DataError
from graftwork.builtin.sequence_classifiers import TransformersReward
from graftwork.interfaces import device_of
from graftwork.kinds.evaluator import evaluating

__all__ = ["FunctionReward", "RewardScorer", "same_vocabulary", "score_texts"]


class FunctionReward:
    """A function of texts as a reward: `function(samples, prompts)` gives (B,).

    Args:
        function: takes B responses and the B prompts that they answer.
    """

    def __init__(self, function: Callable[[Sequence[str], Sequence[str]], Tensor]):
        self.function = function

    def score(self, samples: Sequence[str], prompts: Sequence[str] = ()) -> Tensor:
        """Rewards (B,)."""
        return self.function(samples, prompts)


def score_texts(reward: Any, texts: Sequence[str], prompts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Rewards of finished responses.

    Args:
        reward: offers `score(samples, prompts)`; or a function of the same. In evaluation mode while it scores.
        texts: N responses.
        prompts: the N that they answer.
        batch_size: texts that it sees at once.

    Returns:
        (N,) in float64, on the CPU.

    Raises:
        DataError: if the reward gives another shape or numbers that are not finite.
    """
    scored, parts = _as_reward(reward), []
    with evaluating(reward):
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            parts.append(_checked(reward, scored.score(part, prompts[start : start + batch_size]), len(part)).double().cpu())
    return _finite(reward, torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64))


def _as_reward(reward: Any) -> Any:
    return reward if hasattr(reward, "score") else FunctionReward(reward)


def _name(reward: Any) -> str:
    inner = reward.function if isinstance(reward, FunctionReward) else reward
    return getattr(inner, "__name__", type(inner).__name__)


def _checked(reward: Any, found: object, count: int) -> Tensor:
    """What a reward gave for so many texts, at least in float32."""
    if not isinstance(found, Tensor) or found.shape != (count,):
        shape = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise DataError(f"{_name(reward)} gave {shape} for {count} texts; expected a tensor of shape ({count},)")
    return found.detach().to(torch.promote_types(found.dtype, torch.float32))


def _finite(reward: Any, found: Tensor) -> Tensor:
    if not found.isfinite().all():
        raise DataError(f"{_name(reward)} gave {int((~found.isfinite()).sum())} of {len(found)} rewards that are not finite")
    return found


def same_vocabulary(first: Any, second: Any) -> bool:
    """Whether two tokenizers give every token the same id."""
    return first is second or first.get_vocab() == second.get_vocab()


class RewardScorer:
    """Scores sequences of a language model's tokens by a reward, those of like length together.

    Args:
        reward: offers `score(samples, prompts)`; or a function of the same.
        tokenizer: of the language model.
        batch_size: sequences that the reward sees at once.
        keep_special_tokens: whether it sees the tokens that begin, end and pad a text, as in the authors' code.

    Attributes:
        uses_ids: whether the reward is given token ids: it is a sequence classifier of transformers whose tokenizer has the same
            vocabulary, and adds nothing that the ids would lack.
        calls: of the reward so far.
        scored: sequences so far.
    """

    def __init__(self, reward: Any, tokenizer: Any, batch_size: int = 64, keep_special_tokens: bool = False):
        self.reward = _as_reward(reward)
        self.tokenizer, self.batch_size, self.keep_special_tokens = tokenizer, batch_size, keep_special_tokens
        self.calls = self.scored = 0
        own = getattr(reward, "tokenizer", None)
        alike = isinstance(reward, TransformersReward) and own is not None and same_vocabulary(own, tokenizer)
        self.uses_ids = bool(alike and own is not None and (keep_special_tokens or not own.num_special_tokens_to_add()))
        self._special = torch.tensor([] if keep_special_tokens else sorted(tokenizer.all_special_ids), dtype=torch.long)

    def __call__(self, sequences: Tensor, mask: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards of sequences, prompt included.

        Args:
            sequences: (N, L) long.
            mask: (N, L) bool, where there is text.
            prompts: N, as text; only a reward of texts reads them.

        Returns:
            (N,), at least in float32, on the device of `sequences`.

        Raises:
            DataError: if the reward gives another shape or numbers that are not finite, or a sequence is longer than it takes.
        """
        if not len(sequences):
            return torch.zeros(0, device=sequences.device)
        text = mask & ~torch.isin(sequences, self._special.to(sequences.device))
        found = self._from_ids(sequences, text) if self.uses_ids else self._from_texts(sequences, text, prompts)
        self.scored += len(sequences)
        return _finite(self.reward, found).to(sequences.device)

    def _from_ids(self, sequences: Tensor, text: Tensor) -> Tensor:
        lengths = text.sum(dim=1)
        self._check_length(int(lengths.max()))
        order = torch.argsort(text.logical_not().long(), dim=1, stable=True)  # text first, so that padding is on the right
        filling = self.reward.model.config.pad_token_id or 0
        ids = sequences.gather(1, order)
        where = device_of(self.reward)
        columns = torch.arange(ids.shape[1], device=ids.device)
        parts = []
        by_length = lengths.argsort()
        for start in range(0, len(by_length), self.batch_size):
            part = by_length[start : start + self.batch_size]
            width = max(int(lengths[part].max()), 1)
            inside = columns[:width] < lengths[part, None]
            rows = ids[part, :width].masked_fill(~inside, filling)
            parts.append(self._counted(self.reward(rows.to(where), inside.long().to(where)), len(part)).to(sequences.device))
        found = torch.cat(parts)
        return torch.empty_like(found).index_copy(0, by_length, found)

    def _from_texts(self, sequences: Tensor, text: Tensor, prompts: Sequence[str]) -> Tensor:
        kept = [row[inside].tolist() for row, inside in zip(sequences.cpu(), text.cpu(), strict=True)]
        whole = self.tokenizer.batch_decode(kept, skip_special_tokens=not self.keep_special_tokens, clean_up_tokenization_spaces=False)
        answers = [one.removeprefix(prompt) for one, prompt in zip(whole, prompts, strict=True)]
        starts = [one[: len(one) - len(answer)] for one, answer in zip(whole, answers, strict=True)]
        self._check_texts(whole)
        by_length = sorted(range(len(whole)), key=lambda index: len(whole[index]))
        parts = []
        for start in range(0, len(whole), self.batch_size):
            part = by_length[start : start + self.batch_size]
            scores = self.reward.score([answers[index] for index in part], [starts[index] for index in part])
            parts.append(self._counted(scores, len(part)))
        found = torch.cat([part.to(parts[0].device) for part in parts])
        return torch.empty_like(found).index_copy(0, torch.tensor(by_length, device=found.device), found)

    def _check_texts(self, texts: Sequence[str]) -> None:
        """A reward of transformers would cut what is too long without a word, and with it the rollout."""
        most, own = getattr(self.reward, "max_length", None), getattr(self.reward, "tokenizer", None)
        if most is None or own is None:
            return
        long = [one for one in texts if len(one.encode()) + own.num_special_tokens_to_add() > most]
        if long:
            self._check_length(max(map(len, own(long, truncation=False, verbose=False)["input_ids"])))

    def _check_length(self, length: int) -> None:
        most = getattr(self.reward, "max_length", None)
        if most is not None and length > most:
            raise DataError(
                f"{_name(self.reward)} takes {most} tokens; prompt, response and rollout have {length}: shorten the prompt, max_new_tokens "
                "or horizon"
            )

    def _counted(self, found: object, count: int) -> Tensor:
        self.calls += 1
        return _checked(self.reward, found, count)
