from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2
from sklearn.linear_model import LogisticRegression

from graftwork_testbed.graphs import class_features, sample_stochastic_block_model, stochastic_block_model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def whole(data):
    graph = data["train"][0]["graph"]
    labels = torch.empty(graph.num_nodes, dtype=torch.long)
    for samples in data.values():
        labels[samples[0]["nodes"]] = samples[0]["label"]
    return graph, labels


def test_certain_edges_are_there_and_impossible_ones_are_not():
    chance = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    pairs = sample_stochastic_block_model([3, 2, 2], chance, seeded())
    dense = torch.zeros(7, 7)
    dense[pairs[0], pairs[1]] = 1
    expected = torch.zeros(7, 7)
    expected[:3, :3] = 1 - torch.eye(3)
    expected[:3, 5:] = expected[5:, :3].T.copy_(torch.ones(3, 2))
    assert dense.equal(expected)


@pytest.mark.parametrize("sizes", [[1], [1, 1], [40, 1, 25]])
@pytest.mark.parametrize("chance", [0.0, 0.02, 0.09, 0.11, 0.5, 1.0])
def test_the_graph_is_simple_and_sorted(sizes, chance):
    pairs = sample_stochastic_block_model(sizes, torch.full((len(sizes), len(sizes)), chance), seeded())
    nodes = sum(sizes)
    codes = pairs[0] * nodes + pairs[1]
    assert codes.equal(codes.unique())
    assert (pairs[0] != pairs[1]).all()
    assert pairs.flip(0)[:, (pairs[1] * nodes + pairs[0]).argsort()].equal(pairs)


@pytest.mark.parametrize("chance", [0.03, 0.08, 0.12, 0.6])
def test_every_pattern_of_edges_is_as_likely_as_coins_make_it(chance):
    """900 separate blocks of three nodes: the eight graphs on three nodes against the product of Bernoulli probabilities."""
    blocks = 900
    pairs = sample_stochastic_block_model([3] * blocks, torch.eye(blocks, dtype=torch.float64) * chance, seeded(1))
    assert (pairs[0] // 3).equal(pairs[1] // 3)
    up = pairs[:, pairs[0] < pairs[1]]
    which = (up % 3).sum(0) - 1  # 0-1, 0-2, 1-2
    pattern = torch.zeros(blocks, dtype=torch.long).index_add_(0, up[0] // 3, 2**which)
    seen = torch.bincount(pattern, minlength=8).double()
    count = torch.tensor([bin(code).count("1") for code in range(8)])
    expected = blocks * chance**count * (1 - chance) ** (3 - count)
    rare = expected < 5
    seen, expected = (torch.cat([one[~rare], one[rare].sum().view(1)]) for one in (seen, expected))
    used = expected > 0
    statistic = ((seen - expected)[used].square() / expected[used]).sum()
    assert statistic < chi2.ppf(0.9999, int(used.sum()) - 1)


@pytest.mark.parametrize("chance", [0.05, 0.3])
def test_every_pair_of_nodes_has_the_same_chance(chance):
    """How often each of the pairs is an edge over many draws: a chi-square over the cells, inside a block and between two."""
    draws, sizes = 300, [9, 7]
    seen, generator = torch.zeros(16, 16), seeded(2)
    for _ in range(draws):
        pairs = sample_stochastic_block_model(sizes, torch.full((2, 2), chance, dtype=torch.float64), generator)
        seen[pairs[0], pairs[1]] += 1
    first, second = torch.triu_indices(16, 16, 1)
    statistic = ((seen[first, second] - draws * chance).square() / (draws * chance * (1 - chance))).sum()
    assert chi2.ppf(0.0001, 120) < statistic < chi2.ppf(0.9999, 120)


def test_the_number_of_edges_is_binomial_for_each_pair_of_blocks():
    sizes = torch.tensor([400, 300])
    chance = torch.tensor([[0.01, 0.002], [0.002, 0.2]], dtype=torch.float64)
    pairs = sample_stochastic_block_model(sizes, chance, seeded(3))
    block = (pairs >= 400).long()
    seen = torch.bincount(block[0] * 2 + block[1], minlength=4).view(2, 2).double()
    trials = torch.tensor([[400 * 399 / 2, 400 * 300], [400 * 300, 300 * 299 / 2]])
    seen = seen / (1 + torch.eye(2))
    assert ((seen - trials * chance).abs() < 4.5 * (trials * chance * (1 - chance)).sqrt()).all()


def test_probabilities_of_five_thousand_nodes_stay_exact():
    pairs = sample_stochastic_block_model([2500, 2500], torch.tensor([[0.004, 0.001], [0.001, 0.004]]), seeded(4))
    degree = torch.bincount(pairs[0], minlength=5000).double()
    mean = 2499 * 0.004 + 2500 * 0.001
    variance = 2499 * 0.004 * 0.996 + 2500 * 0.001 * 0.999
    assert abs(degree.mean() - mean) < 4.5 * (2 * variance / 5000) ** 0.5
    assert degree.var() == pytest.approx(variance, rel=0.1)


def test_only_the_generator_decides():
    chance = torch.full((2, 2), 0.1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert sample_stochastic_block_model([50, 50], chance, seeded(6)).equal(sample_stochastic_block_model([50, 50], chance, seeded(6)))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("sizes", "chance", "message"),
    [
        ([], torch.zeros(0, 0), "at least one block, each at least 1"),
        ([3, 0], torch.zeros(2, 2), r"each at least 1; found \[3, 0\]"),
        ([3, 3], torch.zeros(3, 3), "2 x 2, as there are 2 blocks"),
        ([3, 3], torch.tensor([[0.5, 0.1], [0.2, 0.5]]), "probabilities must be symmetric"),
        ([3, 3], torch.tensor([[0.5, 1.5], [1.5, 0.5]]), r"in \[0, 1\]; found 0.5 to 1.5"),
        ([3], torch.tensor([[math.nan]]), r"in \[0, 1\]; found nan"),
    ],
)
def test_blocks_that_do_not_fit_are_named(sizes, chance, message):
    with pytest.raises(ValueError, match=message):
        sample_stochastic_block_model(sizes, chance, seeded())


def test_the_dataset_s_edges_follow_its_labels():
    graph, labels = whole(stochastic_block_model([150, 100], p_in=0.3, p_out=0.02, seed=2))
    assert labels.bincount().tolist() == [150, 100]
    ends = labels[graph.edge_index]
    across = (ends[0] != ends[1]).double().sum() / 2
    inside = (ends[0] == ends[1]).double().sum() / 2
    for seen, trials, chance in ((across, 15_000, 0.02), (inside, 150 * 149 / 2 + 100 * 99 / 2, 0.3)):
        assert abs(seen - trials * chance) < 4.5 * (trials * chance * (1 - chance)) ** 0.5


def test_a_node_s_number_says_nothing_of_its_block():
    _, labels = whole(stochastic_block_model([300, 300]))
    changes = (labels[1:] != labels[:-1]).sum()  # runs of a random order: mean 300, standard deviation 12.2
    assert abs(changes - 300) < 4.5 * 12.3


def test_a_full_table_of_probabilities_takes_the_place_of_two():
    graph, labels = whole(stochastic_block_model([30, 20], probabilities=[[0.0, 1.0], [1.0, 0.0]]))
    assert graph.num_edges == 2 * 600
    assert (labels[graph.edge_index[0]] != labels[graph.edge_index[1]]).all()


@pytest.mark.parametrize("strength", [0.0, 1.0, 3.0])
def test_features_tell_two_classes_with_the_error_that_their_distance_allows(strength):
    labels = torch.arange(8000) % 2
    features = class_features(labels, 6, strength, seeded(7))
    best = LogisticRegression(C=1e4).fit(features[:4000], labels[:4000]).score(features[4000:], labels[4000:])
    expected = 0.5 * (1 + math.erf(strength / 2 / math.sqrt(2)))
    assert best == pytest.approx(expected, abs=4.5 * (expected * (1 - expected) / 4000) ** 0.5 + 0.01)


def test_class_means_are_equally_far_apart():
    labels = torch.arange(40_000) % 4
    features = class_features(labels, 5, 3.0, seeded(8)).double()
    means = torch.stack([features[labels == number].mean(0) for number in range(4)])
    assert torch.pdist(means).sub(3).abs().max() < 0.1
    assert (features - means[labels]).var(0).sub(1).abs().max() < 0.05


def test_train_per_class_and_structural_features_are_taken():
    data = stochastic_block_model([30, 30], train_per_class=5, features="degree")
    sample = data["train"][0]
    assert sample["label"].bincount().tolist() == [5, 5]
    assert sample["graph"].x.squeeze(1).equal(torch.bincount(sample["graph"].edge_index[0], minlength=60).float())
    assert stochastic_block_model([30, 30], features="none").info.features == 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"p_in": 1.5}, "p_in must be 0 to 1; found 1.5"),
        ({"p_out": -0.1}, "p_out must be 0 to 1; found -0.1"),
        ({"seed": -1}, "seed must be at least 0; found -1"),
        ({"probabilities": [[0.1, 0.2], [0.2]]}, r"rows of probabilities differ in length: \[2, 1\]"),
        ({"probabilities": [[0.1]]}, "4 x 4, as there are 4 blocks"),
        ({"feature_width": 3}, "at least the number of classes, 4, to hold their means; found 3"),
        ({"feature_strength": -1.0}, "feature_strength must be at least 0; found -1"),
        ({"features": "onehot"}, "features must be one of"),
        ({"sizes": [5, 0]}, r"each at least 1; found \[5, 0\]"),
        ({"train_per_class": 100}, "train_per_class 100 leaves class 0 none"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        stochastic_block_model(**parameters)
