from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch.nn import functional

import graftwork as gw
from graftwork import ConfigError, InterfaceError
from graftwork_adaptive_guidance import AdaptiveGuidance, GuidancePolicy, guidance_similarities, guided_steps, using_solver

STEPS, SCALE = 4, 4.0


def network_of(pipeline: Any) -> Any:
    return getattr(pipeline, "unet", None) or pipeline.transformer


def draw(pipeline: Any, call: Any, guidance: Any, **settings: Any) -> torch.Tensor:
    with guidance.attach(pipeline):
        return call.run(pipeline, output_type="latent", **settings)


def dividing_threshold(similarities: torch.Tensor) -> float:
    """A threshold, half-way between two cosines that are seen, at which the samples stop at the most different steps."""
    seen = similarities.flatten().sort().values
    between = ((seen[1:] + seen[:-1]) / 2).tolist()
    return max(between, key=lambda one: len(set(guided_steps(similarities, one).tolist())))


@pytest.fixture(scope="module")
def conditional(call: Any) -> Callable[[Any], torch.Tensor]:
    """Latents of the conditional sampler, drawn once for each pipeline."""
    drawn: dict[int, torch.Tensor] = {}

    def look(pipeline: Any) -> torch.Tensor:
        if id(pipeline) not in drawn:
            drawn[id(pipeline)] = draw(pipeline, call, GuidancePolicy(["cond"] * STEPS))
        return drawn[id(pipeline)].clone()

    return look


def test_a_threshold_above_one_is_plain_guidance_to_the_bit(pipeline: Any, call: Any, rows: Any, plain: Any) -> None:
    expected = plain(pipeline)
    guidance = AdaptiveGuidance(threshold=1.01)
    with rows(pipeline) as counted:
        assert torch.equal(draw(pipeline, call, guidance), expected)
    assert sum(counted) == guidance.costs[-1].rows == 2 * STEPS * 3
    assert guidance.costs[-1].saved == 0


def test_a_threshold_of_minus_one_guides_the_first_step_alone(pipeline: Any, call: Any, rows: Any, plain: Any) -> None:
    guidance = AdaptiveGuidance(threshold=-1.0)
    with rows(pipeline) as counted:
        found = draw(pipeline, call, guidance)
    assert sum(counted) == (STEPS + 1) * 3
    assert guidance.costs[-1].evaluations == [STEPS + 1] * 3
    by_policy = draw(pipeline, call, GuidancePolicy(["cfg"] + ["cond"] * (STEPS - 1)))
    assert torch.equal(found, by_policy)
    assert not torch.equal(found, plain(pipeline))


@pytest.mark.parametrize("threshold", [-1.0, 0.5, 2.0])
def test_a_scale_of_one_is_the_conditional_sampler(pipeline: Any, call: Any, threshold: float, conditional: Any) -> None:
    guidance = AdaptiveGuidance(threshold=threshold)
    guidance._rule.guidance_scale = 1.0  # the component refuses it, since it would save nothing
    torch.testing.assert_close(draw(pipeline, call, guidance), conditional(pipeline), atol=2e-5, rtol=1e-4)


def test_a_guidance_scale_of_its_own_takes_the_place_of_the_calls(pipeline: Any, call: Any, plain: Any) -> None:
    expected = plain(pipeline, 2.5)
    found = draw(pipeline, call, AdaptiveGuidance(guidance_scale=2.5, threshold=2.0))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_the_rows_that_are_run_are_those_of_each_samples_own_stop(pipeline: Any, call: Any, rows: Any, similar: Any) -> None:
    similarities = similar(pipeline)
    threshold = dividing_threshold(similarities)
    guided = guided_steps(similarities, threshold)
    assert len(set(guided.tolist())) > 1
    guidance = AdaptiveGuidance(threshold=threshold)
    with rows(pipeline) as counted:
        draw(pipeline, call, guidance)
    assert sum(counted) == guidance.costs[-1].rows == 3 * STEPS + int(guided.sum())
    assert guidance.costs[-1].evaluations == (STEPS + guided).tolist()
    assert guidance.costs[-1].saved == pytest.approx(float((STEPS - guided).double().mean()) / (2 * STEPS))


@pytest.mark.parametrize("name", ["double_pipeline", "flow_pipeline"])
def test_samples_of_one_batch_are_those_of_single_runs(request: Any, name: str, call: Any, calls: Any, similar: Any) -> None:
    pipeline = request.getfixturevalue(name)
    threshold = dividing_threshold(similar(pipeline))
    together = draw(pipeline, call, AdaptiveGuidance(threshold=threshold))
    for place, prompt in enumerate(call.prompts):
        alone = draw(pipeline, calls((prompt,), place), AdaptiveGuidance(threshold=threshold))
        torch.testing.assert_close(together[place : place + 1], alone, atol=2e-4, rtol=1e-3)


@torch.no_grad()
def peer(pipeline: Any, call: Any, threshold: float) -> torch.Tensor:
    """The rule as ComfyUI-Adaptive-Guidance has it, in a loop of its own: two calls a step, then one, for one sample at a time."""
    scheduler, unet, drawn = pipeline.scheduler, pipeline.unet, []
    for prompt, seed in zip(call.prompts, call.seeds, strict=True):
        positive, negative = pipeline.encode_prompt(prompt, "cpu", 1, True)
        scheduler.set_timesteps(call.steps)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=positive.dtype)
        stopped = False
        for time in scheduler.timesteps:
            prediction = unet(latents, time, positive).sample
            if not stopped:
                other = unet(latents, time, negative).sample
                stopped = functional.cosine_similarity(prediction.reshape(1, -1), other.reshape(1, -1)).item() >= threshold
                prediction = other + call.guidance_scale * (prediction - other)
            latents = scheduler.step(prediction, time, latents).prev_sample
        drawn.append(latents)
    return torch.cat(drawn)


def test_single_samples_in_a_plain_loop_are_the_same(double_pipeline: Any, call: Any, similar: Any) -> None:
    threshold = dividing_threshold(similar(double_pipeline))
    found = draw(double_pipeline, call, AdaptiveGuidance(threshold=threshold))
    torch.testing.assert_close(found, peer(double_pipeline, call, threshold), atol=1e-6, rtol=1e-6)


def test_static_shapes_give_the_same_from_batches_of_one_and_two_halves(pipeline: Any, call: Any, rows: Any, similar: Any) -> None:
    threshold = dividing_threshold(similar(pipeline))
    expected = draw(pipeline, call, AdaptiveGuidance(threshold=threshold))
    with rows(pipeline) as counted:
        found = draw(pipeline, call, AdaptiveGuidance(threshold=threshold, static_shapes=True))
    assert set(counted) <= {3, 6}
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_a_batch_that_stops_together_waits_for_its_last_sample(pipeline: Any, call: Any, similar: Any) -> None:
    similarities = similar(pipeline)
    threshold = dividing_threshold(similarities)
    last = int(guided_steps(similarities, threshold).max())
    found = draw(pipeline, call, AdaptiveGuidance(threshold=threshold, per_sample=False))
    assert torch.equal(found, draw(pipeline, call, GuidancePolicy(pattern="first", guided=last, steps=STEPS)))


def test_a_latch_stays_closed_whatever_follows(pipeline: Any, call: Any) -> None:
    guidance = AdaptiveGuidance(threshold=-1.0, min_steps=3)
    draw(pipeline, call, guidance)
    assert guidance.costs[-1].evaluations == [STEPS + 3] * 3
    assert len(guidance.similarities) == 3


def test_the_cosine_is_that_of_what_a_hook_on_the_denoiser_sees(unet_pipeline: Any, call: Any, recorded: Any) -> None:
    halves = [output.float().flatten(1).chunk(2) for _, output in recorded(unet_pipeline, call)]
    expected = torch.stack([functional.cosine_similarity(u, c, dim=1) for u, c in halves])
    torch.testing.assert_close(guidance_similarities(unet_pipeline, [call]), expected, atol=1e-6, rtol=0)


def test_denoised_predictions_are_compared_where_space_is_x0(unet_pipeline: Any, call: Any, recorded: Any) -> None:
    seen, scheduler, expected = recorded(unet_pipeline, call), unet_pipeline.scheduler, []
    for (sample, output), time in zip(seen, scheduler.timesteps, strict=True):
        kept = scheduler.alphas_cumprod[time]
        clean = (sample - (1 - kept).sqrt() * output) / kept.sqrt()
        expected.append(functional.cosine_similarity(*clean.flatten(1).chunk(2), dim=1))
    torch.testing.assert_close(guidance_similarities(unet_pipeline, [call], "x0"), torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("space", ["prediction", "x0"])
def test_both_spaces_run_in_both_forms_with_stopped_samples(pipeline: Any, call: Any, space: Any, similar: Any) -> None:
    similarities = similar(pipeline, space)
    threshold = dividing_threshold(similarities)
    guidance = AdaptiveGuidance(threshold=threshold, space=space)
    draw(pipeline, call, guidance)
    assert guidance.costs[-1].evaluations == (STEPS + guided_steps(similarities, threshold)).tolist()


def test_heun_latches_by_its_steps_and_not_by_its_evaluations(unet_pipeline: Any, call: Any, rows: Any) -> None:
    guidance = AdaptiveGuidance(threshold=-1.0)
    with using_solver(unet_pipeline, "heun"), rows(unet_pipeline) as counted:
        draw(unet_pipeline, call, guidance)
    assert counted == [6, 6] + [3] * (2 * STEPS - 3)
    assert len(guidance.similarities) == 1


def test_a_denoiser_is_itself_again_afterwards_also_after_an_exception(pipeline: Any, call: Any, plain: Any) -> None:
    network = network_of(pipeline)
    before, names = network.forward, {name for name in vars(network) if name != "_diffusers_hook"}
    expected = plain(pipeline)
    guidance = AdaptiveGuidance(threshold=-1.0)

    def stop(*_: Any) -> Any:
        raise KeyError("stop")

    cut = type(call)(call.prompts, call.seeds, call.steps, call.guidance_scale, None, {**call.inputs, "callback_on_step_end": stop})
    with guidance.attach(pipeline):
        with pytest.raises(KeyError):
            cut.run(pipeline)
        found = call.run(pipeline, output_type="latent")  # begins anew
    assert torch.equal(found, draw(pipeline, call, guidance))
    with pytest.raises(KeyError), guidance.attach(pipeline):
        cut.run(pipeline)
    assert network.forward == before
    assert {name for name in vars(network) if name != "_diffusers_hook"} == names
    assert torch.equal(call.run(pipeline, output_type="latent"), expected)


def test_each_call_inside_one_context_begins_with_every_latch_open(pipeline: Any, call: Any) -> None:
    guidance = AdaptiveGuidance(threshold=-1.0)
    with guidance.attach(pipeline):
        first, second = (call.run(pipeline, output_type="latent") for _ in range(2))
    assert torch.equal(first, second)
    assert [cost.evaluations for cost in guidance.costs] == [[STEPS + 1] * 3] * 2


def test_a_negative_prompt_steers_until_the_stop(unet_pipeline: Any, call: Any) -> None:
    other = type(call)(call.prompts, call.seeds, call.steps, call.guidance_scale, "a blue nine", call.inputs)
    for guided in (1, 3):
        guidance = GuidancePolicy(pattern="first", guided=guided, steps=STEPS)
        assert not torch.allclose(draw(unet_pipeline, call, guidance), draw(unet_pipeline, other, guidance))
    guidance = GuidancePolicy(pattern="first", guided=0, steps=STEPS)
    assert torch.equal(draw(unet_pipeline, call, guidance), draw(unet_pipeline, other, guidance))


def test_rescaled_guidance_is_the_pipelines_own(unet_pipeline: Any, call: Any, conditional: Any) -> None:
    rescaled = type(call)(call.prompts, call.seeds, call.steps, call.guidance_scale, None, {**call.inputs, "guidance_rescale": 0.7})
    expected = rescaled.run(unet_pipeline, output_type="latent")
    assert torch.equal(draw(unet_pipeline, rescaled, AdaptiveGuidance(guidance_scale=SCALE, threshold=2.0)), expected)
    tail = draw(unet_pipeline, rescaled, GuidancePolicy(["cond"] * STEPS))
    torch.testing.assert_close(tail, conditional(unet_pipeline), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("policy", [["uncond"] * STEPS, ["cfg", "uncond", "cond", "cfg(2.5)"]])
def test_a_policy_runs_any_choice_at_any_step(pipeline: Any, call: Any, rows: Any, policy: list[str]) -> None:
    guidance = GuidancePolicy(policy)
    with rows(pipeline) as counted:
        found = draw(pipeline, call, guidance)
    assert sum(counted) == 3 * sum(2 if entry.startswith("cfg") else 1 for entry in policy) == guidance.costs[-1].rows
    assert found.isfinite().all()


def test_a_policy_of_unconditional_steps_is_the_sampler_of_the_empty_prompt(pipeline: Any, call: Any) -> None:
    empty = type(call)(("",) * 3, call.seeds, call.steps, call.guidance_scale, None, call.inputs)
    expected = draw(pipeline, empty, GuidancePolicy(["cond"] * STEPS))
    torch.testing.assert_close(draw(pipeline, call, GuidancePolicy(["uncond"] * STEPS)), expected, atol=2e-5, rtol=1e-4)


def test_a_guided_policy_of_one_scale_is_plain_guidance_at_it(pipeline: Any, call: Any, plain: Any) -> None:
    expected = plain(pipeline, 2.5)
    torch.testing.assert_close(draw(pipeline, call, GuidancePolicy(["cfg(2.5)"] * STEPS)), expected, atol=2e-5, rtol=1e-4)


def test_sampling_turns_guidance_on_and_tells_its_cost(pipeline: Any) -> None:
    torch.manual_seed(0)
    inputs = {"prompt": ["a red one", "a blue two"], "num_inference_steps": 4, "height": 16, "width": 16}
    samples = gw.guidance("adaptive-guidance", threshold=-1.0).sample(pipeline, inputs)
    assert samples.images.shape == (2, 3, 16, 16)
    assert samples.metrics == {"nfe": 5.0, "nfe-saved": 1 - 5 / 8}


def test_the_form_of_the_calls_is_told_in_the_log(pipeline: Any, call: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="graftwork_adaptive_guidance.steering"):
        draw(pipeline, call, AdaptiveGuidance())
    form = "joint" if type(pipeline).__name__ == "StableDiffusionPipeline" else "separate"
    assert f"runs both branches of guidance in {form} calls" in caplog.text


@pytest.mark.parametrize("threshold", [math.nan, -1.5])
def test_a_threshold_that_is_no_cosine_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold is a cosine; values above 1 switch the stop off; found"):
        gw.guidance("adaptive-guidance", threshold=threshold)


def test_a_call_without_guidance_is_refused(pipeline: Any, call: Any) -> None:
    unguided = {"prompt": list(call.prompts), "num_inference_steps": 3, "output_type": "latent", **call.inputs}
    separate = not hasattr(pipeline, "unet")
    with pytest.raises(ConfigError, match="ran without classifier-free guidance: give"), AdaptiveGuidance().attach(pipeline):
        pipeline(**unguided, **({"true_cfg_scale": 1.0} if separate else {"guidance_scale": 1.0}))
    with pytest.raises(ConfigError, match="ran without classifier-free guidance"), AdaptiveGuidance().attach(pipeline):
        pipeline(**{**unguided, "num_inference_steps": 1}, **({} if separate else {"guidance_scale": 0.5}))
    name = "true_cfg_scale" if separate else "guidance_scale"
    with pytest.raises(ConfigError, match=f"{name} is above 1 where guidance is to be saved; the call has 1"):
        AdaptiveGuidance().sample(pipeline, {"prompt": "a red one", name: 1})


def test_a_guidance_embedded_model_is_refused(flow_pipeline: Any, call: Any) -> None:
    torch.manual_seed(0)
    config = {**flow_pipeline.transformer.config, "guidance_embeds": True}
    distilled = type(flow_pipeline)(**{**flow_pipeline.components, "transformer": diffusers.FluxTransformer2DModel.from_config(config)})
    distilled.set_progress_bar_config(disable=True)
    with pytest.raises(InterfaceError, match="guidance-embedded model has no unconditional branch"), AdaptiveGuidance().attach(distilled):
        distilled(list(call.prompts), num_inference_steps=3, output_type="latent", **call.inputs)


def test_a_policy_of_another_length_is_refused(pipeline: Any, call: Any) -> None:
    with pytest.raises(ConfigError, match=r"policy has 3 entries; the call takes 4 steps"):
        draw(pipeline, call, GuidancePolicy(["cfg", "cond", "cond"]))


def test_exactly_one_policy_is_given() -> None:
    for given, found in (({}, "none"), ({"policy": ["cfg"], "pattern": "first"}, "policy and pattern")):
        with pytest.raises(ConfigError, match=f"give one of policy, pattern and searched; found {found}"):
            gw.guidance("guidance-policy", **given)


def test_guidance_does_not_stack(pipeline: Any, call: Any) -> None:
    with (
        pytest.raises(InterfaceError, match="is guided already: rules of guidance do not stack"),
        AdaptiveGuidance().attach(pipeline),
        AdaptiveGuidance().attach(pipeline),
    ):
        pass
