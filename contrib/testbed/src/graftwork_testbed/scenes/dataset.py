"""`digit-scenes`: handwritten digits in colour on photographs, with boxes, masks, captions and relations."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import PIL
import torch
from pydantic import Field
from torch import Tensor

from graftwork import DataError, Dataset, DatasetInfo
from graftwork.errors import nearest
from graftwork_testbed.cache import cached
from graftwork_testbed.handwriting import Digit, load_digit_images
from graftwork_testbed.photographs import PHOTOS, band, load_photo, random_crops, read_image
from graftwork_testbed.scenes.grammar import Thing, describe
from graftwork_testbed.scenes.layout import MOST, SIZES, Layout, Vocabulary, draw_layout, relations
from graftwork_testbed.scenes.motion import draw_velocities, trajectories
from graftwork_testbed.scenes.panorama import SHRINK, distortion, place_around, room, sphere_alphas
from graftwork_testbed.scenes.render import Canvas, compose, mute, stroke_alphas
from graftwork_testbed.scenes.samples import SceneSamples
from graftwork_testbed.scenes.styles import DEGRADATIONS, STYLES, Look, render_view
from graftwork_testbed.scenes.vocabulary import COLOURS, COUNTS, RELATIONS, Colour
from graftwork_testbed.splits import SPLITS, Seed, stratified_split
from graftwork_testbed.texture_crops import TEXTURES

__all__ = ["LABELS", "LabelOf", "digit_scenes"]

LabelOf: TypeAlias = Literal["digit", "colour", "digit-colour", "count", "background"]
"""What of a scene is its `label`."""

LABELS: tuple[LabelOf, ...] = ("digit", "colour", "digit-colour", "count", "background")

MOST_SCENES = 1_000_000
Count: TypeAlias = Annotated[int, Field(ge=1, le=MOST_SCENES)]
VERSION = 1
"""Of the pictures: raised when the same parameters would draw others."""

SMALLEST = 8
"""Least side of a digit's square in pixels: scikit-learn's digits have 8."""

LEAST_SIZE = 18
"""Pixels from which a scene can hold one digit."""

TEXTURE_ROOM = 77
"""Pixels across the narrowest region of the textures, val's."""

CHUNK = 256
STROKES = 40
"""Side of the digits' pictures that scenes are drawn from."""


@dataclass(frozen=True)
class _Recipe:
    """Everything that the drawn scenes depend on, but the split."""

    size: int
    vocabulary: Vocabulary
    backgrounds: str
    muting: float
    frames: int
    panorama: bool
    seed: int


def digit_scenes(
    size: Annotated[int, Field(ge=LEAST_SIZE, le=256)] = 64,
    min_digits: Annotated[int, Field(ge=1, le=MOST)] = 1,
    max_digits: Annotated[int, Field(ge=1, le=MOST)] = MOST,
    weights: list[Annotated[float, Field(ge=0)]] | None = None,
    classes: list[Digit] | None = None,
    colours: list[Colour] | None = None,
    label: LabelOf = "digit",
    styles: Annotated[list[Look], Field(min_length=1)] | None = None,
    backgrounds: Literal["photos", "textures"] = "photos",
    scale: Annotated[float, Field(ge=0.5, le=1)] = 1.0,
    muting: Annotated[float, Field(ge=0, le=1)] = 0.5,
    frames: Annotated[int, Field(ge=1, le=64)] = 1,
    panorama: bool = False,
    train: Count = 8000,
    val: Count = 1000,
    test: Count = 1000,
    seed: Seed = 0,
) -> Dataset:
    """Scenes of one to four handwritten digits, coloured, turned, scaled and placed apart on photographs or textures.

    Train, val and test share no handwritten digit and no place of a photograph. The pictures are drawn once and kept in the cache
    (`graftwork_testbed.cache`); a sample is then taken in tens of microseconds.

    Samples, for a scene of n digits: `image` (3, H, W) float32 in [0, 1]; `label`, as asked for; `labels` (n,) positions of the
    digits in `classes`; `colours` (n,) positions in `scenes.vocabulary.COLOURS`; `boxes` (n, 4) xyxy in pixels, tight around the
    visible strokes; `mask` (H, W) long, 0 background and 1 + the digit's position in `classes`; `instances` (H, W) long, 0
    background and k the k-th digit; `caption`, of the grammar in `scenes.grammar`; `relation` (n (n - 1) / 2, 3) long, triples
    (first, number in `scenes.vocabulary.RELATIONS`, second) of the pairs 0-1, 0-2, 1-2, ..., by the larger of the offsets of the
    digits' centres across and down, as shares of the frame's width and height; `background`, which photograph or texture; `domain`,
    position in `styles`; `sources` (n,) rows of scikit-learn's table; `index`, position in the split. H = W = size, and W = 2 size
    in a panorama.

    With `frames` above 1 the digits move, and a sample holds in addition `clip` (T, 3, H, W), `clip_mask` and `clip_instances`
    (T, H, W), `clip_boxes` (T, n, 4) and `velocity` (n, 2) in pixels a frame; `image` and its masks are the first frame's. In
    passing, a later digit covers an earlier one; boxes go around the whole digit, covered or not.

    With `panorama` the scene is all around: an equirectangular frame of digits on the planes that touch a sphere at their centres,
    in a room whose walls are six patches of one photograph; `distortion` (H, W) says how many times wider than high a small disc
    appears at each pixel.

    Args:
        size: height in pixels, and width but for panoramas.
        min_digits: fewest digits in a scene.
        max_digits: most digits in a scene.
        weights: how often each count from `min_digits` to `max_digits` occurs, relative to the others; equally often by default.
        classes: digits that occur, in the order of their labels; all ten by default.
        colours: colours that occur; all eight by default.
        label: what `label` is: the first digit's class or colour, both (in the order of classes, then colours), how many digits
            there are (0 for one), or which background.
        styles: looks of the same scenes, in the order of `domain`: of "photo", "sketch", "poster", "night", "watercolour" and the
            degradations "blur", "noise", "low-resolution", "grey", "hole"; "photo" alone by default. With one the splits are
            "train", "val", "test"; with several "photo/train", ..., where `index` pairs them. Captions name a style other than
            "photo".
        backgrounds: patches of nine photographs, of which train, val and test have different ones; or of the six surfaces of
            `textures`, each in every split, from regions apart, in scenes of at most 77 pixels; captions then name the surface.
        scale: factor on the digits' sizes.
        muting: how far backgrounds are pulled to a dark grey, so that the digits stand out; 0 leaves them as they are.
        frames: T of a clip.
        panorama: whether the scene is drawn all around.
        train: scenes in "train".
        val: scenes in "val".
        test: scenes in "test".
        seed: of the split of the digits, and of all that is drawn. A split of another length has other scenes throughout.

    Raises:
        ValueError: if a parameter is out of range, a name stands twice, or the size cannot hold the digits.
        DataError: if there is no style or colour of a name.
    """
    chosen = tuple(range(10)) if classes is None else tuple(classes)
    hues = tuple(COLOURS) if colours is None else tuple(colours)
    looks = ("photo",) if styles is None else tuple(styles)
    _check_names(chosen, hues, looks)
    _check_numbers(size, min_digits, max_digits, scale, muting, frames, seed)
    _check_choices(label, backgrounds, size, frames, panorama)
    _check_digits_fit(size * (SHRINK if panorama else 1) * scale, max_digits, size)
    _check_counts(train, val, test)
    _check_weights(weights, min_digits, max_digits)
    vocabulary = Vocabulary(chosen, tuple(list(COLOURS).index(hue) for hue in hues), min_digits, max_digits, scale, tuple(weights or ()))
    recipe = _Recipe(size, vocabulary, backgrounds, muting, frames, panorama, seed)
    named = _background_names(backgrounds)
    splits = {}
    for number, (split, count) in enumerate(zip(SPLITS, (train, val, test), strict=True)):
        drawn = cached("digit-scenes", _key(recipe, split, count), lambda split=split, count=count: _draw(recipe, split, count))
        columns = _columns(drawn, chosen, _labels(label, drawn, chosen, hues))
        for position, look in enumerate(looks):
            generator = np.random.default_rng([seed, number, STYLES.index(look) if look in STYLES else 8 + DEGRADATIONS.index(look)])
            shown = _in_look(columns, look, position, generator)
            captions = _captions(drawn, named if backgrounds == "textures" else (), look)
            constant = {"distortion": distortion(size)} if panorama else {}
            splits[split if len(looks) == 1 else f"{look}/{split}"] = SceneSamples(shown, drawn["counts"], captions, constant)
    names, shape = _label_names(label, chosen, hues, named), (size, 2 * size if panorama else size)
    domains = looks if len(looks) > 1 else ()
    ordered = [f"{look}/{split}" for look in domains for split in SPLITS] or SPLITS
    info = DatasetInfo(names, 3, shape, domains, description=f"Handwritten digits in colour on {backgrounds}")
    return Dataset({split: splits[split] for split in ordered}, info)


def _key(recipe: _Recipe, split: str, count: int) -> dict[str, Any]:
    drawn_by = {package.__name__: package.__version__ for package in (np, PIL, torch)}
    drawn_by |= {name: version(name) for name in ("scikit-image", "scikit-learn")}  # whose import takes seconds
    shown = {**vars(recipe), "vocabulary": vars(recipe.vocabulary)}
    return {"drawing": VERSION, **drawn_by, **shown, "split": split, "count": count}


def _background_names(backgrounds: str) -> tuple[str, ...]:
    return tuple(PHOTOS) if backgrounds == "photos" else tuple(TEXTURES)


def _draw(recipe: _Recipe, split: str, count: int) -> dict[str, Tensor]:
    """The columns of one split."""
    generator = np.random.default_rng([recipe.seed, SPLITS.index(split), count])
    layout = draw_layout(count, recipe.vocabulary, generator)
    strokes, written = _handwriting()
    rows = stratified_split(written, 0.1, 0.25, recipe.seed)[split]
    sources = _pick_sources(layout, rows, written, generator)
    hues = torch.tensor(list(COLOURS.values()))[layout.colours] + torch.from_numpy(generator.normal(0, 6, (count, MOST, 3)))
    hues = (hues / 255).clamp(0, 1).float()
    crops = 6 if recipe.panorama else 1
    patches, background = _patches(recipe, split, count, crops, generator)
    columns: dict[str, Tensor] = {}
    if recipe.panorama:
        places = place_around(layout.sizes, layout.counts, generator)
        columns["relation"] = relations(layout.counts, torch.stack([places[..., 0] / 2, -places[..., 1]], -1))[0]
    else:
        places = layout.centres
        columns["relation"] = relations(layout.counts, places)[0]
    if recipe.frames > 1:
        velocity = draw_velocities(layout.sizes, generator)
        columns["velocity"] = velocity * recipe.size
        places = trajectories(places, velocity, layout.sizes, recipe.frames)
    else:
        places = places.unsqueeze(1)
    parts = [
        _draw_chunk(recipe, strokes[sources[part]], layout, places, hues, patches, part)
        for part in torch.arange(count).split(max(1, CHUNK // recipe.frames))
    ]
    image, instances, boxes = (torch.cat([getattr(canvas, name) for canvas in parts]) for name in ("image", "instances", "boxes"))
    if recipe.frames > 1:
        columns |= {"clip": image, "clip_instances": instances, "clip_boxes": boxes}
        image, instances, boxes = (column[:, :1].clone() for column in (image, instances, boxes))  # a view would carry the clips along
    columns |= {"image": image[:, 0], "instances": instances[:, 0], "boxes": boxes[:, 0]}
    return columns | {
        "digits": layout.digits,
        "colours": layout.colours,
        "counts": layout.counts,
        "sources": sources,
        "background": background,
    }


def _draw_chunk(recipe: _Recipe, strokes: Tensor, layout: Layout, places: Tensor, hues: Tensor, patches: Tensor, part: Tensor) -> Canvas:
    """Scenes at the positions `part`, every frame of them: columns (n, T, ...)."""
    sizes, angles, frames = layout.sizes[part], layout.angles[part], places.shape[1]
    walls = mute(patches[part].flatten(0, 1).float() / 255, recipe.muting).view(len(part), -1, 3, recipe.size, recipe.size)
    background = room(walls) if recipe.panorama else walls[:, 0]
    drawn = []
    for frame in range(frames):
        centres = places[part, frame]
        alphas = (sphere_alphas if recipe.panorama else stroke_alphas)(strokes, centres, sizes, angles, recipe.size)
        drawn.append(compose(alphas, hues[part], background))
    return Canvas(*(torch.stack([getattr(canvas, name) for canvas in drawn], dim=1) for name in ("image", "instances", "boxes")))


@functools.cache
def _handwriting() -> tuple[Tensor, Tensor]:
    """Every digit's picture and class; not to be changed."""
    return load_digit_images(STROKES)


def _pick_sources(layout: Layout, rows: Tensor, written: Tensor, generator: np.random.Generator) -> Tensor:
    """A row of scikit-learn's table for each digit, of its class and of the split: (N, 4), 0 beyond a scene's count."""
    table = [rows[written[rows] == digit] for digit in range(10)]
    width = max(len(of_class) for of_class in table)
    padded = torch.stack([of_class.repeat(width // len(of_class) + 1)[:width] for of_class in table])
    lengths = torch.tensor([len(of_class) for of_class in table])[layout.digits]
    drawn = (torch.from_numpy(generator.random(tuple(layout.digits.shape))) * lengths).long()
    return padded[layout.digits, drawn] * (torch.arange(MOST) < layout.counts[:, None])


def _patches(recipe: _Recipe, split: str, count: int, crops: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Backgrounds (N, crops, 3, size, size) uint8, all crops of a scene from one picture, and that picture's number (N,)."""
    pictures = _pictures(recipe.backgrounds, split, 2 if recipe.size <= 96 else 1)
    names = _background_names(recipe.backgrounds)
    drawn = torch.from_numpy(generator.integers(0, len(pictures), count))
    patches = torch.empty(count, crops, 3, recipe.size, recipe.size, dtype=torch.uint8)
    numbers = torch.empty(count, dtype=torch.long)
    for position, (name, picture) in enumerate(pictures.items()):
        chosen = drawn == position
        wanted = int(chosen.sum()) * crops
        patches[chosen] = random_crops(picture, wanted, recipe.size, generator).view(-1, crops, 3, recipe.size, recipe.size)
        numbers[chosen] = names.index(name)
    return patches, numbers


@functools.cache
def _pictures(backgrounds: str, split: str, shrink: int) -> dict[str, Tensor]:
    """What a split's backgrounds are cut from, (3, H, W) uint8 by name; not to be changed. 15 MB, all of them together."""
    if backgrounds == "photos":
        return {name: load_photo(name, shrink) for name, photo in PHOTOS.items() if photo.split == split}
    return {name: band(read_image("skimage", path, "L").expand(3, -1, -1), split) for name, path in TEXTURES.items()}


def _columns(drawn: dict[str, Tensor], classes: Sequence[int], labels: Tensor) -> dict[str, Tensor]:
    """What samples hold, as columns, in the look "photo"."""
    positions = torch.zeros(10, dtype=torch.long)
    positions[torch.tensor(classes)] = torch.arange(len(classes))
    of_slot = torch.cat([torch.zeros(len(labels), 1, dtype=torch.long), positions[drawn["digits"]] + 1], 1).byte()
    columns = {"image": drawn["image"], "label": labels, "labels": positions[drawn["digits"]]}
    columns |= {key: drawn[key] for key in ("colours", "boxes")}
    columns |= {"mask": _semantic(of_slot, drawn["instances"]), "instances": drawn["instances"]}
    columns |= {key: drawn[key] for key in ("relation", "background", "sources")}
    columns |= {"domain": torch.zeros_like(labels), "index": torch.arange(len(labels))}
    if "clip" in drawn:
        columns |= {key: drawn[key] for key in ("clip", "clip_instances", "clip_boxes", "velocity")}
        columns["clip_mask"] = _semantic(of_slot, drawn["clip_instances"])
    return columns


def _in_look(columns: dict[str, Tensor], look: str, position: int, generator: np.random.Generator) -> dict[str, Tensor]:
    """The same scenes in a look that stands at `position` among the domains."""
    shown = columns | {"domain": torch.full_like(columns["domain"], position)}
    if look == "photo":
        return shown
    shown["image"] = render_view(look, columns["image"], columns["mask"], generator)
    if "clip" in columns:
        clip = columns["clip"]
        shown["clip"] = render_view(look, clip.flatten(0, 1), columns["clip_mask"].flatten(0, 1), generator).view(clip.shape)
        shown["image"] = shown["clip"][:, 0].clone()
    return shown


def _semantic(of_slot: Tensor, instances: Tensor) -> Tensor:
    """Class masks of instance masks (N, ...), by a table (N, 5) from instance to class."""
    return torch.gather(of_slot, 1, instances.flatten(1).long()).view(instances.shape)


def _captions(drawn: dict[str, Tensor], surfaces: Sequence[str], look: str) -> list[str]:
    hues, style = tuple(COLOURS), None if look == "photo" else look
    found = []
    columns = (drawn[key].tolist() for key in ("counts", "digits", "colours", "relation", "background"))
    for count, digits, colours, related, background in zip(*columns, strict=True):
        things = [Thing(digit, hues[colour]) for digit, colour in zip(digits[:count], colours[:count], strict=True)]
        relation = RELATIONS[related[0][1]] if count > 1 and things[0] != things[1] else None
        found.append(describe(things, relation, surfaces[background] if surfaces else None, style))
    return found


def _labels(label: str, drawn: dict[str, Tensor], classes: Sequence[int], hues: Sequence[str]) -> Tensor:
    """Labels (N,)."""
    if label == "count":
        return drawn["counts"] - 1
    if label == "background":
        return drawn["background"]
    known = [list(COLOURS).index(hue) for hue in hues]
    digits = (drawn["digits"][:, :1] == torch.tensor(classes)).long().argmax(1)
    colours = (drawn["colours"][:, :1] == torch.tensor(known)).long().argmax(1)
    if label == "digit-colour":
        return digits * len(hues) + colours
    return digits if label == "digit" else colours


def _label_names(label: str, classes: Sequence[int], hues: Sequence[str], backgrounds: Sequence[str]) -> tuple[str, ...]:
    """The names of the labels' classes."""
    return {
        "digit": tuple(map(str, classes)),
        "colour": tuple(hues),
        "digit-colour": tuple(f"{hue} {digit}" for digit in classes for hue in hues),
        "count": tuple(COUNTS[1:]),
        "background": tuple(backgrounds),
    }[label]


def _check_names(classes: Sequence[int], hues: Sequence[str], looks: Sequence[str]) -> None:
    for name, given in (("classes", classes), ("colours", hues), ("styles", looks)):
        if not given or len(set(given)) != len(given):
            raise ValueError(f"{name} is empty or names one twice: {list(given)}")
    if outside := [digit for digit in classes if digit not in range(10)]:
        raise ValueError(f"classes are digits from 0 to 9; found {outside}")
    for what, given, known in (("colour", hues, tuple(COLOURS)), ("style", looks, (*STYLES, *DEGRADATIONS))):
        for name in given:
            if name not in known:
                raise DataError(f'no {what} "{name}"{nearest(name, known)}; there are {", ".join(known)}')


def _check_numbers(size: int, least: int, most: int, scale: float, muting: float, frames: int, seed: int) -> None:
    if not 1 <= least <= most <= MOST:
        raise ValueError(f"min_digits and max_digits must be 1 to {MOST}, in order; found {least} and {most}")
    ranges = (("size", size, LEAST_SIZE, 256), ("scale", scale, 0.5, 1), ("muting", muting, 0, 1), ("frames", frames, 1, 64))
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise ValueError(f"{name} must be {low} to {high}; found {value}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative; found {seed}")


def _check_choices(label: str, backgrounds: str, size: int, frames: int, panorama: bool) -> None:
    if label not in LABELS:
        raise ValueError(f"label must be one of {', '.join(LABELS)}; found {label!r}")
    if backgrounds not in ("photos", "textures"):
        raise ValueError(f'backgrounds must be "photos" or "textures"; found {backgrounds!r}')
    if backgrounds == "textures" and size > TEXTURE_ROOM:
        raise ValueError(f"size must be at most {TEXTURE_ROOM} on textures, the width of their narrowest region; found {size}")
    if panorama and frames > 1:
        raise ValueError(f"a panorama does not move: found panorama and frames {frames}")


def _check_digits_fit(full: float, most: int, size: int) -> None:
    """`full` is the side in pixels of a digit that takes the whole scene."""
    smallest = full * SIZES[most][0]
    if smallest < SMALLEST:
        digits, fewer = ("1 digit", "") if most == 1 else (f"{most} digits", ", or fewer digits (max_digits)")
        raise ValueError(
            f"size {size} cannot hold {digits}: the smallest would have {smallest:.1f} pixels, and a digit needs {SMALLEST}; "
            f"use a size of at least {math.ceil(SMALLEST / smallest * size)}{fewer}"
        )


def _check_counts(*counts: int) -> None:
    if not 1 <= min(counts) <= max(counts) <= MOST_SCENES:
        raise ValueError(f"train, val and test must each hold 1 to {MOST_SCENES:,} scenes; found {list(counts)}")


def _check_weights(weights: Sequence[float] | None, least: int, most: int) -> None:
    wanted = most - least + 1
    if weights is not None and (len(weights) != wanted or min(weights) < 0 or not 0 < sum(weights) < math.inf):
        raise ValueError(
            f"weights are {wanted} numbers, for {least} to {most} digits, none negative and not all zero; found {list(weights)}"
        )
