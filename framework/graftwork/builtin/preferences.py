"""Rewards: trained from preferences by Bradley and Terry's model, and measured over samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from graftwork.errors import DataError
from graftwork.interfaces import Reward, classify
from graftwork.kinds.dataset import Batch, Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, evaluating, split_batches
from graftwork.kinds.objective import INPUTS, Loss, Objective
from graftwork.run import Run

__all__ = ["PairwisePreference", "RewardScore", "pairwise_preference_loss", "preferred_pairs"]


def pairwise_preference_loss(chosen: Tensor, rejected: Tensor, margin: float | Tensor = 0.0, counted: Tensor | None = None) -> Tensor:
    """Mean of -log sigmoid(r_chosen - r_rejected - margin) (Ouyang et al., 2022, eq. 1); at least in float32.

    Args:
        chosen: rewards of the samples that were preferred, of any shape.
        rejected: rewards of those that they were preferred to, of the same shape.
        margin: by how much they should differ at least (Touvron et al., 2023, eq. 2); one number, or one for each pair.
        counted: bool, which pairs count; all by default.

    Returns:
        0-d; log 2 where the rewards are equal and there is no margin; 0, without a gradient, where no pair counts.

    Raises:
        ValueError: if the shapes differ.
    """
    if chosen.shape != rejected.shape or (counted is not None and counted.shape != chosen.shape):
        shapes = [tuple(each.shape) for each in (chosen, rejected, counted) if each is not None]
        raise ValueError(f"chosen, rejected and counted differ in shape: {', '.join(map(str, shapes))}")
    precise = torch.promote_types(chosen.dtype, torch.float32)
    losses = softplus(margin - (chosen.to(precise) - rejected.to(precise)))
    weights = torch.ones_like(losses) if counted is None else counted.to(precise)
    return (losses * weights).sum() / weights.sum().clamp(min=1)


def preferred_pairs(labels: Tensor, preferred: int | None = None) -> Tensor:
    """Which sample of a batch is preferred to which.

    Args:
        labels: (B,), integers or scores.
        preferred: the label that is preferred to every other; None: a greater label is preferred to a smaller.

    Returns:
        (B, B) bool, whether the row's sample is preferred to the column's.
    """
    ranks = labels if preferred is None else (labels == preferred).int()
    return ranks[:, None] > ranks[None, :]


Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class PairwisePreference(Objective):
    """Train a reward so that preferred samples score higher (Bradley and Terry, 1952; Ouyang et al., 2022, section 3.5).

    Pairs are either given, a sample holding one, or made within the batch from labels, each preferred sample with each that is not.

    Args:
        pairs: "given": samples hold `chosen` and `rejected` texts, or tokens under `chosen_input_ids`, `chosen_attention_mask`,
            `rejected_input_ids` and `rejected_attention_mask`. "labels": samples hold what the reward takes, and `label`.
        input: with pairs that are given, whether they are texts or tokens.
        prompted: with texts that are given, whether a `prompt` goes before both.
        preferred: with labels, the one that is preferred to all others; by default greater labels are preferred to smaller.
        margin: by how much rewards should differ at least.
    """

    needs = Reward

    def __init__(
        self,
        pairs: Literal["given", "labels"] = "given",
        input: Literal["text", "input_ids"] = "text",
        prompted: bool = False,
        preferred: int | None = None,
        margin: Annotated[float, Field(ge=0)] = 0.0,
    ):
        super().__init__()
        if margin < 0:
            raise ValueError(f"margin is at least 0; found {margin}")
        if prompted and (pairs, input) != ("given", "text"):
            raise ValueError(f"prompted goes with texts that are given in pairs; found pairs {pairs} and input {input}")
        if preferred is not None and pairs != "labels":
            raise ValueError(f"preferred goes with pairs made from labels; found pairs {pairs}")
        self.pairs, self.input, self.prompted, self.preferred, self.margin = pairs, input, prompted, preferred, margin
        if pairs == "labels":
            self.keys = {"train": (INPUTS, "label")}
        elif input == "text":
            self.keys = {"train": ("chosen", "rejected", *(("prompt",) if prompted else ()))}
        else:
            self.keys = {"train": tuple(f"{side}_{key}" for side in ("chosen", "rejected") for key in ("input_ids", "attention_mask"))}

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The loss, how often the preferred sample scores higher, and by how much on average."""
        chosen, rejected, counted = self._pairs_of(model, batches["train"])
        loss, difference = pairwise_preference_loss(chosen, rejected, self.margin, counted), (chosen - rejected).detach().float()
        count = counted.sum().clamp(min=1)
        hits, differences = ((difference > 0) & counted).sum() / count, (difference * counted).sum() / count
        return Loss(loss, {"preference-accuracy": hits, "reward-difference": differences})

    def _pairs_of(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards of the preferred and of the others, and which of these pairs count, all of one shape: (B,), or (B, B)."""
        if self.pairs == "labels":
            rewards = _one_each(classify(model, batch), model)
            counted = preferred_pairs(batch["label"], self.preferred)
            return rewards[:, None].expand(counted.shape), rewards[None, :].expand(counted.shape), counted
        if self.input == "text":
            prompts = batch["prompt"] if self.prompted else []
            chosen, rejected = (model.score(batch[side], prompts) for side in ("chosen", "rejected"))
        else:
            chosen, rejected = (
                _one_each(model(batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"]), model) for side in ("chosen", "rejected")
            )
        return chosen, rejected, torch.ones_like(chosen, dtype=torch.bool)


def _one_each(rewards: Any, model: Any) -> Tensor:
    """Rewards (B,) from what a model gives: that, (B, 1), or a transformers output; DataError if it is more a sample."""
    found: Tensor = getattr(rewards, "logits", rewards)
    if found.numel() != len(found):
        raise DataError(f"{type(model).__name__} gives {tuple(found.shape)} where one reward a sample is expected")
    return found.reshape(-1)


class RewardScore(Evaluator):
    """Mean, spread and quantiles of a reward over the samples of a split, and how often it ranks the preferred ones higher.

    Args:
        split: where to measure.
        reward: what scores; the stage's own model by default.
        key: sample key of what is scored.
        prompt: sample key of what goes before it; none by default.
        quantiles: which, between 0 and 1.
        limit: read the first so many samples only.
        batch_size: samples that the reward sees at once.
        preferred: the `label` of the samples that should score higher than all others; none leaves that out.
    """

    def __init__(
        self,
        split: Split = "test",
        reward: Reward | None = None,
        key: str = "text",
        prompt: str | None = None,
        quantiles: Annotated[list[Share], Field(min_length=1)] = [0.05, 0.25, 0.5, 0.75, 0.95],  # noqa: B006 - read only
        limit: Count | None = None,
        batch_size: Count = 64,
        preferred: int | None = None,
    ):
        if not quantiles or min(quantiles) < 0 or max(quantiles) > 1:
            raise ValueError(f"quantiles are between 0 and 1; found {quantiles}")
        self.split, self.key, self.prompt, self.quantiles = split, key, prompt, quantiles
        self.limit, self.batch_size, self.preferred = limit, batch_size, preferred
        self._reward, self.needs = reward, Reward if reward is None else object
        self.keys = (key, *(() if prompt is None else (prompt,)), *(() if preferred is None else ("label",)))

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics reward-mean, reward-std, reward-median and, with `preferred`, preference-accuracy; quantiles and a histogram.

        The preference accuracy is the share of pairs of a preferred and another sample in which the preferred scores higher, ties
        counting half: the area under the ROC curve.

        Raises:
            DataError: if the split is empty, a reward is not finite, or no sample is preferred, or all are.
        """
        reward: Any = model if self._reward is None else self._reward
        found, liked = [], []
        with evaluating(reward):
            for batch in split_batches(data, self.split, reward, limit=self.limit, batch_size=self.batch_size):
                found.append(_one_each(reward.score(batch[self.key], batch[self.prompt] if self.prompt else []), reward))
                if self.preferred is not None:
                    liked.append(batch["label"] == self.preferred)
        if not found:
            raise DataError(f'split "{self.split}" is empty')
        scores = torch.cat(found).cpu().double()
        if not scores.isfinite().all():
            raise DataError(f'{type(reward).__name__} gives rewards that are not finite on split "{self.split}"')
        metrics = {"reward-mean": scores.mean(), "reward-std": scores.std(correction=0), "reward-median": scores.quantile(0.5)}
        if self.preferred is not None:
            metrics["preference-accuracy"] = self._ranking(scores, torch.cat(liked).cpu())
        rows = [[f"{100 * share:g}%", value] for share, value in zip(self.quantiles, _quantiles(scores, self.quantiles), strict=True)]
        table = Table(["quantile", "reward"], rows, f"Rewards of {len(scores)} samples of {self.split}.")
        figures = {"rewards": Figure(_histogram(scores), f"Rewards of {self.split}; the line is their mean.")}
        return Report({name: value.item() for name, value in metrics.items()}, {"quantiles": table}, figures)

    def _ranking(self, scores: Tensor, liked: Tensor) -> Tensor:
        from torchmetrics.functional.classification import binary_auroc

        if liked.all() or not liked.any():
            raise DataError(
                f'{int(liked.sum())} of {len(liked)} samples of split "{self.split}" have label {self.preferred}: nothing to rank'
            )
        ranks = torch.unique(scores, return_inverse=True)[1] / scores.numel()  # in [0, 1], where rewards would be taken for logits
        return binary_auroc(ranks, liked.long())


def _quantiles(scores: Tensor, shares: list[float]) -> list[float]:
    return scores.quantile(torch.tensor(shares, dtype=scores.dtype)).tolist()


def _histogram(scores: Tensor) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(5.0, 3.0), layout="constrained")
    axes = canvas.add_subplot(xlabel="reward", ylabel="samples")
    axes.hist(scores.numpy(), bins="auto" if len(scores) > 1 else 1)
    axes.axvline(scores.mean().item(), color="grey", linewidth=1)
    return canvas
