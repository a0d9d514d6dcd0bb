from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline

from graftwork import Engine, TrainConfig
from graftwork_testbed.zoo.diffusion import Denoising, diffusion_target, drop_captions, stable_diffusion


@pytest.fixture
def pipeline(tiny_autoencoder):
    torch.manual_seed(0)
    return stable_diffusion(tiny_autoencoder, [16, 16], attention_heads=2, text_width=16, text_layers=1, norm_num_groups=8)


def draw(pipeline, **settings):
    generator = torch.Generator().manual_seed(3)
    call = {"prompt": "a red three", "num_inference_steps": 3, "guidance_scale": 5.0, "height": 64, "width": 64, "output_type": "pt"}
    return pipeline(**{**call, **settings}, generator=generator).images


def test_it_is_a_stable_diffusion_pipeline_that_draws(pipeline):
    assert isinstance(pipeline, StableDiffusionPipeline)
    assert draw(pipeline).shape == (1, 3, 64, 64)
    assert not torch.equal(draw(pipeline, prompt="a blue one"), draw(pipeline))


def test_it_draws_the_same_after_saving(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(again), draw(pipeline), rtol=0, atol=1e-4)


def test_training_moves_unet_and_text_encoder_and_leaves_the_autoencoder(pipeline, latents):
    before = {name: {k: v.clone() for k, v in getattr(pipeline, name).state_dict().items()} for name in ("unet", "text_encoder", "vae")}
    objective = Denoising(decay=0.5)
    exported = Engine(pipeline, objective, latents, TrainConfig(steps=3, batch_size=8), device="cpu").fit()

    def moved(name):
        return [key for key, value in getattr(exported, name).state_dict().items() if not torch.equal(value, before[name][key])]

    assert moved("unet")
    assert moved("text_encoder")
    assert not moved("vae")


def test_at_a_text_rate_of_zero_the_text_encoder_stays(pipeline, latents):
    before = {key: value.clone() for key, value in pipeline.text_encoder.state_dict().items()}
    exported = Engine(pipeline, Denoising(text_rate=0.0), latents, TrainConfig(steps=2, batch_size=8), device="cpu").fit()
    assert all(torch.equal(value, before[key]) for key, value in exported.text_encoder.state_dict().items())


def test_the_text_encoder_has_a_learning_rate_of_its_own(pipeline, latents):
    train = TrainConfig(steps=1, batch_size=8, optimizer={"use": "sgd", "lr": 0.2})
    engine = Engine(pipeline, Denoising(text_rate=0.25), latents, train, device="cpu")
    denoiser, words = engine.optimizers[""].param_groups
    assert (denoiser["lr"], words["lr"]) == (0.2, 0.05)
    assert words["params"][0] is next(pipeline.text_encoder.parameters())


def test_a_velocity_is_predicted_where_that_is_asked_for(tiny_autoencoder):
    pipeline = stable_diffusion(tiny_autoencoder, [16], attention_heads=2, text_width=16, norm_num_groups=8, prediction_type="v_prediction")
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match="prediction_type is one of epsilon, v_prediction; found 'sample'"):
        stable_diffusion(tiny_autoencoder, [16], attention_heads=2, text_width=16, norm_num_groups=8, prediction_type="sample")


def test_what_is_handed_on_is_the_moving_average(pipeline, latents):
    objective = Denoising(decay=0.5)
    weights = []
    update = objective.update

    def recording(engine, batches):
        loss = update(engine, batches)
        weights.append(pipeline.unet.conv_in.weight.detach().clone())
        return loss

    objective.update = recording
    exported = Engine(pipeline, objective, latents, TrainConfig(steps=4, batch_size=8), device="cpu").fit()
    expected = weights[0]
    for weight in weights[1:]:
        expected = 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(exported.unet.conv_in.weight.detach(), expected)
    assert torch.equal(pipeline.unet.conv_in.weight, weights[-1])  # what is trained keeps its own


def test_an_overfitted_batch_is_denoised(pipeline, latents):
    rows = []
    train = TrainConfig(steps=60, batch_size=16, log_every=20, optimizer={"use": "adam", "lr": 0.005})
    Engine(pipeline, Denoising(), latents, train, device="cpu", log=lambda step, row: rows.append(row["loss"])).fit()
    assert rows[-1] < 0.9 * rows[0]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_prediction_gives_back_the_sample(kind):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    clean, noise, steps = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3), torch.tensor([5, 200, 600, 990])
    noisy = scheduler.add_noise(clean, noise, steps)
    target = diffusion_target(scheduler, clean, noise, steps)
    scheduler.set_timesteps(1000)
    for row, step in enumerate(steps):
        found = scheduler.step(target[row : row + 1], step, noisy[row : row + 1]).pred_original_sample
        torch.testing.assert_close(found, clean[row : row + 1], rtol=1e-3, atol=2e-3)


def test_an_unknown_prediction_type_is_told():
    scheduler = DDIMScheduler(prediction_type="epsilon")
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match='prediction_type "flow" is none of'):
        diffusion_target(scheduler, torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.long))


def test_min_snr_weights_are_the_papers(pipeline):
    objective = Denoising(min_snr_gamma=5.0)
    steps = torch.tensor([0, 300, 999])
    kept = pipeline.scheduler.alphas_cumprod[steps].double()
    ratio = kept / (1 - kept)
    torch.testing.assert_close(objective._weights(pipeline.scheduler, steps).double(), torch.minimum(ratio, torch.tensor(5.0)) / ratio)


def test_a_share_of_the_captions_is_dropped():
    torch.manual_seed(0)
    dropped = drop_captions(["a red three"] * 4000, 0.1).count("")
    assert abs(dropped - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5
    assert drop_captions(["x"] * 50, 0.0) == ["x"] * 50
    assert drop_captions(["x"] * 50, 1.0) == [""] * 50


def test_bad_parameters_are_named(tiny_autoencoder):
    with pytest.raises(ValueError, match=r"must divide block_out_channels; found \[20\]"):
        stable_diffusion(tiny_autoencoder, [16, 20], norm_num_groups=8)
    with pytest.raises(ValueError, match=r"must divide text_width; found \[30\]"):
        stable_diffusion(tiny_autoencoder, [16], text_width=30, norm_num_groups=8)
    with pytest.raises(ValueError, match=r"caption_dropout is in \[0, 1\].*found 1.5"):
        Denoising(caption_dropout=1.5)


@pytest.mark.gpu
def test_it_trains_and_draws_on_a_gpu(pipeline, latents):
    exported = Engine(pipeline, Denoising(min_snr_gamma=5.0), latents, TrainConfig(steps=2, batch_size=8), device="cuda").fit()
    assert exported.unet.device.type == "cuda"
    assert draw(exported).isfinite().all()


def test_emphasis_weighs_latents_under_the_mask():
    objective = Denoising(emphasis=6.0)
    assert objective.keys["train"] == ("latents", "latent_std", "caption", "mask")
    mask = torch.zeros(2, 64, 64, dtype=torch.long)
    mask[0, 9:15, 9:15] = 4  # inside one cell of 8x8
    weights = objective.emphasised({"mask": mask}, torch.zeros(2, 4, 8, 8))
    assert weights.mean().item() == pytest.approx(1.0)
    assert (weights[0, 0, 1, 1] / weights[0, 0, 0, 0]).item() == pytest.approx(6.0)
    assert (weights == weights.max()).sum() == 1
    assert Denoising().emphasised({}, torch.zeros(2, 4, 8, 8)).eq(1).all()
    with pytest.raises(ValueError, match=r"emphasis is at least 1 .*; found 0\.5"):
        Denoising(emphasis=0.5)
    with pytest.raises(ValueError, match=r"text_rate at least 0; found 1\.0 and -1"):
        Denoising(text_rate=-1)
