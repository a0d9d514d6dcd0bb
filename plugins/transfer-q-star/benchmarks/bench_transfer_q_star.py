"""Guided decoding against the authors' way to loop (batch 1, every rollout reads the whole prefix again), same model and same tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from graftwork.testing import median_seconds
from graftwork_transfer_q_star import TransferQProcessor, TransferSettings

PREFIX, TOP_K, HORIZON, STEPS, REPEATS = 128, 10, 20, 4, 3


class Digits:
    """A tokenizer of numbers, so that the race is the models' alone."""

    pad_token_id, eos_token_id, all_special_ids = 0, None, ()

    def batch_decode(self, rows: Sequence[Sequence[int]], **_: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def reward(samples: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([sum(int(word) % 7 for word in sample.split()) / 10 for sample in samples])


def language_model(device: str, width: int = 256, layers: int = 4) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 4096, "n_positions": 256, "n_embd": width, "n_layer": layers, "n_head": width // 64, "initializer_range": 0.3}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None, pad_token_id=0)).eval().to(device)
    model.generation_config.eos_token_id = None
    return model


@torch.no_grad()
def peer(model: Any, ids: torch.Tensor, steps: int = STEPS, top_k: int = TOP_K, horizon: int = HORIZON) -> torch.Tensor:
    """The loop of the authors' `generate_step`: K sequences through `generate` for every token."""
    tokenizer, prompt = Digits(), ids.shape[1]
    for _ in range(steps):
        logits, candidates = model(ids).logits[0, -1].topk(top_k)
        flat = torch.cat([ids.expand(top_k, -1), candidates[:, None]], dim=1)
        grown = model.generate(flat, attention_mask=torch.ones_like(flat), max_new_tokens=horizon, do_sample=False)
        scores = logits.cpu() + reward(tokenizer.batch_decode(grown[:, prompt:].tolist()), [])
        ids = torch.cat([ids, candidates[scores.argmax()].view(1, 1)], dim=1)
    return ids


def ours(model: Any, ids: torch.Tensor, steps: int = STEPS, **settings: Any) -> torch.Tensor:
    chosen = TransferSettings(**{"top_k": TOP_K, "horizon": HORIZON, **settings})
    processor = TransferQProcessor(reward, model, chosen, tokenizer=Digits(), end=[])
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False, logits_processor=[processor])


def clock(device: str) -> Callable[[], float]:
    """Processor time on a CPU, which other work on the machine does not stretch; on a GPU the clock on the wall."""
    return time.process_time if device == "cpu" else time.perf_counter


def prefix(rows: int, device: str) -> torch.Tensor:
    return torch.randint(1, 4096, (rows, PREFIX), generator=torch.Generator().manual_seed(0)).to(device)


@pytest.mark.bench
@pytest.mark.parametrize(
    ("device", "width", "layers", "rows", "target"),
    [
        ("cpu", 256, 4, 1, 1.5),  # so small that the number of calls counts, which is the same
        ("cpu", 256, 4, 8, 3.0),
        pytest.param("cuda", 512, 6, 8, 8.0, marks=pytest.mark.gpu),
    ],
)
def test_the_same_tokens_take_a_fraction_of_the_authors_loop(
    device: str, width: int, layers: int, rows: int, target: float, capsys: Any
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model, ids = language_model(device, width, layers), prefix(rows, device)

    def loop() -> torch.Tensor:
        return torch.cat([peer(model, row[None]) for row in ids])

    assert torch.equal(ours(model, ids), loop())
    mine, theirs = median_seconds([lambda: ours(model, ids), loop], REPEATS, processor=True)
    tokens = rows * STEPS
    with capsys.disabled():
        size = f"{layers} layers of {width}, prompts: {rows}, {device}"
        print(f"\n{size}: {1e3 * mine / tokens:.0f} ms a token, theirs {1e3 * theirs / tokens:.0f}: {theirs / mine:.1f} times")
    assert theirs >= target * mine


@pytest.mark.bench
def test_the_cost_is_linear_in_candidates_rollouts_and_horizon(capsys: Any) -> None:
    """A curve, not a race: seconds a token by K, M and H, each doubled from the defaults."""
    model, ids, now = language_model("cpu"), prefix(1, "cpu"), clock("cpu")
    rows = [(5, 1, 20), (10, 1, 5), (10, 1, 10), (10, 1, 20), (10, 1, 40), (20, 1, 20), (10, 2, 20), (10, 4, 20)]
    found = {}
    for top_k, rollouts, horizon in rows:
        given = {"top_k": top_k, "rollouts": rollouts, "horizon": horizon}
        ours(model, ids, 1, **given)
        start = now()
        ours(model, ids, STEPS, **given)
        found[top_k, rollouts, horizon] = (now() - start) / STEPS
    with capsys.disabled():
        print("".join(f"\nK={key[0]} M={key[1]} H={key[2]}: {1e3 * seconds:.0f} ms a token" for key, seconds in found.items()))
    assert found[10, 1, 40] < 4 * found[10, 1, 20]
