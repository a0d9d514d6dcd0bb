"""Which sites of a model a modification is for, and the widths that a change has there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graftwork import InterfaceError
from graftwork_unified_petl.bottleneck import Adapter, LowRank
from graftwork_unified_petl.modification import OF_ATTENTION, Modification
from graftwork_unified_petl.sites import Attention, Block, Projection

__all__ = ["Place", "chosen_blocks", "new_change", "places", "projections", "to_like", "wanted"]


@dataclass(frozen=True, eq=False)
class Place:
    """Where one change goes.

    Args:
        path: of the site.
        source: the module whose input (parallel) or output (sequential) is read.
        target: the projection that is added to.
        before: add to the input of `target`.
        read: width of what is read.
        like: a frozen weight there.
    """

    path: str
    source: Any
    target: Projection
    before: bool
    read: int
    like: Tensor

    @property
    def give(self) -> int:
        """Width of the change."""
        return self.target.in_width if self.before else self.target.width


def to_like(module: nn.Module, like: Tensor) -> None:
    """Move what was drawn on the CPU in float32 to where the frozen weights are, in their type."""
    module.to(device=like.device, dtype=like.dtype if like.is_floating_point() else None)


def wanted(attention: Attention, modification: Modification) -> bool:
    """Whether a modification is for this attention."""
    return modification.attentions is None or attention.kind in modification.attentions


def chosen_blocks(blocks: Sequence[Block], modification: Modification) -> list[Block]:
    """The layers that a modification is for.

    Raises:
        InterfaceError: if there is none.
        ValueError: if a layer's index is beyond its stack.
    """
    depth: dict[str, int] = {}
    for block in blocks:
        depth[block.stack] = max(depth.get(block.stack, 0), block.index + 1)
    if modification.layers is not None:
        most = max(depth.values())
        if bad := [one for one in modification.layers if not -most <= one < most]:
            raise ValueError(f"layers has {bad[0]}; the model's stacks have {most} layers")
        blocks = [block for block in blocks if {block.index, block.index - depth[block.stack]} & set(modification.layers)]
    if modification.attentions is not None:
        kinds = modification.attentions
        if modification.site in OF_ATTENTION:
            blocks = [block for block in blocks if any(one.kind in kinds for one in block.attentions)]
        else:
            blocks = [block for block in blocks if block.kind in kinds]
    if not blocks:
        raise InterfaceError(f"the model has no layer for site {modification.site} with attentions {modification.attentions}")
    return list(blocks)


def projections(block: Block) -> Iterator[tuple[str, Projection, str, Attention | None]]:
    """(path of the site, projection, site, attention) of each projection of a block."""
    for attention in block.attentions:
        sites = {"query": attention.query, "key": attention.key, "value": attention.value, "attention-output": attention.output}
        for site, projection in sites.items():
            yield f"{attention.path}.{site}", projection, site, attention
    for at, projection in enumerate(block.ffn.inputs):
        yield f"{block.path}.ffn-in.{at}", projection, "ffn-in", None
    yield f"{block.path}.ffn-out", block.ffn.output, "ffn-out", None


def places(block: Block, modification: Modification) -> Iterator[Place]:
    """Where in a block a bottleneck goes."""
    parallel, ffn = modification.insertion == "parallel", block.ffn
    last = ffn.output
    if modification.site == "ffn":
        first = ffn.inputs[0]
        source, read = (first.module, first.in_width) if parallel else (last.module, last.width)
        yield Place(f"{block.path}.ffn", source, last, False, read, last.module.weight)
    elif modification.site == "layer":
        yield Place(f"{block.path}.layer", block.module, last, False, last.width, last.module.weight)
    elif modification.site == "attention":
        for one in block.attentions:
            if wanted(one, modification):
                source, read = (one.core, one.query.in_width) if parallel else (one.output.module, one.output.width)
                yield Place(f"{one.path}.attention", source, one.output, parallel, read, one.output.module.weight)
    else:
        for path, projection, site, attention in projections(block):
            if site == modification.site and (attention is None or wanted(attention, modification)):
                read = projection.in_width if parallel else projection.width
                yield Place(path, projection.module, projection, False, read, projection.module.weight)


def new_change(modification: Modification, read: int, give: int, generator: torch.Generator | None) -> Adapter | LowRank:
    """The bottleneck of a modification between two widths."""
    kind = Adapter if modification.form == "adapter" else LowRank
    return kind(
        read,
        modification.bottleneck,
        give,
        init=modification.init,
        scale=modification.scale,
        layernorm=modification.layernorm,
        dropout=modification.dropout,
        generator=generator,
    )
