"""The parts of a sheet: measured text, tiles, colours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from graftwork_testbed.sheets.clips import film_strip
from graftwork_testbed.sheets.images import mosaic
from graftwork_testbed.sheets.paper import COLOURS, DPI, whole_pixels, wrap
from graftwork_testbed.sheets.pixels import field, fit, overlay, rgb

CAPTION = "a red three on the left of a blue seven that hides a part of a tall green one, on a photograph of wood"


@pytest.mark.parametrize("width", [0.8, 1.5, 3.0])
def test_wrapped_lines_fit_as_drawn_and_keep_every_word(width):
    lines = wrap(CAPTION, width, 6.5, lines=50)
    assert " ".join(lines).split() == CAPTION.split()
    assert max(ink(line) for line in lines) <= width
    for first, second in itertools.pairwise(lines):  # no line could have taken the next word as well
        assert ink(f"{first} {second.split()[0]}") > width - 0.02  # less what a letter keeps free at its sides


def ink(text):
    """Inches from the left of a page to the last dark pixel of a line that begins there."""
    figure = Figure(figsize=(5, 0.3), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    figure.text(0, 0.3, text, fontsize=6.5)
    canvas.draw()
    return (np.asarray(canvas.buffer_rgba())[..., 0] < 200).any(0).nonzero()[0].max() / DPI


def test_text_that_does_not_fit_ends_in_an_ellipsis():
    assert wrap(CAPTION, 1.5, 6.5, lines=2)[-1].endswith("…")
    assert len(wrap(CAPTION, 1.5, 6.5, lines=2)) == 2
    (cut,) = wrap("Donaudampfschifffahrtsgesellschaftskapitän", 0.9, 6.5)
    assert cut.startswith("Donau")
    assert cut.endswith("…")
    assert wrap("", 1.0) == []


@pytest.mark.parametrize(("size", "inches"), [(8, 0.62), (25, 0.62), (32, 0.62), (64, 1.28), (96, 1.5)])
def test_tiles_take_whole_pixels_of_the_page(size, inches):
    length = whole_pixels(size, inches)
    assert (length * DPI / size) % 1 == pytest.approx(0, abs=1e-9)
    assert abs(length - inches) <= size / DPI / 2 + 1e-9
    assert whole_pixels(size, inches, most=inches) <= inches
    assert whole_pixels(1000, 1.2, most=1.0) == 1.0


def test_tiles_keep_their_place_and_missing_ones_are_white():
    images = torch.stack([torch.zeros(2, 1, 10, 20), torch.full((2, 1, 10, 20), 0.5)])
    images[1, 1] = torch.nan
    sheet = mosaic(images)
    assert sheet.shape == (21, 41, 3)
    assert sheet[:10, :20].max() == 0
    assert sheet[11:, :20].unique().item() == 0.5
    assert sheet[11:, 21:].min() == 1
    assert sheet[10].min() == 1


def test_a_smaller_image_is_centred_and_a_larger_one_shrunk_in_proportion():
    centred = fit(torch.zeros(3, 2, 4), 6, 6)
    assert centred[0].eq(0).nonzero().tolist() == [[y, x] for y in (2, 3) for x in (1, 2, 3, 4)]
    shrunk = fit(torch.full((3, 40, 20), 0.25), 10, 10)
    assert shrunk[0].lt(0.5).sum(0).tolist() == [0, 0, 10, 10, 10, 10, 10, 0, 0, 0]


def test_bytes_and_values_out_of_range_become_colours():
    assert rgb(torch.tensor([[[0, 255]]], dtype=torch.uint8))[0].tolist() == [[0, 1]]
    assert rgb(torch.tensor([[[-1.0, 0.5, 2.0, torch.nan]]]))[1].tolist() == [[0, 0.5, 1, 1]]


def test_a_mask_colours_its_classes_over_grey_with_an_opaque_outline():
    image = torch.tensor([0.2, 0.5, 0.8]).view(3, 1, 1).expand(3, 7, 7)
    labels = torch.zeros(7, 7, dtype=torch.long)
    labels[1:6, 1:6] = 2
    labels[0, 0] = 255
    drawn = overlay(image, labels, opacity=0.6)
    grey, red = torch.full((3,), 0.25 + 0.75 * 0.5), torch.tensor(to_rgb(COLOURS[1]))
    torch.testing.assert_close(drawn[:, 6, 0], grey)
    torch.testing.assert_close(drawn[:, 3, 3], 0.4 * grey + 0.6 * red)
    torch.testing.assert_close(drawn[:, 1, 3], red)
    assert drawn[:, 0, 0].sub(0.6 * 0.8 + 0.4 * grey).abs().max() < 1e-6
    assert overlay(image, labels, ignored=())[:, 0, 0].sub(0.6 * torch.tensor(to_rgb(COLOURS[254 % 10])) + 0.4 * grey).abs().max() < 1e-6


def test_a_field_goes_from_its_least_to_its_greatest_value():
    drawn = field(torch.tensor([[3.0, 7.0, torch.nan, 5.0]]))
    for column, share in ((0, 0.0), (1, 1.0), (3, 0.5)):
        torch.testing.assert_close(drawn[:, 0, column], torch.tensor(colormaps["viridis"](share)[:3]).float())
    assert drawn[:, 0, 2].tolist() == [1, 1, 1]


def test_a_field_over_several_magnitudes_is_drawn_by_its_logarithm():
    drawn = field(torch.tensor([[1.0, 10.0, 100.0]]))
    torch.testing.assert_close(drawn[:, 0, 1], torch.tensor(colormaps["viridis"](0.5)[:3]).float())
    torch.testing.assert_close(field(torch.tensor([[0.0, 50.0, 100.0]]))[:, 0, 1], drawn[:, 0, 1])  # zero has none


def test_a_film_strip_shows_its_frames_in_order():
    frames = torch.arange(1, 5).view(4, 1, 1, 1).expand(4, 3, 20, 30) / 10
    strip = film_strip(frames)
    assert strip.shape == (3, 20 + 2 * 2, 4 * 31 + 1)
    assert strip[0, 2 + 10, [15, 46, 77, 108]].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert strip[0, 0].unique().tolist() == pytest.approx([0.12])
