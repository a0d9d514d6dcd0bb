"""The global random generators: seeded, recorded, put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

__all__ = ["preserved", "random_state", "seed_everything", "set_random_state"]


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on every device."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002 - the libraries that plugins call draw from the global one
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The states of all global generators, as `set_random_state` takes them; also of each accelerator that has been used."""
    state = {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators back; what `random_state` gave on a machine with more GPUs is cut to those that are here."""
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


@contextmanager
def preserved() -> Iterator[None]:
    """Whatever is drawn inside, the generators stand afterwards where they stood."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
