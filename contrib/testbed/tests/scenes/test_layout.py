from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from graftwork_testbed.scenes.grammar import parse_caption
from graftwork_testbed.scenes.layout import DOUBT, MOST, REPEAT, SIZES, Vocabulary, _place, draw_layout, relations
from graftwork_testbed.scenes.vocabulary import COLOURS, INVERSE, RELATIONS

PAIRS = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


@pytest.fixture(scope="module")
def many():
    return draw_layout(4000, Vocabulary(), np.random.default_rng(0))


def relation_of(first, second):
    """How a point (across, down) lies from another, said by the larger offset."""
    across, down = first[0] - second[0], first[1] - second[1]
    if abs(across) > abs(down):
        return "right of" if across > 0 else "left of"
    return "below" if down > 0 else "above"


def apart(centres, sizes):
    """Whether no two squares overlap: of any two, one ends across or down before the other begins."""
    squares = [(centre - side / 2, centre + side / 2) for centre, side in zip(centres, sizes, strict=True)]
    return all(
        (end <= start + 1e-6).any() or (stop <= begin + 1e-6).any() for (begin, end), (start, stop) in itertools.combinations(squares, 2)
    )


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_squares_lie_inside_the_frame_and_apart(n, scale):
    layout = draw_layout(250, Vocabulary(least=n, most=n, scale=scale), np.random.default_rng(0))
    assert (layout.counts == n).all()
    sizes, centres = layout.sizes[:, :n].double().numpy(), layout.centres[:, :n].double().numpy()
    low, high = (scale * end for end in SIZES[n])
    assert low - 1e-6 <= sizes.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < sizes.max() <= high + 1e-6
    half = sizes[..., None] / 2
    assert (centres - half).min() >= -1e-6
    assert (centres + half).max() <= 1 + 1e-6
    assert all(apart(*scene) for scene in zip(centres, sizes, strict=True))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_without_spread_a_digit_stands_upright_in_the_centre(scale):
    layout = draw_layout(50, Vocabulary(most=1, scale=scale, spread=0.0), np.random.default_rng(0))
    assert (layout.centres[:, 0] == 0.5).all()
    assert not layout.angles.any()
    torch.testing.assert_close(layout.sizes[:, 0], torch.full((50,), scale * sum(SIZES[1]) / 2))


def test_spread_draws_a_scene_towards_the_middle_one():
    whole, half = (draw_layout(250, Vocabulary(most=1, spread=spread), np.random.default_rng(0)) for spread in (1.0, 0.5))
    assert torch.equal(whole.digits, half.digits)
    torch.testing.assert_close(half.centres[:, 0] - 0.5, (whole.centres[:, 0] - 0.5) / 2)
    middle = sum(SIZES[1]) / 2
    torch.testing.assert_close(half.sizes[:, 0] - middle, (whole.sizes[:, 0] - middle) / 2)
    torch.testing.assert_close(half.angles, whole.angles / 2)
    reach = (half.centres[:, 0] - 0.5).abs() + half.sizes[:, :1] / 2
    assert reach.max() <= 0.5 + 1e-6


def test_what_lies_beyond_a_scenes_count_is_zero():
    layout = draw_layout(200, Vocabulary(), np.random.default_rng(0))
    absent = torch.arange(MOST) >= layout.counts[:, None]
    for values in (layout.digits, layout.colours, layout.sizes, layout.angles, layout.centres.abs().sum(-1)):
        assert not values[absent].any()
    assert (layout.sizes[~absent] > 0).all()


def test_digits_are_turned_by_up_to_ten_degrees_to_either_side():
    angles = draw_layout(500, Vocabulary(least=4), np.random.default_rng(0)).angles
    assert -10 <= angles.min() < -9.9
    assert 9.9 < angles.max() <= 10


@pytest.mark.parametrize("weights", [(1.0, 2.0, 3.0, 2.0), (0.0, 5.0, 0.0, 1.0)])
def test_counts_occur_as_often_as_their_weights_say(weights):
    counts = draw_layout(1600, Vocabulary(weights=weights), np.random.default_rng(0)).counts
    wanted = np.array(weights)
    found = np.bincount(counts, minlength=5)[1:]
    assert not found[wanted == 0].any()
    assert chisquare(found[wanted > 0], 1600 * wanted[wanted > 0] / wanted.sum()).pvalue > 0.001


def test_weights_are_for_the_counts_that_are_asked_for():
    counts = draw_layout(1000, Vocabulary(least=2, most=3, weights=(1, 4)), np.random.default_rng(0)).counts
    assert chisquare(np.bincount(counts)[2:], [200, 800]).pvalue > 0.001


def test_counts_classes_and_colours_are_drawn_evenly_by_default(many):
    assert chisquare(np.bincount(many.counts)[1:]).pvalue > 0.001
    assert chisquare(np.bincount(many.digits[:, 0])).pvalue > 0.001
    assert chisquare(np.bincount(many.colours[:, 0])).pvalue > 0.001


def test_a_digit_is_the_same_again_as_often_as_it_should(many):
    alike = (many.digits[:, 0] == many.digits[:, 1]) & (many.colours[:, 0] == many.colours[:, 1])
    again = alike[many.counts > 1].double()
    expected = REPEAT + (1 - REPEAT) / 80  # by intent, or by chance
    assert again.mean().item() == pytest.approx(expected, abs=4 * (expected * (1 - expected) / len(again)) ** 0.5)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_where_no_candidate_fits_the_digits_stand_in_the_corners(share):
    class Stuck:
        """A generator whose draws are all alike: candidates lie one over another, and the jitter is the least or most there is."""

        def uniform(self, low, high, shape):
            return np.full(shape, low + share * (high - low))

    sizes = np.array([[0.38, 0.38, 0.38, 0], [0.34, 0.34, 0.34, 0.34]])  # the largest
    for scene, side in zip(_place(sizes, sizes > 0, Stuck()), sizes, strict=True):
        there = side > 0
        assert (scene[there] - side[there][:, None] / 2).min() >= 0
        assert (scene[there] + side[there][:, None] / 2).max() <= 1
        assert apart(scene[there], side[there] + 0.04)  # whatever the others' jitter
        across, down = abs(scene[0] - scene[1])
        assert across - down - 0.08 > DOUBT


def test_relations_are_by_the_larger_offset_of_every_pair():
    layout = draw_layout(300, Vocabulary(), np.random.default_rng(0))
    triples, entries = relations(layout.counts, layout.centres)
    assert entries.tolist() == [n * (n - 1) // 2 for n in layout.counts.tolist()]
    for count, centres, rows in zip(entries.tolist(), layout.centres.tolist(), triples.tolist(), strict=True):
        expected = [[i, RELATIONS.index(relation_of(centres[i], centres[j])), j] for i, j in PAIRS[:count]]
        assert rows[:count] == expected


def test_the_inverse_holds_the_other_way_round():
    centres = torch.rand(200, MOST, 2, generator=torch.Generator().manual_seed(0))
    counts = torch.full((200,), 2)
    there, back = (relations(counts, points)[0][:, 0, 1] for points in (centres, centres[:, [1, 0, 2, 3]]))
    assert torch.tensor(INVERSE)[there].equal(back)
    assert set(there.tolist()) == {0, 1, 2, 3}


def test_the_relation_of_the_first_two_is_never_in_doubt(many):
    across, down = (many.centres[:, 0] - many.centres[:, 1])[many.counts > 1].abs().unbind(-1)
    assert (across - down).abs().min() > DOUBT - 1e-6


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_relations_are_true_of_the_boxes_in_the_picture(flat, split):
    """Of a square's middle and of the box around what is written in it, the relation says the same, but where offsets nearly tie."""
    samples = flat[split]
    for number in range(len(samples)):
        sample = samples[number]
        middles = ((sample["boxes"][:, :2] + sample["boxes"][:, 2:]) / 2).tolist()
        assert sample["relation"][:, ::2].tolist() == [list(pair) for pair in PAIRS[: len(sample["relation"])]]
        for first, relation, second in sample["relation"].tolist():
            (across, down) = (end - start for start, end in zip(middles[second], middles[first], strict=True))
            assert {"left of": across < 0, "right of": across > 0, "above": down < 0, "below": down > 0}[RELATIONS[relation]]
            if relation_of(middles[first], middles[second]) != RELATIONS[relation]:
                assert abs(abs(across) - abs(down)) < DOUBT * 64
                assert (first, second) != (0, 1)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_captions_are_true_of_the_picture(flat, split):
    samples = flat[split]
    for number in range(len(samples)):
        sample = samples[number]
        said = parse_caption(sample["caption"])
        shown = [
            (digit, list(COLOURS)[colour]) for digit, colour in zip(sample["labels"].tolist(), sample["colours"].tolist(), strict=True)
        ]
        assert sorted((thing.digit, thing.colour) for thing in said.things) == sorted(shown)
        assert (said.background, said.style) == (None, None)
        if len(shown) > 1 and shown[0] != shown[1]:
            assert [(thing.digit, thing.colour) for thing in said.things[:2]] == shown[:2]
            middles = ((sample["boxes"][:, :2] + sample["boxes"][:, 2:]) / 2).tolist()
            assert said.relation == relation_of(*middles[:2])
        else:
            assert said.relation is None
