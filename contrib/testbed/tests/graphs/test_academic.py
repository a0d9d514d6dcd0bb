from __future__ import annotations

import pytest
import torch

from graftwork_testbed.graphs import AREAS, academic_network

LARGE = {"papers": 8000, "authors": 4000, "venues": 12, "terms": 200, "features": "none"}


def whole(data):
    graph = data["train"][0]["graph"]
    labels = torch.empty(graph[graph.target_type].num_nodes, dtype=torch.long)
    for samples in data.values():
        labels[samples[0]["nodes"]] = samples[0]["label"]
    return graph, labels


def both(**parameters):
    """The graph, and the areas of its papers and of its authors: the target decides what is labelled and not what is drawn."""
    graph, papers = whole(academic_network("paper", **parameters))
    same, authors = whole(academic_network("author", **parameters))
    assert all(graph[kind].edge_index.equal(same[kind].edge_index) for kind in graph.edge_types)
    return graph, papers, authors


def test_types_sizes_and_classes():
    data = academic_network(papers=200, authors=100, venues=7, terms=50, areas=3)
    graph, labels = whole(data)
    assert {kind: graph[kind].num_nodes for kind in graph.node_types} == {"paper": 200, "author": 100, "venue": 7, "term": 50}
    assert data.info.classes == AREAS[:3] == ("databases", "data mining", "artificial intelligence")
    assert sorted(labels.bincount().tolist()) == [66, 67, 67]
    assert set(graph.edge_types) == {
        ("author", "writes", "paper"),
        ("paper", "rev_writes", "author"),
        ("paper", "published_in", "venue"),
        ("venue", "rev_published_in", "paper"),
        ("paper", "has_term", "term"),
        ("term", "rev_has_term", "paper"),
    }
    assert graph.target_type == "paper"


def test_every_paper_has_one_venue_and_authors_and_every_author_a_paper():
    graph, _ = whole(academic_network(papers=300, authors=250, terms=50))
    writes = graph["author", "writes", "paper"].edge_index
    assert graph["paper", "published_in", "venue"].edge_index[0].equal(torch.arange(300))
    assert torch.bincount(writes[0], minlength=250).min() >= 1
    assert torch.bincount(writes[1], minlength=300).min() >= 1
    terms = torch.bincount(graph["paper", "has_term", "term"].edge_index[0], minlength=300)
    assert terms.min() >= 1
    assert terms.max() <= 6


@pytest.mark.parametrize("homophily", [0.0, 0.6, 1.0])
def test_links_stay_inside_an_area_as_often_as_homophily_says(homophily):
    """A link is inside with probability h + (1 - h) q, where q is the share of the area by weight; q is taken from the h = 0 graph."""
    graph, papers, _ = both(**LARGE, homophily=homophily)
    base, _, _ = both(**LARGE, homophily=0.0)
    venue = graph["paper", "published_in", "venue"].edge_index[1]
    drawn = base["paper", "published_in", "venue"].edge_index[1]
    area = venue_areas()
    share = torch.bincount(area[drawn], minlength=4) / len(drawn)
    expected = (homophily + (1 - homophily) * share[papers]).mean()
    seen = (area[venue] == papers).float().mean()
    assert abs(seen - expected) < 4.5 * (0.25 / 8000) ** 0.5 * 2


def venue_areas():
    """Each venue's area, read off a graph in which every paper is at one of its own."""
    graph, papers, _ = both(**LARGE, homophily=1.0)
    venue = graph["paper", "published_in", "venue"].edge_index[1]
    areas = torch.full((12,), -1)
    areas[venue] = papers
    assert (areas[venue] == papers).all()
    return areas


def test_authors_write_inside_their_area_at_full_homophily_and_anywhere_at_none():
    for homophily, low, high in ((1.0, 1.0, 1.0), (0.0, 0.2, 0.3)):
        graph, papers, authors = both(**LARGE, homophily=homophily)
        author, paper = graph["author", "writes", "paper"].edge_index
        assert low <= (authors[author] == papers[paper]).float().mean() <= high


def test_terms_tell_the_area_without_noise_and_nothing_with_noise_alone():
    def spread(noise):
        graph, papers, _ = both(**LARGE, term_noise=noise)
        paper, term = graph["paper", "has_term", "term"].edge_index
        table = torch.zeros(200, 4).index_put_((term, papers[paper]), torch.ones(len(term)), accumulate=True)
        return table[table.sum(1) > 200]

    assert (spread(0.0) > 0).sum(1).eq(1).all()  # each term in one area only
    table = spread(1.0)
    expected = table.sum(1, keepdim=True) / 4
    assert ((table - expected).abs() < 5 * expected.sqrt()).all()


def test_authors_degrees_have_a_power_law_tail_and_papers_do_not():
    """Hill's estimator of the tail index over the 200 most productive; a density with exponent 3 has index 2."""
    graph, _, _ = both(**LARGE | {"papers": 30_000}, homophily=0.0)
    writes = graph["author", "writes", "paper"].edge_index
    top = torch.bincount(writes[0]).sort(descending=True).values[:201].double()
    assert 1 / (top[:200] / top[200]).log().mean() == pytest.approx(2.0, rel=0.2)
    team = torch.bincount(writes[1])
    assert team.max() < 5 * team.float().mean()


def test_fewer_authors_write_most_when_the_exponent_is_small():
    def share(exponent):
        graph, _, _ = both(**LARGE, productivity_exponent=exponent)
        papers = torch.bincount(graph["author", "writes", "paper"].edge_index[0]).sort(descending=True).values
        return papers[:40].sum() / papers.sum()

    assert share(2.0) > 2 * share(3.0) > 2 * share(6.0)


def test_papers_have_as_many_authors_as_asked():
    graph, _, _ = both(**LARGE, authors_per_paper=4.0)
    edges = graph["author", "writes", "paper"].edge_index.shape[1]
    assert 0.85 * (4 * 8000 + 4000) < edges <= 1.02 * (4 * 8000 + 4000)  # repetitions are merged


def test_features_are_bags_of_the_terms_that_papers_are_linked_to():
    graph, _ = whole(academic_network(papers=120, authors=80, terms=60, words_per_paper=15))
    paper, term = graph["paper", "has_term", "term"].edge_index
    assert (graph["paper"].x[paper, term] >= 1).all()
    words = graph["paper"].x.sum(1)
    assert words.min() >= 6
    assert abs(words.mean() - 15) < 4.5 * (15 / 120) ** 0.5
    author, written = graph["author", "writes", "paper"].edge_index
    for one in range(80):
        torch.testing.assert_close(graph["author"].x[one], graph["paper"].x[written[author == one]].mean(0))
    assert graph["venue"].x.equal(torch.eye(16))
    assert graph["term"].x.equal(torch.eye(60))


def test_a_node_s_number_says_nothing_of_its_area():
    _, labels = whole(academic_network(papers=2000, authors=100, features="none", areas=2))
    assert abs((labels[1:] != labels[:-1]).sum() - 1000) < 4.5 * 22.4


def test_without_features_there_are_none():
    data = academic_network(papers=100, authors=50, features="none")
    assert data.info.features == 0
    assert all("x" not in store for store in data["train"][0]["graph"].node_stores)


def test_the_usual_protocol_of_labels_per_class_is_taken():
    data = academic_network("author", train_per_class=20)
    assert data["train"][0]["label"].bincount().tolist() == [20] * 4


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"target": "venue"}, "target must be paper or author; found 'venue'"),
        ({"features": "glove"}, "features must be bag-of-terms or none; found 'glove'"),
        ({"areas": 9}, "areas must be 2 to 8; found 9"),
        ({"papers": 39}, "papers must be 40 to 200,000; found 39"),
        ({"authors": 10}, "authors must be 40 to 200,000; found 10"),
        ({"venues": 3}, "venues must be 4 to 1,000; found 3"),
        ({"terms": 5}, "terms must be 20 to 20,000; found 5"),
        ({"homophily": 1.2}, "homophily must be 0 to 1; found 1.2"),
        ({"term_noise": -0.1}, "term_noise must be 0 to 1; found -0.1"),
        ({"authors_per_paper": 0.5}, "authors_per_paper must be at least 1; found 0.5"),
        ({"words_per_paper": 0}, "words_per_paper must be at least 1; found 0"),
        ({"title_words": 0}, "title_words must be at least 1; found 0"),
        ({"productivity_exponent": 1.0}, "productivity_exponent must be greater than 1; found 1.0"),
        ({"seed": -3}, "seed must be at least 0; found -3"),
        ({"papers": 200_000, "terms": 20_000}, "200,000 papers x 20,000 terms are more than 100,000,000 numbers: set features to none"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        academic_network(**parameters)
