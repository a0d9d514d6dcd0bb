"""The dynamic programme against the authors' triple loop; the methods' steps against plain denoising; surgery against torchjd's."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

import graftwork as gw
from graftwork.testing import median_seconds
from graftwork_denoising_task_clustering import ClusteredDenoising, cluster_intervals, log_snr, pcgrad, value_cost

REPEATS, CHANNELS = 5, 8


def by_loop(values: Tensor, clusters: int) -> tuple[list[int], float]:
    """The recurrence as nested loops, an interval's cost summed anew each time, as in the authors' code but for its off-by-one."""
    import numpy

    numbers, count = values.numpy(), len(values)

    def cost(start: int, end: int) -> float:
        return float(numpy.abs(numbers[start:end] - numbers[(start + end) // 2]).sum())

    best = numpy.full((clusters, count + 1), numpy.inf)
    previous = numpy.zeros((clusters, count + 1), dtype=int)
    for level in range(clusters):
        for end in range(level + 1, count + 1):
            if level == 0:
                best[0, end] = cost(0, end)
                continue
            totals = [best[level - 1, start] + cost(start, end) for start in range(level, end)]
            previous[level, end] = level + int(numpy.argmin(totals))
            best[level, end] = min(totals)
    starts = [count]
    for level in range(clusters - 1, 0, -1):
        starts.insert(0, int(previous[level, starts[0]]))
    return [0, *starts[:-1]], float(best[-1, -1])


@pytest.mark.bench
def test_the_dynamic_programme_is_a_hundred_times_faster_than_the_loop(capsys) -> None:
    snr = log_snr((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))
    ours = cluster_intervals(value_cost(snr), 1000, 5)
    (quick,) = median_seconds([lambda: cluster_intervals(value_cost(snr), 1000, 5)], REPEATS, processor=True)
    start = time.process_time()
    starts, cost = by_loop(snr, 5)
    slow = time.process_time() - start
    assert list(ours.starts) == starts
    assert ours.total_cost == pytest.approx(cost, rel=1e-9)
    with capsys.disabled():
        print(f"\nT=1000 k=5: {quick * 1e3:.1f} ms against {slow:.2f} s, {slow / quick:.0f} times faster")
    assert quick < 0.05
    assert slow >= 100 * quick


@pytest.mark.bench
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_steps_of_the_methods_against_plain_denoising(device, capsys) -> None:
    testbed = pytest.importorskip("graftwork_testbed.zoo.diffusion", reason="needs the test bed's untrained pipeline")
    coder = gw.model("autoencoder-kl", latent_channels=CHANNELS)
    rows = {"latents": torch.randn(50, CHANNELS, 8, 8), "caption": ["a red two"] * 50}
    data = gw.Dataset({"train": gw.TensorSamples(**rows)})
    batch = {"train": {key: value.to(device) if isinstance(value, Tensor) else value for key, value in rows.items()}}
    steps = {}
    for name, settings in {
        "plain": {"mtl": "none", "k": 1},
        "uncertainty-weighting": {},
        "nash-mtl": {"mtl": "nash-mtl"},
        "pcgrad": {"mtl": "pcgrad"},
        "pcgrad, chunks 1": {"mtl": "pcgrad", "chunks": 1},
    }.items():
        torch.manual_seed(0)
        model = testbed.stable_diffusion(coder, [32, 48], text_width=64, text_layers=1)
        engine = gw.Engine(model, ClusteredDenoising(**settings, ema_decay=0), data, gw.TrainConfig(steps=1, batch_size=50), device=device)
        steps[name] = lambda engine=engine: engine.objective.update(engine, batch)
    seconds = dict(zip(steps, median_seconds(list(steps.values()), REPEATS, processor=True), strict=True))
    with capsys.disabled():
        for name, taken in seconds.items():
            print(f"\n{name}: {taken * 1e3:.0f} ms, {taken / seconds['plain']:.3f} of plain ({device})", end="")
        print()
    assert seconds["uncertainty-weighting"] <= 1.05 * seconds["plain"]
    assert seconds["pcgrad"] <= 3 * seconds["plain"]


@pytest.mark.bench
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_surgery_takes_no_longer_than_torchjds(device, capsys) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation", reason="needs torchjd to race against")
    peer, pair = aggregation.PCGrad(), torch.randn(2, 1000, device=device)
    torch.testing.assert_close(pcgrad(pair), peer(pair))  # of two losses the order makes no difference
    gradients = torch.randn(5, 1_500_000, device=device)
    ours, theirs = median_seconds([lambda: pcgrad(gradients), lambda: peer(gradients)], REPEATS, processor=True)
    with capsys.disabled():
        print(f"\nk=5 P=1.5 million {device}: {ours * 1e3:.0f} ms against torchjd's {theirs * 1e3:.0f} ms, ratio {ours / theirs:.2f}")
    assert ours <= 1.1 * theirs
