from __future__ import annotations

import pytest
import torch

from graftwork_grad_cam.neuron_importance import (
    NeuronImportance,
    channel_thresholds,
    concept_overlaps,
    explanation,
    rank_channels,
)


def test_channels_are_ranked_from_both_ends():
    ranked = rank_channels(torch.tensor([0.1, -3.0, 2.0, 0.0, -1.0, 5.0]), 2)
    assert ranked.supporting == [5, 2]
    assert ranked.contradicting == [1, 4]
    assert rank_channels(torch.tensor([0.1, -3.0, 2.0, 0.0]), 5).supporting == [2, 0]


def test_a_threshold_leaves_the_share_above_it():
    values = torch.arange(1000.0).view(10, 1, 10, 10)
    threshold = channel_thresholds(values, 0.995)
    assert (values > threshold).float().mean().item() == pytest.approx(0.005)


def test_overlaps_are_intersection_over_union_over_all_the_data():
    activations, masks = torch.rand(7, 3, 8, 8), torch.randint(0, 4, (7, 16, 16))
    thresholds = torch.tensor([0.3, 0.6, 2.0])
    found = concept_overlaps(activations, masks, 4, thresholds)
    large = torch.nn.functional.interpolate(activations, size=(16, 16), mode="bilinear", align_corners=False)
    for channel in range(3):
        above = large[:, channel] > thresholds[channel]
        for concept in range(4):
            present = masks == concept + 1
            union = (above | present).sum()
            assert found[channel, concept].item() == pytest.approx(((above & present).sum() / union.clamp(min=1)).item())


def test_an_explanation_names_what_supports_and_what_contradicts():
    assert (
        explanation("red", ["stripes", "stripes", "sky"], ["grass"])
        == "The network takes stripes, sky as evidence for red. Grass speaks against it."
    )
    assert explanation("red", [], ["a", "b"]) == "Nothing speaks for red. A, b speak against it."
    assert explanation("red", ["sky"], []) == "The network takes sky as evidence for red."


def test_channels_that_see_a_colour_are_named_after_it_and_support_it(colours, scenes):
    with torch.no_grad():
        colours.head.weight.sub_(1)
    report = NeuronImportance(quantile=0.9).evaluate(colours, scenes)
    assert report.metrics["named-channels"] == 1
    words = dict(report.tables["words"].rows)
    for colour, others in {"red": "green, blue", "green": "red, blue", "blue": "red, green"}.items():
        if colour in words:
            assert words[colour].startswith(f"The network takes {colour} as evidence for {colour}.")
            assert all(other in words[colour].lower() for other in others.split(", "))
    first = report.tables["channels"].rows[0]
    assert first[0] == first[3]
    assert first[1] == "for"
    assert first[4] == pytest.approx(9 / 1024)
    assert first[5] > 0.5
    assert "importance" in report.figures


def test_without_masks_channels_have_numbers(colours, scenes, drop):
    report = NeuronImportance().evaluate(colours, drop(scenes, "mask"))
    assert report.metrics["named-channels"] == 0
    assert all(row[3] == f"channel {row[2]}" and row[5] is None for row in report.tables["channels"].rows)


def test_a_low_overlap_names_nothing(colours, scenes):
    for sample in scenes["test"]:
        sample["mask"] = sample["mask"].roll(5, 0)  # half beside the squares: an overlap of a third
    assert NeuronImportance(quantile=0.9).evaluate(colours, scenes).metrics["named-channels"] == 1
    assert NeuronImportance(quantile=0.9, min_iou=0.5).evaluate(colours, scenes).metrics["named-channels"] == 0


def test_a_quantile_out_of_range_is_refused():
    with pytest.raises(ValueError, match="the quantile must be above 0 and below 1; found 1"):
        NeuronImportance(quantile=1)
