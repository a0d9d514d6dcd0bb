from __future__ import annotations

import numpy as np
import pytest
import torch

import graftwork as gw
from graftwork_dann import MSDA, denoising_map
from graftwork_dann.msda import scatter_matrix


@pytest.fixture
def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(60, 5, generator=generator, dtype=torch.float64)


def test_without_noise_and_ridge_the_map_is_the_identity(features: torch.Tensor) -> None:
    found = denoising_map(scatter_matrix(features), noise=0.0, eta=0.0)
    assert torch.allclose(found, torch.eye(5, 6, dtype=torch.float64), atol=1e-9)


def test_the_map_is_what_denoising_many_corrupted_copies_learns(features: torch.Tensor) -> None:
    """Least squares over explicit random corruptions approaches the closed form, which integrates them out."""
    generator = np.random.default_rng(0)
    clean = np.tile(features.numpy(), (4000, 1))
    corrupted = np.concatenate([clean * (generator.random(clean.shape) > 0.3), np.ones((len(clean), 1))], axis=1)
    solved = np.linalg.lstsq(corrupted, clean, rcond=None)[0].T
    assert np.abs(denoising_map(scatter_matrix(features), noise=0.3, eta=0.0).numpy() - solved).max() < 0.01


def test_the_map_solves_the_papers_system(features: torch.Tensor) -> None:
    x = np.concatenate([features.numpy(), np.ones((60, 1))], axis=1)
    s, q = x.T @ x, np.array([0.5] * 5 + [1.0])
    system = s * np.outer(q, q)
    np.fill_diagonal(system, q * np.diag(s))
    ridge = 1e-5 * np.diag([1.0] * 5 + [0.0])
    expected = (s[:-1] * q) @ np.linalg.inv(system + ridge)
    assert np.allclose(denoising_map(scatter_matrix(features)).numpy(), expected, rtol=1e-9)


def test_output_is_the_input_and_every_layer(features: torch.Tensor) -> None:
    model = MSDA(5, layers=3).double()
    stacked = model.fit(features)
    assert model.embedding_dim == stacked.shape[1] == 20
    assert torch.equal(stacked[:, :5], features)
    layer = torch.tanh(torch.cat([features, torch.ones(60, 1)], dim=1) @ model.maps[0].T)
    assert torch.allclose(stacked[:, 5:10], layer)
    assert torch.allclose(model.transform(features), stacked)
    assert torch.equal(model.embed(features), model.transform(features))


def test_the_scatter_matrix_is_summed_in_double_by_chunks() -> None:
    rows = torch.full((10_000, 2), 0.1)
    found = scatter_matrix(rows)
    assert found.dtype == torch.float64
    assert found[0, 1].item() == pytest.approx(10_000 * float(rows[0, 0]) ** 2, rel=1e-12)
    assert found[2, 2].item() == 10_000


def test_as_a_model_it_fits_itself_on_the_training_splits(data: gw.Dataset) -> None:
    model = gw.model("msda", data=data, layers=2)
    rows = torch.cat([data[split].columns["features"] for split in ("source/train", "target/train")])
    by_hand = MSDA(4, layers=2)
    by_hand.fit(rows)
    assert torch.allclose(model.maps, by_hand.maps, atol=1e-6)
    assert model.state_dict()["maps"].shape == (2, 4, 5)
    assert isinstance(model, gw.interfaces.Embedder)


def test_dependent_features_without_ridge_are_refused() -> None:
    rows = torch.zeros(10, 3)
    with pytest.raises(ValueError, match="singular at eta 0: raise eta"):
        MSDA(3, eta=0.0).fit(rows)


@pytest.mark.parametrize("parameters", [{"noise": 1.0}, {"noise": -0.1}, {"eta": -1.0}, {"layers": 0}, {"in_features": 0}])
def test_bad_values_are_refused(parameters: dict) -> None:
    with pytest.raises(ValueError, match=r"found"):
        MSDA(**{"in_features": 3, **parameters})


def test_other_widths_and_data_without_features_are_refused(features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"built for \(N, 4\) and got \(60, 5\)"):
        MSDA(4).fit(features)
    images = gw.Dataset({"train": gw.TensorSamples(image=torch.zeros(2, 3, 4, 4))}, gw.DatasetInfo(features=3))
    with pytest.raises(gw.DataError, match='msda reads "features"; the samples of "train" have image'):
        MSDA(data=images)
    with pytest.raises(gw.DataError, match="no split is called train"):
        MSDA(data=gw.Dataset({"test": gw.TensorSamples(features=features)}, gw.DatasetInfo(features=5)))
