"""The engine against a bare PyTorch loop: same model, data, batches and optimiser, batch 64, in one process."""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import graftwork as gw

BATCH, STEPS, ROUNDS = 64, 60, 9


def dataset() -> gw.Dataset:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (BATCH * STEPS, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return gw.Dataset({"train": gw.TensorSamples(image=image, label=torch.randint(0, 10, (BATCH * STEPS,), generator=generator))})


def by_engine(data: gw.Dataset) -> tuple[float, nn.Module]:
    torch.manual_seed(0)
    settings = gw.TrainConfig(epochs=1, batch_size=BATCH, optimizer={"use": "sgd", "lr": 0.01, "momentum": 0.9})
    engine = gw.Engine(gw.model("small-cnn"), gw.objective("cross-entropy"), data, settings, device="cpu")
    started = time.perf_counter()
    model = engine.fit()
    return time.perf_counter() - started, model


def by_hand(data: gw.Dataset) -> tuple[float, nn.Module]:
    torch.manual_seed(0)
    model = gw.model("small-cnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(data["train"], BATCH, shuffle=True, drop_last=True, collate_fn=data.collate, generator=generator)
    model.train()
    started = time.perf_counter()
    for batch in loader:
        loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - started, model


@pytest.mark.bench
def test_the_engine_costs_at_most_5_percent_over_a_bare_loop() -> None:
    data = dataset()
    (_, one), (_, other) = by_engine(data), by_hand(data)
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    pairs = [(by_engine(data)[0], by_hand(data)[0]) for _ in range(ROUNDS)]
    ratio = statistics.median(engine / bare for engine, bare in pairs)
    bare = statistics.median(bare for _, bare in pairs) / STEPS
    print(f"\nengine over bare loop: ratio {ratio:.4f}; a bare step takes {1000 * bare:.2f} ms")
    assert ratio <= 1.05
