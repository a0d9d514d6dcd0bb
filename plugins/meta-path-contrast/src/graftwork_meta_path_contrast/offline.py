"""Two typed graphs that need no network: scenes of handwritten digits, and the help topics of CPython."""

from __future__ import annotations

import pydoc
import re
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from graftwork_testbed.graphs.extra import need
from graftwork_testbed.scenes.dataset import digit_scenes
from graftwork_testbed.scenes.vocabulary import COLOURS, RELATIONS
from graftwork_testbed.text.pydoc_topics import AREAS, load_topics

__all__ = ["PYDOC_PATHS", "SCENE_PATHS", "pydoc_graph", "scene_graph"]

SCENE_PATHS = {"SDS": ("scene", "digit", "scene"), "SCS": ("scene", "colour", "scene"), "STS": ("scene", "texture", "scene")}
PYDOC_PATHS = {"TWT": ("topic", "word", "topic"), "TTT": ("topic", "topic", "topic")}

BINS = 16
"""Of the histogram that is a scene's features."""

WORD = re.compile(r"[a-z_]{3,}")


def scene_graph(scenes: int = 900, noise: float = 0.3, seed: int = 0) -> tuple[Any, Tensor, tuple[str, ...]]:
    """`digit-scenes` on textures as a graph: a scene has digits, colours, a texture, and relations between its digits.

    A scene's class is the texture behind it. Its link to a texture node is a wrong one with probability `noise`, so that neither the link
    nor the features settle the class: `x` of a scene is a histogram of its grey levels, digits and all, in 16 bins. The other types
    have no features.

    Args:
        scenes: how many; of digits, places and textures that other splits of the scenes do not have.
        noise: probability that a scene is linked to a texture drawn at random.
        seed: of scenes and links.

    Returns:
        A `HeteroData` with types scene, digit, colour, texture, relation; (N,) long labels; the textures' names.

    Raises:
        ValueError: if a parameter is out of range.
    """
    if scenes < 12:
        raise ValueError(f"scenes must be at least 12, twice the textures; found {scenes}")
    if not 0 <= noise <= 1:
        raise ValueError(f"noise must be 0 to 1; found {noise}")
    data = digit_scenes(backgrounds="textures", label="background", muting=0.5, train=scenes, val=1, test=1, seed=seed)
    columns, counts = data["train"].columns, data["train"].counts  # type: ignore[attr-defined]
    labels, classes = columns["label"].long(), data.info.classes
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(scenes, generator=generator) < noise
    textures = torch.where(wrong, torch.randint(len(classes), (scenes,), generator=generator), labels)
    slots = torch.arange(columns["labels"].shape[1]) < counts[:, None]
    owner = torch.arange(scenes)[:, None].expand_as(slots)[slots]
    pairs = counts * (counts - 1) // 2
    related = torch.arange(columns["relation"].shape[1]) < pairs[:, None]
    relation_owner = torch.arange(scenes)[:, None].expand_as(related)[related]
    graph = need("torch_geometric.data").HeteroData()
    graph["scene"].x = _appearance(columns["image"])
    for kind, count in (("digit", 10), ("colour", len(COLOURS)), ("texture", len(classes)), ("relation", len(RELATIONS))):
        graph[kind].num_nodes = count
    for kind, source, target in (
        ("digit", owner, columns["labels"][slots]),
        ("colour", owner, columns["colours"][slots]),
        ("texture", torch.arange(scenes), textures),
        ("relation", relation_owner, columns["relation"][related][:, 1]),
    ):
        graph["scene", "has", kind].edge_index = torch.unique(torch.stack([source, target.long()]), dim=1)
    return graph, labels, classes


def pydoc_graph(min_count: int = 2) -> tuple[Any, Tensor, tuple[str, ...]]:
    """CPython's help topics as a graph: topics have words, and point to one another where pydoc says "Related help topics".

    A topic's class is its area of the language; `x` of a topic counts its words. Topics of no known area are left out.

    Args:
        min_count: topics that a word must be in to be a node; a word in more than half of them is none either.

    Returns:
        A `HeteroData` with types topic and word; (N,) long labels; the areas' names.

    Raises:
        ValueError: if `min_count` is below 1.
    """
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1; found {min_count}")
    areas = tuple(AREAS)
    topics = [topic for topic in load_topics() if topic.area in areas]
    bags = [Counter(WORD.findall(" ".join(topic.paragraphs).lower())) for topic in topics]
    spread = Counter(word for bag in bags for word in bag)
    words = sorted(word for word, count in spread.items() if min_count <= count <= len(topics) // 2)
    column = {word: number for number, word in enumerate(words)}
    found = [(row, column[word], count) for row, bag in enumerate(bags) for word, count in bag.items() if word in column]
    row, place, count = torch.tensor(sorted(found)).T
    graph = need("torch_geometric.data").HeteroData()
    graph["topic"].x = torch.zeros(len(topics), len(words)).index_put_((row, place), count.float())
    graph["word"].num_nodes = len(words)
    graph["topic", "has", "word"].edge_index = torch.stack([row, place])
    graph["topic", "see_also", "topic"].edge_index = _see_also({topic.name: number for number, topic in enumerate(topics)})
    return graph, torch.tensor([areas.index(topic.area) for topic in topics]), areas


def _appearance(images: Tensor) -> Tensor:
    """(N, 3, H, W) bytes to (N, BINS): the shares of grey levels, in which the digits are too."""
    grey = images.float().mean(dim=1).flatten(1) / 255
    bins = (grey * BINS).long().clamp(0, BINS - 1)
    return torch.zeros(len(grey), BINS).scatter_add_(1, bins, torch.ones_like(grey)) / grey.shape[1]


def _see_also(number: dict[str, int]) -> Tensor:
    """(2, E) pairs of topics that pydoc relates, in both directions."""
    names: dict[str, Any] = {**pydoc.Helper.topics, **pydoc.Helper.keywords, **pydoc.Helper.symbols}

    def resolved(name: str) -> tuple[str, str]:
        target = names.get(name, name)
        if isinstance(target, str) and target in names and target != name:
            return resolved(target)
        return (target, "") if isinstance(target, str) else target

    pairs = {
        (number[topic], number[other])
        for topic, related in map(resolved, sorted(names))
        for other, _ in map(resolved, related.split())
        if topic in number and other in number and topic != other
    }
    return torch.tensor(sorted(pairs | {(b, a) for a, b in pairs})).T.reshape(2, -1)
