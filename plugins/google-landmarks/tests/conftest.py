"""A handful of images in the real layout, as archives and extracted; and a small photo-landmarks."""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from graftwork_google_landmarks import PhotoLandmarks
from graftwork_google_landmarks.ids import image_path

TRAIN = {f"{n:016x}": landmark for n, landmark in zip(range(1, 13), [7, 7, 7, 7, 7, 40, 40, 40, 99, 99, 1234, 1234], strict=True)}
INDEX = {f"a{n:015x}": landmark for n, landmark in zip(range(1, 7), [40, 40, 7, 7, 5, 5], strict=True)}
TEST = [f"b{n:015x}" for n in range(1, 7)]


@functools.cache
def jpeg(seed: int, size: tuple[int, int] = (20, 24)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    made = io.BytesIO()
    Image.fromarray(pixels).resize(size[::-1]).save(made, "JPEG")
    return made.getvalue()


def write_split(root: Path, split: str, ids: list[str], archives: int, extracted: bool) -> None:
    folder = root / split
    folder.mkdir(parents=True)
    for number in range(archives):
        path = folder / f"images_{number:03d}.tar"
        with tarfile.open(path, "w:") as archive:
            for at, name in enumerate(ids):
                content = jpeg(int(name[-4:], 16) + len(split) * 1000)
                if extracted:
                    place = folder / image_path(name)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content)
                elif at % archives == number:
                    member = tarfile.TarInfo(str(image_path(name)))
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        if extracted:
            path.unlink()
        else:
            digest = hashlib.md5(path.read_bytes()).hexdigest()
            (root / "md5sum" / split).mkdir(parents=True, exist_ok=True)
            (root / "md5sum" / split / f"md5.images_{number:03d}.txt").write_text(f"{digest}  images_{number:03d}.tar\n")


def write_layout(root: Path, extracted: bool = False) -> Path:
    """The files as the server has them."""
    meta, truth = root / "metadata", root / "ground_truth"
    meta.mkdir(parents=True)
    truth.mkdir()
    write_split(root, "train", list(TRAIN), 3, extracted)
    write_split(root, "index", list(INDEX), 1, extracted)
    write_split(root, "test", TEST, 2, extracted)
    (meta / "train.csv").write_text("id,url,landmark_id\n" + "".join(f"{name},http://x/{name},{of}\n" for name, of in TRAIN.items()))
    names = list(TRAIN)
    (meta / "train_clean.csv").write_text(f"landmark_id,images\n7,{names[0]} {names[2]} {names[3]}\n1234,{names[10]} {names[11]}\n")
    (meta / "train_attribution.csv").write_text(
        "id,url,author,license,title\n"
        + "".join(
            f'{name},http://x/{name},"Doe, Jane",CC-BY {3 + at % 2}.0,"A ""title"",\nof two lines"\n'
            for at, name in enumerate(reversed(TRAIN))
        )
    )
    landmarks = {7: "Tower", 40: "Bridge", 99: "Lake", 1234: "Hill"}
    url = "http://commons.wikimedia.org/wiki/Category:"
    (meta / "train_label_to_category.csv").write_text("landmark_id,category\n" + "".join(f"{k},{url}{v}\n" for k, v in landmarks.items()))
    (meta / "train_label_to_hierarchical.csv").write_text(
        "landmark_id,category,supercategory,hierarchical_label,natural_or_human_made\n"
        + "".join(
            f"{k},{url}{v},{v.lower()}s,{v.lower()}s,{'natural' if v in ('Lake', 'Hill') else 'human-made'}\n" for k, v in landmarks.items()
        )
    )
    (meta / "index.csv").write_text("id\n" + "".join(f"{name}\n" for name in INDEX))
    (meta / "index_image_to_landmark.csv").write_text("id,landmark_id\n" + "".join(f"{k},{v}\n" for k, v in reversed(INDEX.items())))
    (meta / "index_label_to_category.csv").write_text(f"landmark_id,category\n5,{url}Bridge\n7,{url}Hill\n40,{url}Tower\n")
    (meta / "test.csv").write_text("id\n" + "".join(f"{name}\n" for name in TEST))
    (truth / "recognition_solution_v2.1.csv").write_text(
        f"id,landmarks,Usage\n{TEST[0]},7,Public\n{TEST[1]},40 99,Private\n{TEST[2]},,Private\n"
        f"{TEST[3]},,Public\n{TEST[4]},1234,Private\n{TEST[5]},,Ignored\n"
    )
    first, *_, last = INDEX
    (truth / "retrieval_solution_v2.1.csv").write_text(
        f"id,images,Usage\n{TEST[0]},{first} {list(INDEX)[1]},Public\n{TEST[1]},{last},Private\n{TEST[2]},None,Ignored\n"
        f"{TEST[3]},None,Ignored\n{TEST[4]},{list(INDEX)[2]} {list(INDEX)[3]},Private\n{TEST[5]},None,Ignored\n"
    )
    return root


class Pixels(nn.Module):
    """Embeds an image as itself, made small, less its mean."""

    embedding_dim = 192

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        small = nn.functional.adaptive_avg_pool2d(image, 8).flatten(1)
        return small - small.mean(dim=1, keepdim=True)


@pytest.fixture(scope="session")
def pixels() -> nn.Module:
    return Pixels()


@pytest.fixture
def landmark_of() -> dict[str, int]:
    """Id -> landmark of the train images of `layout`, in the order of its train.csv."""
    return dict(TRAIN)


@pytest.fixture
def make_layout() -> Callable[..., Path]:
    return write_layout


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "gldv2")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> PhotoLandmarks:
    """17 landmarks, small and quick to draw."""
    root = tmp_path_factory.mktemp("photos") / "data"
    return PhotoLandmarks((32, 32), 96, 1, 0, 12, 4, 0.5, 0.25, 2, 2, 3, 20, root=str(root))
