"""How a model is called on a batch, and what stands in its output."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from graftwork.errors import DataError, InterfaceError
from graftwork.interfaces import input_keys, inputs
from graftwork.kinds.dataset import Batch

__all__ = ["as_batch", "batch_length", "call_model", "detached", "image_key", "logits_of", "repeat_batch", "rows", "take", "token_ids_key"]

IMAGE = "pixel_values"
"""What transformers models call the image."""


def as_batch(batch: Tensor | Mapping[str, Any]) -> Batch:
    """A batch from a tensor of images (B, C, H, W), or from a mapping; tensors made in inference mode are copied out of it."""
    found = {"image": batch} if isinstance(batch, Tensor) else dict(batch)
    return {key: value.clone() if isinstance(value, Tensor) and value.is_inference() else value for key, value in found.items()}


def image_key(model: nn.Module, batch: Mapping[str, Any]) -> str:
    """The key of the image in a batch: "image", "pixel_values", or the model's first input of shape (B, C, H, W).

    Raises:
        DataError: if there is none.
    """
    for key in ("image", IMAGE, *input_keys(model)):
        value = batch.get(key)
        if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
            return key
    raise DataError(f"a saliency map needs images (B, C, H, W) of floats; the batch has {', '.join(batch)}")


def batch_length(model: nn.Module, batch: Mapping[str, Any]) -> int:
    """B, the number of images."""
    return len(batch[image_key(model, batch)])


def call_model(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """A model's output on a batch.

    A transformers model, known by its forward taking `pixel_values`, gets the image in its own precision, and whatever else of the
    batch its forward names. Any other is called on its `inputs`, as `graftwork.interfaces.inputs` gives them.
    """
    if getattr(getattr(model, "config", None), "model_type", None) == "vilt":
        _refuse_padding(batch)
        with _PatchesInOrder():
            return _call_transformers(model, batch)
    if not hasattr(model, "inputs") and IMAGE in inspect.signature(model.forward).parameters:
        return _call_transformers(model, batch)
    return model(*inputs(model, batch))


def _call_transformers(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    accepted = inspect.signature(model.forward).parameters
    image = batch[image_key(model, batch)].to(_precision(model))
    more = {key: value for key, value in batch.items() if key in accepted and isinstance(value, Tensor)}
    more.pop("labels", None)  # boxes' classes here, a loss's target there
    return model(**{**more, IMAGE: image})


class _PatchesInOrder(TorchFunctionMode):
    """Makes a draw of all there is, without replacement, come out in order.

    ViLT draws its patches in random order, which changes nothing but where they stand in the sequence: that is, where they are.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.multinomial and len(args) == 2 and not kwargs and args[0].dim() == 1 and int(args[1]) == len(args[0]):
            return torch.arange(len(args[0]), device=args[0].device)
        return func(*args, **(kwargs or {}))


def _refuse_padding(batch: Mapping[str, Any]) -> None:
    mask = batch.get("pixel_mask")
    if isinstance(mask, Tensor) and not bool(mask.all()):
        raise DataError(
            "ViLT fills padded images up with patches drawn at random: give images of one size, with a pixel_mask of ones or none"
        )


def token_ids_key(model: nn.Module) -> str:
    """The name under which a model's forward takes the words of a text: `decoder_input_ids` or `input_ids`."""
    return "decoder_input_ids" if "decoder_input_ids" in inspect.signature(model.forward).parameters else "input_ids"


def _precision(model: nn.Module) -> torch.dtype:
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)


def logits_of(output: Any) -> Tensor:
    """The logits in an output: a tensor, `logits`, `logits_per_image`, or the first entry of a tuple.

    Raises:
        InterfaceError: if there are none.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "logits_per_image"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise InterfaceError(f"no logits are found in the model's output, a {type(output).__name__}; give a function of it as the target")


def detached(output: Any) -> Any:
    """The output with every tensor in it cut from the graph."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, output)


def take(batch: Mapping[str, Any], length: int, count: int) -> Batch:
    """The first `count` samples of a batch of `length`."""
    return rows(batch, length, slice(count))


def rows(batch: Mapping[str, Any], length: int, which: slice) -> Batch:
    """Some samples of a batch of `length`; what is not one a sample stays."""
    return {key: value[which] if _per_sample(value, length) else value for key, value in batch.items()}


def repeat_batch(batch: Mapping[str, Any], length: int, times: int) -> Batch:
    """A batch of `length` samples, the whole of it `times` over."""
    repeated = {}
    for key, value in batch.items():
        if not _per_sample(value, length):
            repeated[key] = value
        elif isinstance(value, Tensor):
            repeated[key] = value.repeat(times, *[1] * (value.dim() - 1))
        else:
            repeated[key] = list(value) * times
    return repeated


def _per_sample(value: Any, length: int) -> bool:
    return isinstance(value, (Tensor, list, tuple)) and not (isinstance(value, Tensor) and value.dim() == 0) and len(value) == length
