"""A heterogeneous academic network: authors who write papers, which appear at venues and have terms in their titles.

The types and meta-paths are those of the DBLP and ACM graphs of the literature (HAN, https://arxiv.org/abs/1903.07293; MAGNN,
https://arxiv.org/abs/2002.01680; HeCo, https://arxiv.org/abs/2105.09111); everything in it is drawn, as follows.

Papers, authors, venues and terms are of one area each, as evenly as their numbers allow, in random order. A paper appears at one
venue, drawn from its own area's with probability `homophily` and otherwise from all; each of its 1 + Poisson authors is drawn
likewise. Every author also has one paper, drawn likewise, so that nobody is without. Venues are drawn by Zipf's law (weight
1 / rank), authors in proportion to a productivity with a power-law tail (Lotka, Journal of the Washington Academy of Sciences 16,
1926), so degrees are as uneven as in real bibliographies. A paper's words, Poisson in number and at least `title_words`, are each
drawn from its area's terms with probability 1 - `term_noise` and otherwise from the whole vocabulary, both by Zipf's law, ranked
apart; the distinct ones of the first `title_words` are the paper's `term` nodes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from graftwork import Dataset, DatasetInfo
from graftwork_testbed.graphs.extra import need
from graftwork_testbed.graphs.samples import TrainPerClass, node_dataset, split_nodes, within
from graftwork_testbed.splits import Fraction, Seed

__all__ = ["AREAS", "META_PATHS", "academic_network"]

AREAS = (
    "databases",
    "data mining",
    "artificial intelligence",
    "information retrieval",
    "computer vision",
    "networks",
    "theory",
    "security",
)
"""Research areas, in the order of their labels; the first four are DBLP's."""

META_PATHS: dict[str, dict[str, tuple[str, ...]]] = {
    "paper": {"PAP": ("paper", "author", "paper"), "PVP": ("paper", "venue", "paper"), "PTP": ("paper", "term", "paper")},
    "author": {
        "APA": ("author", "paper", "author"),
        "APVPA": ("author", "paper", "venue", "paper", "author"),
        "APTPA": ("author", "paper", "term", "paper", "author"),
    },
}
"""Target type -> name -> node types along the meta-path."""

LARGEST_BAG = 100_000_000
"""Entries of the papers' dense features at most: 0.4 GB."""


def academic_network(
    target: Literal["paper", "author"] = "paper",
    papers: Annotated[int, Field(ge=40, le=200_000)] = 1500,
    authors: Annotated[int, Field(ge=40, le=200_000)] = 1000,
    venues: Annotated[int, Field(ge=2, le=1000)] = 16,
    terms: Annotated[int, Field(ge=20, le=20_000)] = 400,
    areas: Annotated[int, Field(ge=2, le=8)] = 4,
    homophily: Annotated[float, Field(ge=0, le=1)] = 0.7,
    term_noise: Annotated[float, Field(ge=0, le=1)] = 0.85,
    authors_per_paper: Annotated[float, Field(ge=1, le=50)] = 3.0,
    words_per_paper: Annotated[float, Field(ge=1, le=1000)] = 20.0,
    title_words: Annotated[int, Field(ge=1, le=100)] = 6,
    productivity_exponent: Annotated[float, Field(gt=1, le=10)] = 3.0,
    features: Literal["bag-of-terms", "none"] = "bag-of-terms",
    train_per_class: TrainPerClass = None,
    val_fraction: Fraction = 0.2,
    test_fraction: Fraction = 0.4,
    seed: Seed = 0,
) -> Dataset:
    """Draw an academic network as a `HeteroData`; the class of a paper or author is its research area.

    Node types `paper`, `author`, `venue`, `term`; edge types (author, writes, paper), (paper, published_in, venue),
    (paper, has_term, term) and their reverses, named `rev_...`. `graph.target_type` is the labelled type and `graph.meta_paths` its
    usual meta-paths (`META_PATHS`), which `meta_path_adjacency` follows. With "bag-of-terms", `x` of a paper counts its words, `x` of
    an author is the mean over the author's papers, and `x` of venues and terms is the identity.

    Args:
        target: the type of node that has classes.
        papers: number of papers.
        authors: number of authors.
        venues: number of venues, at least one for each area.
        terms: size of the vocabulary.
        areas: number of areas, the first of `AREAS`.
        homophily: probability that a link is drawn inside an area; at 0 neither venues nor authors say anything of it.
        term_noise: probability that a word is drawn regardless of the area; at 1 no word says anything of it.
        authors_per_paper: expected authors of a paper, before each author's own paper is added and repetitions are merged.
        words_per_paper: expected words of a paper.
        title_words: words that become edges to terms.
        productivity_exponent: of the power law of authors' productivities; smaller is more uneven, and Lotka's own is 2.
        features: "bag-of-terms", or "none".
        train_per_class: training nodes of each class, the others being val and test; by default the fractions say.
        val_fraction: share of each class that goes to val.
        test_fraction: share of each class that goes to test.
        seed: of everything.

    Raises:
        ValueError: if a parameter is out of range.
    """
    _check_choices(target, features)
    counts = {"paper": papers, "author": authors, "venue": venues, "term": terms}
    _check_numbers(counts, areas, (homophily, term_noise), (authors_per_paper, words_per_paper, title_words), productivity_exponent, seed)
    if features != "none" and papers * terms > LARGEST_BAG:
        raise ValueError(f"features of {papers:,} papers x {terms:,} terms are more than {LARGEST_BAG:,} numbers: set features to none")
    generator = torch.Generator().manual_seed(seed)
    area = {kind: torch.randperm(count, generator=generator) % areas for kind, count in counts.items()}
    writes = _authorship(area, homophily, authors_per_paper, productivity_exponent, generator)
    popularity = _zipf(venues, generator)
    published = torch.stack([torch.arange(papers), _linked(area["paper"], area["venue"], popularity, popularity, homophily, generator)])
    words, titles = _words(area, term_noise, words_per_paper, title_words, generator)
    edges = {("author", "writes", "paper"): writes, ("paper", "published_in", "venue"): published, ("paper", "has_term", "term"): titles}
    graph = _assembled(counts, edges)
    if features == "bag-of-terms":
        bag = torch.bincount(words, minlength=papers * terms).view(papers, terms).float()
        graph["paper"].x = bag
        graph["author"].x = _mean_over(bag, writes, authors)
        graph["venue"].x, graph["term"].x = torch.eye(venues), torch.eye(terms)
    graph.target_type, graph.meta_paths = target, dict(META_PATHS[target])
    labels = area[target]
    info = DatasetInfo(
        classes=AREAS[:areas],
        features=terms if features == "bag-of-terms" else 0,
        description=f"A drawn academic network; the class of {'a paper' if target == 'paper' else 'an author'} is the research area",
    )
    return node_dataset(graph, labels, split_nodes(labels, val_fraction, test_fraction, train_per_class, seed), info)


def _check_choices(target: str, features: str) -> None:
    if target not in META_PATHS:
        raise ValueError(f"target must be paper or author; found {target!r}")
    if features not in ("bag-of-terms", "none"):
        raise ValueError(f"features must be bag-of-terms or none; found {features!r}")


def _check_numbers(
    counts: dict[str, int], areas: int, shares: tuple[float, float], means: tuple[float, float, int], exponent: float, seed: int
) -> None:
    within("areas", areas, 2, len(AREAS))
    for kind, least, most in (("paper", 40, 200_000), ("author", 40, 200_000), ("venue", areas, 1000), ("term", 20, 20_000)):
        within(f"{kind}s", counts[kind], least, most)
    for name, share in zip(("homophily", "term_noise"), shares, strict=True):
        within(name, share, 0, 1)
    for name, mean in zip(("authors_per_paper", "words_per_paper", "title_words"), means, strict=True):
        within(name, mean, 1)
    if not exponent > 1:
        raise ValueError(f"productivity_exponent must be greater than 1; found {exponent}")
    within("seed", seed, 0)


def _assembled(counts: dict[str, int], edges: dict[tuple[str, str, str], Tensor]) -> Any:
    """A HeteroData of these nodes and edges, and of the edges reversed."""
    graph = need("torch_geometric.data").HeteroData()
    for kind, count in counts.items():
        graph[kind].num_nodes = count
    for (source, relation, target), pairs in edges.items():
        order = (pairs[0] * counts[target] + pairs[1]).argsort()
        graph[source, relation, target].edge_index = pairs[:, order]
        order = (pairs[1] * counts[source] + pairs[0]).argsort()
        graph[target, f"rev_{relation}", source].edge_index = pairs.flip(0)[:, order]
    return graph


def _zipf(count: int, generator: torch.Generator) -> Tensor:
    """(count,) weights 1 / rank, the ranks in random order."""
    return 1.0 / (torch.randperm(count, generator=generator) + 1.0)


def _power_law(count: int, exponent: float, generator: torch.Generator) -> Tensor:
    """(count,) weights >= 1 whose density falls as weight^-exponent: the law's evenly spaced quantiles, in random order."""
    quantiles = (torch.randperm(count, generator=generator) + 0.5) / count
    return quantiles ** (-1 / (exponent - 1))


def _linked(own: Tensor, areas: Tensor, weights: Tensor, overall: Tensor, homophily: float, generator: torch.Generator) -> Tensor:
    """One node for each of (S,) areas: of that area by `weights` with probability `homophily`, otherwise any by `overall`.

    Args:
        own: (S,) long areas to draw for.
        areas: (N,) long areas of the nodes.
        weights: (N,) positive, within an area.
        overall: (N,) positive, among all.
        homophily: in [0, 1].
        generator: draws.

    Returns:
        (S,) long in 0..N-1.
    """
    group = torch.where(torch.rand(len(own), generator=generator) < homophily, own, -1)
    drawn = torch.empty_like(own)
    for area in range(-1, int(areas.max()) + 1):
        slots = (group == area).nonzero().squeeze(1)
        if len(slots):
            chance = overall if area < 0 else weights * (areas == area)
            drawn[slots] = torch.multinomial(chance, len(slots), replacement=True, generator=generator)
    return drawn


def _authorship(area: dict[str, Tensor], homophily: float, mean: float, exponent: float, generator: torch.Generator) -> Tensor:
    """(2, E) distinct pairs of author and paper."""
    papers, authors = len(area["paper"]), len(area["author"])
    team = 1 + torch.poisson(torch.full((papers,), mean - 1), generator=generator).long()
    paper = torch.arange(papers).repeat_interleave(team)
    productivity = _power_law(authors, exponent, generator)
    author = _linked(area["paper"][paper], area["author"], productivity, productivity, homophily, generator)
    alike = torch.ones(papers)
    own = _linked(area["author"], area["paper"], alike, alike, homophily, generator)
    codes = torch.cat([author * papers + paper, torch.arange(authors) * papers + own]).unique()
    return torch.stack([codes // papers, codes % papers])


def _words(area: dict[str, Tensor], noise: float, mean: float, title: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each word as paper x T + term, (W,) long; and (2, E) distinct pairs of paper and title word."""
    papers, terms = len(area["paper"]), len(area["term"])
    lengths = torch.poisson(torch.full((papers,), float(mean)), generator=generator).long().clamp(min=title)
    paper = torch.arange(papers).repeat_interleave(lengths)
    topical, common = _zipf(terms, generator), _zipf(terms, generator)
    words = paper * terms + _linked(area["paper"][paper], area["term"], topical, common, 1 - noise, generator)
    position = torch.arange(len(paper)) - (lengths.cumsum(0) - lengths)[paper]
    titles = words[position < title].unique()
    return words, torch.stack([titles // terms, titles % terms])


def _mean_over(bag: Tensor, writes: Tensor, authors: int) -> Tensor:
    """(A, T) mean of each author's papers' rows."""
    total = torch.zeros(authors, bag.shape[1]).index_add_(0, writes[0], bag[writes[1]])
    return total / torch.bincount(writes[0], minlength=authors).unsqueeze(1)
