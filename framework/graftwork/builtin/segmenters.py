"""Semantic segmentation models of transformers by Hugging Face id or folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from graftwork.builtin.hub import Precision, transformers_classifier
from graftwork.builtin.image_processor import ImagePreparation

__all__ = ["TransformersSegmenter"]

Count = Annotated[int, Field(ge=1)]
Levels = list[float] | None
HEADS = ("classifier", "segmentation_head", "decode_head", "auxiliary_head")
"""Where families keep what a new set of classes trains anew."""


class TransformersSegmenter(nn.Module):
    """A semantic segmentation model of transformers with the Segmenter surface, for images in [0, 1].

    Images are resized and normalised by the settings of the checkpoint's image processor; logits, which most models give at a
    fraction of that size, are brought to the image's own by bilinear interpolation.

    Args:
        name: Hugging Face id or folder; safetensors only, and no code of the repository is run.
        num_classes: outputs; a new head is made where the checkpoint's has another number or none.
        resize: whether images of another size than the checkpoint's are resized to it on the way in.
        mean: of each channel, in place of the image processor's.
        std: of each channel, in place of the image processor's; given with `mean`.
        dtype: of the weights, whatever the checkpoint's.

    Raises:
        GraftworkError: if it cannot be loaded, lacks weights, or how its images are normalised is not known.
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
        model = transformers_classifier("AutoModelForSemanticSegmentation", name, "segmenter", num_classes, HEADS, dtype)
        self._hold(model, ImagePreparation.load(name, model.config, resize, mean, std))

    @classmethod
    def wrap(cls, model: Any, prepare: ImagePreparation) -> TransformersSegmenter:
        """Give a model of transformers that is already in memory this surface."""
        wrapper = cls.__new__(cls)
        nn.Module.__init__(wrapper)
        wrapper._hold(model, prepare)
        return wrapper

    def _hold(self, model: Any, prepare: ImagePreparation) -> None:
        self.model, self.prepare, self.num_classes = model, prepare, int(model.config.num_labels)

    def segment(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, num_classes, H, W) of each pixel."""
        logits: Tensor = self.model(pixel_values=self.prepare(image).to(self.model.dtype)).logits
        size = image.shape[-2:]
        return logits if logits.shape[-2:] == size else interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def forward(self, image: Tensor) -> Tensor:
        """As `segment`."""
        return self.segment(image)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model and its image processor's settings as transformers does."""
        self.model.save_pretrained(folder)
        self.prepare.save_pretrained(folder)
