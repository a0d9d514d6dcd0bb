from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import grey_dilation, map_coordinates

from graftwork_testbed import load_digit_images
from graftwork_testbed.scenes.drawing import STROKES
from graftwork_testbed.scenes.layout import Vocabulary, draw_layout
from graftwork_testbed.scenes.render import compose, extents, mute, sharpen, stroke_alphas, widened
from graftwork_testbed.scenes.vocabulary import COLOURS

WRITTEN = load_digit_images(STROKES)[0]


def alphas_of(count, size, generator, **vocabulary):
    """A layout and the opacities of its digits."""
    layout = draw_layout(count, Vocabulary(**vocabulary), generator)
    strokes = WRITTEN[torch.from_numpy(generator.integers(0, len(WRITTEN), (count, 4)))]
    return layout, strokes, stroke_alphas(strokes, layout.centres, layout.sizes, layout.angles, size)


# -- one digit --------------------------------------------------------------------------------------------------------------------


def test_opacities_are_a_turned_scaled_digit_sampled_bilinearly():
    """Against scipy: from each pixel's middle to the digit's own frame, turned back, and a smooth step from 0.25 to 0.6."""
    layout, strokes, drawn = alphas_of(6, 48, np.random.default_rng(0), least=2)
    middle = (np.arange(48) + 0.5) / 48
    for scene, slot in (layout.sizes > 0).nonzero().tolist():
        across, down = layout.centres[scene, slot].double().numpy()
        side, angle = layout.sizes[scene, slot].item(), math.radians(layout.angles[scene, slot].item())
        x, y = np.meshgrid(middle - across, middle - down)  # y runs down
        u, v = (math.cos(angle) * x + math.sin(angle) * y) / side, (math.cos(angle) * y - math.sin(angle) * x) / side
        padded = np.pad(strokes[scene, slot].double().numpy() / 255, 1)
        read = map_coordinates(padded, [(v + 0.5) * STROKES + 0.5, (u + 0.5) * STROKES + 0.5], order=1, mode="constant")
        ramp = np.clip((read - 0.25) / 0.35, 0, 1)
        assert np.abs(drawn[scene, slot].numpy() - (3 * ramp**2 - 2 * ramp**3)).max() < 2e-3


def test_digits_turn_clockwise():
    bar = torch.zeros(1, 1, 40, 40, dtype=torch.uint8)
    bar[..., :20, 18:22] = 255  # from the middle up
    drawn = stroke_alphas(bar, torch.full((1, 1, 2), 0.5), torch.ones(1, 1), torch.tensor([[90.0]]), 40)[0, 0] > 0.5
    assert drawn[:, 20:].sum() == drawn.sum() > 0


def test_what_has_no_size_is_not_drawn():
    layout, _, drawn = alphas_of(40, 32, np.random.default_rng(0), least=1, most=3)
    shown = drawn.flatten(2).amax(2) > 0.5
    assert shown.equal(torch.arange(4) < layout.counts[:, None])


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_turned_digit_stays_in_its_square_and_so_no_two_overlap(n, size):
    layout, _, drawn = alphas_of(24, size, np.random.default_rng(0), least=n, most=n)
    boxes = extents(drawn > 0.5)[:, :n]
    half = layout.sizes[:, :n, None] / 2
    assert (boxes[..., :2] >= (layout.centres[:, :n] - half) * size - 0.5).all()
    assert (boxes[..., 2:] <= (layout.centres[:, :n] + half) * size + 0.5).all()
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert ((drawn > 0.5).sum(1) <= 1).all()


def test_the_step_is_smooth_and_runs_from_a_quarter_to_three_fifths():
    assert sharpen(torch.tensor([0.0, 0.25, 0.425, 0.6, 1.0])).tolist() == pytest.approx([0, 0, 0.5, 1, 1])
    near = sharpen(torch.tensor([0.251, 0.599]))
    assert near.tolist() == pytest.approx([0, 1], abs=1e-4)  # flat at both ends


# -- many digits ------------------------------------------------------------------------------------------------------------------


def test_widening_is_a_maximum_over_three_by_three():
    alphas = torch.rand(3, 1, 9, 7, generator=torch.Generator().manual_seed(0))
    expected = np.stack([grey_dilation(alpha, size=(3, 3), mode="constant", cval=0) for alpha in alphas[:, 0].numpy()])
    assert np.array_equal(widened(alphas)[:, 0].numpy(), expected)


def test_an_opaque_digit_has_its_colour_and_a_dark_rim():
    alphas = torch.zeros(1, 2, 8, 8)
    alphas[0, 0, 2:5, 2:5] = 1
    canvas = compose(alphas, torch.tensor([[[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]]]), torch.full((1, 3, 8, 8), 0.8))
    assert canvas.image[0, :, 2:5, 2:5].flatten(1).unique(dim=1).tolist() == [[255], [128], [0]]
    rim = canvas.image[0, 0].clone()
    rim[2:5, 2:5] = 0
    assert rim[1:6, 1:6].unique().tolist() == [0, round(255 * 0.8 * 0.45)]
    rim[1:6, 1:6] = 204
    assert (rim == 204).all()
    assert canvas.boxes[0].tolist() == [[2, 2, 5, 5], [0, 0, 0, 0]]


def test_a_half_opaque_digit_blends_with_the_darkened_background():
    alphas = torch.full((1, 1, 4, 4), 0.25)
    canvas = compose(alphas, torch.ones(1, 1, 3), torch.full((1, 3, 4, 4), 0.6))
    assert canvas.image.unique().tolist() == [round(255 * (0.6 * (1 - 0.55 * 0.25) * 0.75 + 0.25))]
    assert not canvas.instances.any()


def test_a_later_digit_covers_an_earlier_one_whose_box_stays_whole():
    alphas = torch.zeros(1, 2, 10, 10)
    alphas[0, 0, 2:6, 2:6] = 1
    alphas[0, 1, 4:9, 4:9] = 1
    canvas = compose(alphas, torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]]), torch.zeros(1, 3, 10, 10))
    assert (canvas.instances[0, 4:9, 4:9] == 2).all()
    assert (canvas.instances == 1).sum() == 16 - 4
    assert canvas.boxes[0].tolist() == [[2, 2, 6, 6], [4, 4, 9, 9]]
    assert canvas.image[0, :, 5, 5].tolist() == [0, 255, 0]


def test_drawing_changes_neither_the_background_nor_the_neighbours():
    generator = np.random.default_rng(0)
    layout, _, alphas = alphas_of(9, 32, generator)
    colours, background = (torch.from_numpy(generator.random(shape)).float() for shape in ((9, 4, 3), (9, 3, 32, 32)))
    kept = background.clone()
    together = compose(alphas, colours, background)
    assert background.equal(kept)
    for scene in range(9):
        alone = compose(alphas[scene : scene + 1], colours[scene : scene + 1], background[scene : scene + 1])
        assert alone.image[0].equal(together.image[scene])
        assert alone.instances[0].equal(together.instances[scene])
    assert len(set(layout.counts.tolist())) > 1


def test_muting_pulls_to_half_the_luminance():
    patches = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert mute(patches, 0).equal(patches)
    grey = 0.299 * patches[:, 0] + 0.587 * patches[:, 1] + 0.114 * patches[:, 2]
    assert mute(patches, 1).allclose(0.5 * grey.unsqueeze(1).expand(-1, 3, -1, -1), atol=1e-6)
    assert mute(patches, 0.5).allclose(0.75 * (patches + grey.unsqueeze(1)) / 2, atol=1e-6)


def test_the_box_of_an_empty_mask_is_zero():
    mask = torch.zeros(2, 5, 6, dtype=torch.bool)
    mask[1, 3, 5] = True
    assert extents(mask).tolist() == [[0, 0, 0, 0], [5, 3, 6, 4]]


# -- as the data set has them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_boxes_are_tight_around_what_is_seen_of_each_digit(flat, split):
    columns = flat[split].columns
    for number, instances in enumerate(columns["instances"].numpy()):
        for slot in range(int(flat[split].counts[number])):
            rows, across = np.nonzero(instances == slot + 1)
            tight = [across.min(), rows.min(), across.max() + 1, rows.max() + 1]
            assert columns["boxes"][number, slot].tolist() == tight
            assert min(tight) >= 0
            assert max(tight) <= 64
        assert not columns["boxes"][number, slot + 1 :].any()


def test_the_mask_has_the_class_of_each_instance(flat):
    for samples in flat.values():
        instances, labels = samples.columns["instances"].numpy(), samples.columns["labels"].numpy()
        for mask, seen, classes in zip(samples.columns["mask"].numpy(), instances, labels, strict=True):
            assert np.array_equal(mask, np.where(seen > 0, classes[np.maximum(seen, 1).astype(int) - 1] + 1, 0))
        assert instances.max(axis=(1, 2)).tolist() == samples.counts.tolist()


def test_a_digits_mean_colour_is_nearest_to_the_one_that_is_named(flat):
    """A digit's own colour strays by a deviation of 6 of 255 in each channel, and the nearest two names are 95 apart: taking
    one for another is one in 10^14. What is left to err is the blend with the background along the edges, which is dark."""
    named = np.array(list(COLOURS.values()), float)
    apart = min(np.linalg.norm(a - b) for i, a in enumerate(named) for b in named[:i])
    chance = 7 * 0.5 * math.erfc(apart / 2 / 6 / math.sqrt(2))  # a wrong side of any of seven bisectors
    digits = wrong = 0
    for samples in flat.values():
        for number, instances in enumerate(samples.columns["instances"].numpy()):
            for slot in range(int(samples.counts[number])):
                mean = samples.columns["image"][number].numpy()[:, instances == slot + 1].mean(1)
                wrong += np.linalg.norm(named - mean, axis=1).argmin() != samples.columns["colours"][number, slot].item()
                digits += 1
    assert digits * chance < 1e-9
    assert wrong == 0


def test_every_digit_is_lighter_in_some_channel_than_the_muted_background_can_be(flat):
    """At a muting of 0.5 no background passes 0.75 of white, and every colour has a channel above it."""
    images, instances = (flat["train"].columns[key] for key in ("image", "instances"))
    behind = images.amax(1)[instances == 0]
    assert behind.float().quantile(0.98) <= 0.75 * 255 + 1  # the rest are the soft edges of digits
    brightest = torch.stack([image.amax(0)[seen > 0].max() for image, seen in zip(images, instances, strict=True)])
    assert (brightest > 0.6 * 255).all()
