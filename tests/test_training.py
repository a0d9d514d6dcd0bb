"""What a `train:` block describes: schedules and optimisers by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork.training import OptimizerSpec, ScheduleSpec, make_schedule


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"use": "constant"}, [1, 1, 1, 1, 1]),
        ({"use": "cosine"}, [1, 0.8535533906, 0.5, 0.1464466094, 0]),
        ({"use": "linear", "final": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"use": "step", "at": [0.25, 0.75], "factor": 0.1}, [1, 0.1, 0.1, 0.01, 0.01]),
        ({"use": "inverse-decay", "alpha": 10, "beta": 0.75}, [1, 0.3907949713, 0.2608474306, 8.5**-0.75, 0.1655600261]),
        ({"use": "one-cycle", "peak": 0.5, "start": 0.0}, [0, 0.5, 1, 0.5, 0]),
    ],
)
def test_schedules_follow_their_closed_forms(spec: dict, expected: list[float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, ScheduleSpec(**spec), 4)
    factors = [schedule.lr_lambdas[0](step) for step in range(5)]
    assert factors == pytest.approx(expected, abs=1e-5)


def test_every_optimiser_of_torch_is_had_by_its_name() -> None:
    for name in ("sgd", "adam", "adamw", "rmsprop", "adagrad", "nadam", "radam"):
        assert OptimizerSpec(use=name, lr=0.1)
