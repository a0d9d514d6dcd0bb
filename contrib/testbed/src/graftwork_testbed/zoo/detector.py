"""A small anchor-free detector of one stage, in the format of transformers: `save_pretrained`, `from_pretrained`, `AutoModel`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, softplus

from graftwork.builtin.hub import Precision, transformers_model
from graftwork.errors import GraftworkError
from graftwork_testbed.zoo.detection import box_area, heatmap_peaks, non_maximum_suppression

try:
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoModel,
        AutoModelForObjectDetection,
        PretrainedConfig,
        PreTrainedModel,
        ResNetConfig,
    )
    from transformers.utils import ModelOutput
except ImportError as error:
    raise GraftworkError(f'transformers cannot be imported ({error}): pip install "graftwork-testbed[zoo]"') from error

__all__ = ["AnchorFreeDetector", "AnchorFreeDetectorConfig", "DetectionMaps", "anchor_free_detector", "load_anchor_free_detector"]

Count = Annotated[int, Field(ge=1)]
Level = Annotated[float, Field(ge=0, le=1)]

PRIOR = 0.1
"""Probability of every class everywhere before training (Lin et al., 2017, section 4.1), so that the background does not drown all else."""

REACH = 2.0
"""Distance in cells from a cell's centre to each side of its box before training."""

CANDIDATES = 1000
"""Highest peaks of an image that go on to suppression."""


class AnchorFreeDetectorConfig(PretrainedConfig):
    """What an `AnchorFreeDetector` is built from; classes are transformers' own `num_labels`, `id2label`.

    Args:
        backbone_config: of any backbone that `transformers.AutoBackbone` builds, or its dict with `model_type`; its `out_features` are
            the levels, finest first. By default a ResNet of three stages, of basic layers.
        stride: pixels a cell of the finest level.
        size_divisor: images are padded on the right and below to a multiple of it: pixels a cell of the coarsest level.
        neck_channels: of the feature pyramid and the heads.
        image_mean: taken off each channel of images in [0, 1].
        image_std: by which each channel is then divided.
    """

    model_type = "graftwork-anchor-free-detector"

    def __init__(
        self,
        backbone_config: Any = None,
        stride: int = 4,
        size_divisor: int = 16,
        neck_channels: int = 48,
        image_mean: Any = (0.5, 0.5, 0.5),
        image_std: Any = (0.25, 0.25, 0.25),
        **kwargs: Any,
    ):
        if backbone_config is None:
            backbone_config = _resnet(16, [32, 64, 96], [1, 1, 1])
        elif isinstance(backbone_config, dict):
            settings = dict(backbone_config)
            backbone_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.backbone_config = backbone_config
        self.stride, self.size_divisor, self.neck_channels = stride, size_divisor, neck_channels
        self.image_mean, self.image_std = [float(each) for each in image_mean], [float(each) for each in image_std]
        super().__init__(**kwargs)


@dataclass
class DetectionMaps(ModelOutput):
    """What a detector says of each cell of its map (h, w), a cell being `stride` pixels a side.

    Args:
        heatmap: (B, C, h, w) logits of an object of each class having its centre there.
        boxes: (B, 4, h, w) float32, x1, y1, x2, y2 in pixels, not clipped.
        logits: (B, h w, C), `heatmap` as transformers' detectors give it.
        pred_boxes: (B, h w, 4), `boxes` as transformers' detectors give them: centre x, y, width and height, in shares of the image.
    """

    heatmap: Tensor | None = None
    boxes: Tensor | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None


class AnchorFreeDetector(PreTrainedModel):
    """A one-stage detector without anchors: a heat map of centres for each class, and a box at each cell.

    A backbone's levels are joined from coarse to fine by a feature pyramid (Lin et al., 2017, https://arxiv.org/abs/1612.03144). On its
    finest level one head gives a heat map a class, whose peaks are objects' centres (CenterNet: Zhou et al., 2019,
    https://arxiv.org/abs/1904.07850), the other the distances from a cell's centre to the four sides of its box (FCOS: Tian et al.,
    2019, https://arxiv.org/abs/1904.01355). Images are (B, C, H, W) in [0, 1]; the model normalises them itself.

    `AutoConfig`, `AutoModel` and `AutoModelForObjectDetection` know it once this module is imported.

    Args:
        config: what it is built from.
    """

    config_class = AnchorFreeDetectorConfig
    base_model_prefix = "detector"
    main_input_name = "pixel_values"

    def __init__(self, config: AnchorFreeDetectorConfig):
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        width = config.neck_channels
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in self.backbone.channels)
        self.neck = _layer(width)
        self.classifier = nn.Sequential(_layer(width), nn.Conv2d(width, config.num_labels, 1))
        self.regressor = nn.Sequential(_layer(width), nn.Conv2d(width, 4, 1))
        self.image_mean: Tensor
        self.image_std: Tensor
        self.register_buffer("image_mean", torch.tensor(config.image_mean).view(-1, 1, 1))
        self.register_buffer("image_std", torch.tensor(config.image_std).view(-1, 1, 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d) and module.bias is None:  # what lacks a bias is followed by a normalisation and a ReLU
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif module is self.classifier[-1]:
            nn.init.constant_(module.bias, -torch.tensor(1 / PRIOR - 1).log().item())
        elif module is self.regressor[-1]:
            nn.init.constant_(module.bias, torch.tensor(REACH).expm1().log().item())

    def forward(self, pixel_values: Tensor) -> DetectionMaps:
        """Images (B, C, H, W) in [0, 1] to maps.

        Raises:
            ValueError: if the images have another number of channels, or the backbone's levels do not fit `stride` and `size_divisor`.
        """
        if pixel_values.dim() != 4 or pixel_values.shape[1] != len(self.image_mean):
            raise ValueError(f"images are (B, {len(self.image_mean)}, H, W); found {tuple(pixel_values.shape)}")
        height, width = pixel_values.shape[-2:]
        stride, divisor = self.config.stride, self.config.size_divisor
        images = ((pixel_values - self.image_mean) / self.image_std).to(self.dtype)
        images = pad(images, (0, -width % divisor, 0, -height % divisor))
        levels = [lateral(level) for lateral, level in zip(self.laterals, self.backbone(images).feature_maps, strict=True)]
        joined = levels[-1]
        for level in levels[-2::-1]:
            joined = level + interpolate(joined, size=level.shape[-2:], mode="nearest")
        if (joined.shape[2] * stride, joined.shape[3] * stride) != images.shape[-2:]:
            raise ValueError(
                f"stride {stride} and size_divisor {divisor} do not fit the backbone, whose finest level has {tuple(joined.shape[-2:])} "
                f"cells for {tuple(images.shape[-2:])} pixels"
            )
        joined = self.neck(joined)
        heatmap, boxes = self.classifier(joined), self._corners(self.regressor(joined))
        left, top, right, bottom = boxes.flatten(2).unbind(1)
        shares = [(left + right) / (2 * width), (top + bottom) / (2 * height), (right - left) / width, (bottom - top) / height]
        return DetectionMaps(heatmap, boxes, heatmap.flatten(2).transpose(1, 2), torch.stack(shares, dim=-1))

    def _corners(self, reach: Tensor) -> Tensor:
        """Boxes (B, 4, h, w) in pixels from what the regressor says of the distances to their sides."""
        distances = softplus(reach.to(torch.promote_types(reach.dtype, torch.float32))) * self.config.stride
        down, across = (
            (torch.arange(count, device=reach.device, dtype=distances.dtype) + 0.5) * self.config.stride for count in reach.shape[-2:]
        )
        centres = torch.stack(torch.meshgrid(across, down, indexing="xy"))  # (2, h, w)
        return torch.cat([centres - distances[:, :2], centres + distances[:, 2:]], dim=1)

    def detect(
        self, pixel_values: Tensor, score_threshold: float = 0.05, max_detections: int = 100, iou_threshold: float = 0.6
    ) -> list[dict[str, Tensor]]:
        """The objects in images, as torchvision's detectors give them; in eval mode, for batch statistics are those of training else.

        Args:
            pixel_values: images (B, C, H, W) in [0, 1].
            score_threshold: in [0, 1]; detections have to be above it.
            max_detections: the highest scored of an image that are given.
            iou_threshold: in [0, 1]; of two detections of a class that overlap by more, the lower scored is dropped.

        Returns:
            A dict an image: `boxes` (n, 4) as x1, y1, x2, y2 in pixels, inside the image; `scores` (n,) from high to low; `labels` (n,)
            long.

        Raises:
            ValueError: if a threshold is out of range, or the images do not fit.
        """
        for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1]; found {value}")
        if max_detections < 1:
            raise ValueError(f"max_detections must be at least 1; found {max_detections}")
        maps = self(pixel_values)
        height, width = pixel_values.shape[-2:]
        scores, labels, cells = heatmap_peaks(maps.heatmap.to(maps.boxes.dtype).sigmoid(), score_threshold, CANDIDATES)
        boxes = maps.boxes.flatten(2).transpose(1, 2).gather(1, cells[..., None].expand(-1, -1, 4))
        boxes = torch.stack([boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)], dim=-1).flatten(2)
        scores = scores * (box_area(boxes) > 0)  # what lies in the padding
        kept = non_maximum_suppression(boxes, scores, labels, iou_threshold) & (scores > 0)
        scores, ranks = (scores * kept).topk(min(max_detections, scores.shape[1]))
        boxes, labels = boxes.gather(1, ranks[..., None].expand(-1, -1, 4)), labels.gather(1, ranks)
        counts = (scores > 0).sum(dim=1).tolist()
        return [
            {"boxes": box[:count], "scores": score[:count], "labels": label[:count]}
            for box, score, label, count in zip(boxes, scores, labels, counts, strict=True)
        ]


AutoConfig.register(AnchorFreeDetectorConfig.model_type, AnchorFreeDetectorConfig, exist_ok=True)
AutoModel.register(AnchorFreeDetectorConfig, AnchorFreeDetector, exist_ok=True)
AutoModelForObjectDetection.register(AnchorFreeDetectorConfig, AnchorFreeDetector, exist_ok=True)


def anchor_free_detector(
    num_classes: Count = 10,
    embedding_size: Count = 16,
    hidden_sizes: Annotated[list[Count], Field(min_length=1)] = [32, 64, 96],  # noqa: B006 - read only
    depths: Annotated[list[Count], Field(min_length=1)] = [1, 1, 1],  # noqa: B006 - read only
    neck_channels: Count = 48,
    image_mean: Annotated[list[Level], Field(min_length=1)] = [0.5, 0.5, 0.5],  # noqa: B006 - read only
    image_std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [0.25, 0.25, 0.25],  # noqa: B006 - read only
) -> AnchorFreeDetector:
    """An untrained `AnchorFreeDetector` on a ResNet of transformers; 0.3 million parameters by default.

    Cells are 4 pixels a side. Weights are drawn from torch's global generator, which a run seeds.

    Args:
        num_classes: kinds of object.
        embedding_size: channels of the stem, a 7x7 convolution and a pooling that each halve the image.
        hidden_sizes: channels of each stage, finest first; each but the first halves the map.
        depths: basic residual layers of each stage.
        neck_channels: of the feature pyramid and the heads.
        image_mean: taken off each channel of images in [0, 1]; as many as the images have channels.
        image_std: by which each channel is then divided.

    Raises:
        ValueError: if a parameter is out of range, or lists that belong together differ in length.
        GraftworkError: if transformers is not installed.
    """
    counts = {"num_classes": [num_classes], "embedding_size": [embedding_size], "hidden_sizes": hidden_sizes, "depths": depths}
    for name, values in {**counts, "neck_channels": [neck_channels]}.items():
        if not values or min(values) < 1:
            raise ValueError(f"{name} must be at least 1; found {values if len(values) != 1 else values[0]}")
    for name, first, second in (("hidden_sizes and depths", hidden_sizes, depths), ("image_mean and image_std", image_mean, image_std)):
        if len(first) != len(second):
            raise ValueError(f"{name} are lists of one length; found {first} and {second}")
    if not image_mean or min(image_mean) < 0 or max(image_mean) > 1 or min(image_std) <= 0:
        raise ValueError(f"image_mean is in [0, 1] and image_std above 0, one for each channel; found {image_mean} and {image_std}")
    config = AnchorFreeDetectorConfig(
        backbone_config=_resnet(embedding_size, hidden_sizes, depths, len(image_mean)),
        size_divisor=4 * 2 ** (len(hidden_sizes) - 1),
        neck_channels=neck_channels,
        image_mean=image_mean,
        image_std=image_std,
        num_labels=num_classes,
    )
    return AnchorFreeDetector(config).to(memory_format=torch.channels_last)  # small convolutions are quicker so


def load_anchor_free_detector(name: str, dtype: Precision = "float32") -> AnchorFreeDetector:
    """A trained `AnchorFreeDetector`.

    Args:
        name: Hugging Face id or folder; safetensors only, and no code of the repository is run.
        dtype: of the weights.

    Raises:
        GraftworkError: if it cannot be loaded, is another model, or lacks weights.
    """
    model, new = transformers_model("AutoModel", name, "detector", dtype)
    if not isinstance(model, AnchorFreeDetector):
        raise GraftworkError(f'detector "{name}" is a {type(model).__name__}, not an AnchorFreeDetector')
    if new:
        raise GraftworkError(f'detector "{name}" has no weights for {", ".join(new[:4])}')
    return model.to(memory_format=torch.channels_last)


def _resnet(embedding_size: int, hidden_sizes: list[int], depths: list[int], channels: int = 3) -> ResNetConfig:
    return ResNetConfig(
        num_channels=channels,
        embedding_size=embedding_size,
        hidden_sizes=list(hidden_sizes),
        depths=list(depths),
        layer_type="basic",
        out_features=[f"stage{number}" for number in range(1, len(hidden_sizes) + 1)],
    )


def _layer(channels: int) -> nn.Sequential:
    """A 3x3 convolution, normalisation and ReLU."""
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
