from __future__ import annotations

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_dann import DomainScatter
from graftwork_dann.domain_scatter import principal_plane


def test_the_plane_keeps_the_two_largest_variances() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 4, generator=generator) * torch.tensor([0.1, 5.0, 1.0, 0.2])
    plane = principal_plane(rows)
    assert plane.var(dim=0).tolist() == pytest.approx(rows[:, [1, 2]].double().var(dim=0).tolist(), rel=0.05)
    assert principal_plane(rows[:, :1]).shape == (500, 2)


def test_the_distance_is_that_of_the_domains_centroids(towers: type[nn.Module]) -> None:
    class Plain(towers):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    near, far = torch.tensor([[-1.0, 0], [1, 0]]), torch.tensor([[9.0, 0], [11, 0]])
    label = torch.tensor([0, 1])
    data = gw.Dataset({"a": gw.TensorSamples(features=near, label=label), "b": gw.TensorSamples(features=far)})
    report = DomainScatter("a", "b").evaluate(Plain(), data)
    assert report.metrics["centroid-distance"] == pytest.approx(10.0)
    assert set(report.figures) == {"features", "decision"}


def test_inputs_of_more_than_two_numbers_have_no_decision_picture(tower: nn.Module, data: gw.Dataset) -> None:
    report = DomainScatter("source/test", "target/test", limit=20).evaluate(tower.float(), data)
    assert set(report.figures) == {"features"}
    with pytest.raises(ValueError, match="limit is at least 2"):
        DomainScatter("a", "b", limit=1)
