"""Mistakes in a pipeline: each a message with its place, what was found and what was expected; all of them at once; nothing is run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import graftwork as gw

pytestmark = pytest.mark.usefixtures("toy")

GOOD = """\
stages:
  a:
    dataset: {use: blobs, count: 30}
    model: {use: net, width: 4}
    objective: fit
    train: {epochs: 1, batch_size: 8}
    evaluate: [hits]
"""


def problems(text: str, tmp_path: Path) -> list[str]:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(gw.PipelineError) as caught:
        gw.Pipeline.from_yaml(path).assemble()
    return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]


MISTAKES = {
    "no YAML": (GOOD + "  b: {", "p.yaml:8:7: this is no YAML: expected the node content"),
    "not a mapping": ("- a\n- b\n", "p.yaml: a pipeline is a mapping with the key `stages`; found list"),
    "empty": ("", "found nothing"),
    "a key twice": (GOOD + "    model: plain\n", "p.yaml:8:5: stages.a.model: the key stands twice"),
    "unknown top key": (GOOD + "sede: 3\n", 'p.yaml:8:7: sede: unknown key "sede" (did you mean "seed"?)'),
    "unknown stage key": (GOOD + "    evalute: hits\n", 'stages.a.evalute: unknown key "evalute"'),
    "unknown component": (
        GOOD.replace("hits", "hist"),
        'p.yaml:7:16: stages.a.evaluate.0: no evaluator "hist" is installed (did you mean "hits"?)',
    ),
    "component of another kind": (GOOD.replace("objective: fit", "objective: net"), 'no objective "net" is installed; "net" is a model'),
    "unknown parameter": (
        GOOD.replace("width", "wide"),
        'p.yaml:4:29: stages.a.model.wide: unknown parameter "wide" (did you mean "width"?); it takes width, dropout',
    ),
    "wrong type": (GOOD.replace("width: 4", "width: broad"), "p.yaml:4:30: stages.a.model.width: input should be a valid integer"),
    "out of range": (GOOD.replace("width: 4", "width: 0"), "input should be greater than or equal to 1; found 0"),
    "wrong train type": (GOOD.replace("epochs: 1", "epochs: many"), "p.yaml:6:21: stages.a.train.epochs: input should be a valid integer"),
    "no length": (GOOD.replace("epochs: 1, ", ""), "how long to train is missing: give epochs or steps"),
    "both lengths": (GOOD.replace("epochs: 1", "epochs: 1, steps: 3"), "epochs and steps are both given"),
    "unknown optimiser": (GOOD.replace("epochs: 1", "epochs: 1, optimizer: {use: adm}"), 'unknown optimizer "adm" (did you mean "adam"?)'),
    "optimiser's parameter": (
        GOOD.replace("epochs: 1", "epochs: 1, optimizer: {use: sgd, momentun: 1}"),
        'sgd takes no "momentun" (did you mean "momentum"?)',
    ),
    "unknown schedule": (GOOD.replace("epochs: 1", "epochs: 1, schedule: cosin"), 'unknown schedule "cosin" (did you mean "cosine"?)'),
    "schedule's parameter": (
        GOOD.replace("epochs: 1", "epochs: 1, schedule: {use: cosine, final: -1}"),
        "final: input should be greater than or equal to 0",
    ),
    "feed with no split": (
        GOOD.replace("batch_size", "feeds: {train: trian}, batch_size"),
        'feed "train" draws from split "trian", which the dataset lacks; it has train, val, test',
    ),
    "unknown feed": (GOOD.replace("batch_size", "feeds: {source: train}, batch_size"), 'Fit has no feed "source"; it draws from train'),
    "no batch size for a feed": (
        GOOD.replace("batch_size: 8", "batch_size: {other: 8}"),
        'batch_size names other and not the feed "train"',
    ),
    "missing sample key": (GOOD.replace("hits", "masks"), 'evaluator "masks" reads "mask"; the samples of "test" have features, label'),
    "evaluator's split": (
        GOOD.replace("[hits]", "[{use: hits, split: tset}]"),
        'split is "tset", which the dataset lacks (did you mean "test"?)',
    ),
    "model without the interface": (
        GOOD.replace("{use: net, width: 4}", "plain"),
        'objective "fit" needs a model that offers Backbone; Plain lacks forward_features, forward_head, num_features',
    ),
    "evaluator twice": (GOOD.replace("[hits]", "[hits, hits]"), '"hits" stands twice in this stage: give each a label'),
    "objective without train": (GOOD.replace("    train: {epochs: 1, batch_size: 8}\n", ""), "a stage with `objective` needs `train`"),
    "train without objective": (GOOD.replace("    objective: fit\n", ""), "a stage with `train` needs `objective`"),
    "from nowhere": (GOOD.replace("{use: blobs, count: 30}", "{from: b}"), 'there is no stage "b"; the earlier stages are none'),
    "from itself": (GOOD.replace("{use: blobs, count: 30}", "{from: a}"), 'stage "a" refers to itself'),
    "from forward": (GOOD.replace("{use: blobs, count: 30}", "{from: b}") + "  b: {dataset: blobs}\n", 'stage "b" comes later'),
    "a cycle": (
        GOOD.replace("{use: blobs, count: 30}", "{from: b}") + "  b: {dataset: {from: a}}\n",
        '"b" and "a" take from each other: a cycle',
    ),
    "from a stage that lacks it": (GOOD + "  b: {dataset: blobs}\n  c: {model: {from: b}}\n", 'stage "b" has no model'),
    "use and from": (GOOD.replace("use: blobs", "use: blobs, from: x"), "a dataset is a name, or a mapping with either `use` or `from`"),
    "missing parameter": (GOOD.replace("objective: fit", "objective: follow"), 'parameter "teacher" is required'),
    "plain value for a reference": (
        GOOD.replace("objective: fit", "objective: {use: follow, teacher: 3}"),
        "a reference is a name, or a mapping",
    ),
    "selection on a test split": (
        GOOD.replace("epochs: 1", "epochs: 1, validate: {evaluate: {use: hits, split: test}}"),
        "weights are selected on a validation split, never on a test split",
    ),
    "claim on a stage that is not there": (
        GOOD + "claim: {text: t, compare: {method: b/hits, baseline: a/hits}}\n",
        'method names stage "b", which the pipeline lacks',
    ),
    "empty stage": (GOOD + "  b: {}\n", "the stage is empty"),
    "stage name that is a path": (GOOD.replace("  a:", "  ../a:"), "a stage's name is letters"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_place(mistake: str, tmp_path: Path) -> None:
    text, expected = MISTAKES[mistake]
    found = problems(text, tmp_path)
    assert any(expected in problem for problem in found), found
    assert len(found) == 1, found
    assert found[0].startswith("p.yaml")


def test_several_mistakes_are_reported_together_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        GOOD.replace("width: 4", "wide: 4").replace("fit", "fitt").replace("hits", "hist").replace("epochs: 1", "epochs: x") + "sede: 1\n"
    )
    found = problems(text, tmp_path)
    places = [problem.split(": ")[1] for problem in found]
    assert places == ["stages.a.model.wide", "stages.a.objective", "stages.a.train.epochs", "stages.a.evaluate.0", "sede"]


def test_the_good_one_assembles(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(GOOD)
    assert list(gw.Pipeline.from_yaml(tmp_path / "p.yaml").assemble().stages) == ["a"]


def test_the_command_line_exits_2_without_traceback_or_run_directory(
    tmp_path: Path, graft: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(GOOD.replace("width: 4", "width: 0").replace("hits", "masks"))
    done = graft("run", str(path))
    assert done.returncode == 2
    assert "width" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "work" / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "absent.yaml"], "the file cannot be read: No such file"),
        (["run", "p.yaml", "stages.a.train.epochs"], "an override is written key.of.the.pipeline=value"),
        (["run", "p.yaml", "stages.a.model.width.deep=1"], "leads nowhere"),
        (["run", "p.yaml", "--device", "abacus"], 'device "abacus" is not to be had here'),
        (["run", "p.yaml", "--stage", "z"], "there is no stage z; the pipeline has a"),
        (["reproduce", "p.yaml"], "has no `claim`"),
        (["reproduce", "nothing"], 'no recipe "nothing" is installed'),
        (["show", "hist"], 'did you mean "hits"'),
        (["list", "gadget"], 'there is no kind "gadget"'),
    ],
)
def test_a_users_mistake_on_the_command_line_is_one_message(
    arguments: list[str], expected: str, tmp_path: Path, graft: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "work" / "p.yaml").write_text(GOOD)
    done = graft(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "work" / "runs").exists()


def test_a_hooked_override_of_one_value_keeps_the_places_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(GOOD.replace("count: 30", "count: 1"))
    with pytest.raises(gw.PipelineError) as caught:
        gw.Pipeline.from_yaml(tmp_path / "p.yaml", ["stages.a.model.width=0"]).assemble()
    first, second = map(str, caught.value.problems)
    assert "p.yaml:3:34: stages.a.dataset.count" in first
    assert "stages.a.model.width" in second


def test_the_schema_accepts_the_good_one_and_names_what_is_installed() -> None:
    from graftwork.schema import pipeline_schema

    schema = pipeline_schema(gw.installed())
    text = json.dumps(schema)
    assert "toy" not in schema["$defs"]
    assert '"const": "follow"' in text
    width = next(one for one in schema["$defs"]["model"]["anyOf"] if one.get("title") == "net")["properties"]["width"]
    assert width["minimum"] == 1
    assert width["description"] == "hidden units"
