"""Draws the pictures of the test bed in docs/images/testbed: a sheet of each data set, and 64 prompts by each generator.

python tools/pictures.py [NAME ...]
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

import graftwork as gw
from graftwork_testbed.sheets.contact import contact_sheet

HERE = Path(__file__).resolve().parent.parent / "docs" / "images" / "testbed"
SMALL: dict[str, Any] = {"train": 96, "val": 8, "test": 8}
STYLES = ["photo", "sketch", "poster", "night", "watercolour", "blur", "noise", "low-resolution", "grey", "hole"]
SHEETS: dict[str, tuple[str, dict[str, Any], str | list[str]]] = {
    "digits": ("digits", {}, "test"),
    "digit-domains": ("digit-domains", {}, [f"{one}/test" for one in ("clean", "photo", "inverted", "rotated", "noisy", "edges")]),
    "digit-scenes": ("digit-scenes", SMALL, "train"),
    "digit-scenes-styles": ("digit-scenes", {**SMALL, "styles": STYLES}, [f"{one}/train" for one in STYLES]),
    "digit-scenes-textures": ("digit-scenes", {**SMALL, "backgrounds": "textures"}, "train"),
    "digit-scenes-motion": ("digit-scenes", {**SMALL, "frames": 10}, "train"),
    "digit-scenes-panorama": ("digit-scenes", {**SMALL, "panorama": True, "size": 96}, "train"),
    "scene-pairs": ("scene-pairs", {"data": {"use": "digit-scenes", **SMALL}, "source": "edges"}, "train"),
    "photos": ("photos", {}, "train"),
    "textures": ("textures", {}, "train"),
    "medical-patches": ("medical-patches", {}, "train"),
    "medical-patches-segment": ("medical-patches", {"task": "segment"}, "train"),
    "faces": ("faces", {}, "train"),
    "shifted-moons": ("shifted-moons", {}, ["source/train", "target/train"]),
    "diabetes": ("diabetes", {}, "train"),
    "karate": ("karate", {}, "train"),
    "les-miserables": ("les-miserables", {}, "train"),
    "davis-women": ("davis-women", {}, "train"),
    "stochastic-block-model": ("stochastic-block-model", {}, "train"),
    "graphon": ("graphon", {}, "train"),
    "academic-network": ("academic-network", {}, "train"),
    "pydoc-text": ("pydoc-text", {}, "train"),
    "docstring-text": ("docstring-text", {}, "train"),
    "template-text": ("template-text", {}, "train"),
    "paraphrase-pairs": ("paraphrase-pairs", {}, "train"),
    "query-passage": ("query-passage", {}, "train"),
}
"""Picture -> data set, parameters, split or splits."""

GENERATORS = ("scene-diffusion", "scene-flow")


WIDTH = 1000
"""Pixels across a picture, about."""


def draw(name: str) -> Any:
    """The matplotlib figure of a name."""
    if name in SHEETS:
        dataset, parameters, split = SHEETS[name]
        return contact_sheet(gw.dataset(dataset, **parameters), split)
    from graftwork_testbed.zoo.scene_check import SceneCheck

    check = SceneCheck(gw.model("zoo/scene-resnet"), gw.model("zoo/scene-colour"), repeats=1)
    return check.evaluate(gw.model(f"zoo/{name}"), gw.Dataset({})).figures["samples"].figure


def main(names: list[str]) -> int:
    """Draw the pictures that are named, or all."""
    known = [*SHEETS, *GENERATORS]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"pictures: no picture {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    HERE.mkdir(parents=True, exist_ok=True)
    for name in names or known:
        content = io.BytesIO()
        draw(name).savefig(content, format="png", facecolor="white")  # at its own resolution, for which its text was measured
        path = HERE / f"{name}.png"
        image = Image.open(content).convert("RGB")
        image.reduce(max(1, round(image.width / WIDTH))).save(path, optimize=True)
        print(f"{path.name}: {path.stat().st_size // 1024} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
