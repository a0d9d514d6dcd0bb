"""What this distribution registers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_evaluators", "graftwork_objectives"]

HERE = "graftwork_multi_similarity"
PAPER = Paper("Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", arxiv="1904.06627", year=2019, venue="CVPR")


@hookimpl
def graftwork_objectives() -> Iterator[Component]:
    """Embeddings from labels."""
    yield Component(
        "multi-similarity", f"{HERE}.objective:MultiSimilarity", "Learn embeddings from mined pairs weighed by three similarities", PAPER
    )
    yield Component("pair-weighting", f"{HERE}.objective:PairWeighting", "Learn embeddings with any loss over pairs, mined or not", PAPER)


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """The analysis of pair losses."""
    yield Component(
        "pair-weights", f"{HERE}.evaluator:PairWeights", "How losses weigh the pairs of a batch, and what each reacts to", PAPER
    )
