from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import graftwork as gw
from graftwork import ConfigError, DataError, Dataset, DatasetInfo, TensorSamples
from graftwork.kinds.dataset import collate
from graftwork_testbed import ScenePairs
from graftwork_testbed.scenes.styles import PALETTE, VIEWS

GREY = np.array([0.299, 0.587, 0.114])


def small(**columns):
    """A data set of one split."""
    return Dataset({"train": TensorSamples(**columns)}, DatasetInfo(description="Small"))


IMAGES = torch.randint(0, 256, (6, 3, 12, 16), generator=torch.Generator().manual_seed(0)).byte()


def test_a_pair_is_one_scene_in_two_views(flat):
    pairs = ScenePairs(flat, "grey", "photo")
    assert list(pairs) == list(flat)
    for split in flat:
        assert len(pairs[split]) == len(flat[split])
        for index in (0, 17, 39):
            pair, scene = pairs[split][index], flat[split][index]
            assert pair["target"].equal(scene["image"])
            luminance = torch.einsum("chw,c->hw", scene["image"].double(), torch.tensor(GREY))
            assert (pair["image"].double() - luminance).abs().max() <= 0.51 / 255
            assert pair["mask"].equal(scene["mask"])
            assert (pair["caption"], pair["index"], pair["label"]) == (scene["caption"], index, scene["label"])
            assert {key: pair[key].dtype for key in ("image", "target", "mask")} == {
                "image": torch.float32,
                "target": torch.float32,
                "mask": torch.long,
            }
    assert (pairs.info.channels, pairs.info.size, pairs.info.domains, pairs.info.classes) == (3, (64, 64), (), flat.info.classes)
    assert pairs.info.description == "grey to photo, paired: Handwritten digits in colour on photos"


@pytest.mark.parametrize("target", VIEWS[1:])
def test_every_view_can_be_the_target(flat, target):
    pairs = ScenePairs(flat, "photo", target)["val"]
    assert not pairs[0]["target"].equal(pairs[0]["image"])
    assert pairs[0]["target"].shape == (3, 64, 64)
    assert (pairs[0]["target"].min() >= 0, pairs[0]["target"].max() <= 1) == (True, True)


def test_segments_are_coloured_by_the_mask(flat):
    pair = ScenePairs(flat, "segments", "photo")["val"][3]
    assert (pair["image"] * 255).round().byte().permute(1, 2, 0).equal(PALETTE[flat["val"][3]["mask"]].byte())


def test_a_batch_is_what_collating_its_samples_gives(flat):
    for data in (ScenePairs(flat), ScenePairs(flat, paired=False)):
        samples = next(iter(data.values()))
        whole, one_by_one = samples.__getitems__([5, 0, 9]), collate([samples[index] for index in (5, 0, 9)])
        assert list(whole) == list(one_by_one)
        for key, value in whole.items():
            assert value == one_by_one[key] if key == "caption" else value.equal(one_by_one[key])


def test_unpaired_views_show_different_scenes(flat):
    data = ScenePairs(flat, "hole", "photo", paired=False)
    assert list(data) == [f"{side}/{split}" for side in ("source", "target") for split in flat]
    assert data.info.domains == ("source", "target")
    for split, scenes in flat.items():
        halves = [data[f"{side}/{split}"].columns["index"].tolist() for side in ("source", "target")]
        assert sorted(halves[0] + halves[1]) == list(range(len(scenes)))
        assert abs(len(halves[0]) - len(halves[1])) <= 1
        assert halves[0] != list(range(len(halves[0])))  # not simply the first half
        for domain, side in enumerate(("source", "target")):
            sample = data[f"{side}/{split}"][4]
            assert set(sample) == {"image", "domain", "label", "caption", "index"}
            assert sample["domain"] == domain
            scene = scenes[int(sample["index"])]
            assert (sample["caption"], sample["label"]) == (scene["caption"], scene["label"])
            assert sample["image"].equal(scene["image"]) == (side == "target")


def test_an_odd_number_of_scenes_gives_the_source_one_more():
    data = ScenePairs(small(image=IMAGES[:5]), paired=False)
    assert [len(data[split]) for split in ("source/train", "target/train")] == [3, 2]


def test_panoramas_and_their_masks_are_paired_too(around):
    for paired in (True, False):
        data = ScenePairs(around, "segments", "photo", paired=paired)
        samples = next(iter(data.values()))
        assert samples[0]["image"].shape == (3, 64, 128)
        assert data.info.size == (64, 128)


def test_what_is_drawn_depends_on_the_seed_the_split_and_the_view_alone(flat):
    first, again, other = (ScenePairs(flat, "noise", "photo", seed=seed) for seed in (0, 0, 1))
    assert again["test"][0]["image"].equal(first["test"][0]["image"])  # though train was not looked at
    assert not other["test"][0]["image"].equal(first["test"][0]["image"])
    swapped = ScenePairs(flat, "photo", "noise")
    assert swapped["test"][0]["target"].equal(first["test"][0]["image"])
    halves = [ScenePairs(flat, paired=False, seed=seed)["source/train"].columns["index"].tolist() for seed in (0, 0, 1)]
    assert halves[0] == halves[1] != halves[2]


def test_nothing_is_rendered_before_a_sample_is_asked_for(monkeypatch, flat):
    calls = []

    def counted(view, images, semantic, generator):
        calls.append(view)
        return images

    monkeypatch.setattr("graftwork_testbed.scenes.pairs.render_view", counted)
    pairs = ScenePairs(flat, "blur", "photo")
    assert len(pairs["train"]) == 80
    assert not calls
    for index in (0, 1, 2):
        assert pairs["val"][index]["image"].shape == (3, 64, 64)
    assert calls == ["blur", "photo"]
    assert {pairs["val"].columns[key].dtype for key in ("image", "target", "mask")} == {torch.uint8}


def test_any_data_set_with_images_can_be_paired():
    pairs = ScenePairs(small(image=IMAGES), "edges", "photo")
    assert set(pairs["train"][0]) == {"image", "target", "index"}
    assert pairs["train"].columns["target"].equal(IMAGES)
    assert pairs.info.classes == ()


def test_a_grey_picture_has_three_equal_channels():
    pairs = ScenePairs(small(image=IMAGES[:, :1]), "blur", "photo")
    assert pairs["train"].columns["target"].equal(IMAGES[:, :1].expand(-1, 3, -1, -1))


def test_more_scenes_than_are_read_at_once_stay_in_order():
    many = torch.arange(600).remainder(251).byte().view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    columns = ScenePairs(small(image=many, caption=[str(number) for number in range(600)]), "grey", "photo")["train"].columns
    assert columns["target"][:, 0, 0, 0].tolist() == [number % 251 for number in range(600)]
    assert columns["caption"] == [str(number) for number in range(600)]


def test_batches_are_those_of_the_data():
    class Composed(Dataset):
        def batch_sampler(self, split, batch_size, generator):
            return [[0, 1]]

    data = Composed({"train": TensorSamples(image=IMAGES)})
    assert ScenePairs(data).batch_sampler("train", 2, torch.Generator()) == [[0, 1]]
    assert ScenePairs(data, paired=False).batch_sampler("source/train", 2, torch.Generator()) is None


def test_pairs_can_be_pickled_before_and_after_they_are_rendered(flat):
    samples = ScenePairs(flat, "noise", "photo")["val"]
    fresh = pickle.loads(pickle.dumps(samples))
    assert fresh[3]["image"].equal(samples[3]["image"])
    assert pickle.loads(pickle.dumps(samples))[3]["image"].equal(samples[3]["image"])


def test_the_component_builds_from_its_example_and_has_a_fingerprint():
    few = {"use": "digit-scenes", "train": 16, "val": 4, "test": 4}
    first, second = (gw.dataset("scene-pairs", data=few, source="noise").fingerprint() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("data", "parameters", "error", "message"),
    [
        (small(image=IMAGES), {"source": "photo"}, ValueError, 'source and target are both "photo": there is nothing to translate'),
        (small(image=IMAGES), {"source": "grei"}, DataError, r'no view "grei" \(did you mean "grey"\?\); there are photo'),
        (small(image=IMAGES), {"seed": -1}, ValueError, "the seed must not be negative; found -1"),
        (small(label=torch.zeros(3)), {}, DataError, 'the samples of split "train" have no image, but label'),
        (
            small(image=IMAGES, label=torch.zeros(6)),
            {"target": "segments"},
            DataError,
            'the samples of split "train" have no mask, which the view "segments" shows; they have image, label',
        ),
        (small(image=IMAGES[:0]), {}, DataError, 'split "train" has 0 samples; 1 are needed'),
        (small(image=IMAGES[:1]), {"paired": False}, DataError, 'split "train" has 1 samples; 2 are needed'),
    ],
)
def test_what_cannot_be_paired_is_refused_at_once(data, parameters, error, message):
    with pytest.raises(error, match=message):
        ScenePairs(data, **parameters)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": torch.zeros(2, 2, 8, 8)},
            r'the images of split "train" must be of one size, with 1 or 3 channels; found \[\(2, 8, 8\)\]',
        ),
        ({"image": [torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)]}, r"found \[\(3, 8, 8\), \(3, 9, 8\)\]"),
        (
            {"image": IMAGES, "mask": torch.zeros(6, 3, 3)},
            'the masks of split "train" must be of the size of the images, with classes 0 to 255',
        ),
        ({"image": IMAGES, "mask": torch.full((6, 12, 16), -1)}, "with classes 0 to 255"),
        ({"image": IMAGES, "mask": torch.full((6, 12, 16), 11)}, 'has class 11; "segments" has colours up to 10'),
    ],
)
def test_pictures_that_do_not_fit_are_named_when_they_are_read(columns, message):
    pairs = ScenePairs(small(**columns), "segments" if "mask" in columns else "grey", "photo")
    with pytest.raises(DataError, match=message):
        pairs["train"][0]


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"source": "grei"}, "source: "),
        ({"target": "photograph"}, "target: "),
        ({"paired": "maybe"}, "paired: "),
        ({"seed": -1}, "seed: "),
        ({"data": 3}, "data: "),
        ({"target": "grey"}, "source and target are both"),
    ],
)
def test_configuration_names_the_parameter(parameters, place):
    with pytest.raises(ConfigError, match=place):
        gw.dataset("scene-pairs", **{"data": small(image=IMAGES), **parameters})
