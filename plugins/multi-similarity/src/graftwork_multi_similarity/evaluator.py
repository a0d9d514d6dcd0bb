"""The analysis of pair weighting on a trained model's own embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from graftwork import INPUTS, Artifact, DataError, Dataset, Evaluator, Figure, Report, Table, fingerprint
from graftwork.interfaces import embed
from graftwork.kinds.dataset import Split
from graftwork.kinds.evaluator import evaluating, split_batches
from graftwork_multi_similarity.analysis import SIMILARITIES, Reaction, Weighting, reactions
from graftwork_multi_similarity.figure import draw_weights
from graftwork_multi_similarity.mining import MultiSimilarityMiner
from graftwork_multi_similarity.objective import PairLossName
from graftwork_multi_similarity.pairs import check_finite, cosine_similarities, pair_masks
from graftwork_multi_similarity.weighting import PAIR_LOSSES, pair_loss

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["PairWeights", "balanced_batch"]

BINS = 10
"""Of similarity, in the table of mean weights."""


class PairWeights(Evaluator):
    """What losses over pairs make of one batch: W+ and W- of each, their table against similarity, the figure, and which similarities
    each loss reacts to, found by moving them (Wang et al., 2019, section 3.3).

    The multi-similarity loss is looked at with its miner, which is where it reacts to positives.

    Args:
        losses: which, by name.
        split: where the batch comes from.
        classes: of the batch.
        instances: of each class.
        epsilon: margin of the miner before the multi-similarity loss; none leaves it every pair.
        parameters: loss -> its parameters; what is left out keeps its default.

    Raises:
        ValueError: if a parameter is out of range.
    """

    keys = (INPUTS, "label")

    def __init__(
        self,
        losses: list[PairLossName] = list(PAIR_LOSSES),  # type: ignore[arg-type]  # noqa: B006 - read only
        split: Split = "test",
        classes: Annotated[int, Field(ge=2)] = 5,
        instances: Annotated[int, Field(ge=2)] = 8,
        epsilon: float | None = 0.1,
        parameters: dict[PairLossName, dict[str, float]] = {},  # noqa: B006 - read only
    ):
        if not losses:
            raise ValueError("losses names at least one pair loss")
        if classes < 2 or instances < 2:
            raise ValueError(f"a batch needs at least 2 classes and 2 instances of each; found {classes} and {instances}")
        strangers = [name for name in parameters if name not in losses]
        if strangers:
            raise ValueError(f"parameters are given for {', '.join(strangers)}, which losses leaves out")
        self.split, self.classes, self.instances = split, classes, instances
        miner = None if epsilon is None else MultiSimilarityMiner(epsilon)
        self.weightings: dict[str, Weighting] = {
            name: Weighting(pair_loss(name, **parameters.get(name, {})), miner if name == "multi-similarity" else None) for name in losses
        }

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Weigh the pairs of a batch.

        Metrics, for each loss: `<loss>/weighted_positives` and `<loss>/weighted_negatives`, the shares of pairs with a weight, and
        `<loss>/S`, `/N` and `/P`, 1 where the weights of negative pairs react to that similarity. Artifacts: `<loss>` with
        `similarity`, `positive`, `negative`, `positive_weights` and `negative_weights`, each (m, m).

        Raises:
            DataError: if the split has too few samples of too few classes, or an embedding is not finite.
        """
        embeddings, labels = balanced_batch(model, data, self.split, self.classes, self.instances)
        check_finite(embeddings)
        similarity, masks = cosine_similarities(embeddings.double()), pair_masks(labels)
        weights = {name: weighting(similarity, *masks) for name, weighting in self.weightings.items()}
        found: dict[str, list[Reaction]] = {}
        metrics: dict[str, float] = {}
        for name, weighting in self.weightings.items():
            found[name] = reactions(weighting, similarity, *masks)
            for side, weight, mask in zip(("positives", "negatives"), weights[name], masks, strict=True):
                metrics[f"{name}/weighted_{side}"] = float((weight > 0).sum() / mask.sum())
            metrics |= {f"{name}/{one.probe}": float(one.reacts) for one in found[name] if one.side == "negative" and one.probe != "own"}
        caption = (
            "Weight against similarity: dots are pairs of the batch, grey without a weight; lines are one pair moved while its anchor's "
            "neighbours stay (dotted easy, dashed middling, solid hard neighbours). S: own similarity, N: other negatives, P: positives."
        )
        model_print = fingerprint(model) if isinstance(model, torch.nn.Module) else ""
        common = {"similarity": similarity, "positive": masks[0], "negative": masks[1]}
        artifacts = {
            name: Artifact(
                "pair-weights",
                {**common, "positive_weights": pair[0], "negative_weights": pair[1]},
                {"loss": name, "labels": labels.tolist()},
                model=model_print,
                dataset=data.fingerprint(),
            )
            for name, pair in weights.items()
        }
        return Report(
            metrics,
            {"reactions": _reaction_table(found), "weights": _weight_table(similarity, masks, weights)},
            {"pair-weights": Figure(draw_weights(self.weightings, similarity, masks, weights, found), caption)},
            artifacts,
        )


def balanced_batch(model: Any, data: Dataset, split: str, classes: int, instances: int) -> tuple[Tensor, Tensor]:
    """Embeddings (classes * instances, d) and labels, on the CPU, of the first samples of a split that fill so many classes.

    Raises:
        DataError: if the split does not have them.
    """
    taken: dict[int, list[Tensor]] = {}
    complete = 0
    with evaluating(model):
        for batch in split_batches(data, split, model):
            for row, label in zip(embed(model, batch), batch["label"].tolist(), strict=True):
                members = taken.setdefault(label, [])
                if len(members) < instances:
                    members.append(row)
                    complete += len(members) == instances
            if complete >= classes:
                break
    full = {label: members for label, members in taken.items() if len(members) == instances}
    if len(full) < classes:
        raise DataError(f'{classes} classes with {instances} samples each were asked for; split "{split}" has {len(full)} such classes')
    chosen = sorted(full)[:classes]
    embeddings = torch.stack([row for label in chosen for row in full[label]])
    return embeddings.cpu(), torch.tensor(chosen).repeat_interleave(instances)


def _reaction_table(found: dict[str, list[Reaction]]) -> Table:
    probes = list(SIMILARITIES)
    rows = []
    for name, several in found.items():
        for side in ("negative", "positive"):
            changes = {one.probe: one for one in several if one.side == side}
            told = " ".join(probe for probe in probes if probe != "own" and changes[probe].reacts) or "none"
            rows.append([name, side, *(round(changes[probe].change, 6) for probe in probes), told])
    what = "; ".join(f"{probe}: {meaning}" for probe, meaning in SIMILARITIES.items())
    return Table(["loss", "pairs", *probes, "reacts to"], rows, f"Largest change of a weight as a share of the largest weight. {what}.")


def _weight_table(similarity: Tensor, masks: tuple[Tensor, Tensor], weights: dict[str, tuple[Tensor, Tensor]]) -> Table:
    edges = torch.linspace(-1, 1, BINS + 1, dtype=similarity.dtype, device=similarity.device)
    bins = torch.bucketize(similarity.clamp(-1, 1), edges[1:-1])
    counts, means = [], []
    for side in (0, 1):
        inside = torch.nn.functional.one_hot(bins, BINS).bool() & masks[side][..., None]  # (m, m, BINS)
        counts.append(inside.sum(dim=(0, 1)).tolist())
        for pair in weights.values():
            totals = (pair[side][..., None] * inside).sum(dim=(0, 1))
            means.append((totals / inside.sum(dim=(0, 1)).clamp(min=1)).tolist())
    names = list(weights)
    columns = ["similarity", "positives", *(f"{name} w+" for name in names), "negatives", *(f"{name} w-" for name in names)]
    rows = []
    for index in range(BINS):
        interval = " to ".join(f"{round(float(edge), 1) + 0.0:.1f}" for edge in edges[index : index + 2])
        positive = [round(column[index], 4) for column in means[: len(names)]]
        negative = [round(column[index], 4) for column in means[len(names) :]]
        rows.append([interval, counts[0][index], *positive, counts[1][index], *negative])
    return Table(columns, rows, "Mean weight of the batch's pairs by similarity.")
