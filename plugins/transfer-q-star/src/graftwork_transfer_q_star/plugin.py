"""What this distribution registers. Light: the parts are imported when they are first used."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_datasets", "graftwork_evaluators", "graftwork_guidance"]

HERE = "graftwork_transfer_q_star"
PAPER = Paper("Transfer Q Star: Principled Decoding for LLM Alignment", arxiv="2405.20495", year=2024, venue="NeurIPS")
ARGS = Paper("ARGS: Alignment as Reward-Guided Search", arxiv="2402.01694", year=2024, venue="ICLR")
CONTROLLED = Paper("Controlled Decoding from Language Models", arxiv="2310.17022", year=2024, venue="ICML")
REWARD = {"use": "zoo/sentiment-reward"}
LM = {"use": "zoo/tiny-lm"}


@hookimpl
def graftwork_guidance() -> Iterator[Component]:
    """Alignment of a frozen language model while it decodes."""
    rolled = {"reward": REWARD, "baseline": LM}
    yield Component(
        "transfer-q-star", f"{HERE}.guidance:TransferQStar", "Tilt a language model by rollouts of an aligned one", PAPER, rolled
    )
    yield Component(
        "controlled-decoding",
        f"{HERE}.guidance:ControlledDecoding",
        "Tilt a language model by rollouts of its own",
        CONTROLLED,
        {"reward": REWARD},
    )
    yield Component(
        "reward-guided-search",
        f"{HERE}.guidance:RewardGuidedSearch",
        "Tilt a language model by the reward so far",
        ARGS,
        {"reward": REWARD},
    )


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """What guided decoding gains and costs; how far from the best it can be."""
    yield Component(
        "decoding-alignment",
        f"{HERE}.alignment:DecodingAlignment",
        "Reward, win rate, diversity, coherence, divergence and cost of ways to decode",
        PAPER,
        {"reward": REWARD, "decoders": {"search": {"use": "reward-guided-search", "reward": REWARD}}},
    )
    yield Component("q-star-gap", f"{HERE}.gap:QStarGap", "Sub-optimality and its bounds, by enumerating a small vocabulary", PAPER)


@hookimpl
def graftwork_datasets() -> Iterator[Component]:
    """What a baseline is aligned by, where there is none."""
    yield Component(
        "reward-tilted-samples",
        f"{HERE}.tilted_samples:RewardTiltedSamples",
        "A language model's own responses, resampled by exp(reward / beta)",
        PAPER,
        {"model": LM, "reward": REWARD, "data": {"use": "template-text", "samples": 400}},
    )
