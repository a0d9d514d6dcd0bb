"""The registered models: merges as models whose parameters refer to other models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from graftwork import Artifact, Dataset, Evaluator, Split
from graftwork.kinds.evaluator import split_batches
from graftwork_fisher_merging.batch_norm import reestimate_batch_norm
from graftwork_fisher_merging.coefficients import Mode, coefficient_set
from graftwork_fisher_merging.merging import Merger
from graftwork_fisher_merging.names import Unmatched, check_count
from graftwork_fisher_merging.search import search_coefficients

__all__ = ["fisher_merge", "fisher_merge_search", "isotropic_merge"]

Models = Annotated[list[nn.Module], Field(min_length=1)]
Coefficients = list[Annotated[float, Field(ge=0)]] | None
NotNegative = Annotated[float, Field(ge=0)]


def fisher_merge(
    models: Models,
    fishers: list[Artifact] | None = None,
    fisher_folders: list[str] | None = None,
    coefficients: Coefficients = None,
    mergeable: str | None = None,
    unmatched: Unmatched = "refuse",
    fisher_floor: NotNegative = 1e-6,
    favor_target_model: bool = True,
    normalize_fishers: bool = True,
    data: Dataset | None = None,
    batch_norm_split: Split | None = None,
) -> nn.Module:
    """Merge models by their Fisher information, without training (Matena and Raffel, 2022, section 3, https://arxiv.org/abs/2111.09832).

    Each parameter is the mean of the models' values, weighted by coefficient times diagonal Fisher. Without Fishers it is the
    weighted mean.

    Args:
        models: of one architecture and one pre-trained start. The first is the target: the result is of its class, with its head,
            its buffers and whatever else is not merged.
        fishers: one a model, in the same order, each made by `fisher-diagonal` from that very model.
        fisher_folders: instead of `fishers`: folders into which such artifacts were saved.
        coefficients: lambda, one a model; 1/M each by default.
        mergeable: which parameters are merged, as a regular expression that is searched for in names; by default all but those of
            each model's head.
        unmatched: what becomes of parameters that some model lacks or has in another shape: "refuse" raises, "keep" leaves them the
            target's.
        fisher_floor: the least that a Fisher's entry counts.
        favor_target_model: floor the target's Fisher alone, so that its value wins where every Fisher is about 0; otherwise all
            are floored, and there the result tends to the plain mean.
        normalize_fishers: divide each coefficient by the L2 norm of its model's Fisher over all that is merged.
        data: with `batch_norm_split`.
        batch_norm_split: split of `data` on which the running statistics of batch norm are estimated anew; by default they are the
            target's.

    Raises:
        ValueError: if a parameter is out of range, or batch norm's split and data are not given together.
        DataError: if the models differ, or nothing is left to merge.
        ArtifactError: if a Fisher was made from another model.
    """
    merger = Merger(
        models,
        _fishers(models, fishers, fisher_folders),
        mergeable=mergeable,
        unmatched=unmatched,
        floor=fisher_floor,
        favor_target=favor_target_model,
        normalize=normalize_fishers,
    )
    finish = _finish(data, batch_norm_split)
    merged: nn.Module = merger.merge(coefficients)
    return finish(merged) if finish is not None else merged


def isotropic_merge(
    models: Models,
    coefficients: Coefficients = None,
    mergeable: str | None = None,
    unmatched: Unmatched = "refuse",
    data: Dataset | None = None,
    batch_norm_split: Split | None = None,
) -> nn.Module:
    """The weighted mean of models' parameters: Fisher merging with every Fisher 1 (Matena and Raffel, 2022, section 3.1).

    Args:
        models: of one architecture and one pre-trained start; the first is the target, whose head and buffers the result keeps.
        coefficients: lambda, one a model; 1/M each by default.
        mergeable: which parameters are merged, as a regular expression that is searched for in names; by default all but those of
            each model's head.
        unmatched: what becomes of parameters that some model lacks or has in another shape: "refuse" raises, "keep" leaves them the
            target's.
        data: with `batch_norm_split`.
        batch_norm_split: split of `data` on which the running statistics of batch norm are estimated anew; by default they are the
            target's.

    Raises:
        ValueError: if coefficients are wrong, or batch norm's split and data are not given together.
        DataError: if the models differ, or nothing is left to merge.
    """
    return fisher_merge(
        models, coefficients=coefficients, mergeable=mergeable, unmatched=unmatched, data=data, batch_norm_split=batch_norm_split
    )


def fisher_merge_search(
    models: Models,
    evaluator: Evaluator,
    data: Dataset,
    fishers: list[Artifact] | None = None,
    fisher_folders: list[str] | None = None,
    metrics: list[str] | None = None,
    direction: Literal["higher", "lower"] = "higher",
    mode: Mode = "grid",
    n_coeffs: Annotated[int, Field(ge=1)] = 51,
    seed: Annotated[int, Field(ge=0)] = 0,
    mergeable: str | None = None,
    unmatched: Unmatched = "refuse",
    fisher_floor: NotNegative = 1e-6,
    favor_target_model: bool = True,
    normalize_fishers: bool = True,
    batch_norm_split: Split | None = None,
) -> nn.Module:
    """Merge models with many coefficient vectors and keep the best on validation data (Matena and Raffel, 2022, section 3.4).

    The result carries what was tried as `merge_search`, which the evaluator `merge-search` shows as a table and a picture.

    Args:
        models: of one architecture and one pre-trained start; the first is the target, whose head and buffers the result keeps.
        evaluator: scores a merged model, on a validation split; never on a test split.
        data: what it is scored on.
        fishers: one a model, in the same order, each made by `fisher-diagonal` from that very model; none searches plain means.
        fisher_folders: instead of `fishers`: folders into which such artifacts were saved.
        metrics: the score is the mean of these metrics of the evaluator; may be left out where it gives one.
        direction: which score is better.
        mode: "grid", evenly from the target alone to the other alone, for two models; or "random", for any number.
        n_coeffs: how many to try.
        seed: of random coefficients.
        mergeable: which parameters are merged, as a regular expression that is searched for in names; by default all but those of
            each model's head.
        unmatched: what becomes of parameters that some model lacks or has in another shape: "refuse" raises, "keep" leaves them the
            target's.
        fisher_floor: the least that a Fisher's entry counts.
        favor_target_model: floor the target's Fisher alone; otherwise all.
        normalize_fishers: divide each coefficient by the L2 norm of its model's Fisher over all that is merged.
        batch_norm_split: split of `data` on which the running statistics of batch norm are estimated anew for each merge; by
            default they are the target's.

    Raises:
        ValueError: if a parameter is out of range, a grid is asked for other than two models, or the evaluator reads a test split.
        DataError: if the models differ, nothing is left to merge, or no score is finite.
        ArtifactError: if a Fisher was made from another model.
        ConfigError: if the evaluator does not give the metrics.
    """
    vectors = coefficient_set(mode, len(models), n_coeffs, seed)
    found = getattr(evaluator, "split", None)
    for split in found if isinstance(found, list) else [found]:
        if isinstance(split, str) and split.rpartition("/")[2] == "test":
            raise ValueError(f'coefficients are chosen on a validation split, never on a test split; the evaluator reads "{split}"')
    merger = Merger(
        models,
        _fishers(models, fishers, fisher_folders),
        mergeable=mergeable,
        unmatched=unmatched,
        floor=fisher_floor,
        favor_target=favor_target_model,
        normalize=normalize_fishers,
    )
    best, search = search_coefficients(
        merger,
        vectors,
        lambda model: evaluator.evaluate(model, data).metrics,
        metrics,
        direction,
        _finish(data, batch_norm_split) if batch_norm_split is not None else None,
    )
    best.merge_search = search
    return best  # type: ignore[no-any-return]


def _fishers(models: list[nn.Module], fishers: list[Artifact] | None, folders: list[str] | None) -> list[Artifact] | None:
    if fishers is not None and folders is not None:
        raise ValueError("fishers and fisher_folders are both given; give one")
    check_count("Fishers", folders, len(models))
    return fishers if folders is None else [Artifact.load(Path(folder).expanduser()) for folder in folders]


def _finish(data: Dataset | None, split: str | None) -> Callable[[nn.Module], Any] | None:
    """What re-estimates batch norm on a split; None where that is not asked for."""
    if data is None and split is None:
        return None
    if data is None or split is None:
        raise ValueError("data and batch_norm_split belong together: give both, or neither")
    return lambda model: reestimate_batch_norm(model, split_batches(data, split, model))
