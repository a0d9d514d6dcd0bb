"""Occlusion: how much a score falls when a patch of the image is hidden, and whether saliency maps rank regions alike.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, https://arxiv.org/abs/1311.2901; as a measure of
faithfulness, Selvaraju et al., 2017, section 5.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork.errors import DataError
from graftwork.kinds.dataset import Batch, Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, evaluating, split_batches
from graftwork.kinds.objective import INPUTS
from graftwork_grad_cam.evidence import prepared
from graftwork_grad_cam.figures import Cell, as_picture, overlay, sheet
from graftwork_grad_cam.forward import image_key, repeat_batch
from graftwork_grad_cam.grad_cam import GradCAM
from graftwork_grad_cam.maps import resize_maps
from graftwork_grad_cam.saliency import Count, SaliencyMethod
from graftwork_grad_cam.targets import Target, score_matrix

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["OcclusionFaithfulness", "average_ranks", "occlusion_map", "spearman"]

PIXELS_AT_ONCE = 2**22
"""Numbers of occluded images that go through the model together on a CPU: 27 images of 3 x 224 x 224."""

ACTIVATIONS = 40
"""How many times an image's own memory a forward pass is taken to need, when images are packed into a GPU's free memory."""


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 0 of each row's values, ties sharing the mean of theirs: (..., N) to (..., N) float."""
    ordered = values.sort(dim=-1).values.contiguous()
    values = values.contiguous()
    below = torch.searchsorted(ordered, values, right=False)
    upto = torch.searchsorted(ordered, values, right=True)
    return (below + upto - 1).to(torch.float64) / 2


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of rows: (..., N) and (..., N) to (...) float64; nan where a row is constant."""
    ranks = [average_ranks(each) for each in (first, second)]
    centred = [each - each.mean(dim=-1, keepdim=True) for each in ranks]
    return (centred[0] * centred[1]).sum(dim=-1) / (centred[0].square().sum(dim=-1) * centred[1].square().sum(dim=-1)).sqrt()


def occlusion_map(
    model: nn.Module,
    batch: Tensor | Mapping[str, Any],
    target: Any = "predicted",
    patch: int | None = None,
    stride: int | None = None,
    fill: float | Literal["mean"] = 0.5,
    chunk: int | None = None,
) -> Tensor:
    """The fall of a target's score when a square around each position is hidden.

    A predicted class is that of the whole image. Patches of many positions go through the model together.

    Args:
        model: left as it was.
        batch: images (B, C, H, W), or a batch.
        target: as `as_target` takes it; it need not be differentiable.
        patch: odd side of the square in pixels; by default a fifth of the image's smaller side.
        stride: pixels between positions; by default half the patch.
        fill: value of hidden pixels: 0.5 is grey for images in [0, 1], "mean" each image's mean colour.
        chunk: positions at a time; by default as many as memory allows.

    Returns:
        (B, T, h, w) float32, a value for each position; the first is at half a stride from the corner.

    Raises:
        ValueError: if the patch is even, or anything is not positive.
    """
    ready, asked = prepared(model, batch, target)
    key = image_key(model, ready)
    images = ready[key]
    height, width = images.shape[-2:]
    patch = (min(height, width) // 5) | 1 if patch is None else patch
    stride = max(1, patch // 2) if stride is None else stride
    if patch < 1 or patch % 2 == 0 or stride < 1:
        raise ValueError(f"a patch is odd, so that it has a centre, and a stride positive; found {patch} and {stride}")
    rows, columns = (torch.arange(stride // 2, side, stride, device=images.device) for side in (height, width))
    centres = torch.cartesian_prod(rows, columns)
    grey = images.mean(dim=(2, 3), keepdim=True) if fill == "mean" else images.new_full((1, 1, 1, 1), fill)
    with torch.inference_mode(False), evaluating(model):
        whole = asked.forward(model, ready)
        ready = asked.pin(whole, ready)
        before = score_matrix(asked.score(whole, ready)).float()
        after = _scores_hidden(model, ready, asked, key, centres, patch // 2, grey, chunk or _positions_at_once(images))
    return (before - after).movedim(0, -1).unflatten(-1, (len(rows), len(columns)))


def _positions_at_once(images: Tensor) -> int:
    if images.is_cuda:
        free, _ = torch.cuda.mem_get_info(images.device)
        return max(1, int(0.5 * free / (ACTIVATIONS * images.numel() * images.element_size())))
    return max(1, PIXELS_AT_ONCE // images.numel())


def _scores_hidden(
    model: nn.Module, batch: Batch, target: Target, key: str, centres: Tensor, reach: int, grey: Tensor, chunk: int
) -> Tensor:
    """(positions, B, T) scores with the square around each centre hidden; halves the chunk where memory does not suffice."""
    images, found, start = batch[key], [], 0
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    while start < len(centres):
        some = centres[start : start + chunk]
        hidden_rows, hidden_columns = (rows - some[:, :1]).abs() <= reach, (columns - some[:, 1:]).abs() <= reach
        hidden = (hidden_rows[:, :, None] & hidden_columns[:, None, :])[:, None, None]  # (P, 1, 1, H, W)
        try:
            repeated = repeat_batch({name: value for name, value in batch.items() if name != key}, len(images), len(some))
            repeated[key] = torch.where(hidden, grey, images).flatten(0, 1)
            scores = score_matrix(target.score(target.forward(model, repeated), repeated)).float()
        except torch.cuda.OutOfMemoryError:
            if chunk == 1:
                raise
            chunk //= 2
            continue
        found.append(scores.unflatten(0, (len(some), len(images))))
        start += len(some)
    return torch.cat(found)


class OcclusionFaithfulness(Evaluator):
    """Rank correlation of saliency maps with occlusion maps: do they rank regions as hiding them does?

    Spearman's, over all pixels of an image, both maps at its size; averaged over images. Both explain the same class. An image whose
    map is constant has no ranks: it counts as 0.

    Args:
        split: where to measure.
        saliency: the maps, by default `grad-cam` of the predicted class. Its own target is explained.
        patch: odd side of the hidden square; by default a fifth of the image.
        stride: pixels between positions; by default half the patch.
        fill: value of hidden pixels, or "mean".
        limit: the first so many samples only: each costs a forward pass a position.
        batch_size: samples at a time.
        columns: samples in a row of the figure.

    Raises:
        ValueError: if the patch is even.
    """

    needs = nn.Module

    def __init__(
        self,
        split: Split = "test",
        saliency: SaliencyMethod | None = None,
        patch: Annotated[int | None, Field(ge=1)] = None,
        stride: Annotated[int | None, Field(ge=1)] = None,
        fill: float | Literal["mean"] = 0.5,
        limit: Count | None = 64,
        batch_size: Count = 16,
        columns: Count = 4,
    ):
        if patch is not None and patch % 2 == 0:
            raise ValueError(f"a patch is odd, so that it has a centre; found {patch}")
        self.split, self.patch, self.stride, self.fill = split, patch, stride, fill
        self.saliency: SaliencyMethod = GradCAM(target="predicted") if saliency is None else saliency
        self.limit, self.batch_size, self.columns = limit, batch_size, columns
        self.keys = (INPUTS, *self.saliency.target.keys)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metric occlusion-correlation, and constant-maps, the share of maps without ranks.

        Raises:
            DataError: if the split is empty.
        """
        found, cells = [], []
        for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
            saliency = self.saliency.explain(model, batch)
            maps = saliency.maps
            hidden = occlusion_map(model, saliency.batch, saliency.target, self.patch, self.stride, self.fill)
            occluded = resize_maps(hidden, tuple(maps.shape[-2:]))
            found.append(spearman(maps.flatten(2).float(), occluded.flatten(2)))
            images = batch[image_key(model, batch)]
            for index in range(min(len(images), 2 * self.columns - len(cells))):
                panels = [as_picture(images[index]), overlay(images[index], maps[index, 0]), overlay(images[index], occluded[index, 0])]
                rank = found[-1][index, 0].nan_to_num(0.0).item()
                cells.append(Cell(panels, f"rank correlation {rank:.2f}", None, ["", "saliency", "occlusion"]))
        if not found:
            raise DataError(f'split "{self.split}" is empty')
        ranks = torch.cat([each.flatten() for each in found])
        constant = ranks.isnan().float().mean().item()
        ordered = ranks.nan_to_num(0.0)
        metrics = {"occlusion-correlation": ordered.mean().item(), "constant-maps": constant}
        row = [len(ranks), *ordered.quantile(ordered.new_tensor([0.1, 0.25, 0.5, 0.75, 0.9])).tolist()]
        table = Table(["maps", "10 %", "25 %", "median", "75 %", "90 %"], [row], f"Rank correlation with occlusion on {self.split}.")
        figure, _ = sheet(cells, max(1, self.columns // 2), "Saliency and occlusion", ("jet", "evidence for the class"))
        caption = f"Each image of {self.split}, its saliency, and how the score falls when that place is hidden."
        return Report(metrics, {"correlation": table}, {"occlusion": Figure(figure, caption)})
