"""How well clusters of embeddings follow the classes: NMI and ARI of k-means, and a picture of the embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork import INPUTS, DataError, Dataset, Evaluator, Figure, Report, Table
from graftwork.kinds.dataset import Split
from graftwork_meta_path_contrast.clustering import k_means
from graftwork_meta_path_contrast.figures import draw_embeddings
from graftwork_meta_path_contrast.probe import embedded

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["NodeClustering"]

Count = Annotated[int, Field(ge=1)]


class NodeClustering(Evaluator):
    """k-means with as many clusters as classes, several times: normalised mutual information (arithmetic) and adjusted Rand index.

    Args:
        splits: where labelled nodes are taken from, together; the authors take all nodes.
        runs: k-means runs whose scores are averaged.
        restarts: starts of each run, of which the tightest counts.
        iterations: of each start.
        seed: of the starts.
    """

    keys = (INPUTS, "label")
    needs = nn.Module

    def __init__(
        self,
        splits: Annotated[list[Split], Field(min_length=1)] = ["train", "val", "test"],  # noqa: B006 - read only
        runs: Count = 10,
        restarts: Count = 10,
        iterations: Count = 100,
        seed: Annotated[int, Field(ge=0)] = 0,
    ):
        if not splits:
            raise ValueError("splits names at least one split")
        for name, number in (("runs", runs), ("restarts", restarts), ("iterations", iterations)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1; found {number}")
        self.splits, self.runs, self.restarts, self.iterations, self.seed = list(splits), runs, restarts, iterations, seed

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics nmi and ari; a picture of the two main directions of the embeddings, by class.

        Raises:
            DataError: if the labels are of one class, or there are fewer nodes than classes.
        """
        from torchmetrics.functional.clustering import adjusted_rand_score, normalized_mutual_info_score

        parts = embedded(model, data, self.splits)
        x, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        classes = len(torch.unique(labels))
        if classes < 2:
            raise DataError(f"the nodes of {', '.join(self.splits)} are of one class: clusters are held against two or more")
        pairs = [self._scores(x, labels, classes, number, normalized_mutual_info_score, adjusted_rand_score) for number in range(self.runs)]
        nmi, ari = torch.tensor(pairs).T
        rows = [[name, float(v.mean()), float(v.std(correction=0))] for name, v in (("nmi", nmi), ("ari", ari))]
        table = Table(["metric", "mean", "deviation"], rows, f"Over {self.runs} runs of k-means with {classes} clusters of {len(x)} nodes.")
        names = [*data.info.classes, *map(str, range(len(data.info.classes), int(labels.max()) + 1))]
        caption = "The embeddings' two directions of most variance, a dot a node, coloured by class."
        figure = Figure(draw_embeddings(x.cpu(), labels.cpu(), names), caption)
        return Report({"nmi": float(nmi.mean()), "ari": float(ari.mean())}, {"clustering": table}, {"embeddings": figure})

    def _scores(self, x: Tensor, labels: Tensor, classes: int, number: int, *scores: Any) -> list[float]:
        found = k_means(x, classes, "euclidean", self.iterations, self.restarts, self.seed + number)
        return [float(score(found.assignments, labels)) for score in scores]
