"""What this distribution registers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_datasets", "graftwork_evaluators", "graftwork_models", "graftwork_objectives"]

HERE = "graftwork_meta_path_contrast"
MEOW = Paper(
    "Heterogeneous Graph Contrastive Learning with Meta-path Contexts and Adaptively Weighted Negative Samples",
    arxiv="2212.13847",
    year=2023,
    venue="SDM",
)
PCL = Paper("Prototypical Contrastive Learning of Unsupervised Representations", arxiv="2005.04966", year=2021, venue="ICLR")
GRAPH = {"use": "academic-network", "papers": 60, "authors": 50, "terms": 30, "venues": 4}
VIEWS = {"use": "meta-path-views", "data": GRAPH, "top_k": 10}


@hookimpl
def graftwork_datasets() -> Iterator[Component]:
    """Typed graphs, and what meta-paths make of them."""
    yield Component(
        "hetero-graph",
        f"{HERE}.dataset:hetero_graph",
        "A typed graph with 20, 40 or 60 labels a class: official folders, any HeteroData, offline graphs",
        MEOW,
        {"graph": "pydoc-topics"},
    )
    yield Component(
        "meta-path-views",
        f"{HERE}.views:MetaPathViewDataset",
        "What meta-paths make of a typed graph: filtered adjacencies, contexts, masks",
        MEOW,
        {"data": GRAPH, "top_k": 10},
    )


@hookimpl
def graftwork_models() -> Iterator[Component]:
    """The encoder, and two to hold it against."""
    yield Component(
        "meta-path-encoder", f"{HERE}.models:meta_path_encoder", "Coarse and fine embeddings of one node type", MEOW, {"data": VIEWS}
    )
    yield Component(
        "coarse-graph-encoder",
        f"{HERE}.models:coarse_graph_encoder",
        "A GCN on the mean meta-path graph and its masked copy: no contexts, no paths apart",
        MEOW,
        {"data": VIEWS},
    )
    yield Component("node-features", f"{HERE}.models:NodeFeatures", "A node's own features as its embedding: nothing is learned", MEOW)


@hookimpl
def graftwork_objectives() -> Iterator[Component]:
    """MEOW, AdaMEOW and the prototype loss."""
    yield Component("meow", f"{HERE}.objective:Meow", "Contrast coarse and fine views; negatives weighed by clusterings", MEOW)
    yield Component("adameow", f"{HERE}.objective:AdaMeow", "Contrast fine and coarse views; a network weighs the negatives", MEOW)
    yield Component("prototype-contrast", f"{HERE}.objective:PrototypeContrast", "Draw embeddings to the centres of their clusters", PCL)


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """What node embeddings, and the weights of negatives, are good for."""
    yield Component(
        "node-classification-probe", f"{HERE}.probe:NodeClassificationProbe", "Macro-F1, Micro-F1 and AUC of logistic regression", MEOW
    )
    yield Component("node-clustering", f"{HERE}.node_clustering:NodeClustering", "NMI and ARI of k-means on embeddings", MEOW)
    yield Component(
        "negative-weight-analysis", f"{HERE}.negative_weights:NegativeWeightAnalysis", "Do false negatives get smaller weights?", MEOW
    )
