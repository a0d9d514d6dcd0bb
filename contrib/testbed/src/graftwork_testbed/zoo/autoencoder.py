"""Variational autoencoders of images: the model, what trains it, and what measures it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork import INPUTS, DataError, Dataset, Evaluator, Figure, Loss, Objective, Report, Split
from graftwork.builtin.hub import need
from graftwork.kinds.dataset import Batch
from graftwork.kinds.evaluator import evaluating, split_batches

__all__ = ["Autoencoding", "Reconstruction", "autoencoder_kl", "kl_divergence"]

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


def autoencoder_kl(
    latent_channels: Count = 8,
    block_out_channels: Annotated[list[Count], Field(min_length=1)] = [16, 32, 64, 64],  # noqa: B006 - read only
    layers_per_block: Count = 1,
    norm_num_groups: Count = 8,
    in_channels: Count = 3,
    sample_size: Count = 64,
) -> nn.Module:
    """An untrained `diffusers.AutoencoderKL`; images in [-1, 1], latents smaller by a factor of 2 for each block but the first.

    Args:
        latent_channels: of the latents.
        block_out_channels: channels of each level, finest first.
        layers_per_block: residual blocks of the encoder a level; the decoder has one more.
        norm_num_groups: of group norm; divides each number of channels.
        in_channels: of the images.
        sample_size: side of the images that it is trained on, for the record.

    Raises:
        ValueError: if the groups do not divide the channels.
        GraftworkError: if diffusers is not installed.
    """
    odd = [channels for channels in block_out_channels if channels % norm_num_groups]
    if odd:
        raise ValueError(f"norm_num_groups {norm_num_groups} does not divide block_out_channels {odd}")
    levels = len(block_out_channels)
    model: nn.Module = need("diffusers", "diffusers").AutoencoderKL(
        in_channels=in_channels,
        out_channels=in_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        norm_num_groups=norm_num_groups,
        sample_size=sample_size,
    )
    return model.to(memory_format=torch.channels_last)  # small convolutions are quicker so, on the CPU above all


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL of a diagonal Gaussian to the standard one, averaged over elements: (mean^2 + var - 1 - log var) / 2 (Kingma & Welling, 2014).

    Args:
        mean: any shape.
        logvar: the same shape.
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


class Autoencoding(Objective):
    """Absolute error of the reconstruction plus a weighted KL (Rombach et al., 2022, appendix G, without its adversary).

    The images' [0, 1] becomes the autoencoder's [-1, 1]. The spread of the latents is followed, and on export the model's
    `scaling_factor` is set to its inverse, so that scaled latents have variance 1.

    Args:
        kl_weight: of the KL, averaged over latent elements, against the error, averaged over pixels.
        emphasis: how many times more a pixel inside the `mask` counts than one outside; above 1 the samples need a `mask`.
    """

    keys = {"train": (INPUTS,)}
    needs = nn.Module

    def __init__(self, kl_weight: Weight = 1e-3, emphasis: Annotated[float, Field(ge=1)] = 1.0):
        super().__init__()
        if kl_weight < 0 or emphasis < 1:
            raise ValueError(f"kl_weight is at least 0 and emphasis at least 1; found {kl_weight} and {emphasis}")
        self.kl_weight, self.emphasis = kl_weight, emphasis
        if emphasis > 1:
            self.keys = {"train": (INPUTS, "mask")}
        self.spread: Tensor
        self.register_buffer("spread", torch.ones(()))

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The weighted sum, and its two terms."""
        batch = batches["train"]
        images = 2 * batch["image"] - 1
        posterior = model.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        error = (model.decode(latents).sample - images).abs().mean(1)
        if self.emphasis > 1:
            weights = 1 + (self.emphasis - 1) * (batch["mask"] > 0)
            error = error * weights / weights.mean()
        with torch.no_grad():
            self.spread.lerp_(latents.detach().float().std(), 0.02)
        reconstruction, divergence = error.mean(), kl_divergence(posterior.mean, posterior.logvar)
        return Loss(reconstruction + self.kl_weight * divergence, {"reconstruction": reconstruction, "kl": divergence})

    def export(self, model: Any) -> Any:
        """The autoencoder with its scaling factor."""
        model.register_to_config(scaling_factor=1 / self.spread.item(), shift_factor=0.0)  # a Flux pipeline wants a number for both
        return model


class Reconstruction(Evaluator):
    """Peak signal-to-noise ratio and mean absolute error of an autoencoder's reconstructions, and pairs of pictures.

    Args:
        split: where to measure.
        limit: read the first so many samples only.
    """

    keys = ("image",)
    needs = nn.Module

    def __init__(self, split: Split = "test", limit: Count | None = None):
        self.split, self.limit = split, limit

    def evaluate(self, model: Any, data: Dataset, run: Any = None) -> Report:
        """Metrics psnr (dB, of images in [0, 1], averaged over images) and mae.

        Raises:
            DataError: if the split is empty.
        """
        errors, shown = [], None
        with evaluating(model):
            for batch in split_batches(data, self.split, model, limit=self.limit):
                images = batch["image"]
                rebuilt = (model.decode(model.encode(2 * images - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)
                difference = (rebuilt - images).flatten(1)
                errors.append(torch.stack([-10 * difference.square().mean(1).log10(), difference.abs().mean(1)], 1))
                if shown is None:
                    shown = torch.stack([images[:12], rebuilt[:12]]).cpu()
        if shown is None:
            raise DataError(f'split "{self.split}" is empty')
        psnr, mae = torch.cat(errors).mean(0).tolist()
        return Report({"psnr": psnr, "mae": mae}, figures={"reconstructions": Figure(_pairs(shown), f"{self.split}, and rebuilt below.")})


def _pairs(images: Tensor) -> Any:
    """Two rows of images (2, K, C, H, W)."""
    from matplotlib.figure import Figure as Canvas

    from graftwork_testbed.sheets.images import mosaic

    canvas = Canvas(figsize=(0.8 * images.shape[1], 1.7), layout="constrained")
    axes = canvas.add_subplot()
    axes.imshow(mosaic(images).numpy(), interpolation="nearest")
    axes.set_axis_off()
    return canvas
