from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as exact_kl

from graftwork import DataError, Dataset, Engine, TensorSamples, TrainConfig
from graftwork_testbed.zoo.autoencoder import Autoencoding, Reconstruction, autoencoder_kl, kl_divergence


def pictures(count=8):
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(count, 64, 64, dtype=torch.uint8)
    mask[:, 20:40, 20:40] = 1
    image = torch.rand(count, 3, 1, 1, generator=generator).expand(-1, -1, 64, 64).contiguous()
    return Dataset({"train": TensorSamples(image=image, mask=mask), "none": TensorSamples(image=torch.zeros(0, 3, 64, 64))})


def test_the_divergence_is_torchs_own():
    mean, logvar = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    expected = exact_kl(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_divergence(mean, logvar), expected)


def test_latents_are_eight_times_smaller(tiny_autoencoder):
    posterior = tiny_autoencoder.encode(torch.zeros(2, 3, 64, 64)).latent_dist
    assert posterior.mean.shape == (2, 4, 8, 8)
    assert tiny_autoencoder.decode(posterior.mean).sample.shape == (2, 3, 64, 64)


def test_training_lowers_the_error_and_sets_the_scale(tiny_autoencoder):
    data, rows = pictures(), []
    train = TrainConfig(steps=30, batch_size=8, log_every=5, optimizer={"use": "adam", "lr": 0.01})
    model = Engine(tiny_autoencoder, Autoencoding(), data, train, device="cpu", log=lambda step, row: rows.append(row)).fit()
    assert rows[-1]["reconstruction"] < 0.8 * rows[0]["reconstruction"]
    with torch.no_grad():
        latents = model.encode(2 * data["train"].columns["image"] - 1).latent_dist.sample()
    assert 0.3 < (latents.std() * model.config.scaling_factor).item() < 3
    assert model.config.scaling_factor != 0.18215


def test_emphasis_weights_the_masked_pixels(tiny_autoencoder):
    batch = pictures()["train"].__getitems__(range(4))
    torch.manual_seed(0)
    plain = Autoencoding(kl_weight=0.0)(tiny_autoencoder, {"train": batch}, 0.0)
    torch.manual_seed(0)
    weighted = Autoencoding(kl_weight=0.0, emphasis=5.0)(tiny_autoencoder, {"train": batch}, 0.0)
    torch.manual_seed(0)
    images = 2 * batch["image"] - 1
    posterior = tiny_autoencoder.encode(images).latent_dist
    latents = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
    error = (tiny_autoencoder.decode(latents).sample - images).abs().mean(1)
    inside, outside = error[:, 20:40, 20:40].sum(), error.sum() - error[:, 20:40, 20:40].sum()
    assert plain.total.item() == pytest.approx(error.mean().item(), rel=1e-5)
    assert weighted.total.item() == pytest.approx(((5 * inside + outside) / (4 * (4096 + 4 * 400))).item(), rel=1e-5)


def test_reconstruction_measures_what_was_rebuilt():
    class Halved(torch.nn.Module):
        """Rebuilds every image at half its brightness."""

        def encode(self, images):
            found = type("Latents", (), {"mean": images})
            return type("Encoded", (), {"latent_dist": found})

        def decode(self, latents):
            return type("Decoded", (), {"sample": (latents + 1) / 2 - 1})

    images = torch.full((3, 3, 64, 64), 0.5)
    report = Reconstruction("train").evaluate(Halved(), Dataset({"train": TensorSamples(image=images)}))
    assert report.metrics["mae"] == pytest.approx(0.25)
    assert report.metrics["psnr"] == pytest.approx(12.0412, abs=1e-3)
    assert report.figures["reconstructions"].caption


def test_what_cannot_be_is_told(tiny_autoencoder):
    with pytest.raises(ValueError, match=r"norm_num_groups 8 does not divide block_out_channels \[12\]"):
        autoencoder_kl(block_out_channels=[8, 12])
    with pytest.raises(ValueError, match=r"emphasis at least 1; found 0\.001 and 0\.5"):
        Autoencoding(emphasis=0.5)
    with pytest.raises(DataError, match='split "none" is empty'):
        Reconstruction("none").evaluate(tiny_autoencoder, pictures())
