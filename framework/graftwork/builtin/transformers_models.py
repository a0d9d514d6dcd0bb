"""Models of transformers by Hugging Face id or folder, with the surfaces that the rest of graftwork asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from graftwork.builtin.hub import Precision, transformers_classifier, transformers_model
from graftwork.builtin.image_processor import ImagePreparation
from graftwork.builtin.tokenization import load_tokenizer, longest, tokenize
from graftwork.errors import GraftworkError, InterfaceError
from graftwork.kinds.evaluator import evaluating

__all__ = ["TransformersImageClassifier", "TransformersTextEncoder"]

Count = Annotated[int, Field(ge=1)]
Levels = list[float] | None
HEADS = ("classifier", "cls_classifier", "distillation_classifier")
"""What a new number of classes trains anew."""
POOLINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "pooler": lambda base, x: base.pooler(x).flatten(1),
    "pooler over tokens": lambda base, x: base.pooler(x.transpose(1, 2)).flatten(1),
    "mean, then layer norm": lambda base, x: base.layernorm(x.flatten(2).mean(2)),
    "class token": lambda base, x: x[:, 0],
    "class token beside the mean": lambda base, x: torch.cat([x[:, 0], x[:, 1:].mean(1)], 1),
}
"""How families get from the last hidden state to what their classifier takes: ResNet and BEiT; Swin; ConvNeXt; ViT; DINOv2."""


class TransformersImageClassifier(nn.Module):
    """An image classifier of transformers with the Backbone surface, for images in [0, 1].

    Images are resized and normalised by the settings of the checkpoint's image processor. How its features are pooled is found by
    trying: the way that gives the model's own logits is kept.

    Args:
        name: Hugging Face id or folder; safetensors only, and no code of the repository is run.
        num_classes: outputs; a new head is made where the checkpoint's has another number or none.
        resize: whether images of another size than the checkpoint's are resized to it.
        mean: of each channel, in place of the image processor's.
        std: of each channel, in place of the image processor's; given with `mean`.
        dtype: of the weights, whatever the checkpoint's.

    Attributes:
        num_features: width of the pooled features.

    Raises:
        GraftworkError: if it cannot be loaded, lacks weights, or how its images are normalised is not known.
        InterfaceError: if its head is of no known shape.
    """

    def __init__(
        self,
        name: str,
        num_classes: Count | None = None,
        resize: bool = True,
        mean: Levels = None,
        std: Levels = None,
        dtype: Precision = "float32",
    ):
        super().__init__()
        model = transformers_classifier("AutoModelForImageClassification", name, "image classifier", num_classes, HEADS, dtype)
        self._hold(model, ImagePreparation.load(name, model.config, resize, mean, std))

    @classmethod
    def wrap(cls, model: Any, prepare: ImagePreparation) -> TransformersImageClassifier:
        """Give a model of transformers that is already in memory this surface."""
        wrapper = cls.__new__(cls)
        nn.Module.__init__(wrapper)
        wrapper._hold(model, prepare)
        return wrapper

    def _hold(self, model: Any, prepare: ImagePreparation) -> None:
        self.model, self.prepare, self.num_classes = model, prepare, int(model.config.num_labels)
        self.pooling, self.num_features = self._find_pooling()

    @property
    def mean(self) -> Tensor:
        """(C, 1, 1), taken off each channel."""
        return self.prepare.mean

    @property
    def std(self) -> Tensor:
        """(C, 1, 1), by which each channel is divided."""
        return self.prepare.std

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) that images are resized to."""
        return self.prepare.size

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to the last hidden state: a map (B, D, h, w) or tokens (B, N, D)."""
        return self.model.base_model(pixel_values=self._prepared(x)).last_hidden_state  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last hidden state to logits (B, num_classes), or pooled to (B, num_features)."""
        pooled = POOLINGS[self.pooling](self.model.base_model, x)
        return pooled if pre_logits else self.model.classifier(getattr(self.model, "dropout", nn.Identity())(pooled))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model and its image processor's settings as transformers does."""
        self.model.save_pretrained(folder)
        self.prepare.save_pretrained(folder)

    def _prepared(self, x: Tensor) -> Tensor:
        return self.prepare(x).to(self.model.dtype)  # type: ignore[no-any-return]

    def _find_pooling(self) -> tuple[str, int]:
        """The pooling that gives the model's own logits on a made-up image, and the width of what it gives."""
        image, tolerance = self.prepare.example(), 1e-3 if self.model.dtype == torch.float32 else 1e-2
        with evaluating(self):
            expected, features = self.model(pixel_values=self._prepared(image)).logits, self.forward_features(image)
            for self.pooling in POOLINGS:
                try:
                    logits = self.forward_head(features)
                except (AttributeError, IndexError, RuntimeError, TypeError):
                    continue
                if logits.shape == expected.shape and torch.allclose(logits, expected, rtol=tolerance, atol=tolerance / 100):
                    return self.pooling, self.forward_head(features, pre_logits=True).shape[1]
        raise InterfaceError(f"{type(self.model).__name__} has a head of no known shape: none of {', '.join(POOLINGS)} gives its logits")


class TransformersTextEncoder(nn.Module):
    """A sentence encoder of transformers: a model's last hidden states, pooled.

    Args:
        name: Hugging Face id or folder; safetensors only, and no code of the repository is run.
        pooling: mean over the tokens that are no padding, or the first token ("cls").
        normalize: whether embeddings have length 1.
        max_length: tokens after which a text is cut; by default the most that the model takes.
        input: the sample key that it embeds; "input_ids" goes with "attention_mask".
        dtype: of the weights, whatever the checkpoint's.

    Attributes:
        embedding_dim: width of the embeddings.

    Raises:
        GraftworkError: if it cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        pooling: Literal["mean", "cls"] = "mean",
        normalize: bool = False,
        max_length: Count | None = None,
        input: Literal["text", "input_ids"] = "text",
        dtype: Precision = "float32",
    ):
        super().__init__()
        model, new = transformers_model("AutoModel", name, "text encoder", dtype)
        if lacking := [key for key in new if "pooler" not in key]:  # a pooler is not used
            raise GraftworkError(f'text encoder "{name}" has no weights for {", ".join(lacking[:4])}')
        self._hold(model, load_tokenizer(name), pooling, normalize, max_length, input)

    @classmethod
    def wrap(
        cls,
        model: Any,
        tokenizer: Any,
        pooling: Literal["mean", "cls"] = "mean",
        normalize: bool = False,
        max_length: Count | None = None,
        input: Literal["text", "input_ids"] = "text",
    ) -> TransformersTextEncoder:
        """Give a model of transformers that is already in memory this surface."""
        wrapper = cls.__new__(cls)
        nn.Module.__init__(wrapper)
        wrapper._hold(model, tokenizer, pooling, normalize, max_length, input)
        return wrapper

    def _hold(self, model: Any, tokenizer: Any, pooling: str, normalize: bool, max_length: int | None, input: str) -> None:
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length or longest(model, tokenizer)
        self.pooling, self.normalize, self.embedding_dim = pooling, normalize, int(model.config.hidden_size)
        self.inputs = ("text",) if input == "text" else ("input_ids", "attention_mask")

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Tokens (B, T) and their mask, 1 where there is text, to embeddings (B, embedding_dim)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden: Tensor = self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(hidden.dtype)
        pooled = hidden[:, 0] if self.pooling == "cls" else (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return normalize(pooled, dim=-1) if self.normalize else pooled

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts to embeddings (B, embedding_dim), on the model's device, with gradients where they are on."""
        return self.forward(*tokenize(self.tokenizer, texts, self.max_length, self.model.device))

    def embed(self, *inputs: Any) -> Tensor:
        """Texts, or tokens and their mask, to embeddings (B, embedding_dim)."""
        return self.forward(*inputs) if isinstance(inputs[0], Tensor) else self.encode(inputs[0])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model and its tokenizer as transformers does."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
