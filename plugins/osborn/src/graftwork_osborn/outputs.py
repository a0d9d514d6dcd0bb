"""What a model makes of a labelled set: features, class probabilities and likeliest classes, in one pass, kept while the model lives."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Subset

from graftwork import DataError, Dataset, InterfaceError, fingerprint
from graftwork.builtin.wrappers import labels_of
from graftwork.interfaces import Backbone, Segmenter, classify, device_of, inputs
from graftwork.kinds.dataset import Batch
from graftwork.kinds.evaluator import evaluating, split_batches
from graftwork_osborn.sampling import Pixels, Reading, class_balanced_indices, draw_pixels

__all__ = ["Outputs", "is_segmentation", "read_outputs"]

KEPT = 8
"""Sets whose outputs are kept for each model."""
_CACHE: WeakKeyDictionary[nn.Module, OrderedDict[tuple[Any, ...], Outputs]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Outputs:
    """A model's outputs on n samples, or pixels, on its device.

    Args:
        features: (n, d) in float32; None where the model offers none.
        probabilities: (n, C_source), softmax of the logits in float32.
        predictions: (n,) long, the likeliest source class.
        labels: (n,) long, of the set.
        digests: (images,) long, a number of each image or text that was read, equal for equal ones.
    """

    features: Tensor | None
    probabilities: Tensor
    predictions: Tensor
    labels: Tensor
    digests: Tensor


def is_segmentation(model: Any) -> bool:
    """Whether a model labels pixels."""
    return isinstance(model, Segmenter)


def read_outputs(
    model: nn.Module, data: Dataset, split: str, reading: Reading | None = None, name: str = "model", seed: int = 0
) -> Outputs:
    """One pass of a model over a labelled set, in eval mode and without gradients.

    What was read is kept for as long as the model lives and its weights, the data's fingerprint and the samples stay the same.

    Args:
        model: a Backbone or other classifier, or a Segmenter, in which case every pixel is a sample.
        data: has the split.
        split: which set, with `label`, or `mask` for a Segmenter.
        reading: how the set is read.
        name: of the model, for messages.
        seed: of the draw, where the reading has none.

    Raises:
        DataError: if the set is empty or has no labels, or features or logits are not finite.
        InterfaceError: if the layer that features are taken from is not found.
    """
    reading = reading or Reading()
    generator = torch.Generator().manual_seed(seed if reading.seed is None else reading.seed)
    if not len(data[split]):
        raise DataError(f'split "{split}" is empty')
    pixels = _pixels(data, split, reading, generator) if is_segmentation(model) else None
    if pixels is None:
        labels = labels_of(data[split])
        if labels.min() < 0:
            raise DataError(f'split "{split}" has label {int(labels.min())}; classes are numbered from 0')
        indices = class_balanced_indices(labels, reading.samples, generator, reading.balanced).tolist()
    else:
        indices = list(pixels.images)
    drawn = repr(indices) if pixels is None else repr([indices, *(one.tolist() for one in pixels.positions)])
    key = (fingerprint(model), data.fingerprint(), split, hashlib.sha256(drawn.encode()).hexdigest(), reading.layer, device_of(model))
    kept = _CACHE.setdefault(model, OrderedDict())
    if key not in kept:
        part = Dataset({split: Subset(data[split], indices)}, data.info, data.collate)  # type: ignore[arg-type]
        kept[key] = _checked(_pass(model, part, split, reading, pixels), name, split)
        if len(kept) > KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def _checked(outputs: Outputs, name: str, split: str) -> Outputs:
    for what, tensor in (("features", outputs.features), ("logits", outputs.probabilities)):
        if tensor is not None and not tensor.isfinite().all():
            raise DataError(f'model "{name}" gives {what} that are not finite on split "{split}"')
    return outputs


def _pixels(data: Dataset, split: str, reading: Reading, generator: torch.Generator) -> Pixels:
    samples: Any = data[split]
    if "mask" not in samples[0]:
        raise DataError(f'a segmenter is measured on masks; the samples of "{split}" have {", ".join(samples[0])}')
    count = len(samples) if reading.images is None else min(reading.images, len(samples))
    images = torch.randperm(len(samples), generator=generator)[:count].sort().values.tolist()
    drawn = draw_pixels([torch.as_tensor(samples[index]["mask"]) for index in images], reading, generator)
    return Pixels([images[index] for index in drawn.images], drawn.positions, drawn.labels)


def _pass(model: nn.Module, data: Dataset, split: str, reading: Reading, pixels: Pixels | None) -> Outputs:
    found: list[tuple[Tensor | None, Tensor, Tensor]] = []
    digests, labels, done = [], [], 0
    with evaluating(model), _captured(model, reading.layer) as captured:
        for batch in split_batches(data, split, model, batch_size=reading.batch_size):
            first = inputs(model, batch)[0]
            digests.append(_digests(first))
            if pixels is None:
                labels.append(batch["label"])
                taken, logits = _whole(model, batch, captured, reading.layer)
            else:
                positions = pixels.positions[done : done + len(first)]
                taken, logits = _at_pixels(model, batch, captured, positions)
            found.append((None if taken is None else taken.float(), logits.float().softmax(dim=1), logits.argmax(dim=1)))
            done += len(first)
    offered, probabilities, predictions = zip(*found, strict=True)
    features = [one for one in offered if one is not None]
    return Outputs(
        torch.cat(features) if features else None,
        torch.cat(probabilities),
        torch.cat(predictions),
        torch.cat(labels) if pixels is None else pixels.labels.to(predictions[0].device),
        torch.cat(digests),
    )


def _whole(model: nn.Module, batch: Batch, captured: list[Tensor], layer: str | None) -> tuple[Tensor | None, Tensor]:
    """Pooled features, where there are any, and logits of a batch of samples, by one forward pass."""
    offered: Any = model
    pooled: Tensor | None = None
    if isinstance(offered, Backbone):
        hidden = offered.forward_features(*inputs(model, batch))
        pooled, logits = offered.forward_head(hidden, pre_logits=True), offered.forward_head(hidden)
    else:
        logits = classify(model, batch)
    if layer is None:
        return pooled, logits
    if not captured:
        raise InterfaceError(f'layer "{layer}" of {type(model).__name__} took nothing in the forward pass: name one that runs')
    return _pooled(captured), logits


def _pooled(captured: list[Tensor]) -> Tensor:
    taken = captured.pop()
    captured.clear()
    return taken.flatten(2).mean(dim=2) if taken.dim() > 2 else taken


def _at_pixels(model: Any, batch: Batch, captured: list[Tensor], positions: Any) -> tuple[Tensor | None, Tensor]:
    """Features, bilinear between the map's cells, and logits at pixels of each image: (p, d) and (p, C)."""
    logits = model.segment(batch["image"])
    height, width = logits.shape[2:]
    counts = torch.tensor([len(one) for one in positions], device=logits.device)
    padded = torch.nn.utils.rnn.pad_sequence(list(positions), batch_first=True).to(logits.device)
    real = torch.arange(padded.shape[1], device=logits.device) < counts[:, None]
    chosen = logits.flatten(2).gather(2, padded[:, None, :].expand(-1, logits.shape[1], -1)).transpose(1, 2)[real]
    if not captured:
        return None, chosen
    taken = captured.pop()
    captured.clear()
    down, across = padded // width, padded % width
    grid = torch.stack([(2 * across + 1) / width - 1, (2 * down + 1) / height - 1], dim=-1).to(taken.dtype)
    features = functional.grid_sample(taken, grid[:, :, None, :], padding_mode="border", align_corners=False)[..., 0]
    return features.transpose(1, 2)[real], chosen


@contextmanager
def _captured(model: nn.Module, layer: str | None) -> Iterator[list[Tensor]]:
    """A list that the input of a layer is put into at each pass."""
    module = _layer(model, layer)
    taken: list[Tensor] = []
    handle = None if module is None else module.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    try:
        yield taken
    finally:
        if handle is not None:
            handle.remove()


def _layer(model: nn.Module, layer: str | None) -> nn.Module | None:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if layer is not None:
        if layer not in modules:
            raise InterfaceError(f'{type(model).__name__} has no layer "{layer}"; its last are {", ".join(list(modules)[-4:])}')
        return modules[layer]
    if not is_segmentation(model):
        return None
    outputs = getattr(model, "num_classes", None)
    for module in reversed(list(modules.values())):
        if outputs is not None and outputs in (getattr(module, "out_channels", None), getattr(module, "out_features", None)):
            return module
    raise InterfaceError(f"{type(model).__name__} has no layer with num_classes = {outputs} outputs: name the one it ends in as `layer`")


def _digests(given: Any) -> Tensor:
    """A number of each sample, equal for equal ones: of a tensor's bits, in arithmetic modulo 2^64; of text, of its SHA-256."""
    if isinstance(given, Tensor):
        rows = given.detach().flatten(1).contiguous()
        bits = (rows.float().view(torch.int32) if rows.is_floating_point() else rows).long()
        factors = torch.arange(1, bits.shape[1] + 1, device=bits.device) * 0x1E3779B97F4A7C15 | 1
        return (bits * factors).sum(dim=1)
    hashed = [int.from_bytes(hashlib.sha256(repr(one).encode()).digest()[:8], "big", signed=True) for one in given]
    return torch.tensor(hashed, dtype=torch.long)
