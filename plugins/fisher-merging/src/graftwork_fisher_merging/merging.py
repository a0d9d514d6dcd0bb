"""Merging models in memory: a new one, or any number of them into one module in place."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graftwork import Artifact, ArtifactError
from graftwork_fisher_merging.fisher import ARTIFACT, DiagonalFisher
from graftwork_fisher_merging.names import Choice, Unmatched, check_count, mergeable_names
from graftwork_fisher_merging.weighted_mean import check_coefficients, fisher_norms, merged_tensors, normalized

__all__ = ["FisherLike", "Merger", "merge_models"]

FisherLike = Artifact | DiagonalFisher | Mapping[str, Tensor]
"""A Fisher: an artifact, what `diagonal_fisher` gives, or tensors by name."""


class Merger:
    """Models that fit together, checked once, to be merged with one set of coefficients after another.

    Args:
        models: of one architecture and one start; the first is the target, whose head and buffers a merged model keeps.
        fishers: one a model, in the same order; None averages plainly. An artifact is held against its model's fingerprint.
        mergeable: which parameters are merged: a regular expression that is searched for in names, or a function of the name; None
            takes all but those of each model's head.
        unmatched: "refuse" raises where models differ in such a parameter; "keep" leaves it the target's.
        floor: the least that a Fisher's entry counts: the target's alone with `favor_target`, else everyone's.
        favor_target: let the target's value win where no Fisher says anything.
        normalize: divide each coefficient by the L2 norm of its model's Fisher over everything that is merged.

    Attributes:
        names: of what is merged.
        norms: of the Fishers; empty without.

    Raises:
        ValueError: if the floor is negative, or `mergeable` matches nothing.
        DataError: if the models differ, or nothing is left to merge.
        GraftworkError: if there are not as many Fishers as models.
        ArtifactError: if a Fisher is of another model, or damaged.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        fishers: Sequence[FisherLike] | None = None,
        *,
        mergeable: Choice = None,
        unmatched: Unmatched = "refuse",
        floor: float = 1e-6,
        favor_target: bool = True,
        normalize: bool = True,
    ):
        if not models:
            raise ValueError("there are no models to merge")
        if not floor >= 0:
            raise ValueError(f"fisher_floor is not negative; found {floor}")
        check_count("Fishers", fishers, len(models))
        self.models, self.floor, self.favor_target, self.normalize = tuple(models), floor, favor_target, normalize
        self.names = mergeable_names(models, mergeable, unmatched)
        self.parameters: list[dict[str, Tensor]] = [dict(model.named_parameters()) for model in models]
        self.fishers = [self._checked(index, fisher) for index, fisher in enumerate(fishers)] if fishers is not None else None
        self.norms = fisher_norms(self.fishers, self.names) if self.fishers is not None else []

    def _checked(self, index: int, fisher: FisherLike) -> dict[str, Tensor]:
        """What is merged of a Fisher, where its model is: a search reads it often."""
        tensors, found = _tensors(fisher, self.models[index]), {}
        for name in self.names:
            parameter = self.parameters[index][name]
            if name not in tensors:
                raise ArtifactError(f'the Fisher of model {index} has no "{name}", which is to be merged; it has {len(tensors)} parameters')
            found[name] = tensors[name].to(parameter.device)
            if found[name].shape != parameter.shape:
                shapes = f'{tuple(found[name].shape)} for "{name}", which has shape {tuple(parameter.shape)}'
                raise ArtifactError(f"the Fisher of model {index} has shape {shapes}")
        return found

    def weights(self, coefficients: Sequence[float] | None = None) -> list[float]:
        """The factor of each model's Fisher: lambda_i, or lambda_i / ||F_i||.

        Args:
            coefficients: lambda, one a model; None for 1/M each.

        Raises:
            ValueError: if one is negative or not finite, all are 0, or there is not one a model.
        """
        count = len(self.models)
        given = check_coefficients([1 / count] * count if coefficients is None else coefficients, count)
        return normalized(given, self.norms) if self.norms and self.normalize else given

    @torch.no_grad()
    def write(self, output: nn.Module, coefficients: Sequence[float] | None = None) -> None:
        """Merge into a module in place, whose other parameters and buffers stay as they are.

        Args:
            output: of the target's architecture; none of the merged models, which would change the next merge.
            coefficients: lambda, one a model; None for 1/M each.

        Raises:
            ValueError: if coefficients are wrong, or the output is one of the models.
        """
        if any(output is model for model in self.models):
            raise ValueError("the output is one of the models that are merged: give a copy")
        weights = self.weights(coefficients)
        places = dict(output.named_parameters())
        for name, tensor in merged_tensors(self.parameters, self.names, weights, self.fishers, self.floor, self.favor_target):
            places[name].copy_(tensor)

    def merge(self, coefficients: Sequence[float] | None = None) -> Any:
        """A new model, of the target's class; arguments as of `write`."""
        output = copy.deepcopy(self.models[0])
        self.write(output, coefficients)
        return output


def merge_models(
    models: Sequence[nn.Module],
    fishers: Sequence[FisherLike] | None = None,
    coefficients: Sequence[float] | None = None,
    **settings: Any,
) -> Any:
    """One model of several, without training (Matena and Raffel, 2022, section 3, https://arxiv.org/abs/2111.09832).

    Args:
        models: of one architecture and one start, the target first.
        fishers: one a model, as `diagonal_fisher` gives them; None averages plainly ("isotropic merging").
        coefficients: lambda, one a model; None for 1/M each.
        settings: `mergeable`, `unmatched`, `floor`, `favor_target` and `normalize`, of `Merger`.

    Returns:
        A new model of the target's class, with the target's head and buffers.
    """
    return Merger(models, fishers, **settings).merge(coefficients)


def _tensors(fisher: FisherLike, model: nn.Module) -> Mapping[str, Tensor]:
    if isinstance(fisher, Artifact):
        return fisher.check(ARTIFACT, model=model).tensors
    return fisher.tensors if isinstance(fisher, DiagonalFisher) else fisher
