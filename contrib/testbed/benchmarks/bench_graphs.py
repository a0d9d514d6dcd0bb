"""What graph data sets cost: building each, and drawing a stochastic block model against networkx."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import networkx
import pytest
import torch

from graftwork_testbed import academic_network, graphon, karate, les_miserables, meta_path_adjacency, stochastic_block_model
from graftwork_testbed.graphs import sample_stochastic_block_model

pytestmark = pytest.mark.bench

SPARSE, DENSE = (5000, 0.01, 0.002), (2000, 0.3, 0.15)
"""Nodes, and the probability of an edge inside a block and between two."""


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.parametrize(
    "build", [karate, les_miserables, stochastic_block_model, graphon, academic_network], ids=lambda build: build.__name__
)
def bench_building(build):
    build()
    median = statistics.median(seconds(build) for _ in range(5))
    print(f"{build.__name__}: {median:.3f} s")
    assert median < 2


@pytest.mark.parametrize(("nodes", "inside", "between"), [SPARSE, DENSE], ids=["sparse", "dense"])
def bench_a_block_model_is_drawn_faster_than_by_networkx(nodes, inside, between):
    sizes = [nodes // 4] * 4
    chance = torch.full((4, 4), between, dtype=torch.float64).fill_diagonal_(inside)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = [], []
    for seed in range(5):  # interleaved
        ours.append(seconds(lambda: sample_stochastic_block_model(sizes, chance, generator)))
        theirs.append(seconds(lambda seed=seed: networkx.stochastic_block_model(sizes, chance.tolist(), seed=seed)))
    edges = sample_stochastic_block_model(sizes, chance, generator).shape[1] // 2
    ratio = statistics.median(theirs) / statistics.median(ours)
    took = f"{1e3 * statistics.median(ours):.0f} ms, {ratio:.1f} times faster than networkx {networkx.__version__}"
    print(f"{nodes:,} nodes, {edges:,} edges: {took}")
    assert ratio > 1


@pytest.mark.parametrize("target", ["paper", "author"])
def bench_meta_paths(target):
    graph = academic_network(target)["train"][0]["graph"]
    for name in graph.meta_paths:
        median = statistics.median(seconds(lambda name=name: meta_path_adjacency(graph, name)) for _ in range(5))
        print(f"{name} of {graph[target].num_nodes:,} {target}s: {1e3 * median:.0f} ms")
        assert median < 2
