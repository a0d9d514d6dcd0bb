"""Every pixel a sample: which are drawn, what a segmenter makes of them, and IoU-EEP."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import interpolate

import graftwork as gw
from graftwork_osborn import IoUEEP, Reading, Source, intersection_over_union_of_eep, leep, measure_pool, read_outputs
from graftwork_osborn.sampling import draw_pixels

EVERY = Reading(samples=None, pixels=10_000, images=None)


def truth_of(masks: gw.Dataset, split: str = "train") -> torch.Tensor:
    return masks[split].columns["mask"]


def test_pixels_are_drawn_inversely_to_the_frequency_of_their_class() -> None:
    masks = torch.zeros(4, 50, 50, dtype=torch.long)
    masks[:, :5] = 1
    masks[:, 0] = 255
    drawn = draw_pixels(masks, Reading(pixels=200, samples=600), torch.Generator().manual_seed(0))
    assert len(drawn.labels) == 600
    assert all(len(one.unique()) == len(one) <= 200 for one in drawn.positions)
    assert set(drawn.labels.tolist()) == {0, 1}
    assert 0.4 < (drawn.labels == 1).double().mean() < 0.6  # 8 % of the pixels
    even = draw_pixels(masks, Reading(pixels=200, balanced=False), torch.Generator().manual_seed(0))
    assert (even.labels == 1).double().mean() < 0.15
    with pytest.raises(gw.DataError, match="the masks have no pixel that counts"):
        draw_pixels(masks[:, :1], Reading(), torch.Generator())


def test_logits_and_features_are_those_at_the_pixel(pixel_net, masks) -> None:
    model = pixel_net()
    found = read_outputs(model, masks, "train", Reading(samples=50, pixels=20, batch_size=4))
    pixels = read_outputs(model, masks, "train", EVERY)
    image, mask = masks["train"].columns["image"], truth_of(masks)
    counted = mask != 255
    # every pixel, in another order than the rows: compared as sets of (label, logits, features)
    logits = model.segment(image).detach().movedim(1, -1)[counted]
    features = interpolate(model.body(image), size=(8, 8), mode="bilinear", align_corners=False).movedim(1, -1)[counted]

    def rows(labels, probabilities, features):
        return torch.cat([labels[:, None].float(), probabilities, features], dim=1).sort(dim=0).values

    torch.testing.assert_close(
        rows(pixels.labels, pixels.probabilities, pixels.features), rows(mask[counted], logits.softmax(dim=1), features)
    )
    joined = model.classifier(pixels.features[:, :, None, None])[:, :, 0, 0].detach().softmax(dim=1)
    torch.testing.assert_close(joined, pixels.probabilities)  # a row's features and logits are of one pixel
    assert found.features.shape == (50, 3)
    assert float(leep(pixels.probabilities, pixels.labels)) == pytest.approx(float(leep(logits.softmax(dim=1), mask[counted])), abs=1e-6)


def test_segmenters_are_measured_as_classifiers_are(pixel_net, masks) -> None:
    pool = {"first": pixel_net(3), "second": pixel_net(5, 1)}
    table = measure_pool(pool, dict.fromkeys(pool, Source(masks, "source")), masks, reading=Reading(samples=60))
    assert (table.domain > 0).all()
    assert (table.task <= math.log(3) + 1e-9).all()
    assert table.likelihoods.shape == (2, 60)
    assert table.cohesion[0, 1] != table.cohesion[1, 0]


def test_a_segmenters_last_layer_must_be_found_or_named(pixel_net, masks) -> None:
    model = pixel_net()
    model.num_classes = 7
    with pytest.raises(gw.InterfaceError, match="PixelNet has no layer with num_classes = 7 outputs: name the one it ends in as `layer`"):
        read_outputs(model, masks, "train")
    assert read_outputs(model, masks, "train", Reading(layer="classifier", samples=9)).features.shape == (9, 3)
    with pytest.raises(gw.DataError, match='a segmenter is measured on masks; the samples of "train" have image'):
        read_outputs(model, gw.Dataset({"train": gw.TensorSamples(image=torch.rand(2, 3, 8, 8))}), "train")


def test_classifiers_and_segmenters_are_not_one_pool(pixel_net, net, masks) -> None:
    class Both(gw.Dataset):
        pass

    columns = masks["train"].columns
    data = Both({"train": gw.TensorSamples(**columns, features=torch.randn(6, 4), label=torch.arange(6) % 3)})
    pool = {"pixels": pixel_net(), "whole": net()}
    with pytest.raises(gw.InterfaceError, match="a pool is of classifiers or of segmenters; found both"):
        measure_pool(pool, dict.fromkeys(pool, Source(data, "train")), data)


@pytest.mark.parametrize("soft", [False, True])
def test_iou_eep_is_that_of_the_averaged_prediction(pixel_net, masks, soft) -> None:
    pool = {"first": pixel_net(3), "second": pixel_net(5, 1)}
    image, mask = masks["train"].columns["image"], truth_of(masks)
    counted = mask != 255
    labels, eeps = mask[counted], []
    for model in pool.values():
        shares = model.segment(image).detach().movedim(1, -1)[counted].softmax(dim=1).double()
        joint = torch.stack([shares[labels == y].sum(dim=0) for y in range(3)])
        eeps.append(shares @ (joint / joint.sum(dim=0)).T)
    mean = torch.stack(eeps).mean(dim=0)
    guess = mean if soft else torch.eye(3, dtype=torch.float64)[mean.argmax(dim=1)]
    truth = torch.eye(3, dtype=torch.float64)[labels]
    expected = (guess * truth).sum(dim=0) / (guess + truth - guess * truth).sum(dim=0)
    report = IoUEEP(pool, soft=soft, batch_size=4).evaluate(None, masks)
    assert report.metrics["iou-eep"] == pytest.approx(float(expected.nanmean()), abs=1e-6)
    assert [row[1] for row in report.tables["classes"].rows] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_segmenter_that_is_right_up_to_names_has_all_of_the_union(masks) -> None:
    class Oracle(torch.nn.Module):
        """Says which channel is the brightest, by other names."""

        def segment(self, image):
            return 50.0 * torch.nn.functional.one_hot((image.argmax(dim=1) + 1) % 3, 4).movedim(-1, 1)

    batches = [{"image": masks["train"].columns["image"], "mask": truth_of(masks)}]
    for soft in (False, True):
        found = intersection_over_union_of_eep([Oracle()], lambda: iter(batches), soft=soft)
        torch.testing.assert_close(found, torch.ones(3, dtype=found.dtype), rtol=0, atol=1e-6)


def test_what_does_not_segment_and_masks_of_another_size_are_told(net, pixel_net, masks) -> None:
    with pytest.raises(gw.InterfaceError, match="iou-eep needs a model that offers Segmenter; Net lacks segment"):
        IoUEEP({"one": net()})
    halved = gw.Dataset({"train": gw.TensorSamples(image=torch.rand(2, 3, 8, 8), mask=torch.zeros(2, 4, 4, dtype=torch.long))})
    with pytest.raises(gw.DataError, match=r"PixelNet segments to \(8, 8\) pixels where the masks have \(4, 4\)"):
        IoUEEP({"one": pixel_net()}).evaluate(None, halved)
    nothing = gw.Dataset({"train": gw.TensorSamples(image=torch.rand(2, 3, 8, 8), mask=torch.full((2, 8, 8), 255))})
    with pytest.raises(gw.DataError, match="the masks have no pixel that counts"):
        IoUEEP({"one": pixel_net()}).evaluate(None, nothing)
