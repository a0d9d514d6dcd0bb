"""The shape of a pipeline document: what may stand where, before any component is looked up."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from graftwork.training import TrainConfig

__all__ = ["Claim", "Comparison", "PipelineSpec", "SampleSpec", "StageSpec", "StopSpec", "SweepSpec"]

METRIC = r"^[^/]+/.+$"


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Comparison(_Block):
    """One number against another, each "stage/metric"."""

    method: str = Field(pattern=METRIC, description="stage/metric of the method")
    baseline: str = Field(pattern=METRIC, description="stage/metric that it is held against")
    direction: Literal["higher", "lower"] = Field("higher", description="which is better")
    margin: float = Field(0.0, ge=0, description="by how much the method may be worse, for claims that it costs nothing")


class Claim(_Block):
    """What a recipe is to show, for `graft reproduce`."""

    text: str = Field(description="the claim in a sentence")
    compare: Comparison | list[Comparison] = Field(description="what is compared with what; all must hold")
    seeds: int = Field(5, ge=1, description="how many seeds, counted from the pipeline's")
    paper: dict[str, Any] | None = Field(None, description="the paper's own figures, for the reader")

    @property
    def comparisons(self) -> list[Comparison]:
        """All comparisons, one or many."""
        return self.compare if isinstance(self.compare, list) else [self.compare]


class SampleSpec(_Block):
    """Samples from the stage's model, guided or plain."""

    guidance: Any = Field(description="a guidance")
    inputs: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the model's call, such as prompt")


class StageSpec(_Block):
    """A stage; it runs in the order dataset, model, train, sample, evaluate, and has the parts that it needs."""

    dataset: Any = Field(None, description="a dataset, or {from: an earlier stage}")
    model: Any = Field(None, description="a model, or {from: an earlier stage}")
    objective: Any = Field(None, description="what training optimises")
    train: TrainConfig | None = Field(None, description="how to train")
    sample: SampleSpec | None = Field(None, description="what to sample")
    evaluate: list[Any] | Any = Field(default_factory=list, description="evaluators")
    seed: int = Field(0, ge=0, lt=2**31, description="added to the pipeline's, for stages that are to differ by chance alone")


class StopSpec(_Block):
    """End trials early that fall behind the others, by asynchronous successive halving; needs an executor that can, such as ray."""

    metric: str = Field(pattern=METRIC, description="stage/metric of a row of the log, such as dann/loss or dann/validate/accuracy")
    direction: Literal["higher", "lower"] = Field("higher", description="which is better")
    grace: int = Field(1, ge=1, description="steps of the stage that every trial is given")
    reduction: int = Field(4, ge=2, description="one trial in so many goes on past each rung; rungs lie so many times further apart")


class SweepSpec(_Block):
    """Which settings `graft sweep` tries, and what it ranks them by."""

    grid: dict[str, list[Any]] = Field(default_factory=dict, description="dotted key -> values; every combination is tried")
    space: dict[str, str] = Field(
        default_factory=dict,
        description="dotted key -> uniform(low, high), loguniform(low, high), randint(low, high) with both ends, or choice(a, b, ...)",
    )
    trials: int | None = Field(None, ge=1, description="draws from the space, 10 by default; each is tried at every point of the grid")
    seeds: int = Field(1, ge=1, description="how often each setting is run, with seeds counted from the pipeline's")
    metric: str | None = Field(None, pattern=METRIC, description="stage/metric that ranks the settings")
    direction: Literal["higher", "lower"] = Field("higher", description="which is better")
    stop: StopSpec | None = Field(None, description="when to end trials early")


class PipelineSpec(_Block):
    """A whole pipeline."""

    name: str = Field("pipeline", pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100, description="names the run directory")
    seed: int = Field(0, ge=0, lt=2**31, description="of everything that is drawn")
    stages: dict[str, StageSpec] = Field(min_length=1, description="name -> stage, run from first to last")
    claim: Claim | None = Field(None, description="what it is to show")
    sweep: SweepSpec | None = Field(None, description="which settings `graft sweep` tries; `graft run` runs the pipeline as it stands")
