"""The logarithm of a mean of probabilities, against the mean itself."""

from __future__ import annotations

import pytest
import torch

import graftwork as gw
from graftwork.toolkit.ensembles import ensemble_log_probabilities


def test_one_sure_model_outvotes_two_that_are_not() -> None:
    logits = [torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.1]]), torch.tensor([[0.0, 0.1]])]
    found = ensemble_log_probabilities(logits)
    torch.testing.assert_close(found.exp(), torch.stack(logits).softmax(dim=2).mean(dim=0))
    assert found.argmax().item() == 0
    with pytest.raises(gw.DataError, match="the models of an ensemble tell 2, 3 classes apart; they need the same"):
        ensemble_log_probabilities([torch.zeros(1, 2), torch.zeros(1, 3)])
