from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression

from graftwork_testbed.tabular import diabetes

TABLE, PROGRESSION = load_diabetes(return_X_y=True, scaled=False)


def test_the_training_split_is_standardised_and_the_others_by_its_numbers():
    data = diabetes()
    train, test = data["train"].columns, data["test"].columns
    torch.testing.assert_close(train["features"].mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(train["features"].std(0, correction=0), torch.ones(10), atol=1e-5, rtol=0)
    rows = TABLE[train["index"]]
    expected = (TABLE[test["index"]] - rows.mean(0)) / rows.std(0)
    np.testing.assert_allclose(test["features"].numpy(), expected, atol=1e-5)


def test_the_target_can_be_left_as_measured():
    data = diabetes(standardise_target=False)
    for samples in data.values():
        np.testing.assert_array_equal(samples.columns["target"].numpy(), PROGRESSION[samples.columns["index"]])


def test_predicting_the_mean_has_a_squared_error_of_one():
    train = diabetes()["train"].columns["target"]
    assert train.pow(2).mean() == pytest.approx(1, abs=1e-5)
    assert train.dtype == torch.float32


def test_a_linear_model_explains_the_test_split():
    data = diabetes()
    train, test = data["train"].columns, data["test"].columns
    fitted = LinearRegression().fit(train["features"], train["target"])
    assert 0.3 < fitted.score(test["features"], test["target"]) < 0.7  # about 0.5 is known of this data


def test_every_patient_is_in_exactly_one_split():
    rows = torch.cat([samples.columns["index"] for samples in diabetes(seed=3).values()])
    assert rows.sort().values.equal(torch.arange(442))


def test_bad_fractions_are_named():
    with pytest.raises(ValueError, match="must be positive and leave a share to train"):
        diabetes(val_fraction=0.5, test_fraction=0.5)
