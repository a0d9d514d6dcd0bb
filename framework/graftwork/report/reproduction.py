"""The page of a reproduction: the claim's verdict over the seeds, what each seed measured, the seeds' curves over each other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.report.charts import charts
from graftwork.report.claims import comparisons, measured
from graftwork.report.page import linked_run
from graftwork.report.reading import RunFolder, is_run
from graftwork.report.rendering import mean_and_error, render

__all__ = ["is_reproduction", "reproduction_page"]

SEED = re.compile(r"seed-(\d+)")


@dataclass(frozen=True)
class Outcome:
    """One comparison over the seeds, as the table shows it.

    Args:
        title: what is compared with what.
        baseline: mean and standard error.
        method: likewise.
        p_value: of the paired test; None for one seed.
        verdict: in words.
    """

    title: str
    baseline: str
    method: str
    p_value: float | None
    verdict: str


@dataclass(frozen=True)
class Seed:
    """One seed's run with the address of its page, as the page of the reproduction reaches it."""

    number: int
    run: RunFolder
    link: str


def is_reproduction(folder: Path) -> bool:
    """Whether a directory is a reproduction's: whether it holds a run a seed."""
    return bool(_seed_folders(folder))


def _seed_folders(folder: Path) -> list[tuple[int, Path]]:
    found = [(int(match[1]), path) for path in folder.glob("seed-*") if (match := SEED.fullmatch(path.name)) and is_run(path)]
    return sorted(found)


def reproduction_page(folder: Path, target: Path) -> str:
    """The page of a reproduction, as HTML. The pages of seeds that are not finished, or that have none, are written first.

    Args:
        folder: of the reproduction.
        target: where the page will stand; its links lead from there.

    Raises:
        GraftworkError: if a seed's run cannot be read.
    """
    seeds = [Seed(number, *linked_run(path, target)) for number, path in _seed_folders(folder)]
    runs = [seed.run for seed in seeds]
    found, damage = _verdicts(folder)
    claim = runs[0].claim or {}
    finished = [run for run in runs if run.status == "finished"]
    wanted = claim.get("seeds", 5) if claim else len(runs)
    outcomes = _outcomes(found["verdicts"]) if found else _so_far(claim, finished)
    return render(
        "reproduction.html.j2",
        title=str(found.get("recipe") or runs[0].name),
        claim=claim,
        text=str(claim.get("text") or ""),
        seeds=seeds,
        finished=len(finished),
        wanted=wanted,
        whole=bool(found) or (not claim and len(finished) == len(runs)),
        holds=bool(outcomes) and all(one.verdict == "holds" for one in outcomes),
        outcomes=outcomes,
        values=_values(runs),
        charts=_charts(seeds),
        damage=damage + [f"seed {seed.number}: {what}" for seed in seeds for what in seed.run.damage],
        longest=max((run.seconds for run in runs), default=0.0),
        folder=folder,
    )


def _verdicts(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What reproduction.json says, and what is wrong with it; nothing where the reproduction is not finished."""
    try:
        found = json.loads((folder / "reproduction.json").read_text(encoding="utf-8"))
        if all(_is_verdict(one) for one in found["verdicts"]):
            return found, []
        return {}, ["reproduction.json holds no verdicts"]
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, TypeError, KeyError) as error:
        return {}, [f"reproduction.json cannot be read: {error!r}"]


def _is_verdict(one: Any) -> bool:
    numbers = [one[name] for name in ("method_values", "baseline_values")] if isinstance(one, dict) else [[]]
    return all(values and all(isinstance(value, (int, float)) for value in values) for values in numbers) and "verdict" in one


def _outcomes(verdicts: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    return [
        Outcome(
            title=_title(one),
            baseline=mean_and_error(one["baseline_values"]),
            method=mean_and_error(one["method_values"]),
            p_value=one.get("p_value"),
            verdict=str(one["verdict"]),
        )
        for one in verdicts
    ]


def _so_far(claim: Mapping[str, Any], runs: Sequence[RunFolder]) -> list[Outcome]:
    """The comparisons over the seeds that are finished, where the reproduction is not."""
    from dataclasses import asdict

    from pydantic import ValidationError

    from graftwork.reproduce import compare
    from graftwork.spec import Comparison

    outcomes = []
    for one in comparisons(claim):
        try:
            comparison = Comparison.model_validate(one)
        except ValidationError:
            continue
        pairs = [(measured(run.metrics, comparison.method), measured(run.metrics, comparison.baseline)) for run in runs]
        known = [(method, baseline) for method, baseline in pairs if method is not None and baseline is not None]
        if known:
            outcomes += _outcomes([asdict(compare(comparison, [method for method, _ in known], [baseline for _, baseline in known]))])
    return outcomes


def _title(one: Mapping[str, Any]) -> str:
    margin = one.get("margin")
    slack = f", {margin:g} worse is allowed" if isinstance(margin, (int, float)) and margin else ""
    return f"{one.get('method')} against {one.get('baseline')} ({one.get('direction', 'higher')} is better{slack})"


def _values(runs: Sequence[RunFolder]) -> list[tuple[str, list[float | None], str]]:
    """(stage/metric, one value a seed, mean and standard error) of everything that was measured."""
    found = [run.metrics for run in runs]
    names = dict.fromkeys(name for metrics in found for name in metrics)
    rows = []
    for name in names:
        values = [metrics.get(name) for metrics in found]
        rows.append((name, values, mean_and_error([value for value in values if value is not None])))
    return rows


def _charts(seeds: Sequence[Seed]) -> list[Any]:
    """A chart a metric: a colour a stage, a line a seed."""
    stages = list(dict.fromkeys(stage.name for seed in seeds for stage in seed.run.stages))
    series = []
    for stage in stages:
        for seed in seeds:
            own = [one for one in seed.run.series if one.stage == stage]
            series += [(f"{stage}, seed {seed.number}", stages.index(stage), one) for one in own]
    return charts(series)
