from __future__ import annotations

import pytest
import torch

from graftwork import Dataset, TensorSamples
from graftwork_testbed.zoo.autoencoder import autoencoder_kl

CAPTIONS = ("a red three", "an orange eight", "a blue one left of a pink four", "two green sixes")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny_autoencoder():
    torch.manual_seed(0)
    model = autoencoder_kl(latent_channels=4, block_out_channels=[8, 8, 8, 8])
    model.register_to_config(shift_factor=0.0)
    return model.eval()


@pytest.fixture
def latents():
    generator = torch.Generator().manual_seed(0)
    columns = {
        "latents": torch.randn(16, 4, 8, 8, generator=generator),
        "latent_std": 0.1 * torch.rand(16, 4, 8, 8, generator=generator),
        "caption": list(CAPTIONS) * 4,
    }
    return Dataset({"train": TensorSamples(**columns)})
