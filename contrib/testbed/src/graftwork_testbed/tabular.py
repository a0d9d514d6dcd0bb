"""Tabular data that scikit-learn ships in its wheel."""

from __future__ import annotations

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from graftwork import Dataset, DatasetInfo, TensorSamples
from graftwork_testbed.splits import Fraction, Seed, stratified_split

__all__ = ["diabetes", "standardise"]


def standardise(values: Tensor, reference: Tensor) -> Tensor:
    """Values in standard deviations from the mean, both of `reference` over its first dimension.

    Args:
        values: (N, ...).
        reference: (M, ...), such as the training split.
    """
    return (values - reference.mean(0)) / reference.std(0, correction=0)


def diabetes(standardise_target: bool = True, val_fraction: Fraction = 0.15, test_fraction: Fraction = 0.25, seed: Seed = 0) -> Dataset:
    """442 patients with diabetes: ten measurements at the start, and how far the disease went within a year, to be regressed.

    The data of Efron, Hastie, Johnstone and Tibshirani, "Least Angle Regression" (2004, https://arxiv.org/abs/math/0406456).
    Samples: `features` (10,) float32 (age, sex, bmi, bp, s1 to s6), standardised by the training split's mean and deviation;
    `target`, a float32 scalar; `index`, the row in scikit-learn's table.

    Args:
        standardise_target: also the target is in the training split's deviations from its mean, so that a mean squared error of
            1 is the constant prediction's; False leaves it as measured, from 25 to 346.
        val_fraction: share of the patients that goes to val.
        test_fraction: share of the patients that goes to test.
        seed: of the split.

    Raises:
        ValueError: if a parameter is out of range.
    """
    table, progression = load_diabetes(return_X_y=True, scaled=False)
    features, target = torch.from_numpy(table), torch.from_numpy(progression)
    parts = stratified_split(torch.zeros(len(target), dtype=torch.long), val_fraction, test_fraction, seed)
    features = standardise(features, features[parts["train"]])
    if standardise_target:
        target = standardise(target, target[parts["train"]])
    splits = {name: TensorSamples(features=features[part].float(), target=target[part].float(), index=part) for name, part in parts.items()}
    return Dataset(splits, DatasetInfo(features=features.shape[1], description="Progression of diabetes from ten measurements"))
