"""How well a language model predicts a split: perplexity, and a bigram model to hold it against."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from graftwork.builtin.language_objectives import next_token_logits, next_token_targets
from graftwork.errors import DataError
from graftwork.interfaces import CausalLM
from graftwork.kinds.dataset import Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Report, Table, evaluating, split_batches
from graftwork.run import Run

__all__ = ["Bigrams", "Perplexity", "next_token_nll"]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


def next_token_nll(
    logits: Tensor, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """-log p of each token but the first, in nats, and whether it counts; at least in float32.

    Args:
        logits: (B, T, V), of the token that follows each.
        input_ids: (B, T) long.
        attention_mask: (B, T), 1 where there is text.
        completion_mask: (B, T), 1 where a token counts; None where all do.

    Returns:
        (B, T - 1), 0 where it does not count; and (B, T - 1) bool.
    """
    targets, counted = next_token_targets(input_ids, attention_mask, completion_mask)
    precise = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32)).movedim(-1, 1)
    return functional.cross_entropy(precise, targets.masked_fill(~counted, -100), reduction="none"), counted


class Bigrams:
    """p(b | a) = (n(a, b) + k) / (n(a) + k V): counts of pairs with Lidstone's smoothing, on the CPU in float64.

    Only the pairs that occur are held, so that a vocabulary may be large.

    Args:
        texts: pairs of `input_ids` (B, T) long and `attention_mask` (B, T), padded on either side.
        vocabulary: V, above every token.
        add: k > 0; 1 is Laplace's.

    Raises:
        ValueError: if a token is beyond the vocabulary, no token follows another, or k is not above 0.
    """

    def __init__(self, texts: Iterable[tuple[Tensor, Tensor]], vocabulary: int, add: float = 1.0):
        if add <= 0:
            raise ValueError(f"add is above 0; found {add}")
        self.vocabulary, self.add = vocabulary, add
        found = [self._codes(ids, *next_token_targets(ids, mask)) for ids, mask in texts]
        self.pairs, self.counts = torch.unique(torch.cat([torch.empty(0, dtype=torch.long), *found]), return_counts=True)
        if not len(self.pairs):
            raise ValueError("no token follows another")
        self.totals = torch.zeros(vocabulary, dtype=torch.long).index_add_(0, self.pairs // vocabulary, self.counts)

    def _codes(self, input_ids: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
        """Each pair that counts as one number, a V + b, on the CPU."""
        input_ids, targets, counted = input_ids.cpu(), targets.cpu(), counted.cpu()
        if input_ids.numel() and int(input_ids.max()) >= self.vocabulary:
            raise ValueError(f"token {int(input_ids.max())} is beyond a vocabulary of {self.vocabulary}")
        return (input_ids[:, :-1] * self.vocabulary + targets)[counted]

    def nll(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor | None = None) -> Tensor:
        """-log p, in nats, of the tokens that count, in order: (N,) float64, on the CPU."""
        targets, counted = next_token_targets(input_ids, attention_mask, completion_mask)
        codes = self._codes(input_ids, targets, counted)
        place = torch.searchsorted(self.pairs, codes).clamp(max=len(self.pairs) - 1)
        counts = torch.where(self.pairs[place] == codes, self.counts[place], 0)
        totals = self.totals[codes // self.vocabulary].double()
        return (totals + self.add * self.vocabulary).log() - (counts.double() + self.add).log()


class Perplexity(Evaluator):
    """exp of the mean of -log p(token | tokens before it) over the tokens of a split, each counting once (Bengio et al., 2003).

    The first token of a text is given, as nothing comes before it.

    Args:
        split: where to measure.
        baseline: split on which a bigram model is fitted, whose perplexity on `split` is reported beside; none by default.
        add: what is added to each count of the bigram model, so that no pair is impossible; 1 is Laplace's smoothing.
        completion_only: count only the tokens whose `completion_mask` is 1.
        bits_per_byte: also report bits per UTF-8 byte of the samples' `text`, which compares models with unlike tokenizers. The
            tokens must be the whole text, after a first that is none of it.
        limit: read the first so many samples only.
        batch_size: samples that the model sees at once.
    """

    needs = CausalLM

    def __init__(
        self,
        split: Split = "test",
        baseline: Split | None = None,
        add: Positive = 1.0,
        completion_only: bool = False,
        bits_per_byte: bool = False,
        limit: Count | None = None,
        batch_size: Count = 32,
    ):
        if add <= 0:
            raise ValueError(f"add is above 0; found {add}")
        if completion_only and bits_per_byte:
            raise ValueError("bits_per_byte is of whole texts and does not go with completion_only")
        self.split, self.baseline, self.add, self.completion_only = split, baseline, add, completion_only
        self.bits_per_byte, self.limit, self.batch_size = bits_per_byte, limit, batch_size
        extra = (*(("completion_mask",) if completion_only else ()), *(("text",) if bits_per_byte else ()))
        self.keys = ("input_ids", "attention_mask", *extra)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics perplexity, token-nll (nats) and, as asked for, bits-per-byte and bigram-perplexity; a table of the counts.

        Raises:
            DataError: if no token of the split counts, or one of the baseline's is beyond the model's vocabulary.
        """
        nats, of_bigrams, tokens, size, texts = 0.0, 0.0, 0, 0, 0
        bigrams: Bigrams | None = None
        with evaluating(model):
            for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
                given = batch["input_ids"], batch["attention_mask"], batch["completion_mask"] if self.completion_only else None
                logits = next_token_logits(model, batch)
                losses, counted = next_token_nll(logits, *given)
                nats, tokens, texts = nats + losses.cpu().double().sum().item(), tokens + int(counted.sum()), texts + len(losses)
                if self.baseline is not None:
                    bigrams = bigrams or self._fit(model, data, self.baseline, logits.shape[-1])
                    of_bigrams += bigrams.nll(*given).sum().item()
                if self.bits_per_byte:
                    size += sum(len(text.encode()) for text in batch["text"])
        if not tokens or (self.bits_per_byte and not size):
            raise DataError(f'split "{self.split}" has no token that follows another and counts')
        metrics = {"perplexity": _exp(nats / tokens), "token-nll": nats / tokens}
        if self.bits_per_byte:
            metrics["bits-per-byte"] = nats / math.log(2) / size
        if self.baseline is not None:
            metrics["bigram-perplexity"] = _exp(of_bigrams / tokens)
        return Report(metrics, {"counts": Table(["texts", "tokens that count"], [[texts, tokens]])})

    def _fit(self, model: Any, data: Dataset, split: str, vocabulary: int) -> Bigrams:
        batches = split_batches(data, split, model)
        try:
            return Bigrams(((batch["input_ids"], batch["attention_mask"]) for batch in batches), vocabulary, self.add)
        except ValueError as error:
            raise DataError(f'bigrams cannot be fitted on split "{split}": {error}') from None


def _exp(nats: float) -> float:
    """e^nats, infinite where that is beyond float64."""
    return torch.tensor(nats, dtype=torch.float64).exp().item()
