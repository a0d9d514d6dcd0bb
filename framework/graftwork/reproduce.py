"""Run a recipe over its seeds and say whether its claim holds here."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from graftwork import processes
from graftwork.errors import GraftworkError, UnknownComponentError, nearest
from graftwork.files import write_text
from graftwork.pipeline import Pipeline
from graftwork.registry import Registry
from graftwork.run import Observer
from graftwork.spec import Comparison
from graftwork.trials import Outcome, Resources, Trial, find_executor, finished_before, metric_of, refuse_used

__all__ = ["Reproduction", "Verdict", "compare", "find_recipe", "recipes", "reproduce"]

SIGNIFICANT = 0.05
"""A claim holds when the paired one-sided t-test over seeds gives less than this."""


@dataclass(frozen=True)
class Verdict:
    """One comparison over the seeds.

    Args:
        method: "stage/metric" of the method.
        baseline: "stage/metric" of the baseline.
        direction: which is better.
        margin: by how much the method may be worse.
        method_values: one a seed.
        baseline_values: one a seed, in the same order.
        p_value: of the paired one-sided t-test; None for a single seed.
        verdict: "holds", "not significant" (the right way, but within chance), "does not hold", or "untested" (one seed).
    """

    method: str
    baseline: str
    direction: str
    margin: float
    method_values: Sequence[float]
    baseline_values: Sequence[float]
    p_value: float | None
    verdict: str


@dataclass(frozen=True)
class Reproduction:
    """What came of a recipe over its seeds.

    Args:
        recipe: its name.
        claim: in words.
        seeds: that were run.
        verdicts: one a comparison.
        metrics: "stage/metric" -> one value a seed, for everything that was measured.
        paper: the paper's own figures.
    """

    recipe: str
    claim: str
    seeds: Sequence[int]
    verdicts: Sequence[Verdict]
    metrics: dict[str, list[float]]
    paper: dict[str, Any] | None

    @property
    def holds(self) -> bool:
        """Whether every comparison holds."""
        return all(verdict.verdict == "holds" for verdict in self.verdicts)

    def to_json(self) -> str:
        """All of it, with means and standard errors."""
        summary = {
            name: dict(zip(("mean", "standard_error"), mean_and_error(values), strict=True)) for name, values in self.metrics.items()
        }
        return json.dumps({**dataclasses.asdict(self), "holds": self.holds, "summary": summary}, indent=1)

    def to_markdown(self) -> str:
        """The table as Markdown, for a README."""
        lines = [f"{self.claim}", "", "| comparison | baseline | method | p | verdict |", "| --- | --- | --- | --- | --- |"]
        for one in self.verdicts:
            p = "-" if one.p_value is None else f"{one.p_value:.2g}"
            left, right = shown(one.baseline_values), shown(one.method_values)
            slack = f", {one.margin:g} worse is allowed" if one.margin else ""
            lines.append(
                f"| {one.method} against {one.baseline} ({one.direction} is better{slack}) | {left} | {right} | {p} | {one.verdict} |"
            )
        return "\n".join([*lines, "", f"Mean and standard error over {len(self.seeds)} seeds; paired one-sided t-test.", ""])


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard error of the mean (nan for a single value)."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def shown(values: Sequence[float]) -> str:
    """Mean and standard error, such as "0.623 ± 0.011"."""
    mean, error = mean_and_error(values)
    return f"{mean:.4g}" if math.isnan(error) else f"{mean:.4g} ± {error:.2g}"


def compare(comparison: Comparison, method: Sequence[float], baseline: Sequence[float]) -> Verdict:
    """Hold a method against its baseline, paired by seed.

    Args:
        comparison: what is compared, and which direction is better.
        method: one value a seed.
        baseline: one value a seed, in the same order.
    """
    from scipy.stats import ttest_1samp

    sign = 1 if comparison.direction == "higher" else -1
    gains = [sign * (a - b) + comparison.margin for a, b in zip(method, baseline, strict=True)]
    mean, p = statistics.fmean(gains), None
    if len(gains) > 1:
        constant = max(gains) == min(gains)  # the test is undefined without variance, and the case is plain
        p = (0.0 if mean > 0 else 1.0) if constant else float(ttest_1samp(gains, 0.0, alternative="greater").pvalue)
    verdict = "does not hold" if not mean > 0 else "untested" if p is None else "holds" if p < SIGNIFICANT else "not significant"
    return Verdict(
        comparison.method, comparison.baseline, comparison.direction, comparison.margin, list(method), list(baseline), p, verdict
    )


def recipes(registry: Registry) -> dict[str, Path]:
    """Every installed recipe: "plugin" for the one named like its plugin, "plugin/recipe" for the others."""
    found: dict[str, Path] = {}
    for plugin, package in registry.packages.items():
        if not package:
            continue
        folder = Path(str(files(package))) / "recipes"
        for path in sorted(folder.glob("*.yaml")):
            found[plugin if path.stem == plugin else f"{plugin}/{path.stem}"] = path
    return found


def find_recipe(name: str, registry: Registry) -> Path:
    """The recipe of that name: "plugin", "plugin/recipe", a component whose plugin has one, or a YAML file.

    Raises:
        UnknownComponentError: if there is none; what is near and what would provide it is named.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = recipes(registry)
    plugin, slash, rest = name.removeprefix("graftwork-").partition("/")
    owners = {one.plugin for one in registry if one.name == plugin}
    for owner in [plugin, *sorted(owners)]:
        key = f"{owner}/{rest}" if slash else owner
        if key in known:
            return known[key]
        several = [other for other in known if other.startswith(f"{owner}/")]
        if several and not slash:
            raise UnknownComponentError(f'"{name}" has the recipes {", ".join(several)}: name one')
    failed = next((f"; {one.distribution} was set aside: {one.reason}" for one in registry.failures if one.plugin == plugin), "")
    raise UnknownComponentError(f'no recipe "{name}" is installed{nearest(name, known)}; there are {", ".join(known) or "none"}{failed}')


def reproduce(
    path: Path,
    out: Path | None,
    *,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    device: str | None = None,
    observer: Observer | None = None,
    resume: bool = False,
    reuse: bool = False,
    on: str | None = None,
    resources: Resources | None = None,
    ended: Callable[[Outcome, int, int], None] = lambda outcome, done, count: None,
    note: Callable[[str], None] = lambda text: None,
) -> Reproduction:
    """Run a recipe over its seeds and judge its claim.

    Args:
        path: the recipe.
        out: a directory; each seed's run goes into `seed-N`, the table beside them. None keeps nothing.
        overrides: dotted assignments.
        seeds: how many, instead of the claim's own number; counted from the recipe's seed.
        device: as for `Pipeline.run`.
        observer: told what happens in runs of this process.
        resume: go on in `out`: seeds that are finished there are not run again.
        reuse: as for `Pipeline.run`.
        on: name of the executor that runs the seeds, several at a time; None runs them here, one after another.
        resources: what the seeds may take there.
        ended: called after each seed, with how many of how many are done.
        note: told in a sentence of what the user should know.

    Raises:
        GraftworkError: if the recipe has no claim, what it compares was not measured, or a seed fails; the others are ended then, and
            what is in `out` can be gone on with.
    """
    pipeline = Pipeline.from_yaml(path, overrides)
    plan = pipeline.assemble()
    if plan.claim is None:
        raise GraftworkError(f"{path} has no `claim`: there is nothing to reproduce; run it with: graft run {path}")
    numbers = list(range(plan.seed, plan.seed + (seeds or plan.claim.seeds)))
    if on is None:
        outcomes = _here(pipeline, numbers, out, device=device, observer=observer, resume=resume and out is not None, reuse=reuse)
    else:
        trials = [_trial(pipeline, seed, out, device, reuse) for seed in numbers]
        if not resume:
            refuse_used(trials)
        outcomes = _elsewhere(on, trials, resources or Resources(), resume, note)
    runs = _all_of(outcomes, numbers, out, ended)
    verdicts = [
        compare(one, [metric_of(run, one.method) for run in runs], [metric_of(run, one.baseline) for run in runs])
        for one in plan.claim.comparisons
    ]
    values = {name: [run[name] for run in runs if name in run] for name in dict.fromkeys(name for run in runs for name in run)}
    reproduction = Reproduction(plan.name, plan.claim.text, numbers, verdicts, values, plan.claim.paper)
    if out is not None and processes.is_first():
        write_text(out / "reproduction.json", reproduction.to_json())
        write_text(out / "reproduction.md", reproduction.to_markdown())
        from graftwork.report import write_page

        write_page(out)
    return reproduction


def _all_of(
    outcomes: Generator[Outcome, None, None], seeds: Sequence[int], out: Path | None, ended: Callable[[Outcome, int, int], None]
) -> list[Mapping[str, float]]:
    """The metrics of every seed, in order; the first that has not finished ends all."""
    found: dict[int, Mapping[str, float]] = {}
    with closing(outcomes):
        for outcome in outcomes:
            if outcome.status != "finished":
                rest = f"; go on with --resume {out}" if out is not None else ""
                raise GraftworkError(f"{outcome.trial.name} has {outcome.status}: {outcome.message}{rest}")
            found[outcome.trial.seed] = outcome.metrics
            ended(outcome, len(found), len(seeds))
    return [found[seed] for seed in seeds]


def _trial(pipeline: Pipeline, seed: int, out: Path | None, device: str | None, reuse: bool) -> Trial:
    where = out.resolve() / f"seed-{seed}" if out is not None else None
    return Trial(f"seed-{seed}", {**pipeline.document.data, "seed": seed}, seed, where, device=device, reuse=reuse)


def _here(pipeline: Pipeline, seeds: Sequence[int], out: Path | None, **settings: Any) -> Generator[Outcome, None, None]:
    """Run the seeds in this process. A fault is raised as it is."""
    for seed in seeds:
        where = out / f"seed-{seed}" if out is not None else None
        result = pipeline.run(where, seed=seed, **settings)
        yield Outcome(_trial(pipeline, seed, out, settings["device"], settings["reuse"]), "finished", result.metrics)


def _elsewhere(
    on: str, trials: Sequence[Trial], resources: Resources, resume: bool, note: Callable[[str], None]
) -> Generator[Outcome, None, None]:
    """Run the seeds by an executor, but those that are finished."""
    former = [found for trial in trials if (found := finished_before(trial))] if resume else []
    yield from former
    held = {outcome.trial.name for outcome in former}
    with find_executor(on) as executor:
        yield from executor.run([trial for trial in trials if trial.name not in held], resources, note=note)
