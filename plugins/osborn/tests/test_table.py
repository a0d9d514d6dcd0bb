"""Scores of sets: the sum written out, submodularity, greedy against exhaustive search."""

from __future__ import annotations

import itertools

import pytest
import torch

import graftwork as gw
from graftwork_osborn import SetScore, TransferabilityTable, greedy_maximise, subsets_of


def z(values: torch.Tensor) -> torch.Tensor:
    return (values - values.mean()) / values.std(correction=0)


@pytest.mark.parametrize("standardise", [False, True])
def test_the_score_is_the_sum_of_its_terms(table, standardise) -> None:
    given, subset = table(), [0, 3, 4]
    off = given.cohesion[~torch.eye(6, dtype=torch.bool)]
    scale = off.std(correction=0) if standardise else 1
    domain, task, leep = ((z(one) if standardise else one) for one in (given.domain, given.task, -given.leep))
    pairs = sum(given.cohesion[a, b] / scale for a, b in itertools.permutations(subset, 2))
    by_term = {"domain": domain[subset].sum(), "task": task[subset].sum(), "cohesion": pairs, "leep": leep[subset].sum()}
    for terms in (("domain", "task", "cohesion"), ("leep", "cohesion"), ("domain", "cohesion"), ("task",)):
        expected = float(sum(by_term[term] for term in terms))
        assert given.set_score(terms, standardise=standardise).score(subset) == pytest.approx(expected, abs=1e-12)
    weighted = given.set_score(weights=[0.5, 2, 3], standardise=standardise).score(subset)
    assert weighted == pytest.approx(float(0.5 * by_term["domain"] + 2 * by_term["task"] + 3 * by_term["cohesion"]), abs=1e-12)
    once = given.set_score(("cohesion",), standardise=standardise, pairs="unordered").score(subset)
    assert once == pytest.approx(float(pairs) / 2, abs=1e-12)


def test_pairs_are_scaled_and_never_centred(table) -> None:
    pairs = table().set_score().pairs
    assert pairs.min() == 0
    assert pairs[0, 1] > 0
    torch.testing.assert_close(pairs, pairs.T)


def test_e_leep_is_averaged_before_the_logarithm_and_ms_leep_after(table) -> None:
    given, subset = table(), [1, 2, 5]
    raw = given.set_score(("e-leep",), standardise=False)
    assert raw.score(subset) == pytest.approx(-float(given.likelihoods[subset].mean(dim=0).log().mean()), abs=1e-12)
    assert given.set_score(("leep",), standardise=False).score(subset) == pytest.approx(-float(given.leep[subset].sum()), abs=1e-12)
    scaled, spread = given.set_score(("e-leep", "cohesion")), given.leep.std(correction=0)
    expected = (raw.score(subset) + float(given.leep.mean())) / float(spread) + given.set_score(("cohesion",)).score(subset)
    assert scaled.score(subset) == pytest.approx(expected, abs=1e-9)
    assert scaled.score([]) == 0


@pytest.mark.parametrize("standardise", [False, True])
def test_gains_fall_as_the_set_grows_and_do_not_without_cohesion(table, standardise) -> None:
    given = table()
    sets = [subset for size in range(6) for subset in itertools.combinations(range(6), size)]
    chains = [(x, y, v) for x in sets for y in sets if set(x) <= set(y) for v in range(6) if v not in y]
    full, alone = given.set_score(standardise=standardise), given.set_score(("domain", "task"), standardise=standardise)
    gains = {(v, x): full.gain(v, x) for x, _, v in chains} | {(v, y): full.gain(v, y) for _, y, v in chains}
    flat = {key: alone.gain(*key) for key in gains}
    assert all(gains[v, x] >= gains[v, y] - 1e-9 for x, y, v in chains)
    assert any(gains[v, x] > gains[v, y] + 1e-3 for x, y, v in chains)
    assert all(abs(flat[v, x] - flat[v, y]) < 1e-9 for x, y, v in chains)


def test_a_gain_is_what_the_paper_writes(table) -> None:
    given = table()
    h = given.cohesion
    expected = -given.domain[2] - given.task[2] - sum(h[2, a] + h[a, 2] for a in (0, 4))
    assert given.set_score(standardise=False).gain(2, (0, 4)) == pytest.approx(float(expected), abs=1e-12)


def test_the_raw_function_only_falls_so_that_one_minus_one_over_e_does_not_follow(table) -> None:
    score = table().set_score(standardise=False)
    assert all(score.gain(v, x) < 0 for size in range(6) for x in itertools.combinations(range(6), size) for v in range(6) if v not in x)


def test_pair_terms_change_the_ranking_of_clones_and_a_model_that_differs(table) -> None:
    # 0 and 1 are clones and the best by themselves; 2 is nearly as good, and disagrees with both; 3 is worse and agrees with 2
    domain, task = torch.tensor([0.0, 0.0, 0.1, 0.6], dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    apart = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.float64)
    given = table(4, domain=domain, task=task, cohesion=apart)
    one_by_one, together = (given.set_score(terms, standardise=False) for terms in (("domain", "task"), ("domain", "task", "cohesion")))
    assert one_by_one.rank(3).subsets[0].tolist() == [0, 1, 2]
    assert one_by_one.rank(2).subsets[1].tolist() == [0, 2]
    assert together.rank(2).subsets[:2].tolist() == [[0, 1], [2, 3]]
    far = table(4, domain=domain, task=task, cohesion=apart * 0.05).set_score(standardise=False)
    assert far.rank(2).subsets[:2].tolist() == [[0, 1], [0, 2]]


def test_greedy_is_exhaustive_for_one_and_reported_against_it_for_three(table) -> None:
    for seed in range(5):
        score = table(10, seed).set_score()
        assert score.select(1).chosen == tuple(score.rank(1).subsets[0].tolist())
        selection, ranking = score.select(3), score.rank(3)
        assert len(ranking.scores) == 120
        assert -selection.value >= float(ranking.scores[0]) - 1e-12
        assert selection.value == pytest.approx(sum(selection.gains))
        assert -score.score(selection.chosen) == pytest.approx(selection.value)
        assert list(selection.gains) == sorted(selection.gains, reverse=True)


def test_ties_go_to_the_lower_index() -> None:
    assert SetScore(torch.zeros(4), torch.zeros(4, 4)).select(3).chosen == (0, 1, 2)


def test_greedy_maximises_any_function_of_a_set() -> None:
    cover = {"a": {1, 2, 3}, "b": {3, 4}, "c": {4, 5, 6, 7}, "d": {1, 7}}
    selection = greedy_maximise(lambda chosen: len(set().union(*(cover[one] for one in chosen))), list(cover), 3)
    assert selection.chosen == ("c", "a", "b")
    assert selection.gains == (4, 3, 0)
    assert selection.value == 7
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k is 1 to 4, the number of candidates; found {k}"):
            greedy_maximise(lambda chosen: 0.0, list(cover), k)


def test_all_triples_are_ranked_as_one_by_one(table) -> None:
    score = table(8).set_score(("domain", "cohesion", "e-leep"))
    ranking = score.rank(3)
    assert sorted(map(tuple, ranking.subsets.tolist())) == list(itertools.combinations(range(8), 3))
    for subset, value in zip(ranking.subsets.tolist(), ranking.scores.tolist(), strict=True):
        assert value == pytest.approx(score.score(subset), abs=1e-12)
    assert ranking.scores.tolist() == sorted(ranking.scores.tolist())


def test_thirty_models_are_ranked_in_one_go_and_too_many_subsets_are_refused(table) -> None:
    assert len(table(30).set_score().rank(3).scores) == 4060
    with pytest.raises(ValueError, match="subsets of k = 20; at most 5000000 are ranked: select greedily instead"):
        subsets_of(60, 20)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is 1 to 3, the number of models in the pool; found {k}"):
            subsets_of(3, k)


def test_terms_and_weights_that_do_not_fit_are_told(table) -> None:
    given = table()
    for refused, message in (
        (lambda: given.set_score(()), r"terms are at least one, each once, with a weight each; found \[\] and None"),
        (lambda: given.set_score(("task", "task")), r"each once, with a weight each; found \['task', 'task'\]"),
        (lambda: given.set_score(weights=[1, 1]), r"with a weight each; found .* and \[1, 1\]"),
        (lambda: given.set_score(("labels",)), "terms are of domain, task, cohesion, leep, e-leep; found 'labels'"),
        (lambda: given.set_score(weights=[1, -1, 1]), "weights are at least 0; found -1"),
        (lambda: given.set_score(pairs="both"), 'pairs is "ordered" or "unordered"; found \'both\''),
        (lambda: given.set_score().score([0, 0]), r"positions 0 to 5, each once; found \[0, 0\]"),
        (lambda: given.set_score().score([6]), r"positions 0 to 5, each once; found \[6\]"),
        (lambda: given.set_score().select(7), "k is 1 to 6, the number of models in the pool; found 7"),
        (lambda: TransferabilityTable(("a",), *[torch.zeros(2)] * 2, torch.zeros(2, 2), torch.zeros(1, 3)), "1 models have W_D and W_T"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_a_pool_without_spread_has_standardised_terms_of_zero(table) -> None:
    even = {"domain": torch.ones(3, dtype=torch.float64), "task": torch.ones(3, dtype=torch.float64)}
    score = table(3, **even, cohesion=1.0 - torch.eye(3, dtype=torch.float64)).set_score()
    assert score.singles.tolist() == [0, 0, 0]
    assert score.score([0, 1]) == 2  # raw, where there is no deviation to divide by


def test_a_table_comes_back_from_its_file(table, tmp_path) -> None:
    given = table()
    given.artifact().save(tmp_path)
    back = TransferabilityTable.from_artifact(gw.Artifact.load(tmp_path))
    assert back.names == given.names
    assert torch.equal(back.cohesion, given.cohesion)
    assert back.set_score(("e-leep",)).score([0, 1]) == given.set_score(("e-leep",)).score([0, 1])
    with pytest.raises(gw.ArtifactError, match='type "transferability-table" is expected; this one is "other"'):
        TransferabilityTable.from_artifact(gw.Artifact("other"))
