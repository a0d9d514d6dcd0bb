"""How many parameters a method has: by formula from the widths, and by counting (He et al., 2022, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from graftwork_unified_petl.builder import petl_of
from graftwork_unified_petl.modification import BitFit, Modification, PromptTuning
from graftwork_unified_petl.placement import chosen_blocks, places, wanted
from graftwork_unified_petl.sites import Attention, Block, find_blocks

__all__ = ["SiteCount", "count_by_formula", "parameters_of", "site_counts"]


@dataclass(frozen=True)
class SiteCount:
    """New parameters at one site, by formula.

    Args:
        layer: index of the layer in its stack, or -1 where they are shared by several.
        stack: path of the list of layers.
        site: "ffn", "heads", ..., or "reparameterisation", "prompt", "biases".
        parameters: how many.
    """

    layer: int
    stack: str
    site: str
    parameters: int


def parameters_of(modification: Modification, read: int, give: int) -> int:
    """New parameters of a bottleneck between two widths: r (d_in + d_out), an adapter's biases r + d_out, a norm's 2 d, a scale's 1.

    Args:
        modification: form "adapter" or "lora".
        read: d_in.
        give: d_out.

    Raises:
        ValueError: if it is a form of the heads.
    """
    if modification.form not in ("adapter", "lora"):
        raise ValueError(f"a {modification.form} is counted by l and the heads, not by two widths")
    rank = modification.bottleneck
    biases = rank + give if modification.form == "adapter" else 0
    norm = {"none": 0, "in": 2 * read, "out": 2 * give}[modification.layernorm]
    return rank * (read + give) + biases + norm + int(modification.scale == "learnable")


def _heads(modification: Modification, attention: Attention) -> int:
    """2 l d_kv of P once folded, with a norm's 2 d and a scale's 1."""
    norm = 2 * attention.query.in_width if modification.layernorm == "in" else 0
    stored = 2 * modification.bottleneck * attention.kv_heads * attention.head_width
    return (0 if modification.reparameterisation else stored) + norm + int(modification.scale == "learnable")


def _generators(modification: Modification, blocks: Sequence[Block]) -> list[SiteCount]:
    """l d + d w + w + L (2 w d_kv + 2 d_kv) of each network that generates prefixes while training."""
    hidden = modification.reparameterisation
    if hidden is None:
        return []
    groups: dict[tuple[str, str], list[Attention]] = {}
    for block in blocks:
        for one in block.attentions:
            if wanted(one, modification):
                groups.setdefault((block.stack, one.kind), []).append(one)
    found = []
    for (stack, _), members in groups.items():
        width, stored = members[0].query.in_width, 2 * members[0].kv_heads * members[0].head_width
        total = modification.bottleneck * width + width * hidden + hidden + len(members) * (hidden * stored + stored)
        found.append(SiteCount(-1, stack, "reparameterisation", total))
    return found


def site_counts(model: nn.Module, modifications: Sequence[Modification | PromptTuning | BitFit]) -> list[SiteCount]:
    """What modifications of a model add, or train, site by site, by formula; the model may be modified or not.

    Raises:
        InterfaceError: if the model has no such site.
    """
    blocks, found = find_blocks(model), []
    for modification in modifications:
        if isinstance(modification, PromptTuning):
            found.append(SiteCount(-1, blocks[0].stack, "prompt", modification.length * blocks[0].attentions[0].query.in_width))
        elif isinstance(modification, BitFit):
            found.append(SiteCount(-1, "", "biases", sum(one.numel() for one in petl_of(model).originals.values())))
        else:
            chosen = chosen_blocks(blocks, modification)
            found += [one for block in chosen for one in _of_block(modification, block)]
            found += _generators(modification, chosen)
    return found


def _of_block(modification: Modification, block: Block) -> list[SiteCount]:
    if modification.site == "heads":
        counts = [_heads(modification, one) for one in block.attentions if wanted(one, modification)]
    else:
        counts = [parameters_of(modification, place.read, place.give) for place in places(block, modification)]
    return [SiteCount(block.index, block.stack, modification.site, count) for count in counts]


def count_by_formula(model: nn.Module, modifications: Sequence[Modification | PromptTuning | BitFit]) -> int:
    """All that modifications of a model add, or train, by formula."""
    return sum(one.parameters for one in site_counts(model, modifications))
