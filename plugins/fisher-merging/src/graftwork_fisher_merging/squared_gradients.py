"""Sums of squared per-sample gradients, without per-sample gradients of layers that have a rule.

For outputs f(x_n) and cotangents v_kn, sum_k sum_n (J_n^T v_kn)^2 of every parameter: with the right v this is the diagonal of the
Fisher information, of a Gauss-Newton matrix, or the second moment of any per-sample gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from graftwork import DataError
from graftwork_fisher_merging.capture import (
    Batch,
    Call,
    Called,
    Forward,
    captured,
    output_axes,
    parameter_edges,
    rows,
    rows_of,
    zero_beyond_first,
)
from graftwork_fisher_merging.layer_rules import Factor, LayerRule, Outer, dense_gradient, join, layer_rule, sum_of_squares

__all__ = ["Cotangents", "SquaredGradients", "Way"]

Cotangents: TypeAlias = Callable[[Tensor, Batch], Iterable[Tensor]]
"""(outputs (N, ...), batch) -> cotangents, each of the outputs' shape."""

Way: TypeAlias = Literal["layer", "expanded", "vmap", "one by one"]
"""How a parameter's per-sample gradients come about."""

BUDGET = 2**26
"""Numbers that a pass may hold, of activations and of per-sample gradients each."""


@dataclass
class _Plan:
    """Which parameter goes which way; found once, on two samples."""

    ways: dict[str, Way] = field(default_factory=dict)
    layers: dict[nn.Module, LayerRule] = field(default_factory=dict)
    shared: set[nn.Module] = field(default_factory=set)
    repeated: dict[str, tuple[int, ...]] = field(default_factory=dict)
    per_sample: int = 1

    def names(self, *ways: Way) -> list[str]:
        return [name for name, way in self.ways.items() if way in ways]


class SquaredGradients:
    """Adds up sum_k (J_n^T v_kn)^2 over samples, for every parameter.

    Layers with a rule (linear, convolution, embedding, norms) need only their input and the gradient of their output; so do layers
    and parameters that serve all samples alike, such as embeddings of positions or a class token, which are repeated for each
    sample. Whatever else a parameter is used for is seen in the graph, and it then goes through `torch.func.vmap`, or, where the
    model cannot be mapped, sample by sample. That a sample's outputs depend on no other sample is tried on two. The model is left
    as it was found; put it in eval mode beforehand.

    Args:
        model: any module; parameters that require no gradient are left out.
        forward: gives outputs (N, ...) of a batch, a sample's from that sample alone.
        budget: numbers of activations, and of per-sample gradients, that are held at once.

    Attributes:
        sums: name of the parameter -> sum of squares, in float32, or float64 where the parameter is float64.
        samples: how many were added.
        ways: name of the parameter -> its way, once a batch was added.

    Raises:
        ValueError: if no parameter requires a gradient.
    """

    def __init__(self, model: nn.Module, forward: Forward, budget: int = BUDGET):
        self.model, self._forward, self.budget = model, forward, budget
        self._parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not self._parameters:
            raise ValueError(f"no parameter of {type(model).__name__} requires a gradient")
        self.sums = {
            name: torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32), requires_grad=False)
            for name, parameter in self._parameters.items()
        }
        self.samples = 0
        self._called = Called(model, forward)
        self._plan: _Plan | None = None

    @property
    def ways(self) -> dict[str, Way]:
        """Name of the parameter -> how its per-sample gradients come about."""
        return dict(self._plan.ways) if self._plan is not None else {}

    def add(self, batch: Batch, cotangents: Cotangents) -> None:
        """Add a batch, in parts that fit the budget.

        Args:
            batch: tensors with a leading axis of N samples, or lists of N.
            cotangents: called with the detached outputs and the rows of each part.

        Raises:
            DataError: if the outputs are not one a sample, or not finite.
        """
        count = rows_of(batch)
        if not count:
            raise DataError("a batch holds no samples")
        with torch.enable_grad():
            if self._plan is None:
                self._plan = self._found(batch)
            step = max(1, self.budget // self._plan.per_sample)
            for start in range(0, count, step):
                self._add(rows(batch, start, min(start + step, count)), cotangents, self._plan)
        self.samples += count

    # -- one part of a batch -----------------------------------------------------------------------------------------------------

    def _add(self, batch: Batch, cotangents: Cotangents, plan: _Plan) -> None:
        count = rows_of(batch)
        leaves = {name: _repeated(self._parameters[name], count, shape) for name, shape in plan.repeated.items()}
        with captured(plan.layers, count, plan.shared) as seen:
            outputs = functional_call(self._called, {f"model.{name}": leaf for name, leaf in leaves.items()}, (batch,))
        if outputs.shape[0] != count or not outputs.isfinite().all():
            what = "are not finite" if outputs.shape[0] == count else f"have shape {tuple(outputs.shape)} for {count} samples"
            raise DataError(f"the outputs of {type(self.model).__name__} {what}")
        mapped, mapped_outputs = self._mapped(batch, count, plan.names("vmap"))
        alone = plan.names("one by one")
        sums = _LayerSums(self, plan, seen.calls)
        taps = [*(call.output for call in seen.calls), *leaves.values()]
        vectors = cotangents(outputs.detach(), batch)
        kept = []
        for vector in vectors:
            gradients = torch.autograd.grad(outputs, taps, vector, retain_graph=True, allow_unused=True) if taps else ()
            with torch.no_grad():
                sums.add(gradients[: len(seen.calls)])
                self._add_squares(leaves, gradients[len(seen.calls) :])
            if mapped_outputs is not None:
                found = torch.autograd.grad(mapped_outputs, list(mapped.values()), vector, retain_graph=True, allow_unused=True)
                self._add_squares(mapped, found)
            if alone:
                kept.append(vector)
        with torch.no_grad():
            sums.finish()
        self._add_alone(batch, kept, alone)

    @torch.no_grad()
    def _add_squares(self, names: Iterable[str], gradients: Iterable[Tensor | None]) -> None:
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                total = self.sums[name]
                total += gradient.to(total.dtype).square().sum(dim=0).reshape(total.shape)

    def _mapped(self, batch: Batch, count: int, names: list[str]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Each sample with parameters of its own, and the outputs (N, ...) of them all."""
        if not names:
            return {}, None
        leaves = {f"model.{name}": self._parameters[name].detach().expand(count, *self._parameters[name].shape).clone() for name in names}
        for leaf in leaves.values():
            leaf.requires_grad_()
        given = {key: value for key, value in batch.items() if isinstance(value, Tensor) and value.dim() and len(value) == count}

        def one(parameters: dict[str, Tensor], sample: dict[str, Tensor]) -> Tensor:
            return functional_call(self._called, parameters, ({key: value[None] for key, value in sample.items()},))[0]  # type: ignore[no-any-return]

        with _no_fast_attention():
            outputs = vmap(one)(leaves, given)
        return {name: leaves[f"model.{name}"] for name in names}, outputs

    def _add_alone(self, batch: Batch, vectors: list[Tensor], names: list[str]) -> None:
        """Parameters whose model cannot be mapped: a pass a sample, and a backward pass a sample and cotangent."""
        parameters = [self._parameters[name] for name in names]
        for index in range(len(vectors[0]) if vectors else 0):
            outputs = self._forward(self.model, rows(batch, index, index + 1))
            for vector in vectors:
                found = torch.autograd.grad(outputs, parameters, vector[index : index + 1], retain_graph=True, allow_unused=True)
                self._add_squares(names, [None if one is None else one[None] for one in found])

    # -- the plan ----------------------------------------------------------------------------------------------------------------

    def _found(self, batch: Batch) -> _Plan:
        """The plan, from a plain pass over two samples, and others in which what may have a gradient a sample is tried."""
        first = rows(batch, 0, 1)
        pair = rows(batch, 0, 2) if rows_of(batch) > 1 else {key: _doubled(value) for key, value in first.items()}
        usable = {layer: rule for layer in self.model.modules() if (rule := layer_rule(layer)) is not None}
        others = [layer for layer in self.model.modules() if layer not in usable and layer._parameters]
        with captured(usable, 2) as seen, output_axes(others) as axes:
            plain = self._forward(self.model, pair)
        if plain.dim() == 0 or len(plain) != 2:
            raise DataError(f"the outputs of {type(self.model).__name__} have shape {tuple(plain.shape)} for 2 samples")
        if not plain.requires_grad:  # nothing that requires a gradient reaches the output
            return _Plan(dict.fromkeys(self._parameters, "layer"))
        edges = parameter_edges(plain)
        ruled = {id(one) for layer in usable if layer not in seen.unusable for one in layer._parameters.values()}
        free = {name: one for name, one in self._parameters.items() if id(one) in edges and id(one) not in ruled}
        whole = {name: tuple(one.shape[1:]) for name, one in free.items() if one.dim() > 1 and len(one) == 1}
        inserted = {
            name: (1,) * (axes[layer] - 2) + tuple(one.shape)
            for layer in others
            for one in layer._parameters.values()
            for name, other in free.items()
            if one is other and one.dim() == 1 and axes.get(layer, 0) > 1
        }
        for shared, repeated in product((seen.unusable, set[nn.Module]()), (whole | inserted, whole, inserted, {})):
            tried = {layer: rule for layer, rule in usable.items() if layer not in seen.unusable or layer in shared}
            plan = self._tried(pair, plain.detach(), edges, tried, shared, repeated)
            if plan is not None:
                return self._with_rest(plan, pair, plain.detach())
        return self._with_rest(_Plan(), pair, plain.detach())

    def _tried(
        self,
        pair: Batch,
        plain: Tensor,
        edges: Mapping[int, int],
        layers: dict[nn.Module, LayerRule],
        shared: set[nn.Module],
        repeated: Mapping[str, tuple[int, ...]],
    ) -> _Plan | None:
        """The parameters whose gradients come out a sample each; None if the outputs are others once things are repeated."""
        leaves = {name: _repeated(self._parameters[name], 2, shape) for name, shape in repeated.items()}
        try:
            with captured(layers, 2, shared) as seen:
                outputs = functional_call(self._called, {f"model.{name}": leaf for name, leaf in leaves.items()}, (pair,))
            tolerance = 1e-5 if plain.dtype in (torch.float32, torch.float64) else 2e-2
            torch.testing.assert_close(outputs.detach(), plain, rtol=tolerance, atol=tolerance)
        except (AssertionError, RuntimeError, IndexError):
            return None
        taps = [*(call.output for call in seen.calls), *leaves.values()]
        vector = _some_vector(outputs.detach())
        vector[1] = 0
        gradients = torch.autograd.grad(outputs, taps, vector, allow_unused=True) if taps else ()
        spoilt = set(seen.unusable)
        calls: dict[int, int] = {}
        for call, gradient in zip(seen.calls, gradients[: len(seen.calls)], strict=True):
            if gradient is not None and not zero_beyond_first(call.by_sample(gradient)):
                spoilt.add(call.layer)
            for parameter in call.layer._parameters.values():
                if parameter is not None:
                    calls[id(parameter)] = calls.get(id(parameter), 0) + 1
        apart = [name for name, gradient in zip(leaves, gradients[len(seen.calls) :], strict=True) if zero_beyond_first(gradient)]
        plan = _Plan(dict.fromkeys(apart, "expanded"), {}, shared, {name: repeated[name] for name in apart})
        held = {id(one) for layer in spoilt for one in layer._parameters.values() if one is not None}
        for name, parameter in self._parameters.items():
            if name not in plan.ways and id(parameter) not in held and edges.get(id(parameter), 0) == calls.get(id(parameter), 0):
                plan.ways[name] = "layer"
        wanted = {id(self._parameters[name]) for name in plan.names("layer")}
        used = {call.layer for call in seen.calls}
        plan.layers = {
            layer: rule for layer, rule in layers.items() if layer in used and any(id(one) in wanted for one in layer._parameters.values())
        }
        held_numbers = sum(2 * call.output.numel() + call.input.numel() for call in seen.calls) // 2
        plan.per_sample = max(1, held_numbers + sum(self._parameters[name].numel() for name in apart))
        return plan

    def _with_rest(self, plan: _Plan, pair: Batch, plain: Tensor) -> _Plan:
        """Let what is left over go through vmap where the model allows it, and where that gives the gradients of single passes."""
        rest = [name for name in self._parameters if name not in plan.ways]
        if not rest:
            return plan
        padded = {id(one.weight) for one in self.model.modules() if isinstance(one, nn.Embedding) and one.padding_idx is not None}
        mappable = [name for name in rest if id(self._parameters[name]) not in padded]  # vmap minds the padding of one sample only
        way: Way = "vmap" if mappable and self._maps(pair, plain, mappable) else "one by one"
        plan.ways |= {name: way if name in mappable else "one by one" for name in rest}
        if way == "vmap":
            plan.per_sample = 5 * plan.per_sample + sum(self._parameters[name].numel() for name in mappable)
        return plan

    def _maps(self, pair: Batch, plain: Tensor, names: list[str]) -> bool:
        """Whether the model can be mapped over samples, and gives the gradients that each sample gives alone."""
        vector = _some_vector(plain)
        try:
            leaves, outputs = self._mapped(pair, 2, names)
            if outputs is None or outputs.shape != plain.shape:
                return False
            found = torch.autograd.grad(outputs, list(leaves.values()), vector, allow_unused=True)
        except Exception:  # whatever a model raises that looks at values, which a mapped pass has none of
            return False
        tolerance = 1e-4 if plain.dtype in (torch.float32, torch.float64) else 5e-2
        parameters = [self._parameters[name] for name in names]
        for index in range(2):
            alone = self._forward(self.model, rows(pair, index, index + 1))
            expected = torch.autograd.grad(alone, parameters, vector[index : index + 1], allow_unused=True)
            for mapped, single in zip(found, expected, strict=True):
                one = torch.zeros(1) if mapped is None else mapped[index]
                other = torch.zeros_like(one) if single is None else single
                if not torch.allclose(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max())):
                    return False
        return True


class _LayerSums:
    """The squares of one part of a batch, for parameters of layers."""

    def __init__(self, owner: SquaredGradients, plan: _Plan, calls: list[Call]):
        self.owner, self.plan, self.calls = owner, plan, calls
        self.names = {id(owner._parameters[name]): name for name in plan.names("layer")}
        with torch.no_grad():
            self.prepared = [plan.layers[call.layer].prepare(call.layer, call.input, self._dtype(call)) for call in calls]
        self.waiting: dict[str, tuple[Tensor, Tensor, bool]] = {}

    def _dtype(self, call: Call) -> torch.dtype:
        return torch.promote_types(call.output.dtype, torch.float32)

    def add(self, gradients: Iterable[Tensor | None]) -> None:
        """Add the squares for one cotangent."""
        factors: dict[str, list[Factor]] = {}
        for call, prepared, gradient in zip(self.calls, self.prepared, gradients, strict=True):
            if gradient is None:
                continue
            by_sample = call.by_sample(gradient.to(self._dtype(call)))
            for role, parameter in call.layer._parameters.items():
                name = self.names.get(id(parameter))
                if name is not None:
                    rule = self.plan.layers[call.layer]
                    factors.setdefault(name, []).append(rule.factor(call.layer, role, prepared, by_sample))
        for name, several in factors.items():
            self._add(name, several)

    def _add(self, name: str, factors: list[Factor]) -> None:
        total, factor = self.owner.sums[name], join(factors)
        if isinstance(factor, Outer) and factor.left.shape[2] == 1:
            self._wait(name, factor)
        elif factor is not None:
            total += sum_of_squares(factor, total.shape, self.owner.budget)
        else:  # tied between layers of different kinds
            count = len(self.calls[0].input)
            step = max(1, self.owner.budget // total.numel())
            for start in range(0, count, step):
                stop = min(start + step, count)
                total += torch.stack([dense_gradient(one, total.shape, start, stop) for one in factors]).sum(0).square_().sum(0)

    def _wait(self, name: str, factor: Outer) -> None:
        """One vector a sample: the input is the same for all cotangents, so the squares of the other side are added up first."""
        given, other = (factor.left, factor.right) if factor.input_is_left else (factor.right, factor.left)
        squares = other[:, :, 0].square()
        if name in self.waiting:
            self.waiting[name][1].add_(squares)
        else:
            self.waiting[name] = given[:, :, 0].square(), squares, factor.input_is_left

    def finish(self) -> None:
        """Add what waited: one product of matrices a parameter."""
        for name, (given, other, input_is_left) in self.waiting.items():
            left, right = (given, other) if input_is_left else (other, given)
            total = self.owner.sums[name]
            if left.shape[1] == 1:
                total += (left[:, 0].T @ right[:, 0]).reshape(total.shape)
            else:
                total += torch.einsum("ngp,ngq->gpq", left, right).reshape(total.shape)


def _repeated(parameter: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
    """A parameter in some shape, once for each sample, as a leaf (count, *shape)."""
    return parameter.detach().reshape(1, *shape).expand(count, *shape).clone().requires_grad_()


def _some_vector(outputs: Tensor) -> Tensor:
    """A cotangent to try things with, the same each time."""
    return torch.linspace(-0.5, 1.5, outputs.numel(), dtype=outputs.dtype, device=outputs.device).reshape(outputs.shape)


@contextmanager
def _no_fast_attention() -> Iterator[None]:
    """torch's fused attention of inference has no gradient, and takes mapped parameters for ones that need none."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _doubled(value: Any) -> Any:
    if isinstance(value, list):
        return value * 2
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() else value
