"""Whatever stands in a pipeline file, reading and assembling it gives a plan or a GraftworkError: nothing else, in time, with no trace."""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graftwork.assembly
from graftwork.cli import main
from graftwork.errors import GraftworkError
from graftwork.pipeline import Pipeline
from graftwork.registry import installed
from graftwork.reproduce import recipes

from .mutations import mutants

DEADLINE = 20.0
"""Seconds of CPU that one file may take; the slowest takes 2."""

ROOM = 4 * 2**30
"""Bytes that the process may grow by, so that a count of 10**9 is refused by this machine as it is by a smaller one."""

TOYS = [
    """
name: toy
seed: 3
stages:
  base:
    dataset: {use: blobs, count: 24, seed: 1}
    model: {use: net, width: 4, dropout: 0.1}
    objective: {use: fit, weight: 0.5}
    train:
      epochs: 1
      batch_size: 8
      feeds: {train: train}
      optimizer: {use: sgd, lr: 0.1, momentum: 0.9}
      schedule: {use: cosine, warmup: 0.1}
      clip_norm: 1.0
      validate: {evaluate: {use: hits, split: val}, metric: hits, patience: 3}
      checkpoint: {steps: 5, keep: 1}
    evaluate: [{use: hits, split: test, limit: 8}, {use: notes, inner: hits, models: [{from: base}], as: told}]
    seed: 2
  later:
    dataset: {from: base}
    model: {use: net}
    objective: {use: through, base: {use: follow, teacher: {from: base}}}
    train: {steps: 2, batch_size: {train: 4}, optimizer: adamw, schedule: constant, accumulate: 2, log_every: 1}
    evaluate:
      {use: notes, inner: {use: hits, split: val}, models: [{from: base}, {from: later}], note: {from: base/note}, pace: {stride: 2}}
claim:
  text: later follows
  compare: [{method: later/hits, baseline: base/hits, direction: higher, margin: 0.1}]
  seeds: 2
  paper: {table: one}
""",
    """
stages:
  a: {dataset: {use: blobs, count: 8}, model: dear, evaluate: [{use: notes, inner: {use: hits, limit: 4}}]}
  b: {dataset: {from: a}, model: {from: a}, evaluate: [hits, {use: hits, as: again, split: train}]}
claim: {text: t, compare: {method: b/hits, baseline: a/hits}}
""",
    """
stages:
  m:
    dataset: {use: few-shot-subset, data: {use: blobs, count: 30}, shots: 2}
    model: {use: mlp, in_features: 4, hidden: [8], num_classes: 3}
    objective: {use: cross-entropy, label_smoothing: 0.1}
    train: {epochs: 1, batch_size: 4}
    evaluate: [accuracy, {use: linear-probe}, {use: knn-probe, k: 3}]
""",
]


class OutOfTime(BaseException):
    """The deadline is past."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """The block ends in time, and in bounded memory."""

    def late(*_: Any) -> None:
        raise OutOfTime

    handler, (soft, hard) = signal.signal(signal.SIGVTALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    try:
        if held:
            resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)


def survey(bases: list[str], examples: int, folder: Path, watch: Any, once: Callable[[Path], object]) -> Counter[str]:
    """How many mutants of the bases were taken and refused; any other end is an AssertionError with the smallest file that has it."""
    counts: Counter[str] = Counter()
    file = folder / "p.yaml"

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, print_blob=False, suppress_health_check=list(HealthCheck)
    )
    @given(mutants(st.sampled_from(bases)))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        signal.setitimer(signal.ITIMER_VIRTUAL, DEADLINE)
        try:
            with watch.over(folder / "cache") as seen:
                once(file)
            end = "taken"
        except GraftworkError as error:
            end = "refused" if str(error) else "refused without a word"
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} from {content[:2000]!r}") from error
        except OutOfTime:
            raise AssertionError(f"{DEADLINE} s were not enough for {content[:2000]!r}") from None
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        assert seen == [], content
        assert [path.name for path in folder.iterdir() if path.name != "cache"] == ["p.yaml"], content
        assert end != "refused without a word", content
        counts[end] += 1

    for base in bases:  # each is good, and what it imports may write into caches of its own
        file.write_text(base, encoding="utf-8")
        once(file)
    with bounded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check()
    return counts


def assembled(file: Path) -> object:
    return Pipeline.from_yaml(file).assemble()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working one, with the cache inside."""
    place = tmp_path / "place"
    (place / "cache").mkdir(parents=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("GRAFTWORK_CACHE", str(place / "cache"))
    return place


def test_a_mutated_pipeline_is_a_plan_or_an_error_that_says_why(toy: Path, folder: Path, watch: Any) -> None:
    """Toy pipelines, everything that assembly builds included: 1,400 files."""
    counts = survey(TOYS, 1400, folder, watch, assembled)
    assert counts["taken"] > 50, "hardly any mutant passes: the mutations are too coarse to reach what assembly builds"
    assert counts["refused"] > 700


def test_a_mutated_recipe_is_a_plan_or_an_error_that_says_why(folder: Path, watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every installed recipe, its names, parameters and references: 600 files. Their data and models are built in the slow run below."""
    monkeypatch.setattr(graftwork.assembly, "inspect_stages", lambda *_: None)
    bases = [path.read_text(encoding="utf-8") for path in recipes(installed()).values()]
    counts = survey(bases, 600, folder, watch, assembled)
    assert min(counts["taken"], counts["refused"]) > 30


@pytest.mark.slow  # assembly of a recipe builds scenes and networks: up to half a second each
@pytest.mark.timeout(3600)
def test_mutated_recipes_and_toys_are_plans_or_errors_with_all_that_they_build(
    toy: Path, folder: Path, watch: Any, quiet_network: None
) -> None:
    bases = [path.read_text(encoding="utf-8") for path in recipes(installed()).values()]
    assert survey([*TOYS, *bases], 10_000, folder, watch, assembled)["refused"] > 5000


def test_the_command_line_has_a_message_for_every_mutant(
    toy: Path, folder: Path, watch: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`graft run` on 150 files that do not assemble: exit status 2, a message, no traceback, no run directory, nothing for the terminal."""

    def command(file: Path) -> object:
        try:
            assembled(file)
        except GraftworkError:
            monkeypatch.setattr(sys, "argv", ["graft", "run", str(file)])
            with pytest.raises(SystemExit) as ended:
                main()
            said = capsys.readouterr()
            assert (ended.value.code, said.out) == (2, "")
            assert said.err.startswith("graft: ")
            assert "Traceback" not in said.err
            assert all(one.isprintable() or one == "\n" for one in said.err)
            raise
        return None

    assert survey(TOYS, 150, folder, watch, command)["refused"] > 80
