"""The objectives: the multi-similarity method, and any pair loss with or without its miner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from graftwork import Dataset, Loss
from graftwork_multi_similarity.head import BackboneRate, EmbeddingDim, EmbeddingObjective, FreezeBatchNorm
from graftwork_multi_similarity.mining import MultiSimilarityMiner, hardest_pairs
from graftwork_multi_similarity.multi_similarity import PRESETS, MultiSimilaritySettings, mine_and_weigh
from graftwork_multi_similarity.pairs import PairTally, check_batch, check_finite, cosine_similarities, pair_masks
from graftwork_multi_similarity.weighting import PairLoss, check_sound, pair_loss

__all__ = ["MultiSimilarity", "PairLossName", "PairWeighting", "pair_tally"]

PairLossName = Literal["contrastive", "triplet", "lifted-structure", "binomial-deviance", "multi-similarity"]
"""The keys of `weighting.PAIR_LOSSES`."""

AllowEmpty = Annotated[bool, Field(description="a batch without positive or without negative pairs costs 0, instead of an error")]


class MultiSimilarity(EmbeddingObjective):
    """Mine informative pairs, then weigh each by its own similarity and by those of its neighbours (Wang et al., 2019).

    See `multi_similarity.multi_similarity_loss` for the formula. Logs the shares of pairs kept, the anchors skipped, the hardest
    pairs' similarities and the mean weights.

    Args:
        preset: where hyperparameters that are not given come from: the authors' code, or their paper (beta 50, threshold 1).
        alpha: scale of positive pairs.
        beta: scale of negative pairs.
        threshold: offset lambda of both.
        epsilon: mining margin.
        mine: whether pairs are mined; without, every pair is weighed.
        duplicate_tol: positives with S >= 1 - duplicate_tol are left out; None keeps them.
        memory: how many embeddings of past batches anchors are paired with too; they are part of the state, and get no gradient.
        embedding_dim: width of the embedding head.
        freeze_batch_norm: keep batch norm in eval mode while training.
        backbone_lr_mul: the backbone's learning rate as a multiple of the head's.
        allow_empty: give 0 for a batch without positive or without negative pairs.
        block_rows: rows of the similarity matrix held at once; by default as many as suit the device.
        compile: fuse the work on a block with torch.compile.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: while training, if embeddings are not finite or a batch lacks one kind of pair. On an accelerator only the first
            batch is looked at; later, embeddings that are not finite make the loss NaN.
    """

    past_embeddings: Tensor
    past_labels: Tensor

    def __init__(
        self,
        preset: Literal["code", "paper"] = "code",
        alpha: Annotated[float, Field(gt=0)] | None = None,
        beta: Annotated[float, Field(gt=0)] | None = None,
        threshold: float | None = None,
        epsilon: float | None = None,
        mine: bool = True,
        duplicate_tol: Annotated[float, Field(ge=0, lt=2)] | None = 1e-5,
        memory: Annotated[int, Field(ge=0)] = 0,
        embedding_dim: EmbeddingDim = 512,
        freeze_batch_norm: FreezeBatchNorm = True,
        backbone_lr_mul: BackboneRate = 1.0,
        allow_empty: AllowEmpty = False,
        block_rows: Annotated[int, Field(ge=1)] | None = None,
        compile: bool = False,
    ):
        super().__init__(embedding_dim, freeze_batch_norm, backbone_lr_mul)
        if preset not in PRESETS:
            raise ValueError(f'preset is one of {", ".join(PRESETS)}; found "{preset}"')
        if memory < 0:
            raise ValueError(f"memory is a number of embeddings, at least 0; found {memory}")
        if block_rows is not None and block_rows < 1:
            raise ValueError(f"block_rows is at least 1; found {block_rows}")
        if epsilon is not None and not mine:
            raise ValueError(f"epsilon is the margin of mining, which mine: false turns off; found {epsilon}")
        given = {"alpha": alpha, "beta": beta, "threshold": threshold, "epsilon": epsilon}
        chosen: dict[str, Any] = {**PRESETS[preset], **{name: value for name, value in given.items() if value is not None}}
        if not mine:
            chosen["epsilon"] = None
        self.settings = MultiSimilaritySettings(**chosen, duplicate_tol=duplicate_tol)
        self.memory, self.allow_empty, self.block_rows, self.compile_rows = memory, allow_empty, block_rows, compile
        self._held = 0

    def setup(self, model: Any, data: Dataset) -> None:
        """Build head and memory."""
        super().setup(model, data)
        if self.memory:
            self.register_buffer("past_embeddings", torch.zeros(self.memory, self.embedding_dim))
            self.register_buffer("past_labels", torch.zeros(self.memory, dtype=torch.long))

    def embedding_loss(self, embeddings: Tensor, labels: Tensor) -> Loss:
        """The multi-similarity loss of embeddings (m, d) with labels (m,), among themselves and with the memory."""
        references, ref_labels, positions = self._references(embeddings, labels)
        check_batch(embeddings, labels, references, ref_labels, positions)
        look = self.looks(embeddings)
        if look:
            check_finite(embeddings)
        loss, tally = mine_and_weigh(
            embeddings,
            labels,
            references,
            ref_labels,
            settings=self.settings,
            self_index=positions,
            block_rows=self.block_rows,
            compile=self.compile_rows,
        )
        if look:
            tally.check_sides(self.allow_empty)
        if self.memory and self.training:
            self._remember(embeddings.detach(), labels)
        return Loss(loss, tally.figures())

    def _references(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if not self._held:
            return None, None, None
        references = torch.cat([embeddings, self.past_embeddings[: self._held].to(embeddings.dtype)])
        positions = torch.arange(len(labels), device=labels.device)
        return references, torch.cat([labels, self.past_labels[: self._held]]), positions

    def _remember(self, embeddings: Tensor, labels: Tensor) -> None:
        """Put a batch in front of the memory; what falls off its end is forgotten."""
        self.past_embeddings.copy_(torch.cat([embeddings.to(self.past_embeddings.dtype), self.past_embeddings])[: self.memory])
        self.past_labels.copy_(torch.cat([labels, self.past_labels])[: self.memory])
        self._held = min(self.memory, self._held + len(labels))

    def get_extra_state(self) -> Tensor:
        """How many embeddings the memory holds."""
        return torch.tensor(self._held)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the number from a state dict."""
        self._held = int(state)


class PairWeighting(EmbeddingObjective):
    """Train with any loss over pairs, with or without the multi-similarity miner before it (Wang et al., 2019, section 3).

    The loss is averaged over the anchors. Logs what `MultiSimilarity` logs.

    Args:
        loss: by name, or from Python a `weighting.PairLoss`, or a function of similarity (m, m) and the masks of positive and of
            negative pairs that gives each anchor's loss (m,).
        parameters: of the loss by name, such as {beta: 40}; what is left out keeps its default.
        epsilon: margin of the miner; none leaves every pair to the loss.
        embedding_dim: width of the embedding head.
        freeze_batch_norm: keep batch norm in eval mode while training.
        backbone_lr_mul: the backbone's learning rate as a multiple of the head's.
        allow_empty: give 0 for a batch without positive or without negative pairs.

    Raises:
        ValueError: if the loss or one of its parameters is unknown or out of range, or a function is no sound pair loss.
        DataError: while training, as `MultiSimilarity` raises it.
    """

    def __init__(
        self,
        loss: PairLossName | PairLoss | Callable[..., Any] = "multi-similarity",
        parameters: dict[str, float] = {},  # noqa: B006 - read only
        epsilon: float | None = None,
        embedding_dim: EmbeddingDim = 512,
        freeze_batch_norm: FreezeBatchNorm = True,
        backbone_lr_mul: BackboneRate = 1.0,
        allow_empty: AllowEmpty = False,
    ):
        super().__init__(embedding_dim, freeze_batch_norm, backbone_lr_mul)
        self.pair_loss = pair_loss(loss, **parameters)
        self.miner = None if epsilon is None else MultiSimilarityMiner(epsilon)
        self.allow_empty = allow_empty

    def embedding_loss(self, embeddings: Tensor, labels: Tensor) -> Loss:
        """The mean over anchors of the pair loss of embeddings (m, d) with labels (m,)."""
        check_batch(embeddings, labels, None, None, None)
        look = self.looks(embeddings)
        if look:
            check_finite(embeddings)
        similarity = cosine_similarities(embeddings)
        pairs = pair_masks(labels)
        kept = pairs if self.miner is None else self.miner(similarity, *pairs)
        loss = self.pair_loss.loss(similarity, *kept)
        weights = self.pair_loss.weights(similarity.detach(), *kept)
        tally = pair_tally(similarity, pairs, kept, weights)
        if look:
            check_sound(*weights)
            tally.check_sides(self.allow_empty)
        return Loss(loss, tally.figures())


def pair_tally(similarity: Tensor, pairs: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor]) -> PairTally:
    """Count the pairs of a batch.

    Args:
        similarity: (m, r).
        pairs: masks (m, r) of the positives and negatives.
        kept: the same after mining.
        weights: W+ and W-, (m, r).
    """
    with torch.no_grad():
        hardest_positive, hardest_negative = hardest_pairs(similarity, *pairs)
        counts = tuple(mask.sum(dim=1) for mask in (*pairs, *kept))
        return PairTally.of_rows(
            counts,  # type: ignore[arg-type]
            hardest_positive[:, 0],
            hardest_negative[:, 0],
            (weights[0].sum(dim=1), weights[1].sum(dim=1)),
        )
