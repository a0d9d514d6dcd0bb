"""Text-to-image diffusion in latent space: an untrained Stable Diffusion pipeline of any size, and what trains it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from graftwork import Batch, Dataset, Loss, Objective
from graftwork.builtin.hub import need
from graftwork.interfaces import DiffusionPipeline
from graftwork.kinds.objective import MakeOptimizer
from graftwork_testbed.zoo.averaging import Averages
from graftwork_testbed.zoo.captions import caption_encoder
from graftwork_testbed.zoo.tokenizers import clip_tokenizer

__all__ = ["Denoising", "diffusion_target", "drop_captions", "stable_diffusion"]

Count = Annotated[int, Field(ge=1)]
Layers = Annotated[int, Field(ge=1, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Prediction = Literal["epsilon", "v_prediction"]


def stable_diffusion(
    autoencoder: nn.Module,
    block_out_channels: Annotated[list[Count], Field(min_length=1)] = [96, 160],  # noqa: B006 - read only
    layers_per_block: Count = 1,
    attention_heads: Count = 4,
    text_width: Count = 128,
    text_layers: Layers = 2,
    sample_size: Count = 8,
    norm_num_groups: Count = 16,
    prediction_type: Prediction = "epsilon",
) -> Any:
    """A real `diffusers.StableDiffusionPipeline` around a trained autoencoder, its U-Net and text encoder untrained.

    The schedule is Stable Diffusion's scaled-linear one of 1,000 steps; it samples by DDIM.

    Args:
        autoencoder: a `diffusers.AutoencoderKL`; it is not trained further.
        block_out_channels: channels of the U-Net's levels, each with cross-attention; each level but the last halves the latents.
        layers_per_block: residual blocks a level.
        attention_heads: of self- and cross-attention.
        text_width: of the text encoder's hidden states.
        text_layers: of the text encoder.
        sample_size: side of the latents.
        norm_num_groups: of group norm; divides each number of channels.
        prediction_type: what the U-Net predicts: the noise, or the velocity (Salimans & Ho, 2022, section 4 and appendix D).

    Raises:
        ValueError: if the heads do not divide the widths, or the prediction type is another.
        GraftworkError: if diffusers or transformers is not installed.
    """
    if prediction_type not in get_args(Prediction):
        raise ValueError(f"prediction_type is one of {', '.join(get_args(Prediction))}; found {prediction_type!r}")
    for name, widths in (("block_out_channels", block_out_channels), ("text_width", [text_width])):
        if odd := [width for width in widths if width % attention_heads or (name != "text_width" and width % norm_num_groups)]:
            raise ValueError(f"attention_heads {attention_heads} and norm_num_groups {norm_num_groups} must divide {name}; found {odd}")
    library = need("diffusers", "diffusers")
    levels, channels = len(block_out_channels), autoencoder.config.latent_channels  # type: ignore[union-attr]
    tokenizer = clip_tokenizer()
    unet = library.UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        attention_head_dim=attention_heads,  # by an old slip of names this is how many heads there are
        cross_attention_dim=text_width,
        norm_num_groups=norm_num_groups,
    )
    scheduler = library.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipeline = library.StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=caption_encoder(tokenizer, text_width, text_layers, attention_heads),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def diffusion_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What a network is to predict, by the scheduler's `prediction_type`: the noise, the sample, or the velocity.

    Args:
        scheduler: of diffusers.
        latents: (B, ...) without noise.
        noise: (B, ...).
        timesteps: (B,) long.

    Raises:
        ValueError: if the prediction type is another.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return latents
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)  # type: ignore[no-any-return]
    raise ValueError(f'prediction_type "{kind}" is none of epsilon, sample, v_prediction')


def drop_captions(captions: list[str], chance: float) -> list[str]:
    """Captions of which each is replaced by "" with a chance, drawn from torch's global generator (Ho & Salimans, 2022)."""
    dropped = (torch.rand(len(captions)) < chance).tolist()
    return ["" if drop else caption for drop, caption in zip(dropped, captions, strict=True)]


def draw_latents(batch: Batch) -> Tensor:
    """Latents drawn from the posterior of a batch of `encoded-latents`: (B, C, h, w)."""
    mean: Tensor = batch["latents"]
    return mean + batch["latent_std"] * torch.randn_like(mean)


class Denoising(Objective):
    """Predict the noise in latents, given their captions (Ho et al., 2020, eq. 14; Rombach et al., 2022, eq. 3).

    Trains the U-Net and the text encoder of a Stable Diffusion pipeline together; the autoencoder stays as it is, so the data are
    `encoded-latents`. A share of the captions is dropped, for classifier-free guidance (Ho & Salimans, 2022). With
    `min_snr_gamma` the loss is weighted by min(SNR, gamma) / SNR for noise prediction (Hang et al., 2023, eq. 6); with `emphasis`
    latents under the samples' `mask` count more, since most of a scene is background. What the stage hands on holds the moving
    averages of the weights.

    Args:
        caption_dropout: chance that a caption is dropped.
        min_snr_gamma: bound on the signal-to-noise ratio; None weights all timesteps alike.
        decay: of the moving averages.
        emphasis: how many times more a latent under the `mask` counts than one elsewhere; above 1 the samples need a `mask`.
        text_rate: factor on the learning rate of the text encoders; at 0 they stay as they are. What of a caption explains most of
            a picture (colour) is learned first, and an encoder that follows fast comes to tell nothing else apart.
    """

    keys = {"train": ("latents", "latent_std", "caption")}
    needs = DiffusionPipeline
    denoiser = "unet"
    text_encoders = ("text_encoder",)

    def __init__(
        self,
        caption_dropout: Share = 0.1,
        min_snr_gamma: Annotated[float, Field(gt=0)] | None = None,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.999,
        emphasis: Annotated[float, Field(ge=1)] = 1.0,
        text_rate: Annotated[float, Field(ge=0)] = 1.0,
    ):
        super().__init__()
        if emphasis < 1 or text_rate < 0:
            raise ValueError(f"emphasis is at least 1 and text_rate at least 0; found {emphasis} and {text_rate}")
        if not 0 <= caption_dropout <= 1 or not 0 <= decay < 1 or (min_snr_gamma is not None and min_snr_gamma <= 0):
            raise ValueError(
                f"caption_dropout is in [0, 1], decay in [0, 1), min_snr_gamma above 0; found {caption_dropout}, {decay}, {min_snr_gamma}"
            )
        self.caption_dropout, self.min_snr_gamma, self.decay, self.emphasis = caption_dropout, min_snr_gamma, decay, emphasis
        self.text_rate = text_rate
        if emphasis > 1:
            self.keys = {"train": (*self.keys["train"], "mask")}

    def networks(self, model: Any) -> dict[str, nn.Module]:
        """What is trained, by its name in the pipeline."""
        names = (self.denoiser, *(self.text_encoders if self.text_rate else ()))
        return {name: getattr(model, name) for name in names}

    def setup(self, model: Any, data: Dataset) -> None:
        """Freeze what is not trained, and begin the averages."""
        trained = self.networks(model)
        for name, component in model.components.items():
            if isinstance(component, nn.Module):
                component.requires_grad_(name in trained)
        self.averages = Averages(trained, self.decay)

    def optimizers(self, model: Any, make: MakeOptimizer) -> Optimizer:
        """One over the trained networks, the text encoders at a rate of their own."""
        rates = {name: make.lr * (1.0 if name == self.denoiser else self.text_rate) for name in self.networks(model)}
        return make([{"params": list(network.parameters()), "lr": rates[name]} for name, network in self.networks(model).items()])

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The weighted squared error, and the plain one."""
        latents = draw_latents(batches["train"])
        noise = torch.randn_like(latents)
        steps = torch.randint(model.scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
        tokens = model.tokenizer(
            drop_captions(batches["train"]["caption"], self.caption_dropout), padding="max_length", truncation=True, return_tensors="pt"
        )
        hidden = model.text_encoder(tokens.input_ids.to(latents.device)).last_hidden_state
        noisy = model.scheduler.add_noise(latents, noise, steps)
        predicted = model.unet(noisy, steps, encoder_hidden_states=hidden).sample
        target = diffusion_target(model.scheduler, latents, noise, steps)
        squares = functional.mse_loss(predicted.float(), target.float(), reduction="none")
        errors = (squares * self.emphasised(batches["train"], latents)).flatten(1).mean(1)
        plain = errors.mean()
        if self.min_snr_gamma is None:
            return Loss(plain)
        return Loss((errors * self._weights(model.scheduler, steps)).mean(), {"mse": plain})

    def emphasised(self, batch: Batch, latents: Tensor) -> Tensor:
        """Weights (B, 1, h, w) of latents (B, C, h, w), of mean 1 over the batch."""
        if self.emphasis == 1:
            return torch.ones_like(latents[:, :1])
        inside = functional.adaptive_max_pool2d((batch["mask"] > 0).to(latents.dtype).unsqueeze(1), latents.shape[-2:])
        weights = 1 + (self.emphasis - 1) * inside
        return weights / weights.mean()

    def _weights(self, scheduler: Any, steps: Tensor) -> Tensor:
        kept = scheduler.alphas_cumprod.to(steps.device)[steps]
        ratio = kept / (1 - kept)
        bounded = ratio.clamp(max=self.min_snr_gamma)
        kind = scheduler.config.prediction_type
        return bounded / (ratio if kind == "epsilon" else ratio + 1 if kind == "v_prediction" else torch.ones_like(ratio))

    def after_step(self, model: Any) -> None:
        """The averages follow."""
        self.averages.update(self.networks(model))

    def export(self, model: Any) -> Any:
        """A pipeline with the averaged weights; the one that is trained keeps its own."""
        exported = copy.copy(model)
        for name, network in self.averages.networks().items():
            setattr(exported, name, network)
        return exported
