from __future__ import annotations

import pytest
import torch

from graftwork import DataError, Dataset, TensorSamples
from graftwork_testbed import contact_sheet, diabetes, digit_domains, digits, shifted_moons
from graftwork_testbed.sheet import mosaic


def drawn(figure):
    return torch.as_tensor(figure.axes[0].images[0].get_array())


def test_tiles_keep_their_place_and_missing_ones_are_white():
    images = torch.stack([torch.zeros(2, 1, 10, 10), torch.full((2, 1, 10, 10), 0.5)])
    images[1, 1] = torch.nan
    sheet = mosaic(images)
    assert sheet.shape == (21, 21, 3)
    assert sheet[:10, :10].max() == 0
    assert sheet[11:, :10].unique().item() == 0.5
    assert sheet[11:, 11:].min() == 1
    assert sheet[10].min() == 1


def test_one_split_has_a_row_a_class():
    figure = contact_sheet(digits(), "train", columns=5)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list("0123456789")
    assert drawn(figure).shape == (10 * 35 - 3, 5 * 35 - 3, 3)


def test_classes_that_a_split_lacks_have_no_row():
    figure = contact_sheet(digits(held_out_classes=[7, 8, 9]), "test", columns=3)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["7", "8", "9"]


def test_several_splits_have_a_row_each_with_the_same_digits():
    data = digit_domains(["clean", "inverted"])
    sheet = drawn(contact_sheet(data, ["clean/test", "inverted/test"], columns=4))
    clean, inverted = sheet[:32, :32], sheet[35:67, :32]
    torch.testing.assert_close(clean + inverted, torch.ones_like(clean))


def test_two_dimensional_features_are_drawn_as_points():
    figure = contact_sheet(shifted_moons(60), ["source/train", "target/train"])
    assert len(figure.axes) == 2
    assert sum(len(group.get_offsets()) for group in figure.axes[0].collections) == 60


def test_images_without_labels_are_drawn_in_a_block():
    data = Dataset({"train": TensorSamples(image=torch.rand(7, 1, 8, 8))})
    assert drawn(contact_sheet(data, "train", columns=4)).shape == (2 * 9 - 1, 4 * 9 - 1, 3)


def test_a_sheet_can_be_saved(tmp_path):
    contact_sheet(digits(), "val").savefig(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 5000


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(DataError, match=r"'features': \(10,\)"):
        contact_sheet(diabetes(), "train")
    with pytest.raises(DataError, match='no split "trian"'):
        contact_sheet(digits(), "trian")
    with pytest.raises(DataError, match="nothing to draw: train is empty"):
        contact_sheet(Dataset({"train": TensorSamples(image=torch.zeros(0, 3, 8, 8))}), "train")
    with pytest.raises(ValueError, match="at least one column and one split; found 0"):
        contact_sheet(digits(), "train", columns=0)
