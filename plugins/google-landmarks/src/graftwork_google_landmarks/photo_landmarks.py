"""photo-landmarks: the data set's real layout, archives and CSV files, written offline from photographs that are installed anyway."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from graftwork import DataError
from graftwork_google_landmarks.checks import at_least
from graftwork_google_landmarks.dataset import GoogleLandmarksV2, LandmarkClasses, Size
from graftwork_google_landmarks.extras import need
from graftwork_google_landmarks.ids import image_path
from graftwork_google_landmarks.photo_views import AUTHORS_URL, PICTURES, Picture, collage, distractors, load_picture, tiles, views
from graftwork_google_landmarks.solutions import USAGES, Solution, write_solution
from graftwork_google_landmarks.tables import Lists, read_columns, write_csv

__all__ = ["PhotoLandmarks", "write_photo_landmarks"]

Count = Annotated[int, Field(ge=1)]
VERSION = 1
"""Of what is drawn; another version's folder is made anew."""

DONE = "photo-landmarks.json"
TRUTH = "photo_truth.csv"


class Plan(NamedTuple):
    """What is to be written; see `PhotoLandmarks`."""

    pixels: int
    grid: int
    faces: int
    largest: int
    smallest: int
    exponent: float
    noise: float
    index_images: int
    queries: int
    collages: int
    distractors: int
    draw: int


class PhotoLandmarks(GoogleLandmarksV2):
    """A small data set in the layout of Google Landmarks v2, made from 17 pictures of scikit-image and scikit-learn.

    Each picture is cut in grid x grid tiles, and each tile is a landmark; its images are views of it: random perspective, light, blur
    and noise. The picture is its hierarchical label, with a supercategory above. Landmarks have a long tail of sizes by Zipf's law,
    and a known share of the train images stands under a wrong landmark. Most test images are digits before clouds and show no
    landmark; a few are collages of four. A tenth of the landmarks are not in train, another tenth not in the index; the index numbers
    them differently. A third of the queries is Public. Images stay in memory once they are
    read, and local features on disk once they are computed. Written as real archives with MD5 files and CSV files, once for a set of
    parameters, and read back as the real ones are; an archive that has been damaged since is written anew.

    Samples of train have `true_landmark_id` beside `landmark_id`: it is for measuring, and no objective here reads it.

    Args:
        size: (height, width) to resize images to; the written images are square.
        pixels: side of a written image.
        grid: a picture is cut in grid x grid landmarks.
        faces: so many faces of Labeled Faces in the Wild are landmarks too; enlarged from 25 pixels, they have hardly a local feature.
        largest: train images of the largest landmark.
        smallest: train images of a landmark at least.
        exponent: sizes fall as rank to the minus this.
        noise: share of the train images that stand under a wrong landmark, drawn uniformly from the others.
        index_images: index images of a landmark.
        queries: test images of a landmark.
        collages: test images that show four landmarks.
        distractors: test images that show none.
        draw: seed of everything that is drawn.
        classes: as of google-landmarks-v2.
        validation: as of google-landmarks-v2.
        seed: of the division in train and validation.
        root: folder to write into; by default one in graftwork's cache. A folder that holds something else is refused.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if the folder holds something else.
        GraftworkError: if graftwork-testbed is not installed.
    """

    def __init__(
        self,
        size: Size = (64, 64),
        pixels: Annotated[int, Field(ge=32, le=512)] = 160,
        grid: Annotated[int, Field(ge=1, le=4)] = 2,
        faces: Annotated[int, Field(ge=0, le=100)] = 0,
        largest: Count = 60,
        smallest: Count = 6,
        exponent: Annotated[float, Field(ge=0)] = 0.5,
        noise: Annotated[float, Field(ge=0, le=0.99)] = 0.3,
        index_images: Count = 4,
        queries: Count = 3,
        collages: Annotated[int, Field(ge=0)] = 12,
        distractors: Annotated[int, Field(ge=0)] = 600,
        draw: Annotated[int, Field(ge=0)] = 0,
        classes: LandmarkClasses = "train",
        validation: Annotated[float, Field(gt=0, lt=1)] | None = None,
        seed: Annotated[int, Field(ge=0)] = 0,
        root: str | None = None,
    ):
        at_least(1, grid=grid, largest=largest, smallest=smallest, index_images=index_images, queries=queries)
        at_least(0, faces=faces, exponent=exponent, noise=noise, collages=collages, distractors=distractors, draw=draw)
        at_least(32, pixels=pixels)
        for name, value, most in (("pixels", pixels, 512), ("grid", grid, 4), ("faces", faces, 100), ("noise", noise, 0.99)):
            if value > most:
                raise ValueError(f"{name} is at most {most}; found {value}")
        plan = Plan(pixels, grid, faces, largest, smallest, exponent, noise, index_images, queries, collages, distractors, draw)
        folder = write_photo_landmarks(plan, Path(root).expanduser().absolute() if root else None)
        super().__init__(str(folder), size, classes, None, validation, seed, verify=True, keep=True)
        self.feature_folder = self.cache / "local_features"

    def description(self) -> str:
        """One sentence."""
        return "Views of tiles of photographs, in the layout of Google Landmarks v2"

    def licence(self, split: str) -> str:
        """The digits', for who has no attribution of their own."""
        return ""

    def _extra(self, ids: NDArray[np.bytes_]) -> dict[str, NDArray[np.int64]]:
        import pyarrow as pa  # type: ignore[import-untyped]

        from graftwork_google_landmarks.ids import IdIndex
        from graftwork_google_landmarks.tables import ID, column_ids

        table = read_columns(self.root / TRUTH, {"id": ID, "true_landmark_id": pa.int64()})
        rows = IdIndex(column_ids(table["id"]), TRUTH).require(ids, "train.csv")
        return {"true_landmark_id": np.asarray(table["true_landmark_id"].to_numpy())[rows]}


def write_photo_landmarks(plan: Plan, root: Path | None = None) -> Path:
    """Write the data set, unless the folder holds it whole already.

    Args:
        plan: what to write.
        root: where; by default in graftwork's cache, under the plan's digest.

    Returns:
        The folder.

    Raises:
        DataError: if the folder holds something else.
        GraftworkError: if graftwork-testbed is not installed.
    """
    described = json.dumps({"version": VERSION, **plan._asdict()}, sort_keys=True)
    if root is None:
        root = (
            need("graftwork_testbed.cache", "photos").cache_folder()
            / "photo-landmarks"
            / hashlib.sha256(described.encode()).hexdigest()[:20]
        )
    if _whole(root, described):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    lock = need("filelock", "photos").FileLock(root.with_name(f"{root.name}.lock"))
    with lock:
        if _whole(root, described):
            return root
        if root.is_dir() and any(root.iterdir()):
            kept = root / DONE
            if not kept.is_file() or kept.read_text() != described:
                raise DataError(f"photo-landmarks: {root} holds something else; choose another root, or remove it")
            shutil.rmtree(root)  # ours, but damaged
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f"{root.name}-", suffix=".part") as beside:
            made = Path(beside) / root.name
            made.mkdir()
            _write(plan, made)
            (made / DONE).write_text(described)
            if root.is_dir():
                root.rmdir()
            os.replace(made, root)
    return root


def _whole(root: Path, described: str) -> bool:
    """Whether a folder holds this very data set, archives intact."""
    from graftwork_google_landmarks.archives import archives_in, check_archives

    try:
        if (root / DONE).read_text() != described:
            return False
        archives = [archives_in(root / split) for split in ("train", "index", "test")]
        for some in archives:
            check_archives(some)
    except (OSError, DataError):
        return False
    return all(archives)


class _Place(NamedTuple):
    """A landmark before it has a number."""

    tile: Tensor
    picture: str
    about: Picture
    name: str


def _places(plan: Plan) -> list[_Place]:
    found = []
    for name, picture in PICTURES.items():
        for number, tile in enumerate(tiles(load_picture(name), plan.grid)):
            found.append(_Place(tile, name, picture, f"{name}_{number}"))
    if plan.faces:
        grey, kinds = need("graftwork_testbed.face_patches", "photos").load_faces(64)
        about = Picture("skimage", "data/lfw_subset.npy", "face", "natural", "Labeled Faces in the Wild", "as scikit-image states")
        for number, face in enumerate(grey[kinds == 0][: plan.faces]):
            found.append(_Place(face.expand(3, -1, -1), "faces", about, f"face_{number}"))
    return found


def _write(plan: Plan, root: Path) -> None:
    """Draw everything and write it: `generator` is asked in one order only, so that a plan gives the same bytes."""
    generator = np.random.default_rng([VERSION, plan.draw])
    places = _places(plan)
    count = len(places)
    order = generator.permutation(count)
    train_ids, index_ids = (generator.choice(4 * count, count, replace=False) for _ in range(2))
    unseen, unindexed = order[: count // 10], order[count // 10 : 2 * (count // 10)]
    in_train, in_index = (np.setdiff1d(np.arange(count), without) for without in (unseen, unindexed))
    sizes = np.maximum(plan.smallest, np.round(plan.largest * np.arange(1, len(in_train) + 1) ** -plan.exponent)).astype(int)
    names = _Names(generator)

    of = np.repeat(generator.permutation(in_train), sizes)
    ids = names.take(len(of))
    stated = of.copy()
    for at in generator.choice(len(of), round(plan.noise * len(of)), replace=False):
        stated[at] = generator.choice(in_train[in_train != of[at]])
    shuffled = generator.permutation(len(of))
    _write_images(root, "train", ids[shuffled], _seen(places, of, plan, generator), shuffled, 4)
    _write_labels(root, "train", places, in_train, train_ids)
    _write_attribution(root, "train", ids[shuffled], [places[place] for place in of[shuffled]])
    links = _links(ids[shuffled], [places[place] for place in of[shuffled]])
    write_csv(root / "metadata/train.csv", {"id": ids[shuffled], "url": links, "landmark_id": train_ids[stated[shuffled]]})
    write_csv(root / TRUTH, {"id": ids[shuffled], "true_landmark_id": train_ids[of[shuffled]]})

    shown = np.repeat(in_index, plan.index_images)
    index_names = names.take(len(shown))
    shuffled = generator.permutation(len(shown))
    _write_images(root, "index", index_names[shuffled], _seen(places, shown, plan, generator), shuffled, 2)
    _write_labels(root, "index", places, in_index, index_ids)
    _write_attribution(root, "index", index_names[shuffled], [places[place] for place in shown[shuffled]])
    write_csv(root / "metadata/index.csv", {"id": index_names[shuffled]})
    landmarks = {"id": index_names[shuffled], "landmark_id": index_ids[shown[shuffled]]}
    write_csv(root / "metadata/index_image_to_landmark.csv", landmarks)
    _write_test(plan, root, places, generator, names, in_train, train_ids, shown, index_names)


class _Names:
    """Image ids that were not given before."""

    def __init__(self, generator: np.random.Generator):
        self._generator, self._given = generator, set[int]()

    def take(self, count: int) -> NDArray[np.bytes_]:
        found: list[int] = []
        while len(found) < count:
            drawn = int(self._generator.integers(0, 2**63)) * 2 + int(self._generator.integers(2))
            if drawn not in self._given:
                self._given.add(drawn)
                found.append(drawn)
        return np.array([f"{one:016x}".encode() for one in found], "S16")


def _seen(places: Sequence[_Place], of: NDArray[Any], plan: Plan, generator: np.random.Generator) -> Tensor:
    """A view of each place, (N, 3, pixels, pixels) uint8."""
    found = torch.empty(len(of), 3, plan.pixels, plan.pixels, dtype=torch.uint8)
    for place in np.unique(of):
        rows = torch.from_numpy(np.flatnonzero(of == place))
        found[rows] = _bytes(views(places[place].tile, len(rows), plan.pixels, generator))
    return found


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def _write_images(root: Path, split: str, ids: NDArray[np.bytes_], images: Tensor, order: NDArray[Any], archives: int) -> None:
    """Archives with their MD5 files; image order[i] has ids[i]. Times and owners are zero, so that equal images make equal files."""
    (root / split).mkdir()
    for number in range(archives):
        path = root / split / f"images_{number:03d}.tar"
        with tarfile.open(path, "w:") as archive:
            for at in range(number, len(ids), archives):
                content = _jpeg(images[int(order[at])])
                member = tarfile.TarInfo(str(image_path(ids[at].decode())))
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        path.with_name(f"md5.{path.stem}.txt").write_text(f"{digest}  {path.name}\n")


def _jpeg(image: Tensor) -> bytes:
    from PIL import Image

    made = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(made, "JPEG", quality=92)
    return made.getvalue()


def _write_labels(root: Path, split: str, places: Sequence[_Place], of: NDArray[Any], numbers: NDArray[Any]) -> None:
    chosen = of[np.argsort(numbers[of])]
    urls = [f"http://commons.wikimedia.org/wiki/Category:{places[place].name}" for place in chosen]
    write_csv(root / f"metadata/{split}_label_to_category.csv", {"landmark_id": numbers[chosen], "category": urls})
    known: dict[str, Any] = {
        "landmark_id": numbers[chosen],
        "category": urls,
        "supercategory": [places[place].about.kind for place in chosen],
        "hierarchical_label": [places[place].picture for place in chosen],
        "natural_or_human_made": [places[place].about.made for place in chosen],
    }
    write_csv(root / f"metadata/{split}_label_to_hierarchical.csv", known)


def _links(ids: NDArray[np.bytes_], of: Sequence[_Place]) -> list[str]:
    return [f"{AUTHORS_URL[place.about.package]}#{name.decode()}" for name, place in zip(ids, of, strict=True)]


def _write_attribution(root: Path, split: str, ids: NDArray[np.bytes_], of: Sequence[_Place]) -> None:
    columns: dict[str, Any] = {
        "id": ids,
        "url": _links(ids, of),
        "author": [place.about.author for place in of],
        "license": [place.about.license for place in of],
        "title": [f'A view of "{place.picture}", tile {place.name.rpartition("_")[2]}' for place in of],
    }
    write_csv(root / f"metadata/{split}_attribution.csv", columns)


def _write_test(
    plan: Plan,
    root: Path,
    places: Sequence[_Place],
    generator: np.random.Generator,
    names: _Names,
    in_train: NDArray[Any],
    train_ids: NDArray[Any],
    shown: NDArray[Any],
    index_names: NDArray[np.bytes_],
) -> None:
    """Queries: views of every landmark, collages, and distractors; with both solutions."""
    single = np.repeat(np.arange(len(places)), plan.queries)
    groups: list[list[int]] = [[int(place)] for place in single]
    images = [_seen(places, single, plan, generator)]
    for _ in range(plan.collages):
        chosen = generator.choice(len(places), 4, replace=False)
        parts = torch.cat([views(places[place].tile, 1, plan.pixels, generator) for place in chosen])
        images.append(_bytes(collage(parts))[None])
        groups.append([int(place) for place in chosen])
    images.append(_bytes(distractors(plan.distractors, plan.pixels, generator)))
    groups += [[] for _ in range(plan.distractors)]
    ids = names.take(len(groups))
    shuffled = generator.permutation(len(groups))
    ids, groups = ids[shuffled], [groups[at] for at in shuffled]
    _write_images(root, "test", ids, torch.cat(images), shuffled, 2)
    write_csv(root / "metadata/test.csv", {"id": ids})
    digits = Picture("sklearn", "digits", "digit", "human-made", "Alpaydin and Kaynak", "CC BY 4.0")
    about = [places[group[0]] if group else _Place(torch.empty(0), "digits", digits, "digits_0") for group in groups]
    _write_attribution(root, "test", ids, about)
    usage = np.where(generator.uniform(size=len(ids)) < 1 / 3, USAGES.index("Public"), USAGES.index("Private")).astype(np.int8)
    known = set(in_train.tolist())
    landmarks = [[int(train_ids[place]) for place in group if place in known] for group in groups]
    write_solution(root / "ground_truth/recognition_solution_v2.1.csv", Solution("recognition", ids, _lists(landmarks, np.int64), usage))
    answers = [[name for place in group for name in index_names[shown == place]] for group in groups]
    ignored = np.where([not answer for answer in answers], np.int8(USAGES.index("Ignored")), usage)
    write_solution(root / "ground_truth/retrieval_solution_v2.1.csv", Solution("retrieval", ids, _lists(answers, "S16"), ignored))


def _lists(groups: Sequence[Sequence[Any]], dtype: Any) -> Lists:
    def flat() -> Iterator[Any]:
        for group in groups:
            yield from group

    return Lists(np.cumsum([0, *(len(group) for group in groups)]), np.array(list(flat()), dtype))
