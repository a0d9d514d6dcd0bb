from __future__ import annotations

import pytest
import torch

import graftwork as gw
from graftwork_dann import MnistM, blend


def digit_set(splits: tuple[str, ...] = ("train", "test"), size: int = 8) -> gw.Dataset:
    generator = torch.Generator().manual_seed(0)
    columns = {
        split: gw.TensorSamples(image=(torch.rand(12, 1, size, size, generator=generator) > 0.6).float() * 0.8, label=torch.arange(12) % 10)
        for split in splits
    }
    return gw.Dataset(columns, gw.DatasetInfo(classes=tuple("0123456789"), channels=1, size=(size, size)))


def photo_set(level: dict[str, int] | None = None, shape: tuple[int, ...] = (3, 20, 16)) -> gw.Dataset:
    """Photographs of noise; each split within its own range of brightness."""
    level = level or {"train": 0, "test": 100}
    generator = torch.Generator().manual_seed(1)
    return gw.Dataset(
        {split: gw.TensorSamples(image=(torch.randint(100, (3, *shape), generator=generator) + low).byte()) for split, low in level.items()}
    )


def test_off_the_digit_is_the_photo_and_on_it_its_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(256, (4, 3, 8, 8), generator=generator).byte()
    digits = torch.randint(2, (4, 1, 8, 8), generator=generator).byte() * 40  # any grey above the threshold is digit
    found = blend(digits, photos)
    mask = (digits > 0).expand_as(photos)
    assert torch.equal(found[~mask], photos[~mask])
    assert torch.equal(found[mask], 255 - photos[mask])


def test_the_threshold_is_a_share_of_white() -> None:
    photos = torch.zeros(1, 3, 1, 3, dtype=torch.uint8)
    assert blend(torch.tensor([[[[0.2, 0.5, 0.51]]]]), photos, threshold=0.5)[0, 0, 0].tolist() == [0, 0, 255]
    assert blend(torch.tensor([[[[50, 127, 128]]]]).byte(), photos, threshold=0.5)[0, 0, 0].tolist() == [0, 0, 255]


def test_both_domains_hold_the_same_digits() -> None:
    data = MnistM(digit_set(), photo_set())
    assert list(data) == ["digits/test", "digits/train", "mnist-m/test", "mnist-m/train"]
    assert data.info.domains == ("digits", "mnist-m")
    plain, blended = data["digits/train"], data["mnist-m/train"]
    assert torch.equal(plain.columns["label"], blended.columns["label"])
    assert plain[0]["image"].shape == blended[0]["image"].shape == (3, 8, 8)
    assert (plain[0]["domain"], blended[0]["domain"]) == (0, 1)
    mask = plain[5]["image"] > 0
    pixels = blended[5]["image"]
    assert pixels[~mask].max() < 100 / 255  # a patch of the training photographs, whose values are below 100
    assert pixels[mask].min() > 155 / 255


def test_train_and_test_share_no_photograph() -> None:
    data = MnistM(digit_set(), photo_set({"train": 0, "test": 100}))
    off_digit = {
        split: data[f"mnist-m/{split}"].columns["image"][data[f"digits/{split}"].columns["image"] == 0] for split in ("train", "test")
    }
    assert off_digit["train"].max() < 100 <= off_digit["test"].min()


def test_patches_are_cut_at_random_places_of_random_photographs() -> None:
    ramp = torch.arange(20)[:, None] * 10 + torch.arange(16)[None, :]
    photos = gw.Dataset({"train": gw.TensorSamples(image=torch.stack([ramp, ramp + 30]).byte()[:, None].expand(-1, 3, -1, -1))})
    blank = gw.Dataset({"train": gw.TensorSamples(image=torch.zeros(200, 1, 8, 8), label=torch.zeros(200, dtype=torch.long))})
    patches = MnistM(blank, photos)["mnist-m/train"].columns["image"].long()
    corner = patches[:, 0, 0, 0]
    inside = patches[:, 0] - corner[:, None, None]
    assert torch.equal(inside, (torch.arange(8)[:, None] * 10 + torch.arange(8)).expand(200, -1, -1))  # a patch, unscaled
    tops = {(value % 10, value // 10) for value in corner.tolist()}
    assert len(tops) > 60  # of 13 x 9 places in two photographs


def test_it_is_the_same_for_a_seed_and_another_for_another() -> None:
    first, again, other = (MnistM(digit_set(), photo_set(), seed=seed)["mnist-m/train"].columns["image"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_is_built_by_reference_from_the_test_bed() -> None:
    pytest.importorskip("graftwork_testbed")
    data = gw.dataset("mnist-m", digits={"use": "digits", "size": 28}, photos={"use": "photos", "size": 40})
    assert data["mnist-m/test"][0]["image"].shape == (3, 28, 28)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(gw.DataError, match='the digits have a split "val", the photographs have none for it; they have train, test'):
        MnistM(digit_set(("train", "val")), photo_set())
    with pytest.raises(gw.DataError, match=r"is \(3, 6, 16\): 3 channels and 8x8 pixels are needed"):
        MnistM(digit_set(), photo_set(shape=(3, 6, 16)))
    with pytest.raises(gw.DataError, match='mnist-m reads "label"; the samples of "train" have image'):
        MnistM(photo_set(), photo_set())
    with pytest.raises(ValueError, match=r"threshold is in \[0, 1\)"):
        MnistM(digit_set(), photo_set(), threshold=1.0)
    with pytest.raises(ValueError, match="photos are uint8 and of the digits' size"):
        blend(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 9, 8, dtype=torch.uint8))
