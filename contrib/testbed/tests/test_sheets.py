"""Contact sheets of every kind of sample, mostly of made-up ones."""

from __future__ import annotations

import functools
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from PIL import Image

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples
from graftwork_testbed import contact_sheet, diabetes, digit_domains, digits, shifted_moons
from graftwork_testbed.sheets.choice import LOOKED_AT, rows, spread
from graftwork_testbed.sheets.paper import COLOURS

CAPTION = "a red three on the left of a blue seven that hides a part of a tall green one, on a photograph of wood"


class Made:
    """Samples that are made when they are asked for, and count how often that is."""

    def __init__(self, count, make):
        self.count, self.make, self.asked = count, make, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.asked += 1
        return self.make(index)


def scene(index, height=64, width=64, digits=3):
    """A made-up scene in the vocabulary of `digit-scenes`."""
    generator = torch.Generator().manual_seed(index)
    mask = torch.zeros(height, width, dtype=torch.long)
    instances = mask.clone()
    labels = torch.randint(0, 10, (digits,), generator=generator)
    corners = torch.randint(0, min(height, width) - 20, (digits, 2), generator=generator)
    boxes = torch.cat([corners, corners + 16], dim=1).float()
    for number, (x, y) in enumerate(corners.tolist()):
        mask[y : y + 16, x : x + 16] = labels[number] + 1
        instances[y : y + 16, x : x + 16] = number + 1
    return {
        "image": torch.rand(3, height, width, generator=generator),
        "label": int(labels[0]),
        "labels": labels,
        "boxes": boxes,
        "mask": mask,
        "instances": instances,
        "caption": CAPTION,
        "relation": torch.zeros(1, 3, dtype=torch.long),
        "domain": index % 3,
    }


def dataset(make, count=60, classes=tuple("0123456789"), **more):
    splits = {"train": Made(count, make), **{name: Made(count, other) for name, other in more.items()}}
    return Dataset(splits, DatasetInfo(classes=classes, description="Made-up samples"))


def without(sample, *keys):
    return {key: value for key, value in sample.items() if key not in keys}


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def pictures(figure):
    """(left, right, bottom, top) in inches, of each picture on a sheet."""
    return [image.get_extent() for image in figure.axes[0].images]


def pixels(figure, number=0):
    return torch.as_tensor(np.asarray(figure.axes[0].images[number].get_array()))


KINDS = {
    "scenes": lambda: contact_sheet(dataset(scene), "train"),
    "several splits": lambda: contact_sheet(dataset(scene, test=scene), ["train", "test"]),
    "captions": lambda: contact_sheet(dataset(lambda i: {"image": scene(i)["image"], "caption": CAPTION}), "train"),
    "panoramas": lambda: contact_sheet(dataset(lambda i: scene(i, 64, 128) | {"distortion": torch.rand(64, 128)}), "train"),
    "masks by class": lambda: contact_sheet(dataset(lambda i: without(scene(i), "boxes", "caption")), "train"),
    "clips": lambda: contact_sheet(dataset(lambda i: scene(i) | {"clip": torch.rand(16, 3, 32, 32)}), "train"),
    "long names": lambda: contact_sheet(
        dataset(lambda i: {"image": torch.rand(3, 25, 25), "label": i % 2}, classes=("an uncommonly long name of a class", "b")), "train"
    ),
    "one small image": lambda: contact_sheet(dataset(lambda i: {"image": torch.rand(1, 8, 8)}, count=1), "train"),
    "many classes in a legend": lambda: contact_sheet(
        dataset(
            lambda i: {"image": torch.rand(3, 32, 32), "mask": torch.arange(1024).view(32, 32) % 41},
            classes=tuple(f"class {number}" for number in range(40)),
            count=1,
        ),
        "train",
    ),
}


@functools.cache
def sheet(kind):
    return KINDS[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_all_text_is_on_the_page_and_none_lies_on_other_text(kind):
    figure = sheet(kind)
    page, renderer = figure.bbox, FigureCanvasAgg(figure).get_renderer()
    said = [text for text in figure.axes[0].texts if text.get_text() and text.get_fontsize() > 5.5]  # no tags of boxes
    boxes = [text.get_window_extent(renderer) for text in said]
    assert boxes
    for box in boxes:
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
    corners = np.array([[box.x0, box.y0, box.x1, box.y1] for box in boxes])
    overlap = (corners[:, None, :2] < corners[None, :, 2:] - 1).all(2) & (corners[None, :, :2] < corners[:, None, 2:] - 1).all(2)
    assert overlap.sum() == len(boxes)  # each with itself


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_on_the_page_and_do_not_overlap(kind):
    figure = sheet(kind)
    width, height = figure.get_size_inches()
    found = np.array([[left, top, right, bottom] for left, right, bottom, top in pictures(figure)])
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] <= (width, height)).all()
    overlap = (found[:, None, :2] < found[None, :, 2:] - 1e-6).all(2) & (found[None, :, :2] < found[:, None, 2:] - 1e-6).all(2)
    assert overlap.sum() == len(found)
    assert width <= 13


def test_one_split_has_a_row_a_class():
    figure = contact_sheet(digits(), "train", columns=5)
    assert texts(figure) == ["Handwritten digits: train", "1,168 images, a row a class", *"0123456789"]
    assert pixels(figure).shape == (10 * 35 - 3, 5 * 35 - 3, 3)


def test_classes_that_a_split_lacks_have_no_row():
    data = digits(held_out_classes=[7, 8, 9])
    figure = contact_sheet(data, "test", columns=3, title="Unseen")
    assert texts(figure) == ["Unseen", f"{len(data['test'])} images, a row a class; 3 of 10 classes", "7", "8", "9"]


def test_a_row_holds_its_class_alone():
    brightness = dataset(lambda i: {"image": torch.full((1, 8, 8), (i % 4) / 4), "label": i % 4}, classes=tuple("abcd"))
    sheet = pixels(contact_sheet(brightness, "train", columns=3))
    assert sheet[::9, ::9, 0].tolist() == [[share] * 3 for share in (0.0, 0.25, 0.5, 0.75)]


def test_several_splits_have_a_row_each_with_the_same_digits():
    figure = contact_sheet(digit_domains(["clean", "inverted"]), ["clean/test", "inverted/test"], columns=4)
    clean, inverted = pixels(figure)[:32, :32], pixels(figure)[35:67, :32]
    torch.testing.assert_close(clean + inverted, torch.ones_like(clean))
    assert texts(figure)[2:] == ["clean/test", "inverted/test"]


def test_images_without_labels_are_drawn_in_a_block():
    data = Dataset({"train": TensorSamples(image=torch.rand(7, 1, 8, 8))})
    assert pixels(contact_sheet(data, "train", columns=4)).shape == (2 * 9 - 1, 4 * 9 - 1, 3)


def test_images_of_different_sizes_are_fitted_to_the_largest():
    data = dataset(lambda i: {"image": torch.zeros(3, 10 + 10 * i, 20)}, count=3, classes=())
    sheet = pixels(contact_sheet(data, "train"))
    assert [int(sheet[:, 22 * column + 10, 0].eq(0).sum()) for column in range(3)] == [10, 20, 30]


def test_many_classes_are_thinned_out_and_few_samples_are_made_to_find_them():
    data = dataset(lambda i: {"image": torch.zeros(1, 8, 8), "label": i % 50}, count=100_000, classes=tuple(map(str, range(50))))
    chosen = rows(data, ["train"], 2, 8)
    assert [row.name for row in chosen] == [str(number) for number in spread(torch.arange(50), 20).tolist()]
    assert all((row.positions % 50 == int(row.name)).all() for row in chosen)
    assert data["train"].asked <= LOOKED_AT + 1


def test_boxes_lie_where_the_digits_are_and_carry_their_names():
    figure = contact_sheet(dataset(scene, count=1), "train")
    left, right, _, top = pictures(figure)[0]
    inch = (right - left) / 64
    outlines = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    expected = scene(0)
    for outline, (x1, y1, x2, y2), label in zip(outlines, expected["boxes"].tolist(), expected["labels"].tolist(), strict=True):
        found = [outline.get_x() - left, outline.get_y() - top, outline.get_width(), outline.get_height()]
        assert [length / inch for length in found] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-4)
        assert outline.get_edgecolor()[:3] == pytest.approx(to_rgb(COLOURS[label]))
    tags = [text.get_text() for text in figure.axes[0].texts if text.get_fontsize() == 5.5]
    assert tags == [str(label) for label in expected["labels"].tolist()]


def test_tags_stay_inside_their_picture():
    def corner(_):
        boxes = torch.tensor([[60.0, 0.0, 64.0, 4.0], [0.0, 60.0, 4.0, 64.0]])
        return {"image": torch.zeros(3, 64, 64), "boxes": boxes, "labels": torch.tensor([0, 0])}

    figure = contact_sheet(dataset(corner, count=1, classes=("a rather long name",)), "train")
    left, right, bottom, top = pictures(figure)[0]
    tags = [patch for patch in figure.axes[0].patches if patch.get_fill()]
    assert len(tags) == 2
    for tag in tags:
        assert left <= tag.get_x() < tag.get_x() + tag.get_width() <= right + 1e-9
        assert top <= tag.get_y() < tag.get_y() + tag.get_height() <= bottom


def test_a_scene_has_image_mask_and_instances_side_by_side_and_its_caption_below():
    figure = contact_sheet(dataset(scene, count=1), "train")
    tops, lefts = [extent[3] for extent in pictures(figure)], [extent[0] for extent in pictures(figure)]
    assert len(set(tops)) == 1
    assert lefts == sorted(set(lefts))
    assert len(lefts) == 3
    assert "1 sample; from the left: image, mask, instances" in texts(figure)
    captions = [text for text in figure.axes[0].texts if text.get_fontsize() == 6.5]
    assert " ".join(text.get_text() for text in captions).split() == CAPTION.split()
    assert min(text.get_position()[1] for text in captions) > pictures(figure)[0][2]


def test_the_legend_names_the_classes_that_masks_mark():
    figure = contact_sheet(dataset(scene, count=1), "train")
    shown = sorted(set(scene(0)["mask"].unique().tolist()) - {0})
    legend = [text.get_text() for text in figure.axes[0].texts if text.get_fontsize() == 7][1:]  # after the note
    assert legend == [str(number - 1) for number in shown]
    swatches = [patch.get_facecolor()[:3] for patch in figure.axes[0].patches][-len(shown) :]
    assert swatches == [pytest.approx(to_rgb(COLOURS[number - 1])) for number in shown]


def test_a_class_called_background_is_the_background():
    mask = torch.zeros(16, 16, dtype=torch.long)
    mask[4:8, 4:8] = 1
    data = dataset(lambda _: {"image": torch.rand(3, 16, 16), "mask": mask}, count=1, classes=("background", "organ"))
    assert texts(contact_sheet(data, "train"))[-1] == "organ"


def test_panels_of_a_panorama_stand_below_one_another():
    data = dataset(lambda i: without(scene(i, 32, 64), "instances") | {"distortion": torch.rand(32, 64)}, count=1)
    figure = contact_sheet(data, "train")
    assert len({extent[0] for extent in pictures(figure)}) == 1
    tops = [extent[3] for extent in pictures(figure)]
    assert tops == sorted(tops)
    assert "1 sample; from above: image, mask, distortion" in texts(figure)
    left, right, bottom, top = pictures(figure)[0]
    assert (right - left) / (bottom - top) == pytest.approx(2)


@pytest.mark.parametrize("key", ["target", "view"])
def test_a_second_image_stands_beside_the_first(key):
    data = dataset(lambda i: {"image": torch.zeros(3, 16, 16), key: torch.full((3, 16, 16), 0.75), "label": i % 2}, classes=("a", "b"))
    figure = contact_sheet(data, "train", columns=6)
    assert [pixels(figure, number)[0, 0, 0].item() for number in range(4)] == [0, 0.75, 0, 0.75]
    assert len(pictures(figure)) == 2 * 6  # a row a class, three pairs in each
    assert f"60 samples; from the left: image, {key}" in texts(figure)


def test_a_regression_target_is_no_second_image():
    data = dataset(lambda i: {"image": torch.zeros(3, 16, 16), "target": torch.tensor(0.5)}, classes=())
    assert len(pictures(contact_sheet(data, "train"))) == 1


def test_a_clip_has_a_row_with_frames_spread_over_its_time():
    clip = (torch.arange(16) / 16).view(16, 1, 1, 1).expand(16, 3, 20, 20)
    figure = contact_sheet(dataset(lambda i: {"clip": clip, "label": i % 3, "caption": CAPTION}), "train", columns=4)
    assert len(pictures(figure)) == 3
    assert texts(figure)[1] == "60 clips; frames 0, 5, 10, 15"
    assert {"0", "1", "2"} <= set(texts(figure))
    assert pixels(figure)[12, [10, 31, 52, 73], 0].tolist() == pytest.approx([0, 5 / 16, 10 / 16, 15 / 16])


def test_two_dimensional_features_are_drawn_as_points():
    figure = contact_sheet(shifted_moons(60), ["source/train", "target/train"])
    assert len(figure.axes) == 2
    assert sum(len(group.get_offsets()) for group in figure.axes[0].collections) == 60
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["upper", "lower"]


def test_a_table_is_a_line_a_patient_coloured_by_the_target():
    data = diabetes()
    figure = contact_sheet(data, "val")
    (lines,) = (group for group in figure.axes[0].collections if isinstance(group, LineCollection) and len(group.get_segments()) == 67)
    columns = data["val"].columns
    target = columns["target"]
    shade = colormaps["viridis"](((target - target.min()) / (target.max() - target.min())).numpy())
    by_first = {round(float(row[0]), 4) + 1000 * round(float(row[9]), 4): number for number, row in enumerate(columns["features"])}
    for segment, colour in zip(lines.get_segments(), lines.get_colors(), strict=True):
        number = by_first[round(float(segment[0, 1]), 4) + 1000 * round(float(segment[9, 1]), 4)]
        assert np.abs(segment[:, 1] - columns["features"][number].numpy()).max() < 1e-6
        assert np.abs(colour[:3] - shade[number][:3]).max() < 0.02
    assert figure.axes[-1].get_ylabel() == "target"


@pytest.mark.parametrize("width", [1, 3, 64])
def test_tables_of_any_width_are_drawn_with_a_legend(width):
    generator = torch.Generator().manual_seed(0)
    columns = {"features": torch.randn(30, width, generator=generator), "label": torch.arange(30) % 3}
    columns["features"][3, 0] = torch.nan
    data = Dataset({"train": TensorSamples(**columns)}, DatasetInfo(classes=("x", "y", "z")))
    figure = contact_sheet(data, "train")
    FigureCanvasAgg(figure).draw()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y", "z"]


def test_rows_of_a_heat_map_are_ordered_by_label():
    features = torch.zeros(30, 40)
    features[torch.arange(30) % 3 == 2] = 5.0
    data = Dataset({"train": TensorSamples(features=features, label=torch.arange(30) % 3)}, DatasetInfo(classes=("x", "y", "z")))
    shown = np.asarray(contact_sheet(data, "train").axes[0].images[0].get_array())
    assert (shown[20:] > 1).all()
    assert (shown[:20] < 0).all()


@pytest.mark.parametrize(
    ("key", "module", "name"),
    [
        ("graph", "graphs", "draw_graphs"),
        ("text", "text", "draw_texts"),
        ("query", "text", "draw_texts"),
        ("input_ids", "text", "draw_texts"),
    ],
)
def test_graphs_and_texts_are_handed_to_their_own_modules(key, module, name, monkeypatch):
    asked = ModuleType(f"graftwork_testbed.{module}.figure")
    setattr(asked, name, lambda data, split, title: (data, split, title))
    monkeypatch.setitem(sys.modules, asked.__name__, asked)
    data = Dataset({"train": Made(3, lambda i: {key: "something"}), "test": Made(3, lambda i: {key: "something"})})
    assert contact_sheet(data, "test") == (data, "test", "test")
    with pytest.raises(DataError, match="one split at a time; found train, test"):
        contact_sheet(data, ["train", "test"])


def test_a_sheet_is_saved_at_two_hundred_pixels_to_the_inch(tmp_path):
    figure = contact_sheet(digits(), "val")
    figure.savefig(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as saved:
        assert saved.size == pytest.approx(tuple(figure.get_size_inches() * 200), abs=1)
        assert saved.convert("RGB").getpixel((1, 1)) == (255, 255, 255)


def test_drawing_leaves_the_random_state_alone():
    before, other = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is meant
    contact_sheet(dataset(scene), "train")
    contact_sheet(diabetes(), "val")
    assert torch.get_rng_state().equal(before)
    assert (np.random.get_state()[1] == other).all()  # noqa: NPY002


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(DataError, match=r"draws `image` of 1 or 3 channels.*; train has `image` \(5, 8, 8\), `label`"):
        contact_sheet(dataset(lambda i: {"image": torch.zeros(5, 8, 8), "label": 1}), "train")
    with pytest.raises(DataError, match="train has no keys"):
        contact_sheet(dataset(lambda i: {}), "train")
    with pytest.raises(DataError, match="samples that are mappings; train has tuple"):
        contact_sheet(dataset(lambda i: (1, 2)), "train")
    with pytest.raises(DataError, match='no split "trian"'):
        contact_sheet(digits(), "trian")
    with pytest.raises(DataError, match="nothing to draw: train is empty"):
        contact_sheet(Dataset({"train": TensorSamples(image=torch.zeros(0, 3, 8, 8))}), "train")
    with pytest.raises(ValueError, match="at least one column and one split; found 0"):
        contact_sheet(digits(), "train", columns=0)
    with pytest.raises(ValueError, match=r"found 12 and \[\]"):
        contact_sheet(digits(), [])
