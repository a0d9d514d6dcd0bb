from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from graftwork import Dataset, InterfaceError, TensorSamples
from graftwork_testbed.zoo.latents import EncodedLatents


def pictures():
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (6, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return Dataset({"train": TensorSamples(image=image, caption=[f"picture {n}" for n in range(6)])})


def test_latents_are_the_scaled_posterior_of_each_image(tiny_autoencoder):
    tiny_autoencoder.register_to_config(scaling_factor=0.5)
    data = pictures()
    encoded = EncodedLatents(data, tiny_autoencoder, batch_size=4)
    with torch.no_grad():
        posterior = tiny_autoencoder.encode(2 * data["train"][5]["image"][None] - 1).latent_dist
    sample = encoded["train"][5]
    torch.testing.assert_close(sample["latents"], 0.5 * posterior.mean[0])
    torch.testing.assert_close(sample["latent_std"], 0.5 * posterior.std[0])
    assert sample["caption"] == "picture 5"
    assert "image" not in sample


def test_a_batch_equals_its_samples(tiny_autoencoder):
    encoded = EncodedLatents(pictures(), tiny_autoencoder)
    batch = next(iter(DataLoader(encoded["train"], batch_size=3, collate_fn=encoded.collate)))
    assert torch.equal(batch["latents"], torch.stack([encoded["train"][n]["latents"] for n in range(3)]))
    assert batch["caption"] == ["picture 0", "picture 1", "picture 2"]


def test_images_are_encoded_once_and_anew_for_another_autoencoder(tiny_autoencoder, monkeypatch):
    calls = []
    encode = type(tiny_autoencoder).encode
    monkeypatch.setattr(type(tiny_autoencoder), "encode", lambda self, *given: calls.append(1) or encode(self, *given))
    first = EncodedLatents(pictures(), tiny_autoencoder)
    assert not calls  # nothing is encoded before it is asked for
    first["train"][0], first["train"][1]
    EncodedLatents(pictures(), tiny_autoencoder)["train"][0]
    assert len(calls) == 1
    with torch.no_grad():
        tiny_autoencoder.quant_conv.weight.mul_(1.5)
    changed = EncodedLatents(pictures(), tiny_autoencoder)["train"][0]
    assert len(calls) == 2
    assert not torch.equal(changed["latents"], first["train"][0]["latents"])


def test_the_autoencoder_is_left_as_it_was(tiny_autoencoder):
    tiny_autoencoder.train()
    EncodedLatents(pictures(), tiny_autoencoder)["train"][0]
    assert tiny_autoencoder.training
    assert all(parameter.grad is None for parameter in tiny_autoencoder.parameters())


def test_a_model_that_is_no_autoencoder_is_told():
    with pytest.raises(InterfaceError, match=r"needs an autoencoder with `encode` and `config\.scaling_factor`.*Linear lacks one"):
        EncodedLatents(pictures(), torch.nn.Linear(2, 2))
