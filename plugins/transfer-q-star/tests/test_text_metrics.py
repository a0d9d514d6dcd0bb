"""Repetition, diversity, coherence and wins, by hand."""

from __future__ import annotations

import pytest
import torch

from graftwork_transfer_q_star import coherence, diversity, repetition, win_rates
from graftwork_transfer_q_star.text_metrics import words


def test_repetition_counts_distinct_n_grams_over_one_more_than_all() -> None:
    tokens = ["a", "b", "a", "b", "a"]
    assert repetition(tokens, 2) == pytest.approx(1 - 2 / 5)
    assert repetition(tokens, 3) == pytest.approx(1 - 2 / 4)
    assert repetition(tokens, 5) == pytest.approx(1 - 1 / 2)
    assert repetition([], 2) == 1.0


def test_diversity_is_the_product_over_two_three_and_four() -> None:
    tokens = ["a", "b", "a", "b", "a"]
    assert diversity(tokens) == pytest.approx((2 / 5) * (2 / 4) * (2 / 3))
    assert diversity(list(range(1000))) > 0.99
    assert diversity([7] * 1000) < 1e-8
    assert diversity(["a", "b", "c"]) == 0.0


def test_words_are_kept_whole_and_marks_apart() -> None:
    assert words("No, she won't.") == ["No", ",", "she", "won't", "."]


def test_coherence_is_the_cosine_of_prompt_and_response() -> None:
    class Encoder:
        def encode(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([[float(len(text)), 1.0] for text in texts])

    found = coherence(Encoder(), ["ab", "c"], ["ab", "cdefg"])
    torch.testing.assert_close(found, torch.tensor([1.0, 6 / (2**0.5 * 26**0.5)]))


def test_wins_and_ties() -> None:
    first, second = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, 4.0, -1.0])
    assert win_rates(first, second) == (0.5, 0.25)
    assert win_rates(second, first) == (0.25, 0.25)
    assert win_rates(first, second, tolerance=1.0) == (0.0, 1.0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="n is at least 1; found 0"):
        repetition("ab", 0)
    with pytest.raises(ValueError, match="are not as many, or none"):
        win_rates(torch.zeros(2), torch.zeros(3))
