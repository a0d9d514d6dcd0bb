"""What the test bed registers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graftwork import Component, Paper, hookimpl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graftwork import Dataset

__all__ = ["graftwork_dataset_figure", "graftwork_datasets", "graftwork_models"]

BM25 = Paper(
    "The Probabilistic Relevance Framework: BM25 and Beyond",
    year=2009,
    venue="Foundations and Trends in Information Retrieval",
    url="https://doi.org/10.1561/1500000019",
)

DANN = Paper("Domain-Adversarial Training of Neural Networks", arxiv="1505.07818", year=2016, venue="JMLR")
LFW = Paper(
    "Labeled Faces in the Wild: A Database for Studying Face Recognition in Unconstrained Environments",
    year=2007,
    venue="University of Massachusetts, Amherst, Technical Report 07-49",
    url="http://vis-www.cs.umass.edu/lfw/",
)
MINILM = Paper(
    "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
    arxiv="2002.10957",
    year=2020,
    venue="NeurIPS",
)
SIMILARITY = Paper(
    "SemEval-2017 Task 1: Semantic Textual Similarity Multilingual and Crosslingual Focused Evaluation", arxiv="1708.00055", year=2017
)
LARS = Paper("Least Angle Regression", arxiv="math/0406456", year=2004, venue="Annals of Statistics")

KARATE = Paper(
    "An Information Flow Model for Conflict and Fission in Small Groups",
    year=1977,
    venue="Journal of Anthropological Research",
    url="https://doi.org/10.1086/jar.33.4.3629752",
)
COMMUNITIES = Paper("Finding community structure in very large networks", arxiv="cond-mat/0408187", year=2004, venue="Physical Review E")
WOMEN = Paper(
    "Finding Social Groups: A Meta-Analysis of the Southern Women Data",
    year=2003,
    venue="Dynamic Social Network Modeling and Analysis",
    url="http://moreno.ss.uci.edu/86.pdf",
)
BLOCKS = Paper(
    "Stochastic blockmodels: First steps", year=1983, venue="Social Networks", url="https://doi.org/10.1016/0378-8733(83)90021-7"
)
GRAPHONS = Paper("A Consistent Histogram Estimator for Exchangeable Graph Models", arxiv="1402.1888", year=2014, venue="ICML")
ACADEMIC = Paper("Heterogeneous Graph Attention Network", arxiv="1903.07293", year=2019, venue="WWW")
PYG = Paper("Fast Graph Representation Learning with PyTorch Geometric", arxiv="1903.02428", year=2019)


@hookimpl
def graftwork_datasets() -> Iterator[Component]:
    """The data sets of the test bed."""
    yield Component("digits", "graftwork_testbed.handwriting:digits", "1,797 handwritten digits; optionally unseen classes for testing")
    yield Component("digit-domains", "graftwork_testbed.domains:digit_domains", "The digits in up to six domains", DANN)
    yield Component(
        "digit-scenes", "graftwork_testbed.scenes.dataset:digit_scenes", "Coloured digits on photographs, boxes, masks, captions"
    )
    few = {"data": {"use": "digit-scenes", "train": 16, "val": 4, "test": 4}}
    yield Component("scene-pairs", "graftwork_testbed.scenes.pairs:ScenePairs", "Pictures in two looks, paired or not", example=few)
    yield Component("photos", "graftwork_testbed.photographs:photos", "Crops of nine natural photographs")
    yield Component("textures", "graftwork_testbed.texture_crops:textures", "Grey crops of six surfaces, labelled by surface")
    yield Component(
        "medical-patches", "graftwork_testbed.medical:medical_patches", "Crops of four medical pictures, two with masks by rule"
    )
    yield Component("faces", "graftwork_testbed.face_patches:faces", "100 faces and 100 other patches, whole or as two halves", LFW)
    yield Component("shifted-moons", "graftwork_testbed.moons:shifted_moons", "Twin moons, and the same rotated as the target domain", DANN)
    yield Component("diabetes", "graftwork_testbed.tabular:diabetes", "442 patients, ten measurements, progression to regress", LARS)
    yield from _texts()
    yield from _graphs()


def _graphs() -> Iterator[Component]:
    here = "graftwork_testbed.graphs"
    cora = {"root": "cora", "name": "Planetoid", "settings": {"name": "Cora"}}
    yield Component("karate", f"{here}.social:karate", "34 members of a karate club, by the club they joined or by community", KARATE)
    yield Component("les-miserables", f"{here}.social:les_miserables", "77 characters of a novel, by community", COMMUNITIES)
    yield Component("davis-women", f"{here}.social:davis_women", "18 women and 14 events, a bipartite graph, by clique", WOMEN)
    yield Component("stochastic-block-model", f"{here}.blocks:stochastic_block_model", "A graph with planted communities", BLOCKS)
    yield Component("graphon", f"{here}.graphons:graphon", "Graphs drawn from graphons, by graphon", GRAPHONS)
    yield Component(
        "academic-network", f"{here}.academic:academic_network", "Authors, papers, venues and terms, by research area", ACADEMIC
    )
    yield Component("pyg-dataset", f"{here}.pyg_datasets:pyg_dataset", "PyG's own data sets from a local folder, safely", PYG, cora)
    yield Component(
        "edge-list", f"{here}.edge_lists:edge_list", "A graph from CSV files of edges and labels", example={"edges": "edges.csv"}
    )


def _texts() -> Iterator[Component]:
    text, sentences = "graftwork_testbed.text", {"data": {"use": "template-text", "samples": 400}}
    yield Component("pydoc-text", f"{text}.pydoc_text:pydoc_text", "CPython's help topics: prose by area of the language, or token blocks")
    yield Component("docstring-text", f"{text}.docstrings:docstring_text", "Docstrings of the standard library in six areas")
    yield Component("template-text", f"{text}.template_text:template_text", "Sentences with sentiment, formality and topic, by a grammar")
    yield Component("paraphrase-pairs", f"{text}.paraphrases:paraphrase_pairs", "Pairs of sentences with their similarity", SIMILARITY)
    yield Component("query-passage", f"{text}.retrieval:query_passage", "Help topics to retrieve, with hard negatives", BM25)
    yield Component("text-blocks", f"{text}.blocks:TextBlocks", "Texts joined and cut into blocks of tokens", example=sentences)
    yield Component("tokenized", f"{text}.blocks:Tokenized", "Texts with their tokens, cut or padded to one length", example=sentences)


@hookimpl
def graftwork_models() -> Iterator[Component]:
    """The models of the test bed that others trained."""
    yield Component("minilm", "graftwork_testbed.text.minilm:minilm", "The sentence encoder all-MiniLM-L6-v2, without the Hub", MINILM)


@hookimpl(trylast=True)
def graftwork_dataset_figure(dataset: Dataset, split: str) -> Figure:
    """A contact sheet; the last resort, which says what it cannot draw."""
    from graftwork_testbed.sheets.contact import contact_sheet

    return contact_sheet(dataset, split)
