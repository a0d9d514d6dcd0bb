from __future__ import annotations

import pytest
import torch

from graftwork_testbed.graphs import node_features

DEGREE = torch.tensor([0, 3, 1, 3])


def made(kind, **more):
    return node_features(kind, DEGREE, torch.Generator().manual_seed(1), **more)


def test_each_kind_is_what_it_says():
    assert made("identity").equal(torch.eye(4))
    assert made("degree").tolist() == [[0], [3], [1], [3]]
    assert made("constant").equal(torch.ones(4, 1))
    assert made("none") is None
    assert made("onehot-degree").tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert all(made(kind).dtype == torch.float32 for kind in ("identity", "degree", "onehot-degree", "constant", "random"))


def test_degrees_above_the_largest_share_the_last_column():
    assert made("onehot-degree", max_degree=2).argmax(1).tolist() == [0, 2, 1, 2]
    assert made("onehot-degree", max_degree=9).shape == (4, 10)


def test_random_features_are_standard_normal_and_the_generator_decides():
    degree = torch.zeros(4000, dtype=torch.long)
    first, again = (node_features("random", degree, torch.Generator().manual_seed(5), width=8) for _ in range(2))
    assert first.equal(again)
    assert first.mean(0).abs().max() < 4.5 / 4000**0.5
    assert (first.var(0) - 1).abs().max() < 4.5 * (2 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("kind", "width", "message"),
    [
        ("onehot", 4, "features must be one of identity, degree, onehot-degree, constant, random, none; found 'onehot'"),
        ("random", 0, "feature_width must be 1 to 10,000; found 0"),
    ],
)
def test_bad_features_are_named(kind, width, message):
    with pytest.raises(ValueError, match=message):
        made(kind, width=width)
