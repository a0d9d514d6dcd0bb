"""Targets in an embedding space: likeness to a reference vector, likeness of an image and a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from graftwork.errors import DataError, InterfaceError
from graftwork.interfaces import Backbone, DualEncoder, Embedder, embed
from graftwork.kinds.dataset import Batch
from graftwork_grad_cam.forward import call_model, image_key
from graftwork_grad_cam.targets.contract import Target
from graftwork_grad_cam.targets.words import tokenize

__all__ = ["EmbeddingTarget", "ImageTextTarget"]

REFERENCE = "target reference"


@dataclass(frozen=True)
class EmbeddingTarget(Target):
    """The dot product of an image's embedding with a reference vector, or their cosine.

    The embedding is the model's own (the image's in a dual encoder, `embed` of an Embedder, the pre-logits of a Backbone), or in an
    output of transformers the `image_embeds`, the `pooler_output` or the mean of the `last_hidden_state`, or an output (B, D) itself.

    Args:
        reference: (D,) for all samples, or (B, D).
        cosine: whether both are normalised.
    """

    name: ClassVar[str] = "embedding"
    reference: Sequence[Any] | Tensor
    cosine: bool = False

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> Batch:
        """Bind the reference to each sample."""
        image = batch[image_key(model, batch)]
        reference = torch.as_tensor(self.reference, dtype=torch.float32, device=image.device)
        if reference.dim() == 1:
            reference = reference.expand(len(image), -1)
        if reference.dim() != 2 or len(reference) != len(image):
            raise DataError(f"a reference is (D,), or (B, D) for {len(image)} samples; found {tuple(reference.shape)}")
        return {**batch, REFERENCE: reference}

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """(B, D) embeddings, or the output that holds them."""
        offered: Any = model
        if isinstance(offered, DualEncoder) or hasattr(model, "get_image_features"):
            return _encoded(model, "image", image=batch[image_key(model, batch)])
        return embed(model, dict(batch)) if isinstance(offered, (Embedder, Backbone)) else call_model(model, batch)

    def score(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, 1).

        Raises:
            InterfaceError: if the output holds no embedding, or it differs in width from the reference.
        """
        embeddings, reference = _embeddings(output).float(), batch[REFERENCE]
        if embeddings.shape != reference.shape:
            raise InterfaceError(f"the reference is {tuple(reference.shape)}, but the model's embeddings are {tuple(embeddings.shape)}")
        if self.cosine:
            embeddings, reference = normalize(embeddings, dim=1), normalize(reference, dim=1)
        return (embeddings * reference).sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class ImageTextTarget(Target):
    """The cosine of an image and a text in the space of a CLIP-like model.

    For transformers models with `get_image_features` and `get_text_features`, and for a DualEncoder. Texts are encoded beforehand,
    without gradients; the forward pass runs the image's side only.

    Args:
        texts: each has a map for every image; None pairs each image with its own `input_ids`, or `text`.
        tokenizer: of transformers; by default the model's own `tokenizer`.
    """

    name: ClassVar[str] = "image-text"
    texts: tuple[str, ...] | None = None
    tokenizer: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.texts, str):
            object.__setattr__(self, "texts", (self.texts,))

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> Batch:
        """Bind the texts' embeddings (B, T, D).

        Raises:
            InterfaceError: if the model is no dual encoder.
            DataError: if there is no text.
        """
        image = batch[image_key(model, batch)]
        if self.texts is not None:
            words = tokenize(list(self.texts), model, self.tokenizer, image.device)
        elif "input_ids" in batch:
            words = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
        elif "text" in batch:
            words = tokenize(list(batch["text"]), model, self.tokenizer, image.device)
        else:
            raise DataError(f"an image-text target reads input_ids or text unless texts are given; the batch has {', '.join(batch)}")
        embedded = normalize(_encoded(model, "text", **words).float(), dim=-1)
        paired = embedded.unsqueeze(1) if self.texts is None else embedded.expand(len(image), -1, -1)
        return {**batch, REFERENCE: paired}

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """(B, D) embeddings of the images."""
        return _encoded(model, "image", image=batch[image_key(model, batch)])

    def score(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, T) cosines."""
        return torch.einsum("bd,btd->bt", normalize(output.float(), dim=-1), batch[REFERENCE])

    def captions(self, output: Any, batch: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
        """The texts."""
        return [list(self.texts)] * len(batch[REFERENCE]) if self.texts is not None else [[text] for text in batch.get("text", [])]

    def to_dict(self) -> dict[str, Any]:
        """Without the tokenizer, which is the model's."""
        return {"name": self.name, **({} if self.texts is None else {"texts": list(self.texts)})}


def _embeddings(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    for name in ("image_embeds", "pooler_output"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found.flatten(1)
    hidden = getattr(output, "last_hidden_state", None)
    if isinstance(hidden, Tensor):
        return hidden.mean(dim=1) if hidden.dim() == 3 else hidden.mean(dim=(2, 3))
    raise InterfaceError(f"no embedding is found in the model's output, a {type(output).__name__}")


def _encoded(model: Any, side: str, **words: Tensor) -> Tensor:
    """(N, D) of images or texts."""
    if isinstance(model, DualEncoder):
        return model.encode_image(words["image"]) if side == "image" else model.encode_text(words["input_ids"], words.get("attention_mask"))
    encode = getattr(model, f"get_{side}_features", None)
    if encode is None:
        raise InterfaceError(f"an image-text target needs a model with encode_image and encode_text; {type(model).__name__} has neither")
    found = encode(pixel_values=words["image"].to(model.dtype)) if side == "image" else encode(**words)
    return found if isinstance(found, Tensor) else found.pooler_output
