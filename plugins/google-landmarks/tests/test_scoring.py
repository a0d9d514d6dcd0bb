"""The metrics against the official unit cases, closed forms and a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from graftwork import DataError
from graftwork_google_landmarks import (
    Solution,
    average_precisions,
    first_positions,
    gap_curve,
    global_average_precision,
    mean_average_precision,
    mean_median_position,
    mean_precisions,
    retrieval_hits,
    top1_accuracy,
)
from graftwork_google_landmarks.predictions import RecognitionPredictions, RetrievalPredictions

RECOGNITION = {"A": [0, 12], "B": [100, 200, 300], "C": [1], "D": [], "E": []}
GUESSES = {"B": (0, 0.01), "C": (1, 10.0), "D": (150, 15.0)}
RETRIEVAL = {"A": ["10", "20"], "B": ["10"], "C": ["30", "40", "50"], "D": ["30"]}
RANKED = {"B": ["00", "10"], "C": ["40"], "D": ["30", "40"]}


def test_the_official_recognition_cases() -> None:
    assert global_average_precision(GUESSES, RECOGNITION) == pytest.approx(1 / 6)
    assert global_average_precision(GUESSES, RECOGNITION, ignore_non_landmark=True) == pytest.approx(1 / 3)
    assert top1_accuracy(GUESSES, RECOGNITION) == pytest.approx(1 / 3)


def test_the_official_retrieval_cases() -> None:
    assert mean_average_precision(RANKED, RETRIEVAL) == pytest.approx(0.458333, abs=1e-6)
    assert mean_average_precision(RANKED, RETRIEVAL, 1) == 0.5
    assert mean_precisions(retrieval_hits(RANKED, RETRIEVAL, 2)).tolist() == [0.5, 0.375]
    assert mean_median_position(retrieval_hits(RANKED, RETRIEVAL)) == (26.25, 1.5)
    assert mean_median_position(retrieval_hits(RANKED, RETRIEVAL, 1)) == (1.5, 1.5)


def test_a_repeated_image_is_passed_over_but_keeps_its_rank() -> None:
    hits = retrieval_hits({"q": ["x", "x", "y"]}, {"q": ["x", "y"]})
    assert average_precisions(hits)[0] == pytest.approx((1 + 2 / 3) / 2)
    assert mean_precisions(hits)[:3].tolist() == pytest.approx([1, 1 / 2, 2 / 3])


def test_more_than_a_hundred_right_answers_are_divided_by_a_hundred() -> None:
    images = [f"{n:016x}" for n in range(250)]
    assert mean_average_precision({"q": images}, {"q": images}) == 1
    assert mean_average_precision({"q": images[:50]}, {"q": images}) == pytest.approx(0.5)


def test_a_perfect_run_scores_one_and_what_comes_after_rank_k_does_not_count() -> None:
    answers = {f"q{n}": [f"{n}-{m}" for m in range(1 + n)] for n in range(5)}
    assert mean_average_precision(answers, answers) == 1
    assert global_average_precision({f"q{n}": (n, 1.0) for n in range(5)}, {f"q{n}": [n] for n in range(5)}) == 1
    assert mean_average_precision({"q": ["no", "yes"]}, {"q": ["yes"]}, 1) == 0


def test_a_query_without_a_prediction_scores_nothing_but_counts() -> None:
    solution = {"p": ["a"], "q": ["b"]}
    hits = retrieval_hits({"p": ["a"]}, solution)
    assert average_precisions(hits).tolist() == [1, 0]
    assert first_positions(hits).tolist() == [1, 101]
    assert mean_average_precision({"p": ["a"], "q": []}, solution) == 0.5
    assert mean_precisions(hits)[9] == pytest.approx(0.05)


def test_ties_in_score_go_by_image_id_and_then_by_landmark() -> None:
    solution = {"a": [1], "b": [2]}
    assert global_average_precision({"a": (1, 0.5), "b": (9, 0.5)}, solution) == pytest.approx(1 / 2)
    assert global_average_precision({"a": (9, 0.5), "b": (2, 0.5)}, solution) == pytest.approx((1 / 2) / 2)
    assert global_average_precision({"b": (9, 0.5), "a": (1, 0.5)}, solution) == pytest.approx(1 / 2)


def loop_map(predictions, solution, most):
    total = 0.0
    for query, ranked in predictions.items():
        seen, right, sums = set(), 0, 0.0
        for rank, image in enumerate(ranked[:most], start=1):
            if image in solution[query] and image not in seen:
                right += 1
                sums += right / rank
            seen.add(image)
        total += sums / min(len(solution[query]), most)
    return total / len(solution)


def loop_precisions(predictions, solution, most):
    at = np.zeros(most)
    for query, ranked in predictions.items():
        for k in range(1, most + 1):
            at[k - 1] += len(set(ranked[:k]) & set(solution[query])) / k
    return at / len(solution)


def loop_positions(predictions, solution, most):
    found = []
    for query, answers in solution.items():
        ranked = predictions.get(query, [])[:most]
        found.append(next((rank for rank, image in enumerate(ranked, start=1) if image in answers), most + 1))
    return found


def loop_gap(predictions, solution, only):
    ranked = sorted(predictions.items(), key=lambda item: (-item[1][1], item[0], item[1][0]))
    right, total, gap = 0, 0, 0.0
    for query, (landmark, _) in ranked:
        if only and not solution[query]:
            continue
        total += 1
        if landmark in solution[query]:
            right += 1
            gap += right / total
    return gap / sum(bool(answers) for answers in solution.values())


@pytest.mark.parametrize("block", range(4))
def test_both_tasks_agree_with_a_plain_loop_on_random_problems(block: int) -> None:
    """50 problems each, 200 in all: repeated predictions, missing queries, short and empty lists, equal scores."""
    for seed in range(50 * block, 50 * (block + 1)):
        generator = np.random.default_rng(seed)
        images, most = [f"{n:016x}" for n in range(40)], int(generator.integers(1, 15))
        queries = [f"{n + 1000:016x}" for n in range(int(generator.integers(1, 12)))]
        solution = {query: generator.choice(images, generator.integers(1, 20), replace=False).tolist() for query in queries}
        chosen = [query for query in queries if generator.random() < 0.8]
        ranked = {query: generator.choice(images, generator.integers(0, 25)).tolist() for query in chosen}
        hits = retrieval_hits(ranked, solution, most)
        assert average_precisions(hits).mean() == pytest.approx(loop_map(ranked, solution, most), abs=1e-12)
        assert mean_precisions(hits) == pytest.approx(loop_precisions(ranked, solution, most), abs=1e-12)
        assert first_positions(hits).tolist() == loop_positions(ranked, solution, most)

        truths = {query: generator.choice(9, generator.integers(0, 3), replace=False).tolist() for query in queries}
        truths[queries[0]] = [1]
        guesses = {query: (int(generator.integers(9)), round(generator.random(), 1)) for query in chosen}
        for only in (False, True):
            assert global_average_precision(guesses, truths, only) == pytest.approx(loop_gap(guesses, truths, only), abs=1e-12)


def test_the_order_of_rows_makes_no_difference() -> None:
    shuffled = {query: RETRIEVAL[query] for query in reversed(RETRIEVAL)}, {query: RANKED[query] for query in reversed(RANKED)}
    assert mean_average_precision(shuffled[1], shuffled[0]) == pytest.approx(mean_average_precision(RANKED, RETRIEVAL), abs=1e-15)
    turned = dict(reversed(GUESSES.items()))
    assert global_average_precision(turned, dict(reversed(RECOGNITION.items()))) == global_average_precision(GUESSES, RECOGNITION)


def test_the_curve_ends_at_the_share_of_right_predictions() -> None:
    precision, correct, positives = gap_curve(GUESSES, RECOGNITION)
    assert precision.tolist() == pytest.approx([0, 1 / 2, 1 / 3])
    assert correct.tolist() == [False, True, False]
    assert positives == 3


@pytest.mark.parametrize(
    ("predictions", "solution", "said"),
    [
        ({"Z": ["10"]}, RETRIEVAL, "query Z is not in the retrieval solution"),
        ({"A": ["10"]}, {"A": ["10"], "B": []}, "has no image for query B, which is not Ignored"),
    ],
)
def test_retrieval_refuses_an_unknown_query_and_one_without_an_answer(predictions, solution, said: str) -> None:
    with pytest.raises(DataError, match=said):
        mean_average_precision(predictions, solution)


def test_recognition_refuses_unknown_queries_scores_that_are_no_numbers_and_nothing_to_score() -> None:
    with pytest.raises(DataError, match="query Z is not in the recognition solution"):
        global_average_precision({"Z": (1, 1.0)}, RECOGNITION)
    with pytest.raises(DataError, match="score of query C is not a number"):
        RecognitionPredictions.of({"C": (1, float("nan"))})
    with pytest.raises(DataError, match="no query of the recognition solution shows a landmark"):
        top1_accuracy({}, {"A": []})
    with pytest.raises(ValueError, match="max_predictions is at least 1; found 0"):
        retrieval_hits(RANKED, RETRIEVAL, 0)


def test_a_query_that_is_predicted_twice_is_refused() -> None:
    twice = RetrievalPredictions.of({"A": ["10"]})
    twice = RetrievalPredictions(np.repeat(twice.ids, 2), twice.images.select(np.array([0, 0])))
    with pytest.raises(DataError, match="query A is predicted twice"):
        retrieval_hits(twice, Solution.of("retrieval", RETRIEVAL))
