"""What was measured of a pool, and what it says of sets of its models: score, rank, select."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any, Literal, TypeAlias

import numpy
import torch
from torch import Tensor

from graftwork import Artifact
from graftwork_osborn.submodular import Selection, greedy_maximise

__all__ = ["Pairs", "Ranking", "SetScore", "Term", "TransferabilityTable", "standardised", "subset_artifact", "subsets_of"]

Term: TypeAlias = Literal["domain", "task", "cohesion", "leep", "e-leep"]
Pairs: TypeAlias = Literal["ordered", "unordered"]
TERMS = ("domain", "task", "cohesion", "leep", "e-leep")
MOST = 5_000_000
"""Subsets that are ranked at most."""
CHUNK = 2**22
"""Numbers that are gathered at once."""
TYPE = "transferability-table"


def subsets_of(count: int, k: int) -> Tensor:
    """All subsets of k of `count` models, in lexicographic order: (N, k) long.

    Raises:
        ValueError: if k is below 1 or above `count`, or there are more than five million.
    """
    if not 1 <= k <= count:
        raise ValueError(f"k is 1 to {count}, the number of models in the pool; found {k}")
    number = math.comb(count, k)
    if number > MOST:
        raise ValueError(f"{count} models have {number} subsets of k = {k}; at most {MOST} are ranked: select greedily instead")
    flat = numpy.fromiter(chain.from_iterable(combinations(range(count), k)), dtype=numpy.int64, count=number * k)
    return torch.from_numpy(flat).view(number, k)


def standardised(values: Tensor) -> Tensor:
    """(x - mean) / standard deviation over all entries; 0 where all are equal."""
    spread = values.std(correction=0)
    return (values - values.mean()) / spread if float(spread) > 0 else torch.zeros_like(values)


@dataclass(frozen=True)
class Ranking:
    """Every subset of a size, the best first.

    Args:
        subsets: (N, k) long.
        scores: (N,), lower is better.
    """

    subsets: Tensor
    scores: Tensor


@dataclass(frozen=True)
class SetScore:
    """A score of sets, lower is better: of each model, of each pair, and of the averaged EEP.

    Args:
        singles: (M,) cost of a model.
        pairs: (M, M) cost of a pair, symmetric with a diagonal of 0.
        likelihoods: (M, n) EEP of each sample's label, where E-LEEP is a term.
        ensemble: factor and offset of E-LEEP: offset - factor * E-LEEP is added to the score of a set that is not empty.
    """

    singles: Tensor
    pairs: Tensor
    likelihoods: Tensor | None = None
    ensemble: tuple[float, float] = (0.0, 0.0)

    def scores(self, subsets: Tensor) -> Tensor:
        """Scores (N,) of subsets (N, k); no model stands twice in one."""
        k = subsets.shape[1]
        width = k * k + (0 if self.likelihoods is None else k * self.likelihoods.shape[1])
        return torch.cat([self._scores(part) for part in torch.split(subsets, max(1, CHUNK // max(1, width)))])

    def _scores(self, subsets: Tensor) -> Tensor:
        found = self.singles[subsets].sum(dim=1) + self.pairs[subsets[:, :, None], subsets[:, None, :]].sum(dim=(1, 2)) / 2
        if self.likelihoods is None:
            return found
        factor, offset = self.ensemble
        return found + offset - factor * self.likelihoods[subsets].mean(dim=1).log().mean(dim=1)

    def score(self, subset: Iterable[int]) -> float:
        """Score of one set of positions in the pool; 0 for the empty set.

        Raises:
            ValueError: if a position is unknown or stands twice.
        """
        members = list(subset)
        if len(set(members)) < len(members) or not all(0 <= one < len(self.singles) for one in members):
            raise ValueError(f"a subset names positions 0 to {len(self.singles) - 1}, each once; found {members}")
        return float(self.scores(torch.tensor([members]))[0]) if members else 0.0

    def gain(self, model: int, subset: Sequence[int]) -> float:
        """f(X + v) - f(X) of f = -score; falls as X grows, since pairs cost and never pay."""
        return self.score(subset) - self.score((*subset, model))

    def rank(self, k: int) -> Ranking:
        """All subsets of k models, the best first; ties in lexicographic order.

        Raises:
            ValueError: as `subsets_of`.
        """
        subsets = subsets_of(len(self.singles), k)
        scores, order = self.scores(subsets).sort(stable=True)
        return Ranking(subsets[order], scores)

    def select(self, k: int) -> Selection[int]:
        """Greedy choice of k models, with the gain of each step.

        Raises:
            ValueError: if k is below 1 or above the size of the pool.
        """
        if not 1 <= k <= len(self.singles):
            raise ValueError(f"k is 1 to {len(self.singles)}, the number of models in the pool; found {k}")
        return greedy_maximise(lambda subset: -self.score(subset), range(len(self.singles)), k)


@dataclass(frozen=True)
class TransferabilityTable:
    """What was measured of a pool of M models on a target of n samples; all on the CPU in float64.

    Args:
        names: of the models.
        domain: (M,), W_D.
        task: (M,), W_T.
        cohesion: (M, M), H(a | b) in row a and column b, the entries of W_C.
        likelihoods: (M, n), EEP of each target sample's label.

    Raises:
        ValueError: if the shapes do not fit.
    """

    names: tuple[str, ...]
    domain: Tensor
    task: Tensor
    cohesion: Tensor
    likelihoods: Tensor

    def __post_init__(self) -> None:
        count = len(self.names)
        shapes = [tuple(one.shape) for one in (self.domain, self.task, self.cohesion)]
        if shapes != [(count,), (count,), (count, count)] or self.likelihoods.shape[:1] != (count,):
            raise ValueError(f"{count} models have W_D and W_T ({count},) and W_C ({count}, {count}); found {shapes}")

    @property
    def leep(self) -> Tensor:
        """LEEP of each model, (M,)."""
        return self.likelihoods.log().mean(dim=1)

    def set_score(
        self,
        terms: Sequence[Term] = ("domain", "task", "cohesion"),
        weights: Sequence[float] | None = None,
        standardise: bool = True,
        pairs: Pairs = "ordered",
    ) -> SetScore:
        """OSBORN(M_e) = sum_r W_D(r) + W_T(r) + W_C(M_e), or another sum of terms; lower is better.

        Args:
            terms: "domain", "task", "cohesion"; "leep" adds -MS-LEEP and "e-leep" -E-LEEP.
            weights: of the terms, in their order; all 1 by default.
            standardise: W_D, W_T and LEEP to z-scores over the pool; entries of W_C over their standard deviation and not centred, since
                negative entries would end submodularity; E-LEEP by the mean and deviation of the pool's LEEPs.
            pairs: "ordered" counts H(a | b) and H(b | a), "unordered" their mean.

        Raises:
            ValueError: if terms are unknown, repeated or none, or weights are negative or not as many.
        """
        given = dict(zip(terms, weights if weights is not None else [1.0] * len(terms), strict=False))
        if not terms or len(given) < len(terms) or (weights is not None and len(weights) != len(terms)):
            raise ValueError(f"terms are at least one, each once, with a weight each; found {list(terms)} and {weights}")
        if unknown := [term for term in terms if term not in TERMS]:
            raise ValueError(f"terms are of {', '.join(TERMS)}; found {unknown[0]!r}")
        if min(given.values()) < 0:
            raise ValueError(f"weights are at least 0; found {min(given.values())}")
        scaled = standardised if standardise else torch.Tensor.clone
        singles = torch.zeros_like(self.domain)
        for term, values in (("domain", self.domain), ("task", self.task), ("leep", -self.leep)):
            if term in given:
                singles = singles + given[term] * scaled(values)
        costs = given.get("cohesion", 0.0) * self._pair_costs(standardise, pairs)
        if "e-leep" not in given:
            return SetScore(singles, costs)
        spread = float(self.leep.std(correction=0)) or 1.0
        factor, mean = (given["e-leep"] / spread, float(self.leep.mean())) if standardise else (given["e-leep"], 0.0)
        return SetScore(singles, costs, self.likelihoods, (factor, factor * mean))

    def _pair_costs(self, standardise: bool, pairs: Pairs) -> Tensor:
        if pairs not in ("ordered", "unordered"):
            raise ValueError(f'pairs is "ordered" or "unordered"; found {pairs!r}')
        both = (self.cohesion + self.cohesion.T) * (1.0 if pairs == "ordered" else 0.5)
        off = self.cohesion[~torch.eye(len(self.names), dtype=torch.bool)]
        spread = float(off.std(correction=0)) if standardise and len(off) else 0.0
        return both / spread if spread > 0 else both

    def artifact(self, dataset: str = "") -> Artifact:
        """The table as an artifact, type "transferability-table", from which other sums of terms can be made."""
        tensors = {name: getattr(self, name) for name in ("domain", "task", "cohesion", "likelihoods")}
        return Artifact(TYPE, tensors, {"names": list(self.names)}, dataset=dataset)

    @classmethod
    def from_artifact(cls, artifact: Artifact, dataset: Any = None) -> TransferabilityTable:
        """The table in an artifact.

        Raises:
            ArtifactError: if it is of another type, or made from other data than `dataset`.
        """
        tensors = artifact.check(TYPE, dataset=dataset).tensors
        return cls(tuple(artifact.data["names"]), *(tensors[name] for name in ("domain", "task", "cohesion", "likelihoods")))


def subset_artifact(
    kind: Literal["scores", "accuracies"], subsets: Tensor, values: Tensor, names: Sequence[str], higher_is_better: bool, dataset: str = ""
) -> Artifact:
    """Numbers of subsets of a pool, type "subset-scores" or "subset-accuracies", as `transferability-correlation` takes them.

    Args:
        kind: what the numbers are.
        subsets: (N, k) long.
        values: (N,).
        names: of the pool's models.
        higher_is_better: the direction of the numbers.
        dataset: fingerprint of the data.
    """
    data = {"names": list(names), "higher_is_better": higher_is_better}
    return Artifact(f"subset-{kind}", {"subsets": subsets, "values": values.double()}, data, dataset=dataset)
