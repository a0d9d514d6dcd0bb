"""A picture of where new parameters are."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from graftwork_unified_petl.counting import SiteCount

__all__ = ["draw_counts"]

INK = "#33363b"
COLOURS = ("#2a6f97", "#c8553d", "#4c9f70", "#8e6bbf", "#d9a13b", "#5aa9c9", "#9c4f6b", "#7a7f45")


def draw_counts(counts: Sequence[SiteCount], frozen: int) -> Figure:
    """A bar for each layer, in pieces for its sites; what layers share has a bar of its own.

    Args:
        counts: of each site.
        frozen: parameters of the frozen model, for the heading.
    """
    rows = list(dict.fromkeys((one.stack, one.layer) for one in counts))
    sites = list(dict.fromkeys(one.site for one in counts))
    stacks = {stack for stack, _ in rows}
    figure = Figure(figsize=(6.4, max(1.8, 0.24 * len(rows) + 1.1)), layout="constrained")
    axes = figure.add_subplot()
    ends = [0] * len(rows)
    for colour, site in enumerate(sites):
        widths = [sum(one.parameters for one in counts if (one.stack, one.layer) == row and one.site == site) for row in rows]
        axes.barh(range(len(rows)), widths, left=ends, height=0.72, color=COLOURS[colour % len(COLOURS)], label=site)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [_named(stack, layer, len(stacks) > 1) for stack, layer in rows], fontsize=8, color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("new parameters", fontsize=9, color=INK)
    total = sum(one.parameters for one in counts)
    axes.set_title(f"{total:,} new, {total / max(frozen, 1):.2%} of {frozen:,} frozen", fontsize=9, color=INK, loc="left")
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _named(stack: str, layer: int, several: bool) -> str:
    which = "shared" if layer < 0 else f"layer {layer}"
    return f"{stack} {which}" if several and stack else which
