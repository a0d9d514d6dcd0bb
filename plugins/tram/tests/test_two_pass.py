"""What two passes put back: weights, buffers, extra state, batch-norm statistics, random state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from graftwork_tram import RandomState, frozen_batch_norm, preserved_buffers, swapped_tensors


class Counter(nn.Module):
    """Keeps a queue in a buffer and a count in its extra state, and moves both in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(4))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.queue.copy_(self.queue.roll(1) + 1)
        self.seen += 1
        return x

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.seen)

    def set_extra_state(self, state: Tensor) -> None:
        self.seen = int(state)


def normed(dimensions: int = 1) -> nn.Module:
    norm = {1: nn.BatchNorm1d(3), 2: nn.InstanceNorm1d(3, track_running_stats=True)}[dimensions]
    return nn.Sequential(norm, nn.Sequential(Counter()))


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_pass_leaves_no_trace_in_buffers_and_extra_state() -> None:
    model, x = normed(), torch.randn(8, 3)
    model(x)
    before = state(model)
    with preserved_buffers(model):
        model(x + 5)
        assert not same(state(model), before)
    assert same(state(model), before)
    model(x + 5)
    assert not same(state(model), before)


def test_buffers_come_back_after_an_exception() -> None:
    model = normed()
    before = state(model)

    def fail() -> None:
        with preserved_buffers(model):
            model(torch.randn(8, 3))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert same(state(model), before)


@pytest.mark.parametrize(("dimensions", "shape"), [(1, (8, 3)), (2, (8, 3, 5))])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_frozen_norms_record_nothing(dimensions, shape, statistics) -> None:
    norm = normed(dimensions)[0]
    norm(torch.randn(shape))
    before = state(norm)
    with frozen_batch_norm(norm, statistics):
        norm(torch.randn(shape) + 5)
    assert same(state(norm), before)
    assert norm.training
    assert norm.track_running_stats
    norm(torch.randn(shape) + 5)
    assert not same(state(norm), before)


def test_frozen_norms_normalise_by_the_batch_or_by_the_running_statistics() -> None:
    norm, x = normed()[0], torch.randn(8, 3) + 2
    expected = {"batch": copy.deepcopy(norm)(x), "running": copy.deepcopy(norm).eval()(x)}
    assert not torch.allclose(*expected.values())
    for statistics, value in expected.items():
        with frozen_batch_norm(norm, statistics):
            torch.testing.assert_close(norm(x), value)


def test_a_frozen_pass_may_follow_one_whose_graph_is_still_needed() -> None:
    norm, x = normed()[0], torch.randn(8, 3)
    loss = norm(x).square().sum()
    with frozen_batch_norm(norm):
        loss = loss + norm(x + 1).pow(3).sum()
    loss.backward()
    assert norm.weight.grad.isfinite().all()


def test_norms_in_eval_mode_stay_as_they_are() -> None:
    norm, x = normed()[0].eval(), torch.randn(8, 3) + 2
    expected = norm(x)
    with frozen_batch_norm(norm):
        torch.testing.assert_close(norm(x), expected)
    assert not norm.training


def test_unknown_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match='statistics are "batch" or "running"; found "ema"'), frozen_batch_norm(normed(), "ema"):
        pass


def test_swapped_tensors_hold_the_values_and_are_never_written_to() -> None:
    layer = nn.Linear(3, 2)
    original = layer.weight.detach().clone()
    with swapped_tensors([layer.weight], [torch.zeros(2, 3)]):
        torch.testing.assert_close(layer(torch.ones(1, 3))[0], layer.bias)
        layer.weight.data.add_(7)
    assert torch.equal(layer.weight, original)


def test_values_that_do_not_fit_are_refused_before_anything_moves() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    for values, message in (([], "there are 1 tensors but 0 values"), ([torch.zeros(3)], r"a value \(3,\) does not fit a tensor \(2, 3\)")):
        with pytest.raises(ValueError, match=message), swapped_tensors([layer.weight], values):
            pass
    assert torch.equal(layer.weight, before)


def test_random_state_is_replayed_and_the_stream_goes_on() -> None:
    torch.manual_seed(3)
    captured = RandomState.capture()
    first = torch.rand(4)
    reference = torch.get_rng_state()
    with captured.replayed():
        assert torch.equal(torch.rand(4), first)
        torch.rand(9)
    assert torch.equal(torch.get_rng_state(), reference)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_random_state_of_a_gpu_is_replayed() -> None:
    captured = RandomState.capture("cuda:0")
    first = torch.rand(4, device="cuda:0")
    with captured.replayed():
        assert torch.equal(torch.rand(4, device="cuda:0"), first)
    assert not torch.equal(torch.rand(4, device="cuda:0"), first)
