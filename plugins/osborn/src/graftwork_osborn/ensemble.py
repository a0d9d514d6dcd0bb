"""The ensemble that is chosen, and the accuracy of every one that could have been."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork import DataError, Dataset, Evaluator, InterfaceError, Report, Split, Table
from graftwork.interfaces import input_keys
from graftwork.toolkit.ensembles import ensemble_log_probabilities
from graftwork_osborn.measure import read_pool
from graftwork_osborn.pool import Pool, check_pool, named
from graftwork_osborn.sampling import Reading
from graftwork_osborn.table import CHUNK, subset_artifact, subsets_of

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["AveragedEnsemble", "EnsembleAccuracy", "subset_accuracies"]

SHOWN = 20
"""Subsets in a report's table."""


class AveragedEnsemble(nn.Module):
    """k classifiers of one label space as one: log of the mean of their softmax, in float32 (Bachu et al., 2023, section 4).

    Args:
        models: at least one, with equal inputs and as many outputs.

    Attributes:
        members: the models.
        inputs: sample keys that it takes, those of its members.
        num_classes: outputs, where its members tell.

    Raises:
        ValueError: if there is no model.
        InterfaceError: if their inputs or numbers of classes differ.
    """

    def __init__(self, models: Annotated[list[nn.Module], Field(min_length=1)]):
        super().__init__()
        if not models:
            raise ValueError("models names at least one classifier")
        for what, found in (
            ("inputs", {input_keys(model) for model in models}),
            ("num_classes", {getattr(model, "num_classes", None) for model in models}),
        ):
            if len(found) > 1:
                raise InterfaceError(f"the members of an averaged-ensemble have one {what}; found {' and '.join(sorted(map(str, found)))}")
        self.members = nn.ModuleList(models)
        self.inputs = input_keys(models[0])
        self.num_classes = getattr(models[0], "num_classes", None)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs as its members take them to (B, num_classes), normalised logarithms that may be used as logits.

        Raises:
            DataError: if the members' outputs differ in width.
        """
        outputs = [member(*inputs) for member in self.members]
        return ensemble_log_probabilities([getattr(output, "logits", output) for output in outputs])


def subset_accuracies(probabilities: Tensor, labels: Tensor, subsets: Tensor, budget: int = CHUNK) -> Tensor:
    """Accuracy of the mean of each subset's probabilities, from every model's table of predictions.

    Args:
        probabilities: (M, n, C).
        labels: (n,) long.
        subsets: (N, k) long, of 0 .. M - 1.
        budget: probabilities that are summed at once.

    Returns:
        (N,) in [0, 1].

    Raises:
        ValueError: if the shapes do not fit.
    """
    if probabilities.dim() != 3 or labels.shape != probabilities.shape[1:2] or subsets.dim() != 2:
        shapes = tuple(probabilities.shape), tuple(labels.shape), tuple(subsets.shape)
        raise ValueError(f"probabilities are (M, n, C), labels (n,) and subsets (N, k); found {shapes}")
    found = []
    for part in torch.split(subsets.to(probabilities.device), max(1, budget // probabilities[0].numel())):
        total = probabilities[part[:, 0]].clone()
        for member in part.T[1:]:
            total += probabilities[member]
        found.append((total.argmax(dim=2) == labels).double().mean(dim=1))
    return torch.cat(found)


class EnsembleAccuracy(Evaluator):
    """Accuracy of the averaged softmax of every subset of k fine-tuned models, by one pass of each (Bachu et al., 2023, section 4).

    Args:
        pool: name -> classifier, fine-tuned on the target; one label space.
        split: the target's test samples.
        k: models of a subset.
        reading: how the test samples are read; by default all of them, and of segmenters 1000 pixels of each image.

    Attributes:
        higher_is_better: true.

    Raises:
        ValueError: if k does not fit the pool.
    """

    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        pool: Pool,
        split: Split = "test",
        k: Annotated[int, Field(ge=1)] = 3,
        reading: Reading = Reading(samples=None, images=None, balanced=False),  # noqa: B008 - frozen
    ):
        check_pool(pool, k)
        self.pool, self.split, self.k, self.reading = pool, split, k, reading

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics best-accuracy, mean-accuracy and worst-accuracy of the subsets, single-accuracy of the best model; the artifact
        "accuracies".

        Raises:
            DataError: if the models' numbers of classes differ, or outputs are not finite.
        """
        found = read_pool(self.pool, data, self.split, self.reading, 0 if run is None else run.seed, complete=False)
        widths = {one.probabilities.shape[1] for one in found.values()}
        if len(widths) > 1:
            raise DataError(f"an ensemble's models tell the same classes apart; found {', '.join(map(str, sorted(widths)))} of them")
        tables, names = torch.stack([one.probabilities for one in found.values()]), list(self.pool)
        labels = next(iter(found.values())).labels
        singles = subset_accuracies(tables, labels, subsets_of(len(names), 1)).tolist()
        subsets = subsets_of(len(names), self.k)
        accuracies = subset_accuracies(tables, labels, subsets).cpu()
        metrics = {
            "best-accuracy": float(accuracies.max()),
            "mean-accuracy": float(accuracies.mean()),
            "worst-accuracy": float(accuracies.min()),
            "single-accuracy": max(singles),
        }
        shown = {
            "models": Table(["model", "accuracy"], list(map(list, zip(names, singles, strict=True))), f"Each model alone on {self.split}."),
            "subsets": _best(names, subsets, accuracies, self.split),
        }
        artifact = subset_artifact("accuracies", subsets, accuracies, names, True, data.fingerprint())
        return Report(metrics, shown, {}, {"accuracies": artifact})


def _best(names: Sequence[str], subsets: Tensor, accuracies: Tensor, split: str) -> Table:
    order = accuracies.sort(descending=True, stable=True).indices[:SHOWN].tolist()
    rows = [[place + 1, named(names, subsets[index].tolist()), float(accuracies[index])] for place, index in enumerate(order)]
    return Table(["rank", "models", "accuracy"], rows, f"The best {len(rows)} of {len(accuracies)} ensembles on {split}.")
