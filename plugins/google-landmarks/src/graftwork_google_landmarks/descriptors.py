"""Descriptors of many images, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from graftwork import Batch, DataError
from graftwork.interfaces import device_of, embed
from graftwork.kinds.dataset import collate as join
from graftwork.kinds.dataset import to_device
from graftwork.kinds.evaluator import evaluating
from graftwork_google_landmarks.search import Neighbours, Precision, exact_topk

__all__ = ["embed_samples", "nearest_samples"]


def embed_samples(
    model: Any,
    samples: Any,
    indices: NDArray[np.int64] | None = None,
    collate: Callable[[Any], Batch] = join,
    batch_size: int = 64,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """What a model makes of images, in eval mode and without gradients.

    Args:
        model: an Embedder, or a Backbone, whose pooled features are taken.
        samples: map-style samples with the model's inputs.
        indices: which of them, in order; all by default.
        collate: joins samples into a batch; where their images differ in size they are embedded one by one.
        batch_size: samples a batch.
        workers: processes that read them.
        dtype: that descriptors are kept in.

    Returns:
        (N, D) on the CPU.

    Raises:
        DataError: if there is nothing to embed, or a descriptor is not finite.
    """
    chosen: Any = samples if indices is None else Subset(samples, indices.tolist())
    if not len(chosen):
        raise DataError("there is no image to embed")
    device, found = device_of(model), []
    with evaluating(model):
        for batch in DataLoader(chosen, batch_size=batch_size, collate_fn=collate, num_workers=workers):
            parts = _alike(batch) if isinstance(batch.get("image"), list) else [batch]
            found += [embed(model, to_device(part, device)).float().cpu().to(dtype) for part in parts]
    joined = torch.cat(found)
    if not joined.isfinite().all():
        raise DataError(f"{type(model).__name__} gives descriptors that are not finite")
    return joined


def _alike(batch: Batch) -> list[Batch]:
    """A batch of images of different sizes as batches of one."""
    return [
        {key: value[row][None] if isinstance(value[row], Tensor) else [value[row]] for key, value in batch.items()}
        for row in range(len(batch["image"]))
    ]


def nearest_samples(
    model: Any,
    queries: Any,
    rows: NDArray[np.int64] | None,
    gallery: Any,
    k: int,
    collate: Callable[[Any], Batch] = join,
    batch_size: int = 64,
    workers: int = 0,
    precision: Precision = "float32",
) -> Neighbours:
    """For each query the k images of a gallery that a model embeds most alike, by cosine.

    Args:
        model: as of `embed_samples`.
        queries: samples.
        rows: which of the queries, in order; None takes all.
        gallery: samples that are searched.
        k: neighbours of each query; of a smaller gallery all.
        collate: joins samples into a batch.
        batch_size: samples a batch.
        workers: processes that read them.
        precision: that descriptors are kept and compared in.

    Returns:
        Cosines and positions in the gallery, (Q, k) each, on the CPU.

    Raises:
        DataError: as `embed_samples`.
    """
    dtype = getattr(torch, precision)
    asked = embed_samples(model, queries, rows, collate, batch_size, workers, dtype)
    held = embed_samples(model, gallery, None, collate, batch_size, workers, dtype)
    found = exact_topk(asked.to(device_of(model)), held, k, "cosine", precision)
    return Neighbours(found.scores.cpu(), found.indices.cpu())
