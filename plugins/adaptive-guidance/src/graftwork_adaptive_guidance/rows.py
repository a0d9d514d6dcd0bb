"""Rows of a denoiser's call: which of its arguments have one for each sample, and how some of them are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["prediction_of", "take_rows", "with_prediction"]

_SHARED = ("txt_ids", "img_ids", "image_rotary_emb", "rotary_emb", "freqs_cis", "latent_image_ids")
"""Positions, which Flux and its kin pass once for the whole batch, as tables of two dimensions."""


def take_rows(arguments: Mapping[str, Any], chosen: Sequence[int], rows: int) -> dict[str, Any]:
    """A call's arguments with some of their rows.

    Every tensor with `rows` rows is cut, wherever it is: in tuples of ControlNet residuals, in `added_cond_kwargs`, in lists of image
    embeddings; and every list of `rows` plain values, such as `img_shapes`. Tables of positions that the batch shares stay whole.

    Args:
        arguments: name -> value.
        chosen: rows to keep, in order.
        rows: of the whole call.
    """
    consecutive = len(chosen) > 0 and list(chosen) == list(range(chosen[0], chosen[0] + len(chosen)))
    index: dict[torch.device, Tensor] = {}

    def cut(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            shared = name in _SHARED and value.ndim < 3
            if shared or value.ndim == 0 or value.shape[0] != rows:
                return value
            if consecutive:
                return value[chosen[0] : chosen[0] + len(chosen)]
            if value.device not in index:
                index[value.device] = torch.tensor(list(chosen), device=value.device)
            return value.index_select(0, index[value.device])
        if isinstance(value, Mapping):
            return type(value)({key: cut(item, str(key)) for key, item in value.items()})  # type: ignore[call-arg]
        if isinstance(value, (list, tuple)):
            if isinstance(value, list) and len(value) == rows and not any(isinstance(item, Tensor) for item in value):
                return [value[row] for row in chosen]
            return type(value)(cut(item, name) for item in value)
        return value

    return {name: cut(value, name) for name, value in arguments.items()}


def prediction_of(output: Any) -> Tensor:
    """The predictions in what a denoiser returned: a tensor, a tuple that begins with it, or diffusers' output."""
    return output if isinstance(output, Tensor) else output[0]


def with_prediction(output: Any, prediction: Tensor) -> Any:
    """What a denoiser returned, with other predictions in it."""
    if isinstance(output, Tensor):
        return prediction
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    return type(output)(**{**output, next(iter(output)): prediction})
