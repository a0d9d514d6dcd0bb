"""One way to train and to sample the denoisers of diffusers: U-Nets of pixels and latents, class-conditional DiTs, text U-Nets, Flux."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from graftwork import Batch, DataError, InterfaceError

__all__ = ["ClassTransformer", "Condition", "Denoiser", "FlowTransformer", "PlainUNet", "TextUNet", "denoiser_of"]

Condition: TypeAlias = dict[str, Tensor]
"""What a denoiser is told beside sample and time; each tensor has a row a sample."""


class Denoiser(ABC):
    """A diffusers pipeline as a denoiser: what it reads of a batch, its network, and its prediction.

    Args:
        pipeline: of diffusers.
    """

    network_name = "unet"
    reads: tuple[str, ...] = ()

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        found: nn.Module = getattr(self.pipeline, self.network_name)
        return found

    def wanted(self) -> tuple[str, ...]:
        """Sample keys beside `image` or `latents`."""
        return self.reads

    @abstractmethod
    def predict(self, noisy: Tensor, times: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The network's prediction, (B, C, h, w).

        Args:
            noisy: (B, C, h, w).
            times: (B,), as `NoiseLevels.spread` gives.
            condition: of `condition`.
        """

    def condition(self, batch: Batch, dropout: float) -> Condition:
        """What the network is told of a batch, without gradients.

        Args:
            batch: collated samples.
            dropout: chance that a caption is dropped, from torch's global generator.
        """
        return {}

    @abstractmethod
    def asked(self, batch: Batch) -> dict[str, Any]:
        """Arguments of the pipeline's call that ask for pictures like a batch's samples."""

    def check(self, batch: Batch) -> None:
        """Raise DataError if a batch lacks a key."""
        absent = [key for key in self.wanted() if key not in batch]
        if "image" not in batch and "latents" not in batch:
            absent.insert(0, "image (or latents)")
        if absent:
            raise DataError(f"{type(self.network).__name__} is trained on {', '.join(absent)}; the samples have {', '.join(batch)}")

    def samples(self, batch: Batch) -> Tensor:
        """What is noised, (B, C, h, w): latents of the batch or of the pipeline's autoencoder, or pixels in [-1, 1].

        Latents are drawn from the posterior: `latent_std` of `encoded-latents` is used where it is there.
        """
        if "latents" in batch:
            mean: Tensor = batch["latents"]
            return mean + batch["latent_std"] * torch.randn_like(mean) if "latent_std" in batch else mean
        images: Tensor = 2 * batch["image"] - 1
        coder = getattr(self.pipeline, "vae", None) or getattr(self.pipeline, "vqvae", None)
        if coder is None:
            return images
        with torch.no_grad():
            coded = coder.encode(images.to(next(coder.parameters()).dtype))
        latents: Tensor = coded.latent_dist.sample() if hasattr(coded, "latent_dist") else coded.latents
        shift: float = getattr(coder.config, "shift_factor", None) or 0.0
        scale: float = getattr(coder.config, "scaling_factor", None) or 1.0
        return (latents - shift) * scale


def _mean_of(predicted: Tensor, noisy: Tensor) -> Tensor:
    """The prediction without the variance that DiT and ADM predict in as many channels again."""
    mean: Tensor = predicted[:, : noisy.shape[1]]
    return mean


class PlainUNet(Denoiser):
    """A `UNet2DModel`, of pixels or latents, with classes where it embeds some (DDPM, LDM, ADM)."""

    def wanted(self) -> tuple[str, ...]:
        """The label, where there is a class embedding."""
        return ("label",) if getattr(self.network, "class_embedding", None) is not None else ()

    def condition(self, batch: Batch, dropout: float) -> Condition:
        """The labels."""
        return {"class_labels": batch["label"]} if self.wanted() else {}

    def predict(self, noisy: Tensor, times: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """See `Denoiser.predict`."""
        return _mean_of(self.network(noisy, times, **condition).sample, noisy)

    def asked(self, batch: Batch) -> dict[str, Any]:
        """How many."""
        if self.wanted():
            raise InterfaceError(
                f"{type(self.pipeline).__name__} takes no class labels, and its UNet2DModel needs some: it can be trained only"
            )
        return {"batch_size": len(next(iter(batch.values())))}


class ClassTransformer(Denoiser):
    """A `DiTTransformer2DModel`. It drops class labels itself while it is in training mode."""

    network_name = "transformer"
    reads = ("label",)

    def condition(self, batch: Batch, dropout: float) -> Condition:
        """The labels."""
        return {"class_labels": batch["label"]}

    def predict(self, noisy: Tensor, times: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """See `Denoiser.predict`."""
        return _mean_of(self.network(noisy, timestep=times, **condition).sample, noisy)

    def asked(self, batch: Batch) -> dict[str, Any]:
        """The labels."""
        return {"class_labels": batch["label"].tolist()}


class _Captioned(Denoiser):
    """A denoiser that is told a caption."""

    reads = ("caption",)

    def asked(self, batch: Batch) -> dict[str, Any]:
        """The captions."""
        return {"prompt": list(batch["caption"])}

    def _captions(self, batch: Batch, dropout: float) -> list[str]:
        dropped = (torch.rand(len(batch["caption"])) < dropout).tolist()
        return ["" if drop else caption for drop, caption in zip(dropped, batch["caption"], strict=True)]


class TextUNet(_Captioned):
    """A `UNet2DConditionModel` of Stable Diffusion 1 and 2. The text encoder stays as it is."""

    @torch.no_grad()
    def condition(self, batch: Batch, dropout: float) -> Condition:
        """The captions' hidden states, (B, L, D)."""
        device = next(self.network.parameters()).device
        hidden, _ = self.pipeline.encode_prompt(self._captions(batch, dropout), device, 1, False)
        return {"encoder_hidden_states": hidden}

    def predict(self, noisy: Tensor, times: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """See `Denoiser.predict`."""
        return _mean_of(self.network(noisy, times, **condition).sample, noisy)


class FlowTransformer(_Captioned):
    """A `FluxTransformer2DModel`. The text encoders stay as they are; a distilled guidance is told 1."""

    network_name = "transformer"

    @torch.no_grad()
    def condition(self, batch: Batch, dropout: float) -> Condition:
        """Hidden states (B, L, D) and pooled ones (B, E) of the captions."""
        tokens = min(512, getattr(self.pipeline.tokenizer_2, "model_max_length", 512))
        hidden, pooled, _ = self.pipeline.encode_prompt(
            self._captions(batch, dropout), None, device=next(self.network.parameters()).device, max_sequence_length=tokens
        )
        return {"encoder_hidden_states": hidden, "pooled_projections": pooled}

    def predict(self, noisy: Tensor, times: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """See `Denoiser.predict`; latents are packed 2 x 2 into tokens and back."""
        count, channels, height, width = noisy.shape
        hidden, pipeline = condition["encoder_hidden_states"], self.pipeline
        guided = getattr(self.network.config, "guidance_embeds", False)
        packed = self.network(
            hidden_states=pipeline._pack_latents(noisy, count, channels, height, width),
            timestep=times.to(noisy.dtype),
            guidance=torch.ones(count, device=noisy.device) if guided else None,
            txt_ids=torch.zeros(hidden.shape[1], 3, device=noisy.device, dtype=hidden.dtype),
            img_ids=pipeline._prepare_latent_image_ids(count, height // 2, width // 2, noisy.device, noisy.dtype),
            **condition,
        ).sample
        tokens = packed.view(count, height // 2, width // 2, channels, 2, 2)
        return torch.einsum("bhwcij->bchiwj", tokens).reshape(noisy.shape)


KINDS: dict[str, type[Denoiser]] = {
    "UNet2DModel": PlainUNet,
    "DiTTransformer2DModel": ClassTransformer,
    "Transformer2DModel": ClassTransformer,
    "UNet2DConditionModel": TextUNet,
    "FluxTransformer2DModel": FlowTransformer,
}
"""By the class of the network; `Transformer2DModel` is what DiT's published folders name."""


def denoiser_of(pipeline: Any) -> Denoiser:
    """The denoiser of a diffusers pipeline.

    Raises:
        InterfaceError: if its network is of a class that is not known here, or has a second text encoder of SDXL.
    """
    for name in ("unet", "transformer"):
        network = getattr(pipeline, name, None)
        kind = KINDS.get(type(network).__name__)
        if kind is TextUNet and getattr(pipeline, "text_encoder_2", None) is not None:
            raise InterfaceError(
                f"{type(pipeline).__name__} has two text encoders, as SDXL; those of Stable Diffusion 1 and 2 are known here"
            )
        if kind is not None:
            return kind(pipeline)
    raise InterfaceError(
        f"{type(pipeline).__name__} has no denoiser that is known here: unet or transformer of the class {', '.join(KINDS)}"
    )
