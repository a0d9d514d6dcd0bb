"""Which channels speak for and against a class, and what those channels see, in words (Selvaraju et al., IJCV 2019, section 9).

A channel's importance is Grad-CAM's alpha. Its name is the annotated concept whose masks overlap best with where the channel is most
active: Bau et al., "Network Dissection", CVPR 2017, https://arxiv.org/abs/1704.05796.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork.errors import DataError
from graftwork.kinds.dataset import Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, split_batches
from graftwork.kinds.objective import INPUTS
from graftwork_grad_cam.evidence import layer_names, observe_prepared, prepared
from graftwork_grad_cam.grad_cam import channel_weights
from graftwork_grad_cam.maps import resize_maps
from graftwork_grad_cam.saliency import Count, Share, Spec, class_names
from graftwork_grad_cam.targets import as_target

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["NeuronImportance", "RankedChannels", "channel_thresholds", "concept_overlaps", "explanation", "rank_channels"]

AT_ONCE = 2**24
"""Numbers of upsampled activations that are held together."""


@dataclass(frozen=True)
class RankedChannels:
    """The channels that matter most to a score.

    Args:
        supporting: (n,) indices, the most positive importance first.
        contradicting: (n,) indices, the most negative first; channels whose importance is not negative are left out of both ends
            alike.
    """

    supporting: list[int]
    contradicting: list[int]


def rank_channels(importance: Tensor, count: int = 5) -> RankedChannels:
    """The most positive and the most negative of (K,) importances, at most `count` of each; channels of no importance are left out."""
    order = importance.argsort(descending=True, stable=True)
    values = importance[order]
    return RankedChannels(order[values > 0][:count].tolist(), order[values < 0].flip(0)[:count].tolist())


def channel_thresholds(activations: Tensor, quantile: float = 0.995) -> Tensor:
    """The value that a channel exceeds in a share 1 - quantile of all places of the data.

    Args:
        activations: (N, K, h, w) of the whole data.
        quantile: in (0, 1).

    Returns:
        (K,).
    """
    values = activations.movedim(1, 0).flatten(1)
    return values.kthvalue(min(values.shape[1], max(1, round(quantile * values.shape[1]))), dim=1).values


def concept_overlaps(activations: Tensor, masks: Tensor, concepts: int, thresholds: Tensor, mask_offset: int = 1) -> Tensor:
    """Intersection over union, over all the data, of each channel's most active places with each concept's masks.

    Args:
        activations: (N, K, h, w); upsampled to the masks before they are held against the thresholds.
        masks: (N, H, W) long, concept c having the value c + mask_offset.
        concepts: how many.
        thresholds: (K,).
        mask_offset: value of concept 0.

    Returns:
        (K, concepts) in [0, 1]; 0 for a concept that does not occur.
    """
    channels = activations.shape[1]
    shared, active = activations.new_zeros(channels, concepts), activations.new_zeros(channels)
    area = activations.new_zeros(concepts)
    step = max(1, AT_ONCE // (channels * masks[0].numel()))
    for some, labels in zip(activations.split(step), masks.split(step), strict=True):
        above = (resize_maps(some, tuple(labels.shape[-2:])) > thresholds[:, None, None]).float()
        present = (labels[:, None] == torch.arange(concepts, device=labels.device)[:, None, None] + mask_offset).float()
        shared += torch.einsum("nkhw,nchw->kc", above, present)
        active += above.sum(dim=(0, 2, 3))
        area += present.sum(dim=(0, 2, 3))
    union = active[:, None] + area - shared
    return torch.where(union > 0, shared / union.where(union > 0, 1), 0)


def explanation(subject: str, supporting: Sequence[str], contradicting: Sequence[str]) -> str:
    """A sentence or two: what the network takes as evidence for a class, and what as evidence against it."""
    for_it, against_it = ", ".join(dict.fromkeys(supporting)), ", ".join(dict.fromkeys(contradicting))
    parts = [
        f"The network takes {for_it} as evidence for {subject}." if for_it else f"Nothing speaks for {subject}.",
        f"{against_it[:1].upper()}{against_it[1:]} {'speak' if ',' in against_it else 'speaks'} against it." if against_it else "",
    ]
    return " ".join(part for part in parts if part)


class NeuronImportance(Evaluator):
    """Channels of a layer ranked by their importance for each class, named by concepts where samples have masks, and put in words.

    Args:
        split: whose samples are looked at.
        layer: one dotted name, or "auto".
        target: whose importance: "label", "predicted", a class index, or a target by name with its parameters.
        top: how many channels on either side the words mention.
        quantile: a channel is active where it exceeds this quantile of itself over the data.
        min_iou: overlap with a concept from which a channel is named after it.
        mask_offset: value of concept 0 in the sample key `mask`; concepts are the dataset's classes.
        limit: the first so many samples only; their activations are held together.
        batch_size: samples at a time.

    Raises:
        ValueError: if the quantile is out of range.
    """

    needs = nn.Module

    def __init__(
        self,
        split: Split = "test",
        layer: str = "auto",
        target: Spec = "label",
        top: Count = 5,
        quantile: Annotated[float, Field(gt=0, lt=1)] = 0.995,
        min_iou: Share = 0.04,
        mask_offset: Annotated[int, Field(ge=0)] = 1,
        limit: Count | None = 256,
        batch_size: Count = 32,
    ):
        if not 0 < quantile < 1:
            raise ValueError(f"the quantile must be above 0 and below 1; found {quantile}")
        self.split, self.layer, self.target, self.top = split, layer, as_target(target), top
        self.quantile, self.min_iou, self.mask_offset = quantile, min_iou, mask_offset
        self.limit, self.batch_size = limit, batch_size
        self.keys = (INPUTS, *self.target.keys)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metric named-channels, the share of channels that a concept names (0 without masks); a table of channels by class, one of
        sentences, and a figure.

        Raises:
            DataError: if the split is empty.
        """
        importance, groups, activations, masks, layer = self._gather(model, data)
        names = class_names(model, data.info.classes)
        overlaps = None
        if masks is not None:
            thresholds = channel_thresholds(activations, self.quantile)
            overlaps = concept_overlaps(activations, masks, len(names), thresholds, self.mask_offset)
        called = _channel_names(activations.shape[1], overlaps, names, self.min_iou)
        rows, sentences, bars = [], [], []
        for group in groups.unique().tolist():
            mean = importance[groups == group].mean(dim=0)
            ranked = rank_channels(mean, self.top)
            word = names[group] if 0 <= group < len(names) else "the target" if group < 0 else str(group)
            for side, channels in (("for", ranked.supporting), ("against", ranked.contradicting)):
                for channel in channels:
                    overlap = None if overlaps is None else overlaps[channel].max().item()
                    rows.append([word, side, channel, called[channel], mean[channel].item(), overlap])
            sentences.append(
                [word, explanation(word, [called[each] for each in ranked.supporting], [called[each] for each in ranked.contradicting])]
            )
            bars.append((word, [(called[each], mean[each].item()) for each in [*ranked.supporting, *reversed(ranked.contradicting)]]))
        named = 0.0 if overlaps is None else (overlaps.amax(dim=1) >= self.min_iou).float().mean().item()
        columns = ["class", "speaks", "channel", "name", "importance", "overlap"]
        tables = {
            "channels": Table(columns, rows, f"The channels of {layer} that matter most, on average over {self.split}."),
            "words": Table(["class", "explanation"], sentences, "The same in words."),
        }
        figure = Figure(
            _bars(bars), f"Importance of the channels of {layer} for each class of {self.split}, for (right) and against (left)."
        )
        return Report({"named-channels": named}, tables, {"importance": figure})

    def _gather(self, model: nn.Module, data: Dataset) -> tuple[Tensor, Tensor, Tensor, Tensor | None, str]:
        """Importance (N, K), the class that each is of (N,), activations (N, K, h, w), masks (N, H, W), and the layer's name."""
        layer: Any = None
        importance, groups, activations, masks = [], [], [], []
        for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
            ready, asked = prepared(model, batch, self.target)
            layer = layer_names(model, ready, asked, self.layer)[0] if layer is None else layer
            found = observe_prepared(model, ready, asked, [layer])
            evidence = next(iter(found.layers.values()))[0]
            choice = asked.choice(found.output, found.batch)
            importance.append(channel_weights(evidence.gradients[:, 0]))
            groups.append(torch.full((len(importance[-1]),), -1, device=found.scores.device) if choice is None else choice[:, 0])
            activations.append(evidence.activations)
            masks += [batch["mask"]] if "mask" in batch else []
        if not importance:
            raise DataError(f'split "{self.split}" is empty')
        joined = torch.cat(masks) if masks else None
        return torch.cat(importance), torch.cat(groups), torch.cat(activations), joined, str(layer)


def _channel_names(count: int, overlaps: Tensor | None, concepts: Sequence[str], min_iou: float) -> list[str]:
    """A concept's name for each channel, or "channel 17" where none fits."""
    if overlaps is None or not overlaps.shape[1]:
        return [f"channel {index}" for index in range(count)]
    best, which = overlaps.max(dim=1)
    pairs = enumerate(zip(best.tolist(), which.tolist(), strict=True))
    return [concepts[concept] if overlap >= min_iou and overlap > 0 else f"channel {index}" for index, (overlap, concept) in pairs]


def _bars(groups: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Any:
    from matplotlib.figure import Figure as Canvas

    columns = min(5, len(groups))
    rows = -(-len(groups) // columns)
    canvas = Canvas(figsize=(2.7 * columns, 2.4 * rows + 0.2), layout="constrained", dpi=140)
    axes = canvas.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(groups) :]:
        axis.set_axis_off()
    for axis, (name, bars) in zip(axes, groups, strict=False):
        values = [value for _, value in bars][::-1]
        axis.barh(range(len(bars)), values, color=["#2166ac" if value > 0 else "#b2182b" for value in values], height=0.7)
        axis.set_yticks(range(len(bars)), [word for word, _ in bars][::-1], fontsize=7)
        axis.set_title(name, fontsize=10)
        axis.axvline(0, color="#8a8a8a", linewidth=0.8)
        axis.locator_params(axis="x", nbins=3)
        axis.tick_params(axis="x", labelsize=6)
        axis.spines[["top", "right", "left"]].set_visible(False)
    return canvas
