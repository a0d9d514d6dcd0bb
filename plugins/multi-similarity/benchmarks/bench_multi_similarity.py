"""Miner and loss, forward and backward, against pytorch-metric-learning in one process on the same embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftwork.testing import race
from graftwork_multi_similarity import multi_similarity_loss


@pytest.mark.bench
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("batch", [1024, 4096])
def test_mining_and_loss_take_at_most_seven_tenths_of_pytorch_metric_learnings_time(batch, device, capsys) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason="needs pytorch-metric-learning to race against")
    miners = pytest.importorskip("pytorch_metric_learning.miners", reason="needs pytorch-metric-learning to race against")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    loss, miner = losses.MultiSimilarityLoss(2, 40, 0.5), miners.MultiSimilarityMiner(0.1)
    torch.manual_seed(0)
    labels = (torch.arange(batch) // 4).to(device)
    centres = torch.randn(batch // 4, 128).repeat_interleave(4, dim=0)
    ours, theirs = ((centres + torch.randn(batch, 128, generator=torch.Generator().manual_seed(1))).to(device) for _ in range(2))
    ours.requires_grad_()
    theirs.requires_grad_()

    def here() -> Tensor:
        ours.grad = None
        value = multi_similarity_loss(ours, labels)
        value.backward()
        return value.detach()

    def peer() -> Tensor:
        theirs.grad = None
        value = loss(theirs, labels, miner(theirs, labels))
        value.backward()
        return value.detach()

    torch.testing.assert_close(here(), peer(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-7)
    found = race(here, peer)
    with capsys.disabled():
        print(f"\nm={batch} d=128 {device}: {found}")
    assert found.ratio <= 0.7
