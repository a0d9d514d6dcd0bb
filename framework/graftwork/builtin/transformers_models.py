"""Models of transformers by Hugging Face id or folder, with the surfaces that the rest of graftwork asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from graftwork.builtin.hub import load, need
from graftwork.errors import GraftworkError, InterfaceError
from graftwork.kinds.evaluator import evaluating

__all__ = ["TransformersImageClassifier", "TransformersTextEncoder"]

Count = Annotated[int, Field(ge=1)]
Levels = list[float] | None
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
        std: of each channel, in place of the image processor's.

    Attributes:
        num_features: width of the pooled features.

    Raises:
        GraftworkError: if it cannot be loaded, lacks weights, or how its images are normalised is not known.
        InterfaceError: if its head is of no known shape.
    """

    def __init__(self, name: str, num_classes: Count | None = None, resize: bool = True, mean: Levels = None, std: Levels = None):
        super().__init__()
        automatic = need("transformers", "transformers").AutoModelForImageClassification
        settings: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
        if num_classes is not None:
            settings |= {"num_labels": num_classes, "ignore_mismatched_sizes": True}
        self.model, found = load(name, lambda source: automatic.from_pretrained(source, **settings), "image classifier")
        new = [key if isinstance(key, str) else key[0] for key in (*found["missing_keys"], *found["mismatched_keys"])]
        if lacking := [key for key in new if num_classes is None or "classifier" not in key]:
            raise GraftworkError(f'image classifier "{name}" has no weights for {", ".join(lacking[:4])}; for a new head give num_classes')
        self.num_classes, self.resize = int(self.model.config.num_labels), resize
        given = {} if mean is None or std is None else {"image_mean": mean, "image_std": std}
        self.processor = load(name, lambda source: _processor(source, given), "image processor")
        self.size = _size(self.processor, self.model.config)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(self.processor["image_mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.processor["image_std"]).view(-1, 1, 1), persistent=False)
        self.pooling, self.num_features = self._find_pooling()

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
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(self.processor, indent=2))

    def _prepared(self, x: Tensor) -> Tensor:
        if self.resize and x.shape[-2:] != self.size:
            x = interpolate(x, size=self.size, mode="bilinear", antialias=True)
        return ((x - self.mean) / self.std).to(self.model.dtype)

    def _find_pooling(self) -> tuple[str, int]:
        """The pooling that gives the model's own logits on a made-up image, and the width of what it gives."""
        image = torch.linspace(0, 40, len(self.mean) * self.size[0] * self.size[1]).sin().view(1, -1, *self.size) / 2 + 0.5
        with evaluating(self):
            expected, features = self.model(pixel_values=self._prepared(image)).logits, self.forward_features(image)
            for self.pooling in POOLINGS:
                try:
                    logits = self.forward_head(features)
                except (AttributeError, IndexError, RuntimeError, TypeError):
                    continue
                if logits.shape == expected.shape and torch.allclose(logits, expected, rtol=1e-3, atol=1e-5):
                    return self.pooling, self.forward_head(features, pre_logits=True).shape[1]
        raise InterfaceError(f"{type(self.model).__name__} has a head of no known shape: none of {', '.join(POOLINGS)} gives its logits")


def _processor(source: str, given: dict[str, Any]) -> dict[str, Any]:
    """An image processor's settings from its JSON, which asks for no torchvision as building one would."""
    try:
        found, _ = need("transformers.image_processing_base", "transformers").ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        found = {}
        if not given:
            raise GraftworkError(f'"{source}" has no preprocessor_config.json: say how images are normalised with mean and std') from None
    odd = found.get("rescale_offset") or found.get("include_top") or not found.get("do_rescale", True)
    if odd and not given:
        raise GraftworkError(f'the image processor of "{source}" does not map images to [0, 1] before it normalises: give mean and std')
    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3} if not found.get("do_normalize", True) else {}
    return {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **found, **plain, **given}


def _size(processor: dict[str, Any], config: Any) -> tuple[int, int]:
    """(height, width) that the checkpoint takes."""
    crop = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    known: Any = crop or processor.get("size") or getattr(config, "image_size", None) or 224  # ConvNeXt's configuration just says 224
    if isinstance(known, dict):
        known = [known.get(side) or known.get("shortest_edge", 224) for side in ("height", "width")]
    return (known, known) if isinstance(known, int) else (int(known[0]), int(known[1]))


class TransformersTextEncoder(nn.Module):
    """A sentence encoder of transformers: a model's last hidden states, pooled.

    Args:
        name: Hugging Face id or folder; safetensors only, and no code of the repository is run.
        pooling: mean over the tokens that are no padding, or the first token ("cls").
        normalize: whether embeddings have length 1.
        max_length: tokens after which a text is cut; by default the most that the model takes.
        input: the sample key that it embeds; "input_ids" goes with "attention_mask".

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
    ):
        super().__init__()
        library, settings = need("transformers", "transformers"), {"use_safetensors": True, "trust_remote_code": False}
        self.model = load(name, lambda source: library.AutoModel.from_pretrained(source, **settings), "text encoder")
        self.tokenizer = load(name, lambda source: library.AutoTokenizer.from_pretrained(source, trust_remote_code=False), "tokenizer")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        most = getattr(self.model.config, "max_position_embeddings", self.tokenizer.model_max_length)
        self.max_length = max_length or min(most, self.tokenizer.model_max_length)
        self.pooling, self.normalize, self.embedding_dim = pooling, normalize, int(self.model.config.hidden_size)
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
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        return self.forward(**{key: tokens[key].to(self.model.device) for key in ("input_ids", "attention_mask")})

    def embed(self, *inputs: Any) -> Tensor:
        """Texts, or tokens and their mask, to embeddings (B, embedding_dim)."""
        return self.forward(*inputs) if isinstance(inputs[0], Tensor) else self.encode(inputs[0])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model and its tokenizer as transformers does."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
