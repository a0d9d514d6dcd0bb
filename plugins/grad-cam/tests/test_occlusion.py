from __future__ import annotations

import pytest
import torch
from scipy.stats import rankdata, spearmanr

from graftwork.errors import DataError
from graftwork_grad_cam.grad_cam import GradCAM
from graftwork_grad_cam.guided_backprop import GuidedBackprop
from graftwork_grad_cam.occlusion import OcclusionFaithfulness, average_ranks, occlusion_map, spearman


def test_ranks_share_their_mean_where_values_tie():
    values = torch.tensor([[3.0, 1, 1, 2, 1], [0.0, 0, 0, 0, 5]])
    assert torch.equal(average_ranks(values), torch.from_numpy(rankdata(values.numpy(), axis=1)) - 1)


def test_rank_correlation_equals_scipys():
    first, second = torch.randn(5, 200).relu(), torch.randn(5, 200)
    second[2] = first[2] + 0.1 * second[2]
    expected = [spearmanr(a, b).statistic for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    assert spearman(first, second).tolist() == pytest.approx(expected, abs=1e-12)
    assert spearman(first, -first).tolist() == pytest.approx([-1] * 5)
    assert spearman(first, torch.zeros(5, 200)).isnan().all()


def test_an_occlusion_map_is_the_fall_of_the_score_at_each_position(colours):
    x = torch.rand(2, 3, 12, 15)
    found = occlusion_map(colours, x, [0, 2], patch=5, stride=3, fill=0.25)
    assert found.shape == (2, 1, 4, 5)
    for row, y in enumerate(range(1, 12, 3)):
        for column, left in enumerate(range(1, 15, 3)):
            hidden = x.clone()
            hidden[:, :, max(0, y - 2) : y + 3, max(0, left - 2) : left + 3] = 0.25
            fall = (colours(x) - colours(hidden))[[0, 1], [0, 2]]
            torch.testing.assert_close(found[:, 0, row, column], fall.detach(), rtol=1e-4, atol=1e-5)


def test_the_size_of_a_chunk_changes_nothing(colours):
    x = torch.rand(3, 3, 12, 12)
    expected = occlusion_map(colours, x, "top-2", patch=3, stride=2)
    assert expected.shape == (3, 2, 6, 6)
    for chunk in (1, 5, 100):
        torch.testing.assert_close(occlusion_map(colours, x, "top-2", patch=3, stride=2, chunk=chunk), expected)


def test_running_out_of_memory_halves_the_chunk(colours):
    x, sizes = torch.rand(2, 3, 12, 12), []

    def cramped(module, inputs):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 20:
            raise torch.cuda.OutOfMemoryError("no room")

    expected = occlusion_map(colours, x, 1, patch=3, stride=2)
    colours.register_forward_pre_hook(cramped)
    torch.testing.assert_close(occlusion_map(colours, x, 1, patch=3, stride=2, chunk=36), expected)
    assert max(sizes) == 72
    assert sizes[-1] <= 20


def test_the_predicted_class_is_that_of_the_whole_image(colours):
    x = torch.zeros(1, 3, 12, 12)
    x[:, 0, :3, :3], x[:, 1, 9:, 9:] = 1.0, 0.9
    found = occlusion_map(colours, x, "predicted", patch=3, stride=3, fill=0.0)[0, 0]
    assert found[0, 0] == pytest.approx(10 * 9 / 144, rel=1e-4)  # red, not the green that wins once red is hidden
    assert found[3, 3] == pytest.approx(0, abs=1e-6)


def test_a_target_without_gradient_is_occluded_all_the_same(colours):
    assert occlusion_map(colours, torch.rand(2, 3, 12, 12), lambda out: out.argmax(dim=1).float()).shape[:2] == (2, 1)


def test_the_mean_colour_can_be_what_hides(colours):
    flat = torch.full((1, 3, 12, 12), 0.3)
    assert occlusion_map(colours, flat, 0, fill="mean").abs().max() < 1e-5
    assert occlusion_map(colours, flat, 0, fill=0.0).min() > 0


def test_an_even_patch_and_an_empty_stride_are_refused(colours):
    with pytest.raises(ValueError, match="a patch is odd, so that it has a centre, and a stride positive; found 4 and 2"):
        occlusion_map(colours, torch.rand(1, 3, 12, 12), 0, patch=4)
    with pytest.raises(ValueError, match="found 3 and 0"):
        occlusion_map(colours, torch.rand(1, 3, 12, 12), 0, patch=3, stride=0)
    with pytest.raises(ValueError, match="a patch is odd"):
        OcclusionFaithfulness(patch=8)


def test_maps_of_a_network_that_sums_pixels_rank_as_occlusion_does(colours, scenes):
    report = OcclusionFaithfulness(columns=1, patch=3, stride=2, fill=0.0).evaluate(colours, scenes)
    assert report.metrics["occlusion-correlation"] > 0.75
    assert report.metrics["constant-maps"] == 0
    for sample in scenes["test"]:
        sample["image"] = sample["image"] + 0.1  # no pixel is black, so that the gradient is the same at each
    gradient = OcclusionFaithfulness(columns=1, saliency=GuidedBackprop(rule="plain", target="predicted"), patch=3, stride=2).evaluate(
        colours, scenes
    )
    assert gradient.metrics["occlusion-correlation"] == 0
    assert gradient.metrics["constant-maps"] == 1


def test_an_empty_split_is_refused(colours):
    from graftwork import Dataset

    with pytest.raises(DataError, match='split "test" is empty'):
        OcclusionFaithfulness(columns=1, saliency=GradCAM(target="predicted")).evaluate(colours, Dataset({"test": []}))


def test_captions_occlude_with_their_images(loaded):
    ids = torch.tensor([[1, 10, 11, 2], [1, 14, 12, 2]])
    found = occlusion_map(loaded("blip"), {"image": torch.rand(2, 3, 64, 64), "input_ids": ids}, "caption", patch=31, stride=32)
    single = occlusion_map(
        loaded("blip"), {"image": torch.rand(2, 3, 64, 64), "input_ids": ids[:, :1].expand(2, 4)}, "caption", patch=31, stride=32
    )
    assert found.shape == single.shape == (2, 1, 2, 2)
    assert found.any()
