"""An untrained CLIP for scenes and their captions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from graftwork.builtin.dual_encoder import TransformersDualEncoder
from graftwork.builtin.hub import need
from graftwork.builtin.image_processor import ImagePreparation
from graftwork_testbed.zoo.captions import spread_words
from graftwork_testbed.zoo.tokenizers import LENGTH, clip_tokenizer

__all__ = ["caption_clip"]

Count = Annotated[int, Field(ge=1)]
Layers = Annotated[int, Field(ge=1, le=1000)]


def caption_clip(
    width: Count = 96,
    vision_layers: Layers = 4,
    text_layers: Layers = 3,
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
    model = library.CLIPModel(config)
    spread_words(model)
    return TransformersDualEncoder.wrap(model, tokenizer, ImagePreparation(settings, config))
