from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import graftwork as gw
from graftwork import ConfigError, DataError
from graftwork_testbed import digit_scenes, load_digit_images, load_photo
from graftwork_testbed.photographs import BANDS, PHOTOS, read_image
from graftwork_testbed.scenes.dataset import LABELS, TEXTURE_ROOM, VERSION
from graftwork_testbed.scenes.vocabulary import COLOURS
from graftwork_testbed.splits import SPLITS
from graftwork_testbed.texture_crops import TEXTURES

TINY = {"train": 24, "val": 4, "test": 4}


def present(samples):
    """Which of the four slots of each scene hold a digit: (N, 4) bool."""
    return torch.arange(4) < samples.counts[:, None]


def clear_rows(samples):
    """Scenes without muting -> (scene, row, its pixels (3, W)) of rows that are too far from the only digit to show any of it."""
    found = []
    for number, (top, bottom) in enumerate(samples.columns["boxes"][:, 0, 1::2].int().tolist()):
        row = 0 if top > samples.columns["image"].shape[2] - bottom else -1
        if max(top, samples.columns["image"].shape[2] - bottom) > 10:
            found.append((number, row, samples.columns["image"][number, :, row]))
    return found


def holds(picture, row):
    """Whether a picture (3, H, W) has these pixels (3, w) somewhere side by side."""
    return row.T.contiguous().numpy().tobytes() in picture.permute(1, 2, 0).contiguous().numpy().tobytes()


# -- what splits share ----------------------------------------------------------------------------------------------------------


def test_splits_share_no_handwritten_digit(flat):
    used = {split: set(samples.columns["sources"][present(samples)].tolist()) for split, samples in flat.items()}
    assert not used["train"] & used["val"]
    assert not used["train"] & used["test"]
    assert not used["val"] & used["test"]
    assert all(len(rows) > 50 for rows in used.values())


def test_a_source_is_a_row_of_scikit_learns_table_with_the_digit_of_its_label(flat):
    written = load_digit_images(8)[1]
    for samples in flat.values():
        there = present(samples)
        assert written[samples.columns["sources"]][there].equal(samples.columns["labels"][there])
        assert not samples.columns["sources"][~there].any()


def test_photographs_are_of_their_split_alone(flat):
    names = list(PHOTOS)
    for split, samples in flat.items():
        assert {names[number] for number in samples.columns["background"].tolist()} == {
            name for name, photo in PHOTOS.items() if photo.split == split
        }


@pytest.mark.parametrize("split", SPLITS)
def test_the_pixels_behind_the_digits_are_of_the_photograph_that_is_named(split):
    samples = digit_scenes(max_digits=1, scale=0.5, muting=0, size=40, backgrounds="photos", **TINY)[split]
    rows = clear_rows(samples)[:3]
    assert rows
    for number, _, row in rows:
        name = list(PHOTOS)[samples.columns["background"][number]]
        assert holds(load_photo(name, 2), row)


@pytest.mark.parametrize("split", SPLITS)
def test_the_pixels_behind_the_digits_are_of_the_splits_own_region_of_a_texture(split):
    samples = digit_scenes(max_digits=1, scale=0.5, muting=0, size=40, backgrounds="textures", **TINY)[split]
    rows = clear_rows(samples)[:3]
    assert rows
    for number, _, row in rows:
        picture = read_image("skimage", TEXTURES[list(TEXTURES)[samples.columns["background"][number]]], "L").expand(3, -1, -1)
        cuts = {name: [round(end * picture.shape[2]) for end in ends] for name, ends in BANDS.items()}
        assert [name for name, (low, high) in cuts.items() if holds(picture[:, :, low:high], row)] == [split]


def test_every_texture_is_in_every_split():
    data = digit_scenes(size=48, max_digits=1, backgrounds="textures", label="background", train=40, val=40, test=40)
    assert data.info.classes == tuple(TEXTURES)
    assert all(samples.columns["label"].unique().tolist() == list(range(6)) for samples in data.values())


def test_the_room_on_textures_is_that_of_their_narrowest_region():
    widths = [read_image("skimage", path, "L").shape[1:] for path in TEXTURES.values()]
    narrowest = min(round(high * width) - round(low * width) for _, width in widths for low, high in BANDS.values())
    assert min(narrowest, min(height for height, _ in widths)) == TEXTURE_ROOM


# -- chance ---------------------------------------------------------------------------------------------------------------------


def test_the_seed_decides_everything_and_no_global_generator_is_touched(flat):
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (digit_scenes(size=33, styles=["photo", "noise"], seed=seed, **TINY) for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert not first["photo/test"].columns["sources"].equal(other["photo/test"].columns["sources"])


@pytest.mark.slow
def test_other_processes_draw_the_same(tmp_path):
    """Interpreters of their own, with other orders of what is hashed, each with an empty cache."""
    settings = {"size": 33, "styles": ["photo", "noise"], **TINY}
    code = f"from graftwork_testbed import digit_scenes; print(digit_scenes(**{settings}).fingerprint())"
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": number, "GRAFTWORK_CACHE": str(tmp_path / number)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for number in ("1", "2")
    ]
    assert found == [digit_scenes(**settings).fingerprint()] * 2


def test_scenes_do_not_depend_on_the_labels_or_looks_that_are_asked_for():
    plain = digit_scenes(size=33, **TINY)["val"]
    other = digit_scenes(size=33, label="count", styles=["night", "photo"], **TINY)["photo/val"]
    for key in ("image", "labels", "colours", "boxes", "mask", "instances", "relation", "background", "sources", "index"):
        assert plain.columns[key].equal(other.columns[key])
    assert plain.captions == other.captions


def test_pictures_are_those_of_the_version():
    """A change of what the same parameters draw has to raise VERSION, or caches would give the old pictures for ever."""
    drawn = digit_scenes(size=33, **TINY)["test"].columns
    assert VERSION == 1
    assert drawn["sources"][:, 0].tolist() == [1511, 614, 236, 296]
    assert drawn["instances"].bool().sum((1, 2)).tolist() == pytest.approx([94, 60, 112, 80], abs=1)  # rounding on another machine
    assert drawn["image"].float().mean((1, 2, 3)).tolist() == pytest.approx([96.34, 78.15, 114.31, 41.19], abs=0.1)


# -- what is asked for ------------------------------------------------------------------------------------------------------------


def test_the_defaults_have_splits_and_keys_as_documented(flat):
    assert list(flat) == list(SPLITS)
    assert [len(samples) for samples in flat.values()] == [80, 40, 40]
    assert (flat.info.channels, flat.info.size, flat.info.domains) == (3, (64, 64), ())
    sample = flat["train"][7]
    n = int(flat["train"].counts[7])
    shapes = {key: tuple(value.shape) for key, value in sample.items() if key != "caption"}
    assert shapes == {
        **dict.fromkeys(("label", "background", "domain", "index"), ()),
        **dict.fromkeys(("labels", "colours", "sources"), (n,)),
        **dict.fromkeys(("mask", "instances"), (64, 64)),
        "image": (3, 64, 64),
        "boxes": (n, 4),
        "relation": (n * (n - 1) // 2, 3),
    }
    floats = {key for key, value in sample.items() if key != "caption" and value.is_floating_point()}
    assert floats == {"image", "boxes"}
    assert sample["index"] == 7


@pytest.mark.parametrize(("least", "most"), [(1, 1), (2, 2), (1, 3), (3, 4), (4, 4)])
def test_every_scene_has_as_many_digits_as_asked_for(least, most):
    samples = digit_scenes(size=32, min_digits=least, max_digits=most, **TINY)["train"]
    assert set(samples.counts.tolist()) == set(range(least, most + 1))
    shown = [len(set(instances.unique().tolist()) - {0}) for instances in samples.columns["instances"]]
    assert shown == samples.counts.tolist()


def test_only_the_classes_and_colours_asked_for_occur():
    data = digit_scenes(size=32, classes=[7, 2], colours=["white", "red"], label="digit-colour", **TINY)
    assert data.info.classes == ("white 7", "red 7", "white 2", "red 2")
    samples = data["train"]
    there = present(samples)
    written = load_digit_images(8)[1][samples.columns["sources"]]
    assert set(written[there].tolist()) == {2, 7}
    assert torch.tensor([7, 2])[samples.columns["labels"]][there].equal(written[there])
    assert {list(COLOURS)[number] for number in samples.columns["colours"][there].tolist()} == {"white", "red"}


@pytest.mark.parametrize("label", LABELS)
def test_the_label_is_what_was_asked_for(label):
    classes, hues = [4, 0, 9], ["blue", "white", "green"]
    data = digit_scenes(size=32, classes=classes, colours=hues, label=label, **TINY)
    samples = data["train"]
    named = data.info.classes
    for number in range(len(samples)):
        sample = samples[number]
        digit = classes[sample["labels"][0]]
        hue = list(COLOURS)[sample["colours"][0]]
        expected = {
            "digit": str(digit),
            "colour": hue,
            "digit-colour": f"{hue} {digit}",
            "count": ["one", "two", "three", "four"][len(sample["labels"]) - 1],
            "background": list(PHOTOS)[sample["background"]],
        }
        assert named[sample["label"]] == expected[label]
    sizes = {"digit": 3, "colour": 3, "digit-colour": 9, "count": 4, "background": 9}
    assert len(named) == sizes[label]


def test_images_are_as_large_as_asked():
    data = digit_scenes(size=18, max_digits=1, **TINY)
    assert data["val"][0]["image"].shape == (3, 18, 18)
    assert data.info.size == (18, 18)


def test_numbers_of_numpy_pass_for_pythons():
    data = digit_scenes(size=np.int64(32), classes=[np.int64(3)], scale=np.float64(1), **TINY)
    assert data["train"].columns["image"].equal(digit_scenes(size=32, classes=[3], **TINY)["train"].columns["image"])


def test_a_split_of_one_clip_is_kept_too(monkeypatch, tmp_path):
    """Its first frame is all of a contiguous clip, in the same memory."""
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path))
    made, read = (digit_scenes(size=32, frames=2, train=1, val=1, test=1).fingerprint() for _ in range(2))
    assert made == read
    assert len(list(tmp_path.glob("digit-scenes/*.safetensors"))) == 3


def test_scenes_are_drawn_once_in_each_style_and_then_read(monkeypatch, flat):
    settings = {"size": 32, "styles": ["grey", "photo"], **TINY}
    first = digit_scenes(**settings)
    for name in ("draw_scenes", "render_view"):
        monkeypatch.setattr(f"graftwork_testbed.scenes.dataset.{name}", lambda *_: pytest.fail("drawn again"))
    assert digit_scenes(**settings).fingerprint() == first.fingerprint()
    assert digit_scenes(train=80, val=40, test=40).fingerprint() == flat.fingerprint()


# -- looks ------------------------------------------------------------------------------------------------------------------------


def test_styles_are_domains_paired_by_index(flat):
    looks = ["noise", "photo", "hole"]
    data = digit_scenes(styles=looks, train=80, val=40, test=40)
    assert list(data) == [f"{look}/{split}" for look in looks for split in SPLITS]
    assert data.info.domains == tuple(looks)
    for position, look in enumerate(looks):
        for split in SPLITS:
            styled, plain = data[f"{look}/{split}"], flat[split]
            assert set(styled.columns["domain"].tolist()) == {position}
            for key in ("index", "boxes", "mask", "instances", "label", "relation"):
                assert styled.columns[key].equal(plain.columns[key])
            changed = (styled.columns["image"] != plain.columns["image"]).flatten(1).any(1)
            assert changed.all() if look != "photo" else not changed.any()
            assert styled.captions == [f"{caption}, {look}" if look != "photo" else caption for caption in plain.captions]


def test_one_style_alone_is_no_domain(flat):
    data = digit_scenes(styles=["poster"], train=80, val=40, test=40)
    assert list(data) == list(SPLITS)
    assert data.info.domains == ()
    assert data["val"].captions[0] == f"{flat['val'].captions[0]}, poster"


def test_captions_name_the_texture_and_then_the_style():
    data = digit_scenes(size=48, max_digits=1, backgrounds="textures", styles=["grey", "photo"], train=40, val=40, test=40)
    for caption, number in zip(data["grey/val"].captions, data["grey/val"].columns["background"].tolist(), strict=True):
        assert caption.endswith(f" on {list(TEXTURES)[number]}, grey")


# -- what is refused ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"size": 17}, ValueError, "size must be 18 to 256; found 17"),
        ({"size": 257}, ValueError, "size must be 18 to 256; found 257"),
        (
            {"size": 31},
            ValueError,
            r"size 31 .* 4 digits: the smallest would have 7.8 .* 32, or fewer digits \(max_digits\)",
        ),
        ({"size": 30, "max_digits": 1, "scale": 0.5}, ValueError, "size 30 cannot hold 1 digit: .* use a size of at least 36$"),
        ({"size": 63, "panorama": True}, ValueError, "size 63 cannot hold 4 digits: .* at least 64, or fewer"),
        ({"size": 78, "backgrounds": "textures"}, ValueError, "size must be at most 77 on textures.*; found 78"),
        ({"min_digits": 0}, ValueError, "min_digits and max_digits must be 1 to 4, in order; found 0 and 4"),
        ({"max_digits": 5}, ValueError, "in order; found 1 and 5"),
        ({"min_digits": 3, "max_digits": 2}, ValueError, "in order; found 3 and 2"),
        ({"weights": [1, 1]}, ValueError, r"weights are 4 numbers, for 1 to 4 digits.*found \[1, 1\]"),
        ({"weights": [0, 0, 0, 0]}, ValueError, "not all zero"),
        ({"weights": [1, -1, 1, 1]}, ValueError, "none negative"),
        ({"weights": [float("nan"), 1, 1, 1]}, ValueError, "weights are 4 numbers"),
        ({"weights": [float("inf"), 1, 1, 1]}, ValueError, "weights are 4 numbers"),
        ({"classes": []}, ValueError, r"classes is empty or names one twice: \[\]"),
        ({"classes": [1, 1]}, ValueError, r"classes is empty or names one twice: \[1, 1\]"),
        ({"classes": [1, 10]}, ValueError, r"classes are digits from 0 to 9; found \[10\]"),
        ({"colours": ["red", "red"]}, ValueError, "colours is empty or names one twice"),
        ({"colours": ["oragne"]}, DataError, r'no colour "oragne" \(did you mean "orange"\?\); there are red, orange'),
        ({"styles": []}, ValueError, "styles is empty"),
        ({"styles": ["skecth"]}, DataError, r'no style "skecth" \(did you mean "sketch"\?\); there are photo, sketch'),
        ({"styles": ["segments"]}, DataError, 'no style "segments"; there are photo'),
        ({"label": "shape"}, ValueError, "label must be one of digit, colour, digit-colour, count, background; found 'shape'"),
        ({"backgrounds": "plain"}, ValueError, 'backgrounds must be "photos" or "textures"; found \'plain\''),
        ({"scale": 0.4}, ValueError, "scale must be 0.5 to 1; found 0.4"),
        ({"spread": 1.1}, ValueError, "spread must be 0 to 1; found 1.1"),
        ({"spread": 0.5}, ValueError, "set max_digits to 1; found 0.5 and 4"),
        ({"spread": 0.5, "max_digits": 1, "panorama": True}, ValueError, "found panorama and spread 0.5"),
        ({"muting": 1.1}, ValueError, "muting must be 0 to 1; found 1.1"),
        ({"muting": float("nan")}, ValueError, "muting must be 0 to 1; found nan"),
        ({"frames": 0}, ValueError, "frames must be 1 to 64; found 0"),
        ({"frames": 65}, ValueError, "frames must be 1 to 64; found 65"),
        ({"frames": 2, "panorama": True}, ValueError, "a panorama does not move: found panorama and frames 2"),
        ({"val": 0}, ValueError, r"must each hold 1 to 1,000,000 scenes; found \[8000, 0, 1000\]"),
        ({"train": 1_000_001}, ValueError, r"must each hold 1 to 1,000,000 scenes; found \[1000001, 1000, 1000\]"),
        ({"seed": -1}, ValueError, "the seed must not be negative; found -1"),
    ],
)
def test_bad_parameters_are_named_before_anything_is_drawn(monkeypatch, parameters, error, message):
    monkeypatch.setattr("graftwork_testbed.scenes.dataset.cached", None)
    with pytest.raises(error, match=message):
        digit_scenes(**parameters)


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"size": 17}, "size: .*greater than or equal to 18; found 17"),
        ({"max_digits": 5}, "max_digits: "),
        ({"min_digits": 0}, "min_digits: "),
        ({"weights": [1, -1]}, "weights.1: "),
        ({"classes": [0, 11]}, "classes.1: "),
        ({"colours": ["mauve"]}, "colours.0: "),
        ({"label": "shape"}, "label: "),
        ({"styles": ["edges"]}, "styles.0: "),
        ({"styles": []}, "styles: "),
        ({"backgrounds": "plain"}, "backgrounds: "),
        ({"scale": 2}, "scale: "),
        ({"muting": -1}, "muting: "),
        ({"frames": 0}, "frames: "),
        ({"panorama": "round"}, "panorama: "),
        ({"train": 0}, "train: "),
        ({"val": 1_000_001}, "val: "),
        ({"test": "few"}, "test: "),
        ({"seed": -1}, "seed: "),
        ({"digits": 3}, 'unknown parameter "digits"'),
        ({"min_digits": 3, "max_digits": 2}, 'dataset "digit-scenes" cannot be built: min_digits and max_digits'),
    ],
)
def test_configuration_names_the_parameter(parameters, place):
    with pytest.raises(ConfigError, match=place):
        gw.dataset("digit-scenes", **parameters)
