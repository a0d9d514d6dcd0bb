"""Evaluators: what measures a model, and the report that they give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from graftwork.interfaces import device_of
from graftwork.kinds.dataset import Batch, Dataset, to_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

    from graftwork.artifact import Artifact
    from graftwork.run import Run

__all__ = ["Evaluator", "Figure", "Report", "Table", "evaluating", "split_batches"]


@dataclass(frozen=True)
class Table:
    """Rows under named columns, for the report page.

    Args:
        columns: headings.
        rows: each as long as `columns`; numbers stay numbers.
        caption: one sentence that says what is to be seen.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A matplotlib figure with its caption. Make it with `matplotlib.figure.Figure(...)`, not pyplot, so that none stays open."""

    figure: MatplotlibFigure
    caption: str = ""


@dataclass(frozen=True)
class Report:
    """What an evaluator found.

    Args:
        metrics: name -> finite number.
        tables: name -> table.
        figures: name -> figure.
        artifacts: name -> what later stages take with `from: stage/name`.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)


class Evaluator(ABC):
    """Measures a model on a dataset. Its parameters (splits, limits, layers) are its constructor's.

    Attributes:
        keys: sample keys that it reads from each of its splits, `objective.INPUTS` standing for the model's own.
        needs: what its model must offer.
    """

    keys: tuple[str, ...] = ()
    needs: type = object

    @abstractmethod
    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Measure `model`, which is left as it was found: mode, gradients, weights and hooks.

        Args:
            model: as `needs` says, on its own device.
            data: has the splits that the evaluator's parameters name.
            run: the run that this is part of, for its seed and progress bar; None when called on its own.
        """


@contextmanager
def evaluating(model: Any, gradients: bool = False) -> Iterator[None]:
    """Put a module in eval mode, without gradients unless asked; each submodule's own mode comes back afterwards."""
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def split_batches(data: Dataset, split: str, model: Any, *, limit: int | None = None, batch_size: int = 128) -> Iterator[Batch]:
    """Batches of a split in order, on the model's device.

    Args:
        data: the dataset.
        split: name of one of its splits.
        model: whose device the batches go to.
        limit: read the first `limit` samples only.
        batch_size: samples a batch.

    Raises:
        DataError: if there is no such split.
    """
    samples: Any = data[split]
    if limit is not None and limit < len(samples):
        samples = Subset(samples, range(limit))
    device = device_of(model)
    own = torch.Generator()  # without one, a loader draws its workers' seed from the global stream, which training reads
    for batch in DataLoader(samples, batch_size=batch_size, collate_fn=data.collate, generator=own):
        yield to_device(batch, device)
