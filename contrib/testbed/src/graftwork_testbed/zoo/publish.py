"""From a finished run to the zoo: weights as float16 safetensors, and a model card with what the run measured.

python -m graftwork_testbed.zoo.publish RUN STAGE NAME [--into FOLDER]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file

from graftwork import GraftworkError
from graftwork.assembly import stages_behind
from graftwork_testbed.zoo.catalogue import CARDS, PLACES, VARIANTS

__all__ = ["card_text", "main", "measure", "publish"]

HERE = Path(__file__).parent / "networks"
MEASURED = "## Measured on held-out data"


def publish(run: Path, stage: str, name: str, into: Path = HERE) -> Path:
    """Put a stage's trained model into the zoo, in place of what is there under that name.

    Args:
        run: directory of a finished run.
        stage: of the run, whose model was trained.
        name: in the zoo, such as "scene-vit" or "digit-source/vit-photo".
        into: the zoo's folder.

    Returns:
        The network's folder.

    Raises:
        GraftworkError: if the run has no such trained model, or is not finished, or the zoo knows no such name.
    """
    if name.partition("/")[0] not in CARDS:
        raise GraftworkError(f'the zoo has no card for "{name}": add one to graftwork_testbed.zoo.catalogue')
    source = run / "stages" / stage / "model"
    if not any(source.rglob("*.safetensors")):
        raise GraftworkError(f"{source} holds no safetensors: stage {stage} of {run} trained no model, or did not finish")
    results, surroundings = _read(run / "results.json"), _read(run / "environment.json")
    stages = yaml.safe_load((run / "pipeline.yaml").read_text())["stages"]
    seconds = sum(results["seconds"].get(one, 0.0) for one in {stage, *stages_behind(stages, stage)})
    target = into / PLACES.get(name, name)
    beside = target.with_name(f"{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    for card in target.glob("*/README.md"):  # of networks that lie inside
        shutil.copy(card, beside / card.relative_to(target))
    for weights in beside.rglob("*.safetensors"):
        state = {key: value.half() if value.is_floating_point() else value for key, value in load_file(weights).items()}
        save_file({key: value.contiguous() for key, value in state.items()}, weights, metadata={"format": "pt"})
    for settings in beside.rglob("*.json"):
        _tidy(settings, CARDS[name.partition("/")[0]].loader)
    (beside / "README.md").write_text(card_text(name, stage, seconds, results, surroundings))
    shutil.rmtree(target, ignore_errors=True)
    beside.replace(target)
    return target


def _tidy(path: Path, loader: str) -> None:
    """A configuration that says float16, names no path and no class of ours; a tokenizer without its white space, half of its bytes."""
    found = json.loads(path.read_text())
    if path.name == "tokenizer.json":
        path.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")))
        return
    if path.name == "model_index.json":
        found["_class_name"] = loader  # diffusers would not find a subclass of its own
    if "dtype" in found:
        found["dtype"] = "float16"
    found.pop("_name_or_path", None)
    path.write_text(json.dumps(found, indent=2) + "\n")


def card_text(name: str, stage: str, seconds: float, results: dict[str, Any], surroundings: dict[str, Any]) -> str:
    """A model card in the format of the Hugging Face Hub.

    Args:
        name: in the zoo.
        stage: of the run.
        seconds: that it took, with the stages behind it.
        results: a run's results.json.
        surroundings: a run's environment.json.
    """
    card = CARDS[name.partition("/")[0]]
    module, _, loader = card.loader.rpartition(".")
    component, _, variant = name.partition("/")
    versions = ", ".join(f"{key} {value}" for key, value in surroundings["versions"].items() if not key.startswith("graftwork-"))
    machine = ", ".join(surroundings["gpus"]) or f"CPU, {surroundings['threads']} thread{'s' * (surroundings['threads'] > 1)}"
    given = f', variant="{variant}"' if variant else ""
    return f"""---
license: apache-2.0
library_name: {card.library}
pipeline_tag: {card.task}
tags: [graftwork, testbed]
---

# {name}

{card.summary}

```python
import graftwork as gw
from graftwork_testbed.zoo.networks import folder
from {module or card.library} import {loader}

model = gw.model("zoo/{component}"{given})
same = {loader}.from_pretrained(folder("{name}"))
```

## How it was made

| | |
| --- | --- |
| data | {card.data} |
| recipe | `{card.recipe}`, stage `{stage}`, seed {results["seed"]} |
| time | {seconds / 60:.0f} min, on a shared machine ({machine}) |
| versions | {versions} |

Weights are float16 in safetensors; they were trained in float32.

{MEASURED}

{_measured(results["results"].get(stage, {}))}

## Limits

{card.limits}
"""


def _measured(metrics: Mapping[str, float | None]) -> str:
    rows = [f"| {metric} | {value:.4g} |" for metric, value in metrics.items() if value is not None]
    return "\n".join(["| metric | value |", "| --- | --- |", *rows]) if rows else "Not yet."


def measure(run: Path, into: Path = HERE) -> list[str]:
    """Write what a run of the recipe zoo/quality measured into the cards of the networks.

    Args:
        run: its directory; a stage is named after the network it measures, a variant's name joined by a hyphen.
        into: the zoo's folder.

    Returns:
        The names of the networks whose cards were written.

    Raises:
        GraftworkError: if the run is not finished.
    """
    results, written = _read(run / "results.json")["results"], []
    names = [*(name for name in CARDS if name not in VARIANTS), *(f"{name}/{one}" for name in VARIANTS for one in VARIANTS[name])]
    for name in names:
        card, found = into / PLACES.get(name, name) / "README.md", results.get(name.replace("/", "-"))
        if found and card.exists():
            before, _, rest = card.read_text().partition(MEASURED)
            after = rest[rest.index("## Limits") :]
            card.write_text(f"{before}{MEASURED}\n\n{_measured(found)}\n\n{after}")
            written.append(name)
    return written


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise GraftworkError(f"{path.parent} is no finished run: {error.strerror}: {path}") from None
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m graftwork_testbed.zoo.publish", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, nargs="?", help="directory of a finished run")
    parser.add_argument("stage", nargs="?", help="stage of the run whose model it is")
    parser.add_argument("name", nargs="?", help="in the zoo, such as scene-vit")
    parser.add_argument("--measured", type=Path, metavar="QUALITY", help="a finished run of zoo/quality, for the figures in the cards")
    parser.add_argument("--into", type=Path, default=HERE, help="folder of the zoo")
    given = parser.parse_args(arguments)
    if (given.name is None) == (given.measured is None):
        parser.error("give RUN STAGE NAME, or --measured QUALITY")
    try:
        done = measure(given.measured, given.into) if given.measured else [publish(given.run, given.stage, given.name, given.into)]
        print(*done, sep="\n")
    except GraftworkError as error:
        print(f"publish: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
