"""Text-to-image flow matching in latent space: an untrained Flux pipeline of any size, and what trains it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from graftwork import Batch, Loss
from graftwork.builtin.hub import need
from graftwork_testbed.zoo.captions import caption_encoder
from graftwork_testbed.zoo.diffusion import Count, Denoising, Layers, Share, draw_latents, drop_captions
from graftwork_testbed.zoo.tokenizers import LENGTH, clip_tokenizer, t5_tokenizer

__all__ = ["FlowMatching", "flux", "short_prompt_pipeline"]


SIDE = 64
"""Height and width of a picture that is asked for without a size."""


@functools.cache
def short_prompt_pipeline() -> type:
    """`diffusers.FluxPipeline` for small pictures of short prompts: other defaults, nothing else.

    The plain class pads prompts to 512 tokens, which the transformer attends to, and draws 1024 x 1024 pixels unless told
    otherwise; this one pads to 24 and draws at 64 x 64.

    Raises:
        GraftworkError: if diffusers is not installed.
    """
    library = need("diffusers", "diffusers")
    signature = inspect.signature(library.FluxPipeline.__call__)

    class ShortPromptFluxPipeline(library.FluxPipeline):  # type: ignore[misc,name-defined]
        """A Flux pipeline whose prompts have 24 tokens and whose pictures 64 x 64 pixels by default."""

        @functools.wraps(library.FluxPipeline.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            given = signature.bind_partial(self, *args, **kwargs).arguments
            given.pop("self")
            return super().__call__(**{"height": SIDE, "width": SIDE, "max_sequence_length": LENGTH, **given})

    return ShortPromptFluxPipeline


def flux(
    autoencoder: nn.Module,
    num_layers: Layers = 3,
    num_single_layers: Layers = 4,
    attention_heads: Count = 4,
    axes_dims_rope: tuple[int, int, int] = (8, 12, 12),
    text_width: Count = 96,
    text_layers: Layers = 2,
) -> Any:
    """A real `diffusers.FluxPipeline` around a trained autoencoder: joint attention of text and image, rotary positions.

    No guidance is distilled into it (`guidance_embeds` is off): guide it by `true_cfg_scale` and a `negative_prompt`.

    Args:
        autoencoder: a `diffusers.AutoencoderKL`; it is not trained further. Its latents are packed 2x2 into tokens.
        num_layers: blocks with separate weights for text and image.
        num_single_layers: blocks with shared weights.
        attention_heads: each of the width that the rotary axes sum to.
        axes_dims_rope: even widths of the rotary positions: index, row, column.
        text_width: of the CLIP and the T5 encoder.
        text_layers: of each.

    Raises:
        ValueError: if a rotary width is odd, or the text width cannot be divided.
        GraftworkError: if diffusers or transformers is not installed.
    """
    if any(width % 2 or width < 2 for width in axes_dims_rope):
        raise ValueError(f"axes_dims_rope are even and positive; found {axes_dims_rope}")
    if text_width % 4:
        raise ValueError(f"text_width must be a multiple of 4, its heads; found {text_width}")
    library, language = need("diffusers", "diffusers"), need("transformers", "transformers")
    words, pieces = clip_tokenizer(), t5_tokenizer()
    settings = language.T5Config(
        vocab_size=len(pieces),
        d_model=text_width,
        d_kv=text_width // 4,
        d_ff=3 * text_width,
        num_layers=text_layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=pieces.pad_token_id,
        eos_token_id=pieces.eos_token_id,
    )
    transformer = library.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * autoencoder.config.latent_channels,  # type: ignore[union-attr]
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        attention_head_dim=sum(axes_dims_rope),
        num_attention_heads=attention_heads,
        joint_attention_dim=text_width,
        pooled_projection_dim=text_width,
        guidance_embeds=False,
        axes_dims_rope=tuple(axes_dims_rope),
    )
    pipeline = short_prompt_pipeline()(
        scheduler=library.FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=autoencoder,
        text_encoder=caption_encoder(words, text_width, text_layers),
        tokenizer=words,
        text_encoder_2=language.T5EncoderModel(settings),
        tokenizer_2=pieces,
        transformer=transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class FlowMatching(Denoising):
    """Predict the velocity from data to noise along straight lines (Lipman et al., 2023; Esser et al., 2024, eq. 13).

    x_t = (1 - t) x_0 + t e, and the network predicts e - x_0. Trains the transformer and both text encoders of a Flux pipeline;
    the rest is as in `Denoising`.

    Args:
        caption_dropout: chance that a caption is dropped.
        times: how t is drawn: uniform, or the logistic function of a standard normal (Esser et al., 2024, section 3.1).
        decay: of the moving averages.
        emphasis: how many times more a latent under the `mask` counts than one elsewhere; above 1 the samples need a `mask`.
        text_rate: factor on the learning rate of the text encoders; at 0 they stay as they are.
    """

    denoiser = "transformer"
    text_encoders = ("text_encoder", "text_encoder_2")

    def __init__(
        self,
        caption_dropout: Share = 0.1,
        times: Literal["uniform", "logit-normal"] = "logit-normal",
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.999,
        emphasis: Annotated[float, Field(ge=1)] = 1.0,
        text_rate: Annotated[float, Field(ge=0)] = 1.0,
    ):
        super().__init__(caption_dropout, None, decay, emphasis, text_rate)
        if times not in ("uniform", "logit-normal"):
            raise ValueError(f'times is "uniform" or "logit-normal"; found {times!r}')
        self.times = times

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The squared error of the velocity."""
        latents = draw_latents(batches["train"])
        count, channels, height, width = latents.shape
        noise = torch.randn_like(latents)
        drawn = (
            torch.randn(count, device=latents.device).sigmoid()
            if self.times == "logit-normal"
            else torch.rand(count, device=latents.device)
        )
        times = drawn.view(-1, 1, 1, 1).to(latents.dtype)
        captions = drop_captions(batches["train"]["caption"], self.caption_dropout)
        hidden, pooled, text_ids = encode_captions(model, captions, latents.device)
        packed = model._pack_latents((1 - times) * latents + times * noise, count, channels, height, width)
        image_ids = model._prepare_latent_image_ids(count, height // 2, width // 2, latents.device, latents.dtype)
        predicted = model.transformer(
            hidden_states=packed,
            timestep=drawn.to(latents.dtype),
            guidance=None,
            pooled_projections=pooled,
            encoder_hidden_states=hidden,
            txt_ids=text_ids,
            img_ids=image_ids,
        ).sample
        target = model._pack_latents(noise - latents, count, channels, height, width)
        squares = functional.mse_loss(predicted.float(), target.float(), reduction="none")
        weights = self.emphasised(batches["train"], latents).expand_as(latents)
        return Loss((squares * model._pack_latents(weights, count, channels, height, width)).mean())


def encode_captions(model: Any, captions: list[str], device: torch.device) -> tuple[Any, Any, Any]:
    """A Flux pipeline's embeddings of captions, with gradients: (B, 24, D) of T5, (B, D) pooled of CLIP, (24, 3) positions."""
    words = model.tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids.to(device)
    pieces = model.tokenizer_2(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids.to(device)
    pooled = model.text_encoder(words).pooler_output
    hidden = model.text_encoder_2(pieces)[0]
    return hidden, pooled, torch.zeros(LENGTH, 3, device=device, dtype=hidden.dtype)
