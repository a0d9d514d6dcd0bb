"""Meta-saliency: take one step of gradient descent on the image, then explain the model that comes of it.

Rebuffi et al., "There and Back Again: Revisiting Backpropagation Saliency Methods", CVPR 2020,
https://arxiv.org/abs/2004.02866. What an image would teach a network about a class should depend on the class more than what it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from graftwork.errors import InterfaceError
from graftwork.kinds.dataset import Batch, Split
from graftwork.kinds.evaluator import evaluating
from graftwork_grad_cam.evidence import prepared
from graftwork_grad_cam.figures import Picture
from graftwork_grad_cam.forward import batch_length, detached, rows
from graftwork_grad_cam.maps import SaliencyMaps
from graftwork_grad_cam.saliency import Colormap, Columns, Count, SaliencyMethod, Share
from graftwork_grad_cam.targets import Target
from graftwork_normgrad.extract_aggregate import ExtractAggregate
from graftwork_normgrad.meta_step import SampleLoss, class_loss, gradient_step, inner_gradients, per_sample_gradients
from graftwork_normgrad.normgrad import NormGrad
from graftwork_normgrad.observation import chosen_layers
from graftwork_normgrad.pointing_target import resolve_target, with_choice
from graftwork_normgrad.second_order import observe_second_order
from graftwork_normgrad.substitution import substituted

__all__ = ["Explain", "MetaSaliency", "meta_saliency"]

Explain: TypeAlias = Callable[[nn.Module, Any, Any], SaliencyMaps]
"""From a model, a batch and a target to maps, as `SaliencyMethod.explain`."""


@torch.inference_mode(False)
def meta_saliency(
    model: nn.Module,
    batch: Tensor | Mapping[str, Any],
    saliency: SaliencyMethod | Explain,
    target: Any = "predicted",
    *,
    lr: float = 1e-4,
    negate_loss: bool = False,
    second_order: bool = False,
    per_sample: bool = True,
    loss: SampleLoss | None = None,
) -> SaliencyMaps:
    """One inner step on the model, then a saliency of what comes of it: theta' = theta - lr grad cross-entropy(model(x), class).

    The step is plain SGD in eval mode over all parameters, frozen ones included. The model comes back bit for bit. Classes are chosen
    by the model as it was.

    Args:
        model: left as it was, also after an exception.
        batch: images (B, C, H, W), or a batch.
        saliency: a saliency method, or a function of (model, batch, target).
        target: that chooses classes; each of T classes a sample has a step of its own.
        lr: of the inner step; 0 gives the plain map.
        negate_loss: step the other way, which shows the adversarial locations.
        second_order: differentiate through the inner step; for extract & aggregate and NormGrad.
        per_sample: each sample has a step of its own. Otherwise all of a batch take one together, as the authors' code has it, and each
            sample's map depends on the others.
        loss: of the inner step in place of cross-entropy, from output and batch to a scalar. A target that chooses no class needs it.

    Returns:
        as the saliency's, for the model after the step; `batch` has the choices bound to it.

    Raises:
        ValueError: if the rate is negative.
        InterfaceError: if the target chooses no class and no loss is given, or second_order is asked of another saliency.
    """
    _check(saliency, lr, second_order)
    ready, asked = prepared(model, batch, resolve_target(target))
    with evaluating(model):
        output = asked.forward(model, ready)
        choice = asked.choice(output, ready)
        ready = asked.pin(output, ready)
    if choice is None and loss is None:
        raise InterfaceError(f'the inner step needs a class, and the target "{asked.name}" chooses none: give a loss')
    step = _Step(model, saliency, asked, lr, negate_loss, second_order, per_sample, loss)
    count = batch_length(model, ready)
    if choice is None:
        return _replaced(step.explain(ready, count, None), ready, asked)
    found = [step.explain(ready, count, choice[:, column]) for column in range(choice.shape[1])]
    return _replaced(_joined(found, dim=1), ready, asked)


def _check(saliency: SaliencyMethod | Explain, lr: float, second_order: bool) -> None:
    if lr < 0:
        raise ValueError(f"lr must not be negative; found {lr}: for the other direction set negate_loss")
    if second_order and not (isinstance(saliency, ExtractAggregate) and saliency.cell.phase1 != "conv"):
        name = f'"{saliency.name}"' if isinstance(saliency, SaliencyMethod) else "a function"
        own = " of a convolution's own weights" if isinstance(saliency, ExtractAggregate) else ""
        raise InterfaceError(
            f"second_order differentiates each position's contribution through the inner step: it goes with extract-aggregate and normgrad "
            f"behind a virtual identity, not with {name}{own}"
        )


class _Step:
    """The settings of one call."""

    def __init__(
        self,
        model: nn.Module,
        saliency: SaliencyMethod | Explain,
        target: Target,
        lr: float,
        negate_loss: bool,
        second_order: bool,
        per_sample: bool,
        loss: SampleLoss | None,
    ):
        self.model, self.saliency, self.target, self.loss = model, saliency, target, loss
        self.lr, self.negate_loss, self.second_order, self.per_sample = lr, negate_loss, second_order, per_sample

    def losses(self, classes: Tensor) -> SampleLoss:
        """The inner loss for classes (B,)."""
        return self.loss or class_loss(classes)

    def explain(self, batch: Batch, count: int, classes: Tensor | None) -> SaliencyMaps:
        """Maps (B, 1, ...) for one class a sample; without classes, of the target as it is."""
        device = next((value.device for value in batch.values() if isinstance(value, Tensor)), torch.device("cpu"))
        wanted = torch.zeros(count, dtype=torch.long, device=device) if classes is None else classes
        if not self.per_sample:
            return self._whole(batch, wanted, classes is not None)
        parts = [rows(batch, count, slice(index, index + 1)) for index in range(count)]
        if self.second_order:
            return _joined([self._whole(part, wanted[index : index + 1], classes is not None) for index, part in enumerate(parts)])
        gradients = per_sample_gradients(self.model, batch, self.target, self.losses, wanted)
        found = [
            self._after(part, wanted[index : index + 1], each, classes is not None)
            for index, (part, each) in enumerate(zip(parts, gradients, strict=True))
        ]
        return _joined(found)

    def _asked(self, classes: Tensor, chosen: bool) -> Target:
        return with_choice(self.target, classes[:, None]) if chosen else self.target

    def _whole(self, batch: Batch, classes: Tensor, chosen: bool) -> SaliencyMaps:
        """One step for all that the batch holds."""
        asked = self._asked(classes, chosen)
        if not self.second_order:
            return self._after(batch, classes, inner_gradients(self.model, batch, self.target, self.losses(classes)), chosen)
        saliency = self.saliency
        assert isinstance(saliency, ExtractAggregate)
        ready, asked = prepared(self.model, batch, asked)
        layers = chosen_layers(self.model, ready, asked, saliency.layer)
        observed = observe_second_order(
            self.model,
            ready,
            asked,
            layers,
            self.losses(classes),
            self.lr,
            negate_loss=self.negate_loss,
            surroundings=saliency.surroundings,
        )
        return saliency.of_observed(observed)

    def _after(self, batch: Batch, classes: Tensor, gradients: dict[str, Tensor], chosen: bool) -> SaliencyMaps:
        """The saliency of the model after a step."""
        explain = self.saliency.explain if isinstance(self.saliency, SaliencyMethod) else self.saliency
        with substituted(self.model, gradient_step(self.model, gradients, self.lr, self.negate_loss)):
            return explain(self.model, batch, self._asked(classes, chosen))


def _joined(found: Sequence[SaliencyMaps], dim: int = 0) -> SaliencyMaps:
    """Maps of parts of a batch (dim 0), or of several targets (dim 1), as one."""
    if len(found) == 1:
        return found[0]
    first = found[0]
    raw = {name: torch.cat([each.raw[name] for each in found], dim=dim) for name in first.raw}
    maps, scores = (torch.cat(each, dim=dim) for each in ([one.maps for one in found], [one.scores for one in found]))
    output = first.output
    if dim == 0:
        leaves = iter([_together(each) for each in zip(*(tree_leaves(one.output) for one in found), strict=True)])
        output = tree_map(lambda leaf: next(leaves), first.output)
    return SaliencyMaps(maps, raw, scores, output, first.batch, first.target)


def _together(leaves: tuple[Any, ...]) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) and leaves[0].dim() else leaves[0]


def _replaced(found: SaliencyMaps, batch: Batch, target: Target) -> SaliencyMaps:
    return SaliencyMaps(found.maps, found.raw, found.scores, detached(found.output), batch, target)


class MetaSaliency(SaliencyMethod):
    """One inner step of gradient descent on the model, then any saliency of what comes of it; the model is restored bit for bit.

    Args:
        split: whose samples are shown.
        limit: how many of them; none shows all.
        saliency: the maps, by default `normgrad` as it comes. Its own target is explained.
        lr: of the inner step; 0 gives the plain map. The authors' experiments use 0.0025, their function 0.0001; it goes with the scale of
            the network's gradients.
        negate_loss: step the other way, which shows the adversarial locations.
        second_order: differentiate through the inner step; for extract-aggregate and normgrad.
        per_sample: each sample has a step of its own. Otherwise all of a batch take one together, as the authors' code has it, and each
            sample's map depends on the others.
        columns: samples in a row of the figure.
        overlay: share of the image in the overlay.
        colormap: of the overlay, as matplotlib names it.
        batch_size: samples at a time.

    Raises:
        ValueError: if the rate is negative.
        InterfaceError: if second_order is asked of another saliency.
    """

    name: ClassVar[str] = "meta-saliency"
    title: ClassVar[str] = "Meta-saliency"
    caption: ClassVar[str] = "Beside each image, where the network finds its evidence after one step of learning it."

    def __init__(
        self,
        split: Split = "test",
        limit: Count | None = 16,
        saliency: SaliencyMethod | None = None,
        lr: Annotated[float, Field(ge=0)] = 0.0025,
        negate_loss: bool = False,
        second_order: bool = False,
        per_sample: bool = True,
        columns: Columns = 4,
        overlay: Share = 0.5,
        colormap: Colormap = "jet",
        batch_size: Count = 32,
    ):
        self.saliency: SaliencyMethod = NormGrad() if saliency is None else saliency
        super().__init__(split, limit, self.saliency.target, columns, batch_size, overlay, colormap)
        _check(self.saliency, lr, second_order)
        self.settings: dict[str, Any] = {
            "lr": lr,
            "negate_loss": negate_loss,
            "second_order": second_order,
            "per_sample": per_sample,
        }

    def explain(self, model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any = None) -> SaliencyMaps:
        """Maps of a batch after the step."""
        return meta_saliency(model, batch, self.saliency, self.target if target is None else target, **self.settings)

    def panels(self, image: Tensor, found: SaliencyMaps, index: int) -> list[Picture]:
        """The wrapped saliency's own pictures."""
        return self.saliency.panels(image, found, index)
