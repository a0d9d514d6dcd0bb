"""A small model, data and objective, and a training of them, that the tests of the engine share."""

from __future__ import annotations

import torch
from torch import nn

import graftwork as gw


class Net(nn.Module):
    inputs = ("features",)

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 8
        self.trunk, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.trunk(x).relu()

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


class Fit(gw.Objective):
    keys = {"train": ("inputs", "label")}

    def forward(self, model, batches, progress):
        batch = batches["train"]
        return gw.Loss(nn.functional.cross_entropy(model(batch["features"]), batch["label"]))


def data(count: int = 64, **more: gw.Samples) -> gw.Dataset:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(count) % 3
    features = torch.randn(count, 4, generator=generator) + nn.functional.one_hot(label, 4)
    samples = gw.TensorSamples(features=features, label=label, index=torch.arange(count))
    return gw.Dataset({"train": samples, "val": samples, **more})


def net() -> Net:
    torch.manual_seed(1)
    return Net()


def train(objective: gw.Objective, model: Net | None = None, dataset: gw.Dataset | None = None, validator=None, **settings) -> gw.Engine:
    settings = {"epochs": 3, "batch_size": 16, "optimizer": {"use": "sgd", "lr": 0.1}, **settings}
    engine = gw.Engine(model or net(), objective, dataset or data(), gw.TrainConfig(**settings), seed=5, device="cpu", validator=validator)
    engine.fit()
    return engine
