"""What a model offers, as structural Protocols: timm's and Hugging Face's own names, so that their models fit as they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import get_protocol_members

from graftwork.errors import DataError, InterfaceError

__all__ = [
    "Backbone",
    "CausalLM",
    "Detector",
    "DiffusionPipeline",
    "DualEncoder",
    "Embedder",
    "Reward",
    "Segmenter",
    "TextEncoder",
    "classify",
    "device_of",
    "embed",
    "input_keys",
    "inputs",
    "missing_members",
    "require",
]


@runtime_checkable
class Backbone(Protocol):
    """A feature extractor with a head, by timm's convention.

    `forward_features(x)` gives the unpooled features, `forward_head(features, pre_logits=True)` the pooled (B, num_features) and
    `forward_head(features)` the logits. A model whose batches do not hold its input under "image" names the keys in `inputs`.
    """

    num_features: int

    def forward_features(self, x: Tensor, /) -> Tensor: ...

    def forward_head(self, x: Tensor, /, pre_logits: bool = False) -> Tensor: ...


@runtime_checkable
class Embedder(Protocol):
    """A model trained to embed: `embed(*inputs)` gives (B, embedding_dim)."""

    embedding_dim: int

    def embed(self, *inputs: Tensor) -> Tensor: ...


@runtime_checkable
class DualEncoder(Protocol):
    """Image and text in one space; each method gives (B, D)."""

    def encode_image(self, image: Tensor, /) -> Tensor: ...

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None, /) -> Tensor: ...


@runtime_checkable
class TextEncoder(Protocol):
    """A sentence encoder: `encode(texts)` gives (B, D)."""

    def encode(self, texts: Sequence[str], /) -> Tensor: ...


@runtime_checkable
class CausalLM(Protocol):
    """A transformers causal language model that carries its tokenizer."""

    tokenizer: Any

    def generate(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Segmenter(Protocol):
    """`segment(image)` gives per-pixel class logits (B, num_classes, H, W) at the image's size."""

    def segment(self, image: Tensor, /) -> Tensor: ...


@runtime_checkable
class Detector(Protocol):
    """`detect(image)` gives a dict an image, as torchvision's detectors do.

    Each holds `boxes` (n, 4) float as x1, y1, x2, y2 in pixels of the image, `scores` (n,) in [0, 1], and `labels` (n,) long.
    """

    def detect(self, image: Tensor, /) -> list[dict[str, Tensor]]: ...


@runtime_checkable
class DiffusionPipeline(Protocol):
    """A diffusers pipeline."""

    scheduler: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Reward(Protocol):
    """`score(samples, prompts)` gives (B,), higher is better."""

    def score(self, samples: Any, prompts: Sequence[str], /) -> Tensor: ...


def missing_members(offered: object, interface: type) -> list[str]:
    """Names of `interface` that `offered` lacks.

    Args:
        offered: an instance, or a class. A class is asked for its methods only: attributes that `__init__` sets cannot be seen.
        interface: one of this module's Protocols, or an ordinary class, of which `offered` must be an instance or subclass.
    """
    if not getattr(interface, "_is_protocol", False):
        matches = issubclass(offered, interface) if isinstance(offered, type) else isinstance(offered, interface)
        return [] if matches else [interface.__name__]
    names = sorted(get_protocol_members(interface))
    if isinstance(offered, type):
        names = [name for name in names if callable(getattr(interface, name, None))]
    return [name for name in names if not hasattr(offered, name)]


def require(model: object, interface: type, user: str) -> None:
    """Raise unless `model` offers `interface`.

    Args:
        model: an instance or a class.
        interface: a Protocol or class.
        user: who needs it, for the message.

    Raises:
        InterfaceError: naming the model's class, the interface and the missing members.
    """
    missing = missing_members(model, interface)
    if missing:
        name = model.__name__ if isinstance(model, type) else type(model).__name__
        raise InterfaceError(f"{user} needs a model that offers {interface.__name__}; {name} lacks {', '.join(missing)}")


def input_keys(model: object) -> tuple[str, ...]:
    """The sample keys that a model's forward takes, in order: its `inputs` attribute, or ("image",)."""
    return tuple(getattr(model, "inputs", ("image",)))


def inputs(model: object, batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """The model's inputs taken out of a batch.

    Raises:
        DataError: if the batch lacks one, naming the keys it has.
    """
    keys = input_keys(model)
    absent = [key for key in keys if key not in batch]
    if absent:
        raise DataError(f"{type(model).__name__} takes {', '.join(keys)}; the batch has {', '.join(batch)} and lacks {', '.join(absent)}")
    return tuple(batch[key] for key in keys)


def classify(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Logits (B, classes) of a batch: the model's forward on its own inputs; a transformers output gives its `logits`."""
    output = model(*inputs(model, batch))
    return cast(Tensor, getattr(output, "logits", output))


def embed(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Pooled features (B, D) of a batch: `embed` of an Embedder, `encode` of a TextEncoder, the pre-logits of a Backbone.

    Raises:
        InterfaceError: if the model is none of the three.
    """
    offered: Any = model
    if isinstance(offered, Embedder):
        return offered.embed(*inputs(model, batch))
    if isinstance(offered, Backbone):
        forward: Callable[..., Tensor] = offered.forward_features
        return offered.forward_head(forward(*inputs(model, batch)), pre_logits=True)
    if isinstance(offered, TextEncoder):
        return offered.encode(batch["text"])
    raise InterfaceError(f"{type(model).__name__} gives no features: it offers none of Embedder, Backbone, TextEncoder")


def device_of(model: object) -> torch.device:
    """The device of a module's first parameter or buffer, or of a diffusers pipeline; the CPU when it has none."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    device = inspect.getattr_static(model, "device", None)
    return cast(torch.device, model.device) if device is not None else torch.device("cpu")  # type: ignore[attr-defined]
