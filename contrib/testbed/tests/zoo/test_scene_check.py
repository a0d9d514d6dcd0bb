from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork import ConfigError, Dataset
from graftwork_testbed.scenes.grammar import parse_caption
from graftwork_testbed.scenes.vocabulary import COLOURS
from graftwork_testbed.zoo.scene_check import SceneCheck, draw_prompts

NAMES = tuple(COLOURS)


class Painter:
    """A pipeline that writes digit and colour into the first pixels; wrong on the digit nine, and on the colour pink."""

    scheduler = None
    device = torch.device("cpu")

    def __init__(self):
        self.calls = []

    def __call__(self, prompt, num_inference_steps, generator, output_type, height, width, guidance_scale):
        self.calls.append((len(prompt), num_inference_steps, guidance_scale))
        images = torch.zeros(len(prompt), 3, height, width)
        for row, text in enumerate(prompt):
            thing = parse_caption(text).things[0]
            images[row, 0, 0, 0] = (0 if thing.digit == 9 else thing.digit) / 10
            images[row, 1, 0, 0] = (0 if thing.colour == "pink" else NAMES.index(thing.colour)) / 10
            images[row, 2] = torch.rand(height, width, generator=generator[row])
        return type("Output", (), {"images": images})


class TrueGuided(Painter):
    """As Flux takes its guidance."""

    def __call__(self, prompt, num_inference_steps, generator, output_type, height, width, true_cfg_scale, negative_prompt):
        assert negative_prompt == [""] * len(prompt)
        return super().__call__(prompt, num_inference_steps, generator, output_type, height, width, true_cfg_scale)


class Reader(nn.Module):
    """Reads what the painter wrote into a channel."""

    num_features = 1

    def __init__(self, channel, num_classes):
        super().__init__()
        self.channel, self.num_classes = channel, num_classes

    def forward_features(self, x):
        return x

    def forward_head(self, x, pre_logits=False):
        return x

    def forward(self, image):
        found = (10 * image[:, self.channel, 0, 0]).round().long()
        return nn.functional.one_hot(found, self.num_classes).float()


def check(**settings):
    return SceneCheck(Reader(0, 10), Reader(1, 8), **settings)


def test_the_share_of_digits_and_colours_that_were_found_is_counted():
    report = check(repeats=2).evaluate(Painter(), Dataset({}))
    assert report.metrics == pytest.approx({"digit-accuracy": 0.9, "colour-accuracy": 0.875, "both-accuracy": 0.9 * 0.875})
    rows = {row[0]: row[1:] for row in report.tables["digits"].rows}
    assert rows["nine"] == pytest.approx([0.0, 0.875, 0.0])
    assert rows["three"] == pytest.approx([1.0, 0.875, 0.875])


def test_every_caption_is_drawn_as_often_as_asked_for_under_guidance():
    painter = Painter()
    check(repeats=3, guidance_scale=2.5, steps=7).evaluate(painter, Dataset({}))
    assert sum(count for count, *_ in painter.calls) == 240
    assert {rest for _, *rest in map(tuple, painter.calls) for rest in [tuple(rest)]} == {(7, 2.5)}


def test_a_pipeline_of_true_guidance_is_guided_by_that():
    painter = TrueGuided()
    report = check(repeats=1, guidance_scale=4.0).evaluate(painter, Dataset({}))
    assert report.metrics["digit-accuracy"] == pytest.approx(0.9)
    assert painter.calls[0][2] == 4.0


def test_a_picture_depends_on_its_own_seed_and_not_on_its_neighbours():
    prompts = ["a red three", "a blue one", "a white two"]
    together = draw_prompts(Painter(), prompts, 5.0, 3, seed=10)
    alone = draw_prompts(Painter(), prompts[2:], 5.0, 3, seed=12)
    assert torch.equal(together[2], alone[0])
    assert not torch.equal(together[2, 2], together[1, 2])


def test_a_figure_shows_64_pictures():
    figure = check(repeats=1).evaluate(Painter(), Dataset({})).figures["samples"]
    assert len(figure.figure.axes) == 64
    assert "guidance 5, 30 steps" in figure.caption


def test_classifiers_of_other_classes_are_refused():
    with pytest.raises(ConfigError, match="digits must be a classifier of 10 classes; Reader has 8"):
        SceneCheck(Reader(0, 8), Reader(1, 8))
    with pytest.raises(ConfigError, match="colours must be a classifier of 8 classes; Reader has 10"):
        SceneCheck(Reader(0, 10), Reader(1, 10))
