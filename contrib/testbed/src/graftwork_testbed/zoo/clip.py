"""An untrained CLIP for scenes and their captions, and captions as its tokens."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from graftwork import Dataset, Samples
from graftwork.builtin.dual_encoder import TransformersDualEncoder
from graftwork.builtin.hub import need
from graftwork.builtin.image_processor import ImagePreparation
from graftwork_testbed.zoo.tokenizers import LENGTH, clip_tokenizer

__all__ = ["CaptionTokens", "caption_clip"]

Count = Annotated[int, Field(ge=1)]


def caption_clip(
    width: Count = 96,
    vision_layers: Count = 4,
    text_layers: Count = 3,
    attention_heads: Count = 4,
    patch_size: Count = 8,
    image_size: Count = 64,
    projection: Count = 96,
) -> TransformersDualEncoder:
    """An untrained `transformers.CLIPModel` with a tokenizer of captions, as a DualEncoder.

    Args:
        width: of both towers' hidden states.
        vision_layers: of the image tower.
        text_layers: of the text tower.
        attention_heads: of both; divides the width.
        patch_size: of the image tower in pixels; divides the image size.
        image_size: height and width of the images.
        projection: width of the common space.

    Raises:
        ValueError: if the heads do not divide the width, or the patches the image.
        GraftworkError: if transformers is not installed.
    """
    if width % attention_heads or image_size % patch_size:
        raise ValueError(
            f"attention_heads must divide width, and patch_size image_size; found {attention_heads}, {width}, {patch_size}, {image_size}"
        )
    library, tokenizer = need("transformers", "transformers"), clip_tokenizer()
    tower = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": attention_heads, "projection_dim": projection}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": text_layers, "max_position_embeddings": LENGTH, **tower, **special}
    vision = {"num_hidden_layers": vision_layers, "image_size": image_size, "patch_size": patch_size, **tower}
    config = library.CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
    size = {"height": image_size, "width": image_size}
    settings = {
        "do_resize": True,
        "size": size,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,
        "image_processor_type": "CLIPImageProcessor",
    }
    return TransformersDualEncoder.wrap(library.CLIPModel(config), tokenizer, ImagePreparation(settings, config))


class _Tokenised:
    """Samples with the tokens of their caption beside their own keys."""

    def __init__(self, samples: Any, data: Dataset, tokens: dict[str, Tensor]):
        self.samples, self.data, self.tokens = samples, data, tokens
        self.columns = {**getattr(samples, "columns", {}), **tokens}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.samples[index], **{key: column[index] for key, column in self.tokens.items()}}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """A batch of the samples at `indices`, collated."""
        found = self.samples.__getitems__(indices) if hasattr(self.samples, "__getitems__") else [self.samples[i] for i in indices]
        chosen = torch.as_tensor(indices)
        return {**self.data.collate(found), **{key: column[chosen] for key, column in self.tokens.items()}}


class CaptionTokens(Dataset):
    """A data set of captioned scenes whose samples hold in addition `input_ids` and `attention_mask` (24,) of their `caption`.

    Args:
        data: samples hold `caption`.

    Raises:
        DataError: if they do not.
        GraftworkError: if transformers is not installed.
    """

    def __init__(self, data: Dataset):
        from graftwork import DataError

        tokenizer, splits = clip_tokenizer(), {}
        for name, samples in data.items():
            captions = getattr(samples, "captions", None) or [samples[index].get("caption") for index in range(len(samples))]
            if None in captions:
                raise DataError(f'the samples of "{name}" have no caption: they have {", ".join(samples[0])}')
            found = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
            tokens = {"input_ids": found.input_ids, "attention_mask": found.attention_mask}
            made: Samples = _Tokenised(samples, data, tokens)
            splits[name] = made
        super().__init__(splits, data.info, data.collate)
