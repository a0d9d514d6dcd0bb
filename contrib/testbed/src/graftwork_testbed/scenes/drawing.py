"""Drawing a split of scenes: from a recipe to columns of pictures, masks, boxes and relations."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graftwork_testbed.handwriting import load_digit_images
from graftwork_testbed.photographs import PHOTOS, band, load_photo, random_crops, read_image
from graftwork_testbed.scenes.layout import MOST, Layout, Vocabulary, draw_layout, relations
from graftwork_testbed.scenes.motion import draw_velocities, trajectories
from graftwork_testbed.scenes.panorama import place_around, room, sphere_alphas
from graftwork_testbed.scenes.render import Canvas, compose, mute, stroke_alphas
from graftwork_testbed.scenes.vocabulary import COLOURS
from graftwork_testbed.splits import SPLITS, stratified_split
from graftwork_testbed.texture_crops import TEXTURES

__all__ = ["Recipe", "background_names", "draw_scenes"]

CHUNK = 256
"""Pictures that are drawn at once."""

STROKES = 40
"""Side of the digits' pictures that scenes are drawn from."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the drawn scenes depend on, but the split.

    Args:
        size: height in pixels.
        vocabulary: what scenes are made of.
        backgrounds: "photos" or "textures".
        muting: of the backgrounds, 0 to 1.
        frames: T of a clip; 1 stands still.
        panorama: whether the scene is all around.
        seed: of everything.
    """

    size: int
    vocabulary: Vocabulary
    backgrounds: str
    muting: float
    frames: int
    panorama: bool
    seed: int


def background_names(backgrounds: str) -> tuple[str, ...]:
    """The names of a kind of background, by their numbers."""
    return tuple(PHOTOS) if backgrounds == "photos" else tuple(TEXTURES)


def draw_scenes(recipe: Recipe, split: str, count: int) -> dict[str, Tensor]:
    """The columns of one split.

    Args:
        recipe: what is drawn.
        split: "train", "val" or "test".
        count: N.

    Returns:
        `image` (N, 3, H, W) and `instances` (N, H, W) uint8; `boxes` (N, 4, 4) float32; `digits` and `colours` (N, 4), `counts` and
        `background` (N,), `sources` (N, 4) and `relation` (N, 6, 3) long, as in `digit_scenes`; of clips also `clip`,
        `clip_instances`, `clip_boxes` and `velocity`. What lies beyond a scene's count means nothing.
    """
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


def _draw_chunk(recipe: Recipe, strokes: Tensor, layout: Layout, places: Tensor, hues: Tensor, patches: Tensor, part: Tensor) -> Canvas:
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


def _patches(recipe: Recipe, split: str, count: int, crops: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Backgrounds (N, crops, 3, size, size) uint8, all crops of a scene from one picture, and that picture's number (N,)."""
    pictures = _pictures(recipe.backgrounds, split, 2 if recipe.size <= 96 else 1)
    names = background_names(recipe.backgrounds)
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
