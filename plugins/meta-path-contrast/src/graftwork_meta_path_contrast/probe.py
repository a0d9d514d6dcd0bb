"""The logistic regression protocol of heterogeneous graph contrast: Macro-F1, Micro-F1 and AUC over many runs (HeCo; Yu et al., 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from graftwork import INPUTS, DataError, Dataset, Evaluator, Report, Table
from graftwork.interfaces import embed
from graftwork.kinds.dataset import Split
from graftwork.kinds.evaluator import evaluating, split_batches

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["NodeClassificationProbe", "ProbeScores", "embedded", "logistic_probe"]

Labelled = tuple[Tensor, Tensor]
"""Embeddings (n, D) and labels (n,) long."""


class ProbeScores(NamedTuple):
    """One number a run, on the test nodes.

    Args:
        macro_f1: (R,) mean over classes of F1, at the step with the best validation Macro-F1.
        micro_f1: (R,) accuracy, at the step with the best validation Micro-F1.
        auc: (R,) area under the ROC curve, one class against the rest, mean over classes, at that step too.
    """

    macro_f1: Tensor
    micro_f1: Tensor
    auc: Tensor


def logistic_probe(
    train: Labelled,
    val: Labelled,
    test: Labelled,
    classes: int,
    runs: int = 50,
    steps: int = 200,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> ProbeScores:
    """Train a linear classifier `runs` times by Adam on all training nodes; of each run the step that validation likes best counts.

    All runs are trained at once: Adam is elementwise, so each goes as it would alone. Weights start Xavier uniform, biases 0.

    Args:
        train: where it is fitted.
        val: where the step is chosen: the first of those with the highest score.
        test: where it is measured.
        classes: C.
        runs: R, starts.
        steps: of Adam.
        lr: of Adam.
        weight_decay: of Adam.
        seed: of the starts.

    Raises:
        ValueError: if a number is out of range.
        DataError: if a label is not in 0..C-1, or a part is empty.
    """
    _check(classes, runs, steps, lr, weight_decay)
    for name, (x, labels) in (("train", train), ("val", val), ("test", test)):
        if not len(x) or int(labels.min()) < 0 or int(labels.max()) >= classes:
            found = f"labels {int(labels.min())} to {int(labels.max())}" if len(x) else "no nodes"
            raise DataError(f"{name} has {found}; labels of {classes} classes, 0 to {classes - 1}, are expected")
    x, labels = train[0].detach().float(), train[1]
    generator = torch.Generator(x.device).manual_seed(seed)
    bound = (6 / (x.shape[1] + classes)) ** 0.5
    drawn = torch.rand(runs, classes, x.shape[1], generator=generator, device=x.device)
    weight, bias = ((2 * drawn - 1) * bound).requires_grad_(), x.new_zeros(runs, classes).requires_grad_()
    solver = torch.optim.Adam([weight, bias], lr=lr, weight_decay=weight_decay)
    scorers = (_macro_f1, _micro_f1)
    best = [(x.new_full((runs,), -1.0), weight.detach().clone(), bias.detach().clone()) for _ in scorers]
    target = labels.repeat(runs)
    for _ in range(steps):
        with torch.enable_grad():
            logits = _logits(x, weight, bias)
            loss = functional.cross_entropy(logits.flatten(0, 1), target, reduction="sum") / len(labels)
            solver.zero_grad()
            torch.autograd.backward(loss)
        solver.step()
        with torch.no_grad():
            confusion = _confusion(_logits(val[0].float(), weight, bias).argmax(dim=2), val[1], classes)
            best = [_better(held, score(confusion), weight, bias) for held, score in zip(best, scorers, strict=True)]
    with torch.no_grad():
        macro, micro = (_logits(test[0].float(), held[1], held[2]) for held in best)
        confusions = [_confusion(logits.argmax(dim=2), test[1], classes) for logits in (macro, micro)]
        return ProbeScores(_macro_f1(confusions[0]), _micro_f1(confusions[1]), _auc(micro, test[1], classes))


def _check(classes: int, runs: int, steps: int, lr: float, weight_decay: float) -> None:
    for name, number, least in (("classes", classes, 2), ("runs", runs, 1), ("steps", steps, 1)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}; found {number}")
    if not lr > 0 or weight_decay < 0:
        raise ValueError(f"lr must be positive and weight_decay at least 0; found {lr} and {weight_decay}")


def _logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(n, D) under (R, C, D) and (R, C) to (R, n, C)."""
    return torch.einsum("nd,rcd->rnc", x, weight) + bias[:, None]


def _confusion(guesses: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(R, C, C) counts, labels in rows, of guesses (R, n)."""
    runs = len(guesses)
    cell = (torch.arange(runs, device=labels.device)[:, None] * classes + labels) * classes + guesses
    counts = torch.zeros(runs * classes * classes, device=labels.device)
    return counts.scatter_add_(0, cell.flatten(), counts.new_ones(cell.numel())).view(runs, classes, classes)


def _micro_f1(confusion: Tensor) -> Tensor:
    """(R,): with one label a node, the accuracy."""
    return confusion.diagonal(dim1=1, dim2=2).sum(dim=1) / confusion.sum(dim=(1, 2))


def _macro_f1(confusion: Tensor) -> Tensor:
    """(R,) mean of F1 over the classes that occur, as a label or a guess."""
    total = confusion.sum(dim=1) + confusion.sum(dim=2)  # twice the true positives, the false ones, and the false negatives
    scores = 2 * confusion.diagonal(dim1=1, dim2=2) / total.clamp(min=1)
    return scores.sum(dim=1) / (total > 0).sum(dim=1)


def _auc(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    from torchmetrics.functional.classification import multiclass_auroc

    present = torch.unique(labels)  # a class without a node has no curve
    scores = [multiclass_auroc(run.softmax(dim=1), labels, num_classes=classes, average=None) for run in logits]
    return torch.stack(scores)[:, present].mean(dim=1)


def _better(held: tuple[Tensor, Tensor, Tensor], score: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The score and classifier of each run, taken over where the new score is higher."""
    higher = score > held[0]
    kept = torch.where(higher[:, None, None], weight, held[1]), torch.where(higher[:, None], bias, held[2])
    return torch.where(higher, score, held[0]), *kept


def embedded(model: Any, data: Dataset, splits: list[str]) -> list[Labelled]:
    """Embeddings (n, D) in float32 and labels (n,) of the labelled nodes of each split, in eval mode.

    Raises:
        DataError: if a split has no labels, there is not one embedding a label, or one is not finite.
    """
    found = []
    with evaluating(model):
        for split in splits:
            rows = [(embed(model, batch).float(), batch.get("label")) for batch in split_batches(data, split, model)]
            if not rows or rows[0][1] is None:
                raise DataError(f'split "{split}" has no labels')
            x, labels = (torch.cat(column) for column in zip(*rows, strict=True))
            if len(x) != len(labels):
                raise DataError(f'{type(model).__name__} gives {len(x)} embeddings for the {len(labels)} labels of split "{split}"')
            if not bool(x.isfinite().all()):
                raise DataError(f'{type(model).__name__} gives embeddings that are not finite on split "{split}"')
            found.append((x, labels))
    return found


class NodeClassificationProbe(Evaluator):
    """Logistic regression on frozen embeddings: Macro-F1, Micro-F1 and AUC on test nodes, mean over many runs.

    Each run is scored at the step that its validation score is best at, for each metric by itself; AUC is taken where Micro-F1 is.
    The builtin `linear-probe` gives accuracy after convergence instead.

    Args:
        train: labelled nodes to fit on.
        val: nodes to choose the step by.
        test: nodes to measure on.
        runs: starts.
        steps: of Adam.
        lr: of Adam; the authors' 0.03 on ACM, 0.01 on DBLP and IMDB, 0.1 on Aminer.
        weight_decay: of Adam; the authors' 0.0008 on Aminer.
        seed: of the starts.
    """

    keys = (INPUTS, "label")
    needs = nn.Module

    def __init__(
        self,
        train: Split = "train",
        val: Split = "val",
        test: Split = "test",
        runs: Annotated[int, Field(ge=1)] = 50,
        steps: Annotated[int, Field(ge=1)] = 200,
        lr: Annotated[float, Field(gt=0)] = 0.01,
        weight_decay: Annotated[float, Field(ge=0)] = 0.0,
        seed: Annotated[int, Field(ge=0)] = 0,
    ):
        _check(2, runs, steps, lr, weight_decay)
        self.splits = [train, val, test]
        self.settings: dict[str, Any] = {"runs": runs, "steps": steps, "lr": lr, "weight_decay": weight_decay, "seed": seed}

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics macro-f1, micro-f1 and auc.

        Raises:
            DataError: if a split has no labels, or an embedding is not finite.
        """
        parts = embedded(model, data, self.splits)
        classes = max(len(data.info.classes), 1 + max(int(labels.max()) for _, labels in parts))
        scores = logistic_probe(parts[0], parts[1], parts[2], classes, **self.settings)
        names = {"macro-f1": scores.macro_f1, "micro-f1": scores.micro_f1, "auc": scores.auc}
        rows = [[name, *(round(float(v), 4) for v in (x.mean(), x.std(correction=0), x.min(), x.max()))] for name, x in names.items()]
        nodes = ", ".join(f"{split} {len(labels)}" for split, (_, labels) in zip(self.splits, parts, strict=True))
        table = Table(["metric", "mean", "deviation", "least", "most"], rows, f"Over {len(scores.auc)} runs; nodes: {nodes}.")
        return Report({name: float(values.mean()) for name, values in names.items()}, {"probe": table})
