from __future__ import annotations

import pytest
import torch

from graftwork_testbed.moons import rotate_points, shifted_moons


def test_points_rotate_counter_clockwise():
    turned = rotate_points(torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64), 90)
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0], [-2.0, 0.0]], dtype=torch.float64))


def test_the_source_is_centred_and_twice_as_large():
    points = shifted_moons(noise=0.0)["source/train"].columns["features"]
    torch.testing.assert_close(points.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    upper = points[shifted_moons(noise=0.0)["source/train"].columns["label"] == 0]
    assert upper[:, 0].max() - upper[:, 0].min() == pytest.approx(4, abs=1e-5)  # a half circle of radius 2 is 4 wide


@pytest.mark.parametrize("angle", [35.0, -35.0, 120.0])
def test_the_target_is_the_source_rotated(angle):
    data = shifted_moons(angle=angle, noise=0.0)
    source, target = data["source/train"].columns, data["target/train"].columns
    for label in (0, 1):  # without noise every draw has the same points, shuffled
        expected = rotate_points(source["features"][source["label"] == label].double(), angle)
        distances = torch.cdist(expected, target["features"][target["label"] == label].double())
        assert distances.min(1).values.max() < 1e-5


def test_noise_is_scaled_with_the_points():
    clean, noisy = shifted_moons(20_000, noise=0.0), shifted_moons(20_000, noise=0.05)
    away = torch.cdist(noisy["target/test"].columns["features"][:2000], clean["target/test"].columns["features"]).min(1).values
    assert away.pow(2).mean().sqrt() == pytest.approx(0.1, rel=0.1)  # across the curve: one of the noise's two dimensions


def test_every_split_is_a_draw_of_its_own():
    splits = [samples.columns["features"] for samples in shifted_moons(angle=0.0).values()]
    assert all(not splits[i].equal(splits[j]) for i in range(6) for j in range(i))


def test_splits_labels_and_domains():
    data = shifted_moons(100)
    assert list(data) == [f"{domain}/{split}" for domain in ("source", "target") for split in ("train", "val", "test")]
    assert data["target/val"].columns["label"].bincount().tolist() == [50, 50]
    assert (data["source/test"][3]["domain"], data["target/test"][3]["domain"]) == (0, 1)
    assert data.info.features == 2
    assert data["source/train"][0]["features"].dtype == torch.float32


def test_the_seed_alone_decides():
    assert shifted_moons(seed=4).fingerprint() == shifted_moons(seed=4).fingerprint() != shifted_moons(seed=5).fingerprint()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"samples": 3}, "samples must be 4 to 1,000,000; found 3"),
        ({"angle": 200}, "angle must be -180 to 180 degrees; found 200"),
        ({"noise": -0.1}, "noise must be 0 to 1; found -0.1"),
        ({"seed": -1}, "must not be negative; found -1"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        shifted_moons(**parameters)
