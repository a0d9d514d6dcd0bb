"""Pictures of graph data sets: who is linked to whom, and what that says of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from graftwork import DataError, Dataset
from graftwork_testbed.graphs.layout import neighbourhood, order_nodes, seriation, spring_positions
from graftwork_testbed.graphs.meta_paths import meta_path_adjacency
from graftwork_testbed.graphs.panels import Look, draw_links, draw_matrix
from graftwork_testbed.graphs.samples import within
from graftwork_testbed.sheets.paper import DPI, GREY, colour

__all__ = ["draw_graphs"]

UNKNOWN = "#b5b5b5"
"""Of nodes whose class no split knows."""

MARKERS = ("s", "^", "D", "P", "v", "X")
"""Of the types of node that have no classes, in turn."""

TYPES = ("#8c8c8c", "#5f6b7a", "#a89f8f", "#3f3f3f", "#c4bcb0", "#7d8f86")
"""Their colours: greys, so that colour stays with the classes."""


def draw_graphs(dataset: Dataset, split: str, columns: int = 4, nodes: int = 400, seed: int = 0, title: str = "") -> Figure:
    """Draw one split of a graph data set.

    - One graph whose nodes have classes: nodes joined by lines, coloured by class, those of this split in full and those of the
      others pale; and its adjacency matrix, by class and then degree.
    - One heterogeneous graph: the same, each type with its own marker (two types stand in two columns); and a matrix for each of its
      `meta_paths`, darker where there are more paths.
    - Many graphs: a row a class; some of its graphs as lines, and the same ones as matrices, by degree, or, of a graph that is in two
      communities or bipartite, by its second eigenvector.

    Args:
        dataset: its samples hold `graph`.
        split: name of the split.
        columns: graphs of a class to draw, where there are many.
        nodes: nodes of a graph to join by lines at most, half as many if it is heterogeneous; of a larger graph, those nearest to a
            few of each class. Matrices always show all of them.
        seed: of the layout.
        title: above the figure; by default the data set's description and the name of the split.

    Returns:
        A matplotlib figure that pyplot does not know, to save with `savefig`.

    Raises:
        ValueError: if `columns` or `nodes` is not positive.
        DataError: if there is no such split, it is empty, or its samples hold no graph.
    """
    within("columns", columns, 1)
    within("nodes", nodes, 1)
    samples = dataset[split]
    if not len(samples):
        raise DataError(f"nothing to draw: {split} is empty")
    if "graph" not in samples[0]:
        raise DataError(f"a drawing wants `graph`; {split} has {', '.join(samples[0])}")
    heading = title or f"{dataset.info.description or 'Graphs'}: {split}"
    if "nodes" not in samples[0]:
        return _many(dataset, split, columns, seed, heading)
    if hasattr(samples[0]["graph"], "node_types"):
        return _hetero(dataset, split, nodes, seed, heading)
    return _one(dataset, split, nodes, seed, heading)


def _classes(dataset: Dataset, split: str, count: int) -> tuple[Tensor, Tensor]:
    """(N,) class of every node that any split of the same graph knows, else -1; and (N,) whether this split holds it."""
    known, here = torch.full((count,), -1), torch.zeros(count, dtype=torch.bool)
    graph = dataset[split][0]["graph"]
    for name, samples in dataset.items():
        if name != split and (not len(samples) or samples[0]["graph"] is not graph):
            continue
        sample = samples[0]
        if "label" in sample:
            known[sample["nodes"]] = sample["label"]
        here[sample["nodes"]] |= name == split
    return known, here


def _colours(known: Tensor) -> list[str]:
    return [colour(number) if number >= 0 else UNKNOWN for number in known.tolist()]


def _one(dataset: Dataset, split: str, limit: int, seed: int, heading: str) -> Figure:
    graph = dataset[split][0]["graph"]
    count = graph.num_nodes
    pairs = _both_ways(graph.edge_index.cpu(), count)
    weights = graph.edge_weight.cpu() if graph.get("edge_weight") is not None and pairs.equal(graph.edge_index.cpu()) else None
    known, here = _classes(dataset, split, count)
    colours = _colours(known)
    figure, (left, right) = _sheet([4.6, 3.6], 4.6, heading)
    part = _subgraph(pairs, known, here, count, limit)
    inside, kept = _within(pairs, part, count)
    weights = None if weights is None else weights[kept]
    positions = spring_positions(inside, len(part), seed, weights)
    names = graph.get("names")
    look = Look(
        [colours[node] for node in part.tolist()],
        here[part],
        names={row: str(names[node]) for row, node in enumerate(part.tolist())} if names is not None and len(part) <= 100 else None,
    )
    draw_links(left, positions, inside, look, weights)
    edges = int((pairs[0] <= pairs[1]).sum())
    _caption(left, f"{len(part):,} of {count:,} nodes" if len(part) < count else f"{count:,} nodes, {edges:,} edges")
    draw_matrix(right, graph.edge_index.cpu(), order_nodes(pairs, count, known), colours)
    _caption(right, "adjacency, by class and degree" if (known >= 0).any() else "adjacency, by degree")
    _legend(figure, dataset, known, here, split, {})
    return figure


def _both_ways(pairs: Tensor, nodes: int) -> Tensor:
    """Both directions of every edge, by source and then target; unchanged where they are there and in order."""
    codes = torch.cat([pairs[0] * nodes + pairs[1], pairs[1] * nodes + pairs[0]]).unique()
    return torch.stack([codes // nodes, codes % nodes])


def _subgraph(pairs: Tensor, known: Tensor, here: Tensor, count: int, limit: int) -> Tensor:
    """All nodes if they are few enough; otherwise those near a few of each class."""
    if count <= limit:
        return torch.arange(count)
    return neighbourhood(pairs, _seeds(known, here), limit, spread=8)


def _seeds(known: Tensor, here: Tensor) -> list[int]:
    """Three nodes of each class that this split holds; of a split without labels, three of its nodes."""
    found = [((known == number) & here).nonzero().squeeze(1)[:3].tolist() for number in known[here].unique().tolist()]
    return [node for some in found for node in some] or [0]


def _within(pairs: Tensor, part: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The edges among some nodes, renumbered, and which they are."""
    place = torch.full((count,), -1)
    place[part] = torch.arange(len(part))
    kept = (place[pairs] >= 0).all(0)
    return place[pairs[:, kept]], kept


def _hetero(dataset: Dataset, split: str, limit: int, seed: int, heading: str) -> Figure:
    graph = dataset[split][0]["graph"]
    target = getattr(graph, "target_type", graph.node_types[0])
    kinds = [target, *(kind for kind in graph.node_types if kind != target)]
    counts = [graph[kind].num_nodes for kind in kinds]
    total, pairs = sum(counts), _joined(graph, kinds)
    known, here = _classes(dataset, split, counts[0])
    others = {kind: (TYPES[place % len(TYPES)], MARKERS[place % len(MARKERS)]) for place, kind in enumerate(kinds[1:])}
    colours = _colours(known) + [others[kind][0] for kind, count in zip(kinds[1:], counts[1:], strict=True) for _ in range(count)]
    markers = ["o"] * counts[0] + [others[kind][1] for kind, count in zip(kinds[1:], counts[1:], strict=True) for _ in range(count)]
    part = torch.arange(total) if total <= limit else neighbourhood(pairs, _seeds(known, here), limit // 2, spread=4)
    inside, _ = _within(pairs, part, total)
    paths = list(getattr(graph, "meta_paths", {}).items())
    figure, (left, *rest) = _sheet([4.6, *[2.6] * len(paths)], 4.6, heading)
    names = [str(name) for kind in kinds for name in graph[kind].get("names", [""] * graph[kind].num_nodes)]
    chosen = part.tolist()
    strong = torch.cat([here, torch.ones(total - counts[0], dtype=torch.bool)])[part]
    neutral = part >= counts[0]
    look = Look([colours[node] for node in chosen], strong, neutral, [markers[node] for node in chosen])
    if len(kinds) == 2 and total <= 60:
        _two_columns(left, inside, look, known, counts, [names[node] for node in chosen])
    else:
        draw_links(left, spring_positions(inside, len(part), seed), inside, look)
    _caption(left, f"{len(part):,} of {total:,} nodes" if len(part) < total else f"{total:,} nodes")
    for axes, (name, path) in zip(rest, paths, strict=True):
        counted = meta_path_adjacency(graph, path)
        ends, times = counted.indices(), counted.values()
        off = ends[0] != ends[1]
        draw_matrix(axes, ends[:, off], order_nodes(ends[:, off], counts[0], known), colours[: counts[0]], times[off])
        _caption(axes, f"{name}, by class and degree")
    _legend(figure, dataset, known, here, split, others)
    return figure


def _joined(graph: Any, kinds: Sequence[str]) -> Tensor:
    """(2, E) both directions of all edges, the nodes of all types numbered one after another."""
    starts, found = {}, 0
    for kind in kinds:
        starts[kind] = found
        found += graph[kind].num_nodes
    shifted = [graph[kind].edge_index.cpu() + torch.tensor([[starts[kind[0]]], [starts[kind[2]]]]) for kind in graph.edge_types]
    return _both_ways(torch.cat(shifted, dim=1), found)


def _two_columns(axes: Axes, pairs: Tensor, look: Look, known: Tensor, counts: Sequence[int], names: Sequence[str]) -> None:
    """The two types of a bipartite graph side by side, those of the second near whom they are linked to."""
    first, second = counts
    order = order_nodes(pairs, first + second)
    rows = order[order < first]
    rows = rows[known[rows].argsort(stable=True)]
    height = torch.zeros(first + second, dtype=torch.float64)
    height[rows] = torch.linspace(1, -1, first, dtype=torch.float64)
    linked = torch.zeros(first + second, dtype=torch.float64).index_add_(0, pairs[0], height[pairs[1]])
    mean = (linked / torch.bincount(pairs[0], minlength=first + second).clamp(min=1))[first:]
    height[first + mean.argsort(descending=True)] = torch.linspace(1, -1, second, dtype=torch.float64)
    side = torch.cat([torch.full((first,), -0.45), torch.full((second,), 0.75)]).double()
    draw_links(axes, torch.stack([side, height], dim=1).numpy(), pairs, look)
    for node, name in enumerate(names):
        x, align = (-0.55, "right") if node < first else (0.85, "left")
        axes.text(x, float(height[node]), name, ha=align, va="center", fontsize=6.5, parse_math=False)
    axes.set(xlim=(-1.5, 1.1), aspect="auto")


def _many(dataset: Dataset, split: str, columns: int, seed: int, heading: str) -> Figure:
    samples = dataset[split]
    classes = dataset.info.classes
    if classes and "label" in samples[0]:
        labels = torch.tensor([int(sample["label"]) for sample in (samples[row] for row in range(len(samples)))])
        rows = {classes[number]: ((labels == number).nonzero().squeeze(1), colour(number)) for number in labels.unique().tolist()}
    else:
        rows = {"": (torch.arange(len(samples)), colour(0))}
    figure = Figure(figsize=(1.35 * 2 * columns + 0.5, 1.35 * len(rows) + 0.75), facecolor="white", dpi=DPI)
    bottom, top = 0.1 / figure.get_figheight(), 1 - 0.6 / figure.get_figheight()
    grids = [
        figure.add_gridspec(len(rows), columns, left=left, right=right, bottom=bottom, top=top, wspace=0.06, hspace=0.1)
        for left, right in ((0.4 / figure.get_figwidth(), 0.51), (0.535, 1 - 0.1 / figure.get_figwidth()))
    ]
    for row, (name, (found, shade)) in enumerate(rows.items()):
        picked = found[torch.linspace(0, len(found) - 1, min(columns, len(found))).round().long()].tolist()
        for column, index in enumerate(picked):
            graph = samples[index]["graph"]
            count = graph.num_nodes
            pairs = _both_ways(graph.edge_index.cpu(), count)
            links, matrix = (figure.add_subplot(grid[row, column]) for grid in grids)
            draw_links(links, spring_positions(pairs, count, seed), pairs, Look([shade] * count, torch.ones(count, dtype=torch.bool)))
            draw_matrix(matrix, pairs, seriation(pairs, count), [shade] * count)
        middle = (grids[0][row, 0].get_position(figure).y0 + grids[0][row, 0].get_position(figure).y1) / 2
        figure.text(0.13 / figure.get_figwidth(), middle, name, rotation=90, va="center", fontsize=8, color=shade, parse_math=False)
    for grid, what in zip(grids, ("graphs", "their adjacency matrices, by degree; of graphs in two parts, by part"), strict=True):
        corner = grid[0, 0].get_position(figure)
        figure.text(corner.x0, corner.y1 + 0.06 / figure.get_figheight(), what, fontsize=7, color=GREY)
    _heading(figure, heading)
    return figure


def _sheet(widths: Sequence[float], height: float, heading: str) -> tuple[Figure, list[Axes]]:
    """A figure of square panels, each as many inches wide as its place allows, under a heading and above a legend."""
    wide, tall = sum(widths) + 0.25 * (len(widths) + 1), height + 1.0
    figure = Figure(figsize=(wide, tall), facecolor="white", dpi=DPI)
    panels, left = [], 0.25
    for width in widths:
        side = min(width, height)
        bottom = tall - 0.45 - (height + side) / 2
        panels.append(figure.add_axes((left / wide, bottom / tall, width / wide, side / tall)))
        left += width + 0.25
    _heading(figure, heading)
    return figure, panels


def _heading(figure: Figure, text: str) -> None:
    figure.text(
        0.15 / figure.get_figwidth(), 1 - 0.12 / figure.get_figheight(), text, fontsize=10, weight="bold", va="top", parse_math=False
    )


def _caption(axes: Axes, text: str) -> None:
    axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top", fontsize=7, color=GREY)


def _legend(figure: Figure, dataset: Dataset, known: Tensor, here: Tensor, split: str, types: Mapping[str, tuple[str, str]]) -> None:
    """Classes by colour, other types of node by marker, and what is pale."""
    names = dict(enumerate(dataset.info.classes))
    entries: list[tuple[str, dict[str, Any]]] = []
    for number in known.unique().tolist():
        shade = colour(number) if number >= 0 else UNKNOWN
        entries.append((names.get(number, "no label"), {"marker": "o", "color": shade}))
    entries += [(kind, {"marker": marker, "color": shade}) for kind, (shade, marker) in types.items()]
    if not here.all():
        pale = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": "#555555"}
        entries.append((f"pale: not in {split}", pale))
    marks = [Line2D([], [], linestyle="none", markersize=5, label=name, **style) for name, style in entries]
    figure.legend(
        handles=marks, loc="lower center", ncols=min(len(marks), 8), fontsize=7, frameon=False, handletextpad=0.2, columnspacing=1.2
    )
