"""Where a network keeps positions: how a layer's output is laid out in space, and which layer to look at."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from graftwork.errors import InterfaceError
from graftwork_grad_cam.capture import capturing
from graftwork_grad_cam.forward import batch_length, image_key, take

if TYPE_CHECKING:
    from graftwork_grad_cam.targets import Target

__all__ = [
    "Layout",
    "LayoutName",
    "explain_layers",
    "find_layer",
    "find_layout",
    "first_norm",
    "map_layers",
    "prefix_of",
    "suffix_of",
    "unreached_message",
]

LayoutName: TypeAlias = Literal["auto", "nchw", "nhwc", "tokens"]
"""How a layer's output is laid out: channels first, channels last, or a sequence of tokens."""

LISTED = 12
"""How many layers an error message lists."""


@dataclass(frozen=True)
class Layout:
    """How positions are laid out in a layer's output.

    Args:
        kind: "nchw" (B, K, h, w), "nhwc" (B, h, w, K), or "tokens" (B, prefix + h*w + suffix, K), row by row.
        grid: (h, w).
        prefix: tokens before those of the patches: class, registers, distillation, words.
        suffix: tokens behind them, such as a detector's queries.
    """

    kind: Literal["nchw", "nhwc", "tokens"]
    grid: tuple[int, int]
    prefix: int = 0
    suffix: int = 0

    def spatial(self, tensor: Tensor) -> Tensor:
        """A tensor laid out so, with any leading dimensions, as (..., K, h, w); tokens that are no patches are left out."""
        if self.kind == "nchw":
            return tensor
        if self.kind == "nhwc":
            return tensor.movedim(-1, -3)
        count = self.grid[0] * self.grid[1]
        return tensor.narrow(-2, self.prefix, count).unflatten(-2, self.grid).movedim(-1, -3)


def find_layout(
    shape: Sequence[int],
    image: tuple[int, int],
    patches: tuple[int, int, int] | None = None,
    *,
    kind: LayoutName = "auto",
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
    suffix: int = 0,
    layer: str = "the layer",
) -> Layout:
    """How an output of a given shape is laid out.

    Four dimensions are channels first unless (B, h, w, K) comes nearer to the image's proportions. Three are tokens, on the grid that is
    given, the patches' grid, that grid halved some times (patch merging), or the one of the image's proportions.

    Args:
        shape: of the output, batch first.
        image: (H, W) of the image.
        patches: (h, w, channels) of the image cut into patches, as `Capture.patches` has it.
        kind: the layout, or "auto".
        grid: (h, w) of the tokens, where it cannot be found.
        prefix: tokens before the patches, where it cannot be found.
        suffix: tokens behind the patches.
        layer: for messages.

    Raises:
        InterfaceError: if the output has no positions, or its tokens do not fit the grid; the numbers are given.
    """
    if len(shape) < 3:
        raise InterfaceError(f"{layer} has no spatial positions: it gives {tuple(shape)}; take one that gives a map or tokens")
    if kind == "auto":
        kind = "tokens" if len(shape) == 3 else "nhwc" if _is_channels_last(shape, image) else "nchw"
    if len(shape) != (3 if kind == "tokens" else 4):
        raise InterfaceError(f"{layer} gives {tuple(shape)}, which has no positions as {kind}: take a layer that gives a map or tokens")
    if kind == "tokens":
        return _token_layout(shape[1], image, patches, grid, prefix, suffix, layer)
    rows, columns = shape[1:3] if kind == "nhwc" else shape[2:4]
    if rows * columns == 1:
        raise InterfaceError(f"{layer} gives {tuple(shape)}: a single position; take an earlier layer")
    return Layout(kind, (rows, columns))


def _token_layout(
    count: int,
    image: tuple[int, int],
    patches: tuple[int, int, int] | None,
    grid: tuple[int, int] | None,
    prefix: int | None,
    suffix: int,
    layer: str,
) -> Layout:
    if grid is None and patches is not None:
        grid = patches[:2]
        while math.prod(grid) > count and math.prod(grid) > 1:
            grid = (-(-grid[0] // 2), -(-grid[1] // 2))  # patch merging pads to an even number
        if prefix is None and grid != patches[:2]:
            prefix = 0
    if grid is None:
        grid, guessed = _grid_like(image, count - suffix, range(9) if prefix is None else (prefix,))
        prefix = prefix if prefix is not None else guessed
    before = count - math.prod(grid) - suffix if prefix is None else prefix
    if before < 0 or before + math.prod(grid) + suffix != count:
        behind = f" and {suffix} behind it" if suffix else ""
        raise InterfaceError(
            f"{layer} gives {count} tokens, which do not match {max(before, 0)} prefix tokens, a grid of {grid[0]} x {grid[1]} = "
            f"{math.prod(grid)}{behind}: give `grid` and `prefix_tokens`"
        )
    return Layout("tokens", grid, before, suffix)


def _grid_like(image: tuple[int, int], count: int, prefixes: Sequence[int]) -> tuple[tuple[int, int], int]:
    """The grid with the image's proportions that leaves the fewest tokens over, or the nearest one if none fits."""
    for prefix in prefixes:
        rows = round(math.sqrt(max(count - prefix, 1) * image[0] / image[1]))
        if rows and rows * image[1] % image[0] == 0 and rows * (rows * image[1] // image[0]) == count - prefix:
            return (rows, rows * image[1] // image[0]), prefix
    rows = max(1, round(math.sqrt(max(count - prefixes[0], 1) * image[0] / image[1])))
    return (rows, max(1, round(rows * image[1] / image[0]))), prefixes[0]


def _has_proportions(rows: int, columns: int, image: tuple[int, int]) -> bool:
    return rows > 1 and columns > 1 and abs(rows - columns * image[0] / image[1]) <= 1 and rows <= image[0] and columns <= image[1]


def _is_channels_last(shape: Sequence[int], image: tuple[int, int]) -> bool:
    if len(shape) != 4 or not _has_proportions(shape[1], shape[2], image):
        return False
    first, last = (abs(math.log(rows * image[1] / (columns * image[0]))) for rows, columns in (shape[2:4], shape[1:3]))
    return last < first


def prefix_of(model: nn.Module) -> int | None:
    """The number of prefix tokens that a model itself states (timm's `num_prefix_tokens`), or None."""
    stated = getattr(model, "num_prefix_tokens", None)
    return stated if isinstance(stated, int) else None


def suffix_of(model: nn.Module) -> int:
    """How many tokens stand behind the patches: the detection tokens of a transformers detector, else 0."""
    configured = (getattr(getattr(module, "config", None), "num_detection_tokens", None) for module in model.modules())
    return next((int(count) for count in configured if isinstance(count, int)), 0)


def first_norm(model: nn.Module, block: str) -> str | None:
    """The name of the first normalisation inside a block, by order of definition; None if it has none."""
    for name, module in model.get_submodule(block).named_modules():
        if name and "Norm" in type(module).__name__:
            return f"{block}.{name}"
    return None


# -- choosing a layer --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """One run of one module in a traced forward pass. The output is held weakly: a trace keeps no activations."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    output: weakref.ref[Tensor]
    from_image: bool


@dataclass(frozen=True)
class _Trace:
    runs: list[_Run]
    image: tuple[int, int]
    patches: tuple[int, int, int] | None
    result: list[Tensor]
    pooled: list[Tensor]


def find_layer(model: nn.Module, batch: Mapping[str, Any], target: Target, *, before_pooling: bool = True) -> str:
    """The last layer that keeps positions, on the way from the image to the target's score.

    That is the last module with an output (B, K, h, w) or (B, h, w, K), h and w above 1, that neither is the model's output nor was
    made by pooling (so VGG's relu5_3 and ResNet's layer4). Where a network cuts the image into patches and keeps tokens, it is the
    last block; if no gradient reaches the patches there, since the head reads the class token alone, the block's first norm.

    One sample is traced: a forward pass, and with prefix tokens a backward pass. In a loop, call it once and pass on the name.

    Args:
        model: in which a layer is sought.
        batch: with the target's choices bound to it (`Target.prepare`).
        target: from output to score.
        before_pooling: whether pooling layers' outputs are passed over.

    Raises:
        InterfaceError: if no layer keeps positions; the model's layers are listed with their shapes.
    """
    one = take(batch, batch_length(model, batch), 1)
    trace = _traced(model, one, target)
    for run in reversed(trace.runs):
        if _is_map(run, trace, before_pooling):
            return run.name
        if _is_token_block(run, trace):
            return _reached(model, one, target, run, trace)
    raise InterfaceError(
        f"no layer of the {type(model).__name__} gives a map or tokens with positions; {explain_layers(model, trace.runs)}"
    )


def map_layers(model: nn.Module, batch: Mapping[str, Any], target: Target) -> list[tuple[str, tuple[int, int]]]:
    """The layers that give a map with channels first, by name, and their (h, w), in the order in which they finish.

    A container comes after what it contains. Pooling and the model's output are left out, and so is what comes before the first
    weights, which is the image made ready. One sample is traced.

    Args:
        model: whose layers.
        batch: with the target's choices bound to it.
        target: from output to score.
    """
    trace = _traced(model, take(batch, batch_length(model, batch), 1), target)
    weighed = [any(True for _ in run.module.parameters(recurse=False)) for run in trace.runs]
    runs = trace.runs[weighed.index(True) :] if True in weighed else []
    maps = [run for run in runs if _is_map(run, trace, True) and not _is_channels_last(run.shape, trace.image)]
    return [(run.name, (run.shape[2], run.shape[3])) for run in maps]


def explain_layers(model: nn.Module, runs: Sequence[Any]) -> str:
    """The last layers that ran, with the shapes of what they gave, for a message."""
    shown = [f"{run.name} {run.shape}" for run in runs[-LISTED:]]
    return f"its layers gave {'; '.join(shown)}" if shown else "none of its layers ran"


def _traced(model: nn.Module, batch: Mapping[str, Any], target: Target) -> _Trace:
    runs: list[_Run] = []
    pooled: list[Tensor] = []
    key = image_key(model, batch)

    def hook(name: str) -> Any:
        def record(module: nn.Module, arguments: Any, output: Any) -> None:
            tensor = output if isinstance(output, Tensor) else output[0] if isinstance(output, (tuple, list)) and len(output) else None
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                runs.append(_Run(name, module, tuple(tensor.shape), weakref.ref(tensor), tensor.requires_grad))
                if "Pool" in type(module).__name__:
                    pooled.append(tensor)

        return record

    with capturing(model) as seen:
        handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
        try:
            output = target.forward(model, {**batch, key: seen.track("image", batch[key])})
        finally:
            for handle in handles:
                handle.remove()
        depends = any(run.from_image for run in runs)
        known = [run for run in runs if run.from_image or not depends]
        result = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        return _Trace(known, tuple(batch[key].shape[-2:]), seen.patches, result, pooled)


def _is_map(run: _Run, trace: _Trace, before_pooling: bool) -> bool:
    if len(run.shape) != 4 or isinstance(run.module, nn.Identity) or "Drop" in type(run.module).__name__:
        return False
    tensor = run.output()
    passed_over = [*trace.result, *(trace.pooled if before_pooling else ())]
    if tensor is not None and any(tensor is other for other in passed_over):
        return False
    sequences = {other.shape[1] for other in trace.runs if len(other.shape) == 3}
    if run.shape[2] == run.shape[3] and run.shape[2] in sequences:  # attention weights
        return False
    return _has_proportions(*run.shape[2:], trace.image) or _is_channels_last(run.shape, trace.image)


def _is_token_block(run: _Run, trace: _Trace) -> bool:
    """A member of a list of blocks that gives the tokens of an image's patches: as many as its first block, or merged by fours."""
    if not _is_block(run, trace):
        return False
    rows, columns, width = trace.patches or (1, 1, 1)
    if run.shape[2] == width:
        first = next((other for other in trace.runs if _is_block(other, trace) and other.shape[2] == width), run)
        return run.shape[1] == first.shape[1] >= rows * columns
    while rows * columns > run.shape[1]:
        rows, columns, width = -(-rows // 2), -(-columns // 2), 2 * width
    return (run.shape[1], run.shape[2]) == (rows * columns, width)


def _is_block(run: _Run, trace: _Trace) -> bool:
    return len(run.shape) == 3 and trace.patches is not None and run.shape[0] == 1 and run.name.rpartition(".")[2].isdigit()


def _reached(model: nn.Module, batch: Mapping[str, Any], target: Target, block: _Run, trace: _Trace) -> str:
    """A block's name, or its first norm's if no gradient reaches the patches in the block's output."""
    layout = find_layout(block.shape, trace.image, trace.patches, prefix=prefix_of(model), suffix=suffix_of(model), layer=block.name)
    if not layout.prefix and not layout.suffix:
        return block.name
    with capturing(model, [block.name]) as seen:
        gradients = seen.gradients(target.score(target.forward(model, batch), batch))[block.name]
    if bool(layout.spatial(gradients[-1]).any()):
        return block.name
    return first_norm(model, block.name) or block.name


def unreached_message(model: nn.Module, layer: str) -> str:
    """What to say when the prefix tokens of a layer have a gradient and its patches have none."""
    norm = first_norm(model, layer)
    instead = f'"{norm}"' if norm else 'the first norm of the last block, or layer "auto"'
    return (
        f'no gradient reaches the patch tokens of layer "{layer}", as the head reads other tokens only; '
        f"use blocks.-1.norm1, the norm before the last attention: here {instead}"
    )
