"""Closed forms against contributions that are formed, as the authors' grid script does: one process, the same features, equal results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graftwork.testing import race
from graftwork_normgrad import GRID, contribution_map, meta_saliency, normgrad, saliency_grid

REPEATS = 3
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class PeakMemory(TorchDispatchMode):
    """The most bytes that results held at one time, the given tensors left out."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {each.untyped_storage().data_ptr() for each in given}
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage.data_ptr() not in self.alive and storage.data_ptr() not in self.given:
                    self._follow(storage)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out

    def _follow(self, storage: Any) -> None:
        import weakref

        pointer = storage.data_ptr()
        self.alive[pointer] = storage.nbytes()
        weakref.finalize(storage, self.alive.pop, pointer, None)


@pytest.mark.bench
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("phase2", ["norm", "filter-norm", "sum", "max"])
def test_a_closed_form_is_fifty_times_faster_than_forming_the_contributions_at_512_channels(phase2: Any, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x, g = torch.randn(1, 512, 14, 14, device=device), torch.randn(1, 512, 14, 14, device=device)
    with torch.no_grad():
        expected = contribution_map(x.double(), g.double(), "conv1x1", phase2, naive=True)  # in float32 a quarter of a million terms drift
        ours = contribution_map(x, g, "conv1x1", phase2).double()
        torch.testing.assert_close(ours / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-6)
        found = race(
            lambda: contribution_map(x, g, "conv1x1", phase2),
            lambda: contribution_map(x, g, "conv1x1", phase2, naive=True),
            REPEATS,
            processor=True,
        )
    print(f"\n{phase2}, closed against formed: {found}, {1 / found.ratio:.0f} times faster")
    assert found.ratio < 1 / 50


def held(x: Tensor, g: Tensor, phase2: Any, naive: bool) -> int:
    """Bytes at the peak."""
    with PeakMemory(x, g) as seen:
        contribution_map(x, g, "conv1x1", phase2, naive=naive)
    return seen.peak


@pytest.mark.bench
@pytest.mark.parametrize("phase2", ["norm", "filter-norm", "sum", "max"])
def test_a_closed_form_holds_a_512th_of_the_memory_at_512_channels(phase2: Any) -> None:
    x, g = torch.randn(1, 512, 14, 14), torch.randn(1, 512, 14, 14)
    closed, formed = held(x, g, phase2, False), held(x, g, phase2, True)
    print(f"\n{phase2}, peak: closed {closed / 2**10:.0f} KiB, formed {formed / 2**20:.0f} MiB, {formed / closed:.0f} times less")
    assert formed >= 512 * closed


class Vgg(nn.Module):
    """VGG-16's convolutions, its pooling and one linear layer, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features, channels = nn.Sequential(), 3
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
            self.features.extend([nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)] if width else [nn.MaxPool2d(2)])
            channels = width or channels
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


LAYERS = ["features.3", "features.8", "features.15", "features.22", "features.29"]


@pytest.mark.bench
def test_the_whole_grid_costs_little_more_than_the_pass_that_it_comes_from() -> None:
    torch.manual_seed(0)
    model, x = Vgg().eval(), torch.randn(1, 3, 224, 224)
    cells = len(GRID[0]) * len(GRID[1])
    found = race(lambda: saliency_grid(model, x, 3, LAYERS), lambda: normgrad(model, x, 3, LAYERS), REPEATS, processor=True)
    print(f"\n{cells} cells at 5 layers against NormGrad alone: {found}")
    assert found.ratio < cells / 2


@pytest.mark.bench
def test_a_step_of_learning_costs_a_few_plain_maps() -> None:
    from graftwork_normgrad import NormGrad

    torch.manual_seed(0)
    model, x = Vgg().eval(), torch.randn(1, 3, 224, 224)
    saliency = NormGrad(layer="features.29")
    plain = saliency.explain(model, x, [3]).maps
    torch.testing.assert_close(meta_saliency(model, x, saliency, [3], lr=0.0).maps, plain, rtol=1e-4, atol=1e-9)
    found = race(lambda: meta_saliency(model, x, saliency, [3]), lambda: saliency.explain(model, x, [3]), REPEATS, processor=True)
    print(f"\nmeta against plain: {found}")
    assert found.ratio < 8
