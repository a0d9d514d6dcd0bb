"""Sweeps: a pipeline run at every setting of a grid or search space, and what came out best."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from graftwork.document import Document, dump, unshared
from graftwork.errors import GraftworkError
from graftwork.files import write_text
from graftwork.pipeline import Pipeline
from graftwork.reuse import changes, flat
from graftwork.sharing import shared_by, shared_stages
from graftwork.space import assignment, settings
from graftwork.spec import PipelineSpec, SweepSpec
from graftwork.sweep_results import Sweep, stopped_before
from graftwork.trials import Executor, Outcome, Resources, Trial, find_executor, finished_before, metric_of, refuse_used

__all__ = ["of_sweep", "sweep"]

DOCUMENT = "sweep.yaml"


def of_sweep(out: Path) -> Pipeline:
    """The pipeline that a sweep's directory was made by, to go on with.

    Raises:
        GraftworkError: if the directory is no sweep's.
    """
    if not (out / DOCUMENT).is_file():
        raise GraftworkError(f"{out} is no sweep: it has no {DOCUMENT}")
    return Pipeline(Document.read(out / DOCUMENT))


def sweep(
    pipeline: Pipeline,
    out: str | Path,
    *,
    on: str = "local",
    resources: Resources | None = None,
    device: str | None = None,
    resume: bool = False,
    reuse: bool = True,
    ended: Callable[[Outcome, int, int], None] = lambda outcome, done, count: None,
    note: Callable[[str], None] = lambda text: None,
) -> Sweep:
    """Run a pipeline at every setting of its `sweep:` block. A trial that fails is reported, and the others go on.

    Args:
        pipeline: with a `sweep:` block.
        out: a directory, new or empty; setting N runs in `trial-N`, or with several seeds in `trial-N/seed-S`; beside them the table
            (sweep.json, sweep.md), the picture (sweep.png), the pipeline (sweep.yaml), and in `shared` the stages that trials share.
        on: name of the executor.
        resources: what trials may take.
        device: as for `Pipeline.run`.
        resume: go on in `out`: what is finished there is not run again.
        reuse: run stages that trials have alike once, and take what earlier runs have finished; as for `Pipeline.run`.
        ended: called after each trial, with how many of how many are done.
        note: told in a sentence of what the user should know.

    Raises:
        PipelineError: if the pipeline has a problem; nothing was run then.
        GraftworkError: if there is nothing to sweep, or no such executor, or `out` is in use.
    """
    out = Path(out).resolve()
    spec, seed = _checked(pipeline)
    executor = find_executor(on)
    planned = _trials(pipeline, spec, seed, out, device, reuse)
    _begin(pipeline, planned, out, resume)
    results = Sweep.planned(pipeline.document.data["name"], spec, planned)
    done: list[Outcome] = [found for trial in planned if (found := finished_before(trial) or stopped_before(trial, out))] if resume else []
    for outcome in done:
        results.add(_measured(outcome, spec))
    held = {outcome.trial.name for outcome in done}
    waiting = [trial for trial in planned if trial.name not in held]
    with executor, closing(_outcomes(executor, waiting, out, resources or Resources(), spec, reuse, note)) as outcomes:
        for outcome in outcomes:
            results.add(_measured(outcome, spec))
            results.write(out)
            ended(outcome, sum(len(entry.outcomes) for entry in results.entries), len(planned))
    results.write(out, picture=True)
    return results


def _checked(pipeline: Pipeline) -> tuple[SweepSpec, int]:
    """The pipeline's sweep, and the seed of its trials."""
    plan = pipeline.assemble()
    spec = PipelineSpec.model_validate(pipeline.document.data).sweep
    if spec is None or not (spec.grid or spec.space):
        raise GraftworkError(
            "there is nothing to sweep: give the pipeline a `sweep:` block, or --grid 'KEY=a,b' or --space 'KEY=loguniform(1e-4, 1e-1)'"
        )
    if spec.metric is None:
        raise GraftworkError("what is best is not said: give --metric STAGE/METRIC, or `metric` in the `sweep:` block")
    return spec, plan.seed


def _trials(pipeline: Pipeline, spec: SweepSpec, seed: int, out: Path, device: str | None, reuse: bool) -> list[Trial]:
    chosen = settings(spec, seed)
    width = max(3, len(str(len(chosen) - 1)))
    kept = {key: value for key, value in pipeline.document.data.items() if key not in ("sweep", "claim")}
    found = []
    for number, overrides in enumerate(chosen):
        document = Document(unshared(kept))
        document.data.setdefault("name", "pipeline")
        document.override(assignment(key, value) for key, value in overrides.items())
        name = f"trial-{number:0{width}d}"
        for own in range(seed, seed + spec.seeds):
            below = f"{name}/seed-{own}" if spec.seeds > 1 else name
            found.append(Trial(below, {**document.data, "seed": own}, own, out / below, overrides, device, reuse))
    return found


def _begin(pipeline: Pipeline, planned: Sequence[Trial], out: Path, resume: bool) -> None:
    """Keep what the sweep is; one that is gone on with must be the same."""
    pipeline.document.data.setdefault("name", "pipeline")
    if resume:
        former = of_sweep(out).document.data
        if differing := changes(dict(flat(former)), dict(flat(pipeline.document.data))):
            raise GraftworkError(f"{out} is another sweep: {'; '.join(differing)}. Run this one into a directory of its own")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GraftworkError(f"{out} is not empty: a sweep needs a directory of its own; choose another --out, or go on with --resume")
    refuse_used(planned)
    write_text(out / DOCUMENT, dump(pipeline.document.data))


def _outcomes(
    executor: Executor,
    trials: Sequence[Trial],
    out: Path,
    resources: Resources,
    spec: SweepSpec,
    reuse: bool,
    note: Callable[[str], None],
) -> Generator[Outcome, None, None]:
    """Run the stages that trials share, then the trials; those whose shared stage failed are not tried."""
    failed: dict[str, Outcome] = {}
    for group in shared_stages(trials, out / "shared") if reuse else []:
        ready = [run for run in group if finished_before(replace(run, data=_cut(run))) is None]
        for outcome in executor.run(ready, resources, note=note):
            if outcome.status == "finished":
                continue
            for trial in shared_by(outcome.trial, trials):
                if trial.name not in failed:
                    message = f"the stage that it shares with others, {outcome.trial.name}, has {outcome.status}: {outcome.message}"
                    failed[trial.name] = Outcome(trial, "failed", message=message)
    yield from failed.values()
    yield from executor.run([trial for trial in trials if trial.name not in failed], resources, stop=spec.stop, note=note)


def _cut(run: Trial) -> Mapping[str, Any]:
    """The pipeline of a shared run as its directory keeps it: the stages behind it and itself."""
    from graftwork.assembly import stages_behind

    assert run.stages is not None
    stages = run.data["stages"]
    kept = {*run.stages, *(name for stage in run.stages for name in stages_behind(stages, stage))}
    return {**run.data, "stages": {name: block for name, block in stages.items() if name in kept}}


def _measured(outcome: Outcome, spec: SweepSpec) -> Outcome:
    """An outcome, which is a failure when what ranks it was not measured."""
    assert spec.metric is not None
    if outcome.status != "finished":
        return outcome
    try:
        metric_of(outcome.metrics, spec.metric)
    except GraftworkError as error:
        return replace(outcome, status="failed", message=str(error))
    return outcome
