"""Guided backpropagation: gradients of the input that pass a rectifier only where they, and its input, are positive.

Springenberg et al., "Striving for Simplicity: The All Convolutional Net", 2015, https://arxiv.org/abs/1412.6806; the deconvnet rule is
that of Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2014, https://arxiv.org/abs/1311.2901.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from graftwork.kinds.dataset import Batch, Split
from graftwork_grad_cam.capture import capturing
from graftwork_grad_cam.evidence import prepared
from graftwork_grad_cam.figures import Picture, signed_picture
from graftwork_grad_cam.forward import detached, image_key
from graftwork_grad_cam.maps import SaliencyMaps
from graftwork_grad_cam.saliency import Columns, Count, SaliencyMethod, Spec
from graftwork_grad_cam.targets import Target, score_matrix

__all__ = ["GuidedBackprop", "Rule", "guided_backprop", "input_gradients", "rectifier_rule"]

Rule: TypeAlias = Literal["guided", "deconv", "plain"]
"""How a gradient g passes a rectifier with input x: where x > 0 and g > 0; where g > 0; as it is, where x > 0."""

RECTIFIERS: tuple[Any, ...] = (
    functional.relu,
    torch.relu,
    Tensor.relu,
    functional.relu6,
    functional.hardtanh,
    functional.gelu,
    functional.silu,
    functional.mish,
    functional.hardswish,
)
IN_PLACE = {functional.relu_: torch.relu, torch.relu_: torch.relu, Tensor.relu_: torch.relu, functional.hardtanh_: functional.hardtanh}
"""In-place function -> the one that gives a new tensor."""

SPELT_OUT = re.compile(r"GELU|SiLU|Swish", re.IGNORECASE)
"""Classes of modules that compute an activation out of its parts, such as transformers' QuickGELU."""


class _Gate(torch.autograd.Function):
    """The rectifier's value; its gradient only where the rectifier's input and the gradient itself are positive."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, positive: Tensor) -> Tensor:
        ctx.save_for_backward(positive)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (positive,) = ctx.saved_tensors
        return gradient * (positive & (gradient > 0)), None


class _Deconv(torch.autograd.Function):
    """The rectifier's value; to its input goes the positive part of the gradient, wherever the input lay."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient.clamp(min=0), None


def _under(rule: Rule, input: Tensor, value: Tensor, positive: Tensor) -> Tensor:
    return _Deconv.apply(input, value.detach()) if rule == "deconv" else _Gate.apply(value, positive)  # type: ignore[no-untyped-call,no-any-return]


class _Rectifiers(TorchFunctionMode):
    """Puts every rectifier that is called as a function, by a module or by itself, under a rule."""

    def __init__(self, rule: Rule):
        super().__init__()
        self.rule = rule

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        in_place = func in IN_PLACE
        if not in_place and func not in RECTIFIERS:
            return func(*args, **kwargs)
        in_place |= bool(kwargs.pop("inplace", False))
        before = args[0] if args else kwargs.pop("input")
        if func in (functional.hardtanh, functional.hardtanh_) and self._lowest(args, kwargs) != 0:
            return func(*(args or (before,)), **kwargs, **({"inplace": True} if in_place and func is functional.hardtanh else {}))
        positive = before.detach() > 0
        source = before.clone() if in_place else before  # what the derivative is computed from must not be written over
        value = _under(self.rule, source, IN_PLACE.get(func, func)(source, *args[1:], **kwargs), positive)
        return before.copy_(value) if in_place else value

    @staticmethod
    def _lowest(args: Any, kwargs: Any) -> float:
        return float(args[1] if len(args) > 1 else kwargs.get("min_val", -1.0))


@contextmanager
def rectifier_rule(model: nn.Module, rule: Rule = "guided") -> Iterator[None]:
    """Put a model's rectifiers under a rule while the block runs; its modules and their `inplace` flags are not touched.

    ReLU and ReLU6 are met as modules, as functions, in place and not. As an extension GELU, SiLU, Mish and Hardswish pass the gradient
    by the same gate (guided: their own derivative where x > 0 and g > 0). In-place rectifiers still write into their input.

    Args:
        model: whose modules that spell an activation out are found by their class's name.
        rule: "plain" changes nothing.

    Raises:
        ValueError: if there is no such rule.
    """
    if rule not in ("guided", "deconv", "plain"):
        raise ValueError(f'a rule is "guided", "deconv" or "plain"; found "{rule}"')
    if rule == "plain":
        yield
        return
    handles = [module.register_forward_hook(_spelt_out(rule)) for module in model.modules() if _is_spelt_out(module)]
    try:
        with _Rectifiers(rule):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _is_spelt_out(module: nn.Module) -> bool:
    """Whether a module computes an activation itself, by its name; one that calls torch's function is gated twice, which is as once."""
    return bool(SPELT_OUT.search(type(module).__name__)) and next(module.children(), None) is None


def _spelt_out(rule: Rule) -> Callable[..., Tensor]:
    def replace(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _under(rule, arguments[0], output, arguments[0].detach() > 0)

    return replace


def input_gradients(model: nn.Module, batch: Batch, target: Target, rule: Rule = "guided") -> tuple[Tensor, Tensor, Any]:
    """Gradients of a target's scores with respect to the images.

    Args:
        model: left as it was.
        batch: with the target's choices bound to it.
        target: from output to scores.
        rule: at rectifiers.

    Returns:
        (B, T, C, H, W) float32 gradients, (B, T) scores, and the output.

    Raises:
        InterfaceError: if the target is not differentiable, or does not depend on the images.
    """
    key = image_key(model, batch)
    with capturing(model) as seen, rectifier_rule(model, rule):
        output = target.forward(model, {**batch, key: seen.track(key, batch[key].detach())})
        scores = target.score(output, batch)
        gradients = seen.gradients(scores)[key][0]
    return gradients.movedim(0, 1).float(), score_matrix(scores.detach()), detached(output)


def guided_backprop(model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any = "predicted", rule: Rule = "guided") -> Tensor:
    """Signed map of the input.

    Args:
        model: any torch module that takes images; left as it was.
        batch: images (B, C, H, W), or a batch.
        target: a class, "predicted", "label", a Target, or a function from the output to scores.
        rule: "guided", "deconv" or "plain" (the gradient itself).

    Returns:
        (B, C, H, W) float32; (B, T, C, H, W) for a target with T > 1 scores a sample.
    """
    ready, asked = prepared(model, batch, target)
    gradients, _, _ = input_gradients(model, ready, asked, rule)
    return gradients[:, 0] if gradients.shape[1] == 1 else gradients


class GuidedBackprop(SaliencyMethod):
    """Guided backprop, the deconvnet or the plain gradient of a split's first samples. As a saliency: the largest magnitude over channels.

    Args:
        split: whose samples are shown.
        limit: how many of them; none shows all.
        target: "label", "predicted", "top-N", a class index, or a target by name with its parameters.
        rule: how a gradient g passes a rectifier with input x: where x > 0 and g > 0 (guided), where g > 0 (deconv), where x > 0 (plain).
        columns: samples in a row of the figure.
        batch_size: samples at a time.
    """

    name: ClassVar[str] = "guided-backprop"
    legend: ClassVar[str] = ""
    caption: ClassVar[str] = "Beside each image, how each pixel's colour would raise the score; grey is not at all."

    def __init__(
        self,
        split: Split = "test",
        limit: Count | None = 16,
        target: Spec = "label",
        rule: Rule = "guided",
        columns: Columns = 4,
        batch_size: Count = 32,
    ):
        super().__init__(split, limit, target, columns, batch_size)
        if rule not in ("guided", "deconv", "plain"):
            raise ValueError(f'a rule is "guided", "deconv" or "plain"; found "{rule}"')
        self.rule: Rule = rule
        self.title = {"guided": "Guided backprop", "deconv": "Deconvnet", "plain": "Gradient"}[rule]  # type: ignore[misc]

    def explain(self, model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any = None) -> SaliencyMaps:
        """Maps (B, T, H, W) of magnitudes; the signed gradients (B, T, C, H, W) are `raw["image"]`."""
        ready, asked = prepared(model, batch, self.target if target is None else target)
        gradients, scores, output = input_gradients(model, ready, asked, self.rule)
        return SaliencyMaps(gradients.abs().amax(dim=2), {"image": gradients}, scores, output, asked.pin(output, ready), asked)

    def panels(self, image: Tensor, found: SaliencyMaps, index: int) -> list[Picture]:
        """The signed gradients as pictures."""
        return [signed_picture(each) for each in found.raw["image"][index]]
