"""What each position contributes to the gradient of a score after an inner step, the step itself differentiated.

With J(W) = s(theta - eps grad_theta l(theta, W), W) for the weights W of a virtual layer,

    dJ/dW = d_W s(theta', W) - eps d/dt d_W l(theta + t v, W) at t = 0,    v = grad_theta s(theta', W)

and d_W l is the sum of g_u x_u^T over positions, so that a position contributes g'_u x'_u^T - eps (dg_u x_u^T + g_u dx_u^T), d being the
derivative along v. Leaving the second term out is the first-order rule of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from graftwork.errors import InterfaceError
from graftwork.kinds.dataset import Batch
from graftwork_grad_cam.capture import capturing, find_module, first_tensor
from graftwork_grad_cam.evidence import IMAGE, Observation, Surroundings, full_precision
from graftwork_grad_cam.forward import detached, image_key
from graftwork_grad_cam.targets import Target, score_matrix
from graftwork_normgrad.meta_step import Call, Parameters, SampleLoss, leaves
from graftwork_normgrad.observation import Observed
from graftwork_normgrad.phases import Contributions, Term

__all__ = ["observe_second_order"]


class _TapGradient(torch.autograd.Function):
    """The identity; to the gradient that passes, `added` is added, so that one can ask what depends on that gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, added: Tensor) -> Tensor:
        ctx.save_for_backward(added)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (added,) = ctx.saved_tensors
        return gradient + added, None


class _Taps:
    """At each layer: what it gave, a zero that is added to it, and a zero that is added to its gradient."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.shifts: dict[str, Tensor] = {}
        self.gradient_shifts: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        if name in self.values:
            raise InterfaceError(f'second_order follows a layer that runs once; "{name}" ran again')
        self.shifts[name], self.gradient_shifts[name] = (torch.zeros_like(tensor, requires_grad=True) for _ in range(2))
        self.values[name] = tensor
        tapped: Tensor = _TapGradient.apply(tensor, self.gradient_shifts[name])  # type: ignore[no-untyped-call]
        return tapped + self.shifts[name]


@contextmanager
def _tapped(model: nn.Module, layers: Sequence[str]) -> Iterator[_Taps]:
    taps = _Taps()

    def hook(name: str) -> Callable[..., Any]:
        def replace(module: nn.Module, arguments: Any, output: Any) -> Any:
            tensor = output if isinstance(output, Tensor) else first_tensor(output)
            if tensor is None:
                return output
            seen = taps(name, tensor)
            return seen if output is tensor else tree_map(lambda leaf: seen if leaf is tensor else leaf, output)

        return replace

    handles = [find_module(model, name)[1].register_forward_hook(hook(name)) for name in layers if name != IMAGE]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def observe_second_order(
    model: nn.Module,
    batch: Batch,
    target: Target,
    layers: Sequence[str],
    loss: SampleLoss,
    lr: float,
    *,
    negate_loss: bool = False,
    surroundings: Surroundings | None = None,
) -> Observed:
    """Contributions to the gradient of a target after one inner step, as three terms a layer.

    Args:
        model: left as it was. Attention is computed by torch's plain implementation meanwhile, which can be differentiated twice.
        batch: with the target's choices bound to it.
        target: with one score a sample.
        layers: names, as `chosen_layers` gives them.
        loss: of the inner step.
        lr: of the inner step.
        negate_loss: whether the inner step makes the loss grow.
        surroundings: of the layers.

    Raises:
        InterfaceError: if a layer ran several times or not at all, or the target has several scores a sample.
    """
    key, where, step = image_key(model, batch), surroundings or Surroundings(), lr if negate_loss else -lr
    run = _Run(model, batch, target, layers, key)
    with capturing(model) as seen, sdpa_kernel(SDPBackend.MATH):
        point = leaves(model)
        with _tapped(model, layers) as inner:
            slopes, inner_slopes = run.gradients(loss(run.output(point, inner), batch), point, inner, create_graph=True)
        moved = {name: (each + step * slopes[name] if name in slopes else each).detach().requires_grad_() for name, each in point.items()}
        with _tapped(model, layers) as outer:
            output = run.output(moved, outer)
            scores = score_matrix(target.score(output, batch))
            if scores.shape[1] != 1:
                raise InterfaceError(f"second_order explains one score a sample at a time; the target gives {scores.shape[1]}")
            along, outer_slopes = run.gradients(full_precision(scores).sum(), moved, outer)
        tangent = torch.stack([(slopes[name] * each).sum() for name, each in along.items() if name in slopes]).sum()
        wanted = [*inner.shifts.values(), *inner.gradient_shifts.values()]
        tangents = dict(zip(wanted, torch.autograd.grad(tangent, wanted, allow_unused=True), strict=True))
        pinned = target.pin(output, batch)
    size = (batch[key].shape[-2], batch[key].shape[-1])
    found: dict[str, Contributions] = {}
    for name in layers:
        layout = where.found(model, name, outer.values[name].shape, size, seen.patches)
        outside, outside_slope, inside, inside_slope, slope_tangent, value_tangent = (
            full_precision(layout.spatial((torch.zeros_like(outer.values[name]) if each is None else each).detach()))
            for each in (
                outer.values[name],
                outer_slopes[name],
                inner.values[name],
                inner_slopes[name],
                tangents[inner.shifts[name]],
                tangents[inner.gradient_shifts[name]],
            )
        )
        terms = [
            Term(outside, outside_slope.unsqueeze(1)),
            Term(inside, step * slope_tangent.unsqueeze(1)),
            Term(value_tangent, step * inside_slope.unsqueeze(1), in_bias=False),
        ]
        found[name] = Contributions(terms)
    return Observation(found, scores.detach(), detached(output), pinned, target, size)


@dataclass(frozen=True)
class _Run:
    """A model that is run under several parameters."""

    model: nn.Module
    batch: Batch
    target: Target
    layers: Sequence[str]
    key: str

    def output(self, point: Parameters, taps: _Taps) -> Any:
        given = {**self.batch, self.key: taps(IMAGE, self.batch[self.key].detach())} if IMAGE in self.layers else self.batch
        output = Call(self.model).with_parameters(point, self.target, given)
        idle = [name for name in self.layers if name not in taps.values]
        if idle:
            raise InterfaceError(f"did not run in the forward pass, or gave no tensor with positions: layer {', '.join(idle)}")
        return output

    def gradients(
        self, value: Tensor, point: Parameters, taps: _Taps, create_graph: bool = False
    ) -> tuple[Parameters, dict[str, Tensor | None]]:
        """With respect to the parameters that have a part in it, and to what each layer gave."""
        asked = [*point.values(), *(taps.shifts[name] for name in self.layers)]
        found = torch.autograd.grad(value, asked, create_graph=create_graph, allow_unused=True)
        parameters = {name: each for name, each in zip(point, found, strict=False) if each is not None}
        return parameters, dict(zip(self.layers, found[len(point) :], strict=True))
