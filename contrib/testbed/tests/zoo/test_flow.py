from __future__ import annotations

import pytest
import torch
from diffusers import FluxPipeline

from graftwork import Engine, TrainConfig
from graftwork_testbed.zoo.flow import FlowMatching, encode_captions, flux


@pytest.fixture
def pipeline(tiny_autoencoder):
    torch.manual_seed(0)
    return flux(tiny_autoencoder, 1, 1, attention_heads=2, axes_dims_rope=(4, 6, 6), text_width=16, text_layers=1)


def draw(pipeline, **settings):
    call = {"prompt": "a red three", "num_inference_steps": 3, "output_type": "pt", "true_cfg_scale": 5.0, "negative_prompt": ""}
    return pipeline(**{**call, **settings}, generator=torch.Generator().manual_seed(3)).images


def test_it_is_a_flux_pipeline_with_rotary_positions_and_no_distilled_guidance(pipeline):
    assert isinstance(pipeline, FluxPipeline)
    assert pipeline.transformer.config.guidance_embeds is False
    assert pipeline.transformer.pos_embed.axes_dim == (4, 6, 6)
    assert draw(pipeline).shape == (1, 3, 64, 64)


def test_guidance_is_real(pipeline):
    assert not torch.equal(draw(pipeline), draw(pipeline, true_cfg_scale=1.0))


def test_the_plain_class_draws_the_same_when_told_the_size(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = FluxPipeline(**pipeline.components)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again, height=64, width=64, max_sequence_length=24), draw(pipeline))


def test_arguments_by_position_count(pipeline):
    def noise():
        return torch.Generator().manual_seed(3)

    by_name = pipeline("a red three", negative_prompt="", true_cfg_scale=5.0, num_inference_steps=2, generator=noise(), output_type="pt")
    by_place = pipeline("a red three", None, "", None, 5.0, 64, 64, 2, None, 3.5, 1, noise(), output_type="pt")
    assert torch.equal(by_name.images, by_place.images)


def test_training_sees_captions_as_the_pipeline_does(pipeline):
    captions = ["a red three", "a blue one above a pink four"]
    hidden, pooled, ids = encode_captions(pipeline, captions, torch.device("cpu"))
    expected = pipeline.encode_prompt(prompt=captions, prompt_2=None, device=torch.device("cpu"), max_sequence_length=24)
    for ours, theirs in zip((hidden, pooled, ids), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_target_is_the_velocity_from_data_to_noise(pipeline, latents, monkeypatch):
    seen = {}

    def transformer(hidden_states, timestep, **rest):
        seen.update(noisy=hidden_states, times=timestep)
        return type("Output", (), {"sample": torch.zeros_like(hidden_states)})

    batch = {key: value[:4] for key, value in latents["train"].columns.items()}
    batch["latent_std"] = torch.zeros_like(batch["latents"])
    monkeypatch.setattr(type(pipeline.transformer), "forward", lambda self, **given: transformer(**given))
    torch.manual_seed(5)
    loss = FlowMatching(caption_dropout=0.0)(pipeline, {"train": batch}, 0.0).total
    clean = pipeline._pack_latents(batch["latents"], 4, 4, 8, 8)
    times = seen["times"].view(-1, 1, 1)
    velocity = (seen["noisy"] - clean) / times  # x_t = x_0 + t v
    assert loss.item() == pytest.approx(velocity.square().mean().item(), rel=1e-3)


def test_training_moves_the_transformer_and_both_text_encoders(pipeline, latents):
    names = ("transformer", "text_encoder", "text_encoder_2", "vae")
    before = {name: {key: value.clone() for key, value in getattr(pipeline, name).state_dict().items()} for name in names}
    exported = Engine(pipeline, FlowMatching(decay=0.0), latents, TrainConfig(steps=2, batch_size=8), device="cpu").fit()
    changed = {
        name for name in names for key, value in getattr(exported, name).state_dict().items() if not torch.equal(value, before[name][key])
    }
    assert changed == {"transformer", "text_encoder", "text_encoder_2"}


def test_logit_normal_times_are_drawn_so(pipeline, latents):
    objective, seen = FlowMatching(), []
    forward = type(pipeline.transformer).forward
    batch = {key: value[:16] for key, value in latents["train"].columns.items()}

    def watch(self, **given):
        seen.append(given["timestep"])
        return forward(self, **given)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(type(pipeline.transformer), "forward", watch)
        for _ in range(20):
            objective(pipeline, {"train": batch}, 0.0)
    normal = torch.cat(seen).logit()
    assert abs(normal.mean().item()) < 4 / len(normal) ** 0.5
    assert abs(normal.std().item() - 1) < 4 / (2 * len(normal)) ** 0.5


def test_bad_parameters_are_named(tiny_autoencoder):
    with pytest.raises(ValueError, match=r"axes_dims_rope are even and positive; found \(3, 6, 6\)"):
        flux(tiny_autoencoder, axes_dims_rope=(3, 6, 6))
    with pytest.raises(ValueError, match="text_width must be a multiple of 4, its heads; found 18"):
        flux(tiny_autoencoder, text_width=18)
    with pytest.raises(ValueError, match="times is"):
        FlowMatching(times="sometimes")


@pytest.mark.gpu
def test_it_trains_and_draws_on_a_gpu(pipeline, latents):
    exported = Engine(pipeline, FlowMatching(), latents, TrainConfig(steps=2, batch_size=8, precision="bf16"), device="cuda").fit()
    assert exported.transformer.device.type == "cuda"
    assert draw(exported).isfinite().all()


def test_emphasis_falls_on_the_tokens_of_the_latents_under_the_mask(pipeline, latents, monkeypatch):
    batch = {key: value[:2] for key, value in latents["train"].columns.items()}
    batch["latent_std"], batch["mask"] = torch.zeros_like(batch["latents"]), torch.zeros(2, 64, 64, dtype=torch.long)
    batch["mask"][:, :8, :8] = 1  # the first latent, in the first token
    noise = []

    def perfect_but_for_the_first_token(self, hidden_states, **rest):
        target = pipeline._pack_latents(noise[-1] - batch["latents"], 2, 4, 8, 8)
        target[:, 0] += 1
        return type("Output", (), {"sample": target})

    drawn = torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda like: noise.append(drawn(like)) or noise[-1])
    monkeypatch.setattr(type(pipeline.transformer), "forward", perfect_but_for_the_first_token)
    plain, weighted = (FlowMatching(emphasis=e)(pipeline, {"train": batch}, 0.0).total.item() for e in (1.0, 6.0))
    assert plain == pytest.approx(1 / 16)
    assert weighted == pytest.approx((6 + 3) / (64 + 5))  # four latents a token, one of them weighted, of a mean of 1
