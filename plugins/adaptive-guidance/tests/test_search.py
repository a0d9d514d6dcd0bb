from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import graftwork as gw
from graftwork import ConfigError, DataError, InterfaceError
from graftwork_adaptive_guidance import (
    Choice,
    GuidancePolicy,
    GuidancePolicySearch,
    GuidedPipeline,
    default_options,
    rollout,
    search_loss,
)

STEPS, SCALE = 4, 4.0
PROMPTS = ["a red one", "a blue seven", "a green four", "a red two"]


@pytest.fixture(scope="module")
def data() -> gw.Dataset:
    return gw.Dataset({"train": gw.TensorSamples(caption=PROMPTS, index=torch.arange(4))})


@pytest.fixture
def linear_sample(linear_denoiser: Callable[..., Any], ddim: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    start = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return lambda mixture: rollout(linear_denoiser, ddim(len(mixture)), start, mixture)


def batch(*places: int) -> dict[str, Any]:
    return {"train": {"caption": [PROMPTS[place] for place in places], "index": torch.tensor(places)}}


def prepared(model: Any, data: gw.Dataset, **settings: Any) -> GuidancePolicySearch:
    made = GuidancePolicySearch(steps=STEPS, guidance_scale=SCALE, **settings)
    made.setup(model, data)
    return made


@pytest.mark.parametrize("budget", [None, 4.0])
def test_the_gradient_of_the_loss_is_that_of_finite_differences(linear_sample: Any, budget: float | None) -> None:
    options = default_options(3.0)
    teacher = linear_sample(torch.full((3,), 3.0, dtype=torch.float64)).detach()
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()

    def loss(alpha: torch.Tensor) -> torch.Tensor:
        return search_loss(alpha, options, 3.0, linear_sample, teacher, temperature=0.7, cost_weight=0.3, budget=budget).total

    assert torch.autograd.gradcheck(loss, (logits,), atol=1e-6)


def test_the_policy_of_the_teacher_costs_nothing_but_its_evaluations(linear_sample: Any) -> None:
    teacher = linear_sample(torch.full((3,), 3.0, dtype=torch.float64))
    sharp = torch.zeros(3, 5, dtype=torch.float64)
    sharp[:, 3] = 1e4
    found = search_loss(sharp, default_options(3.0), 3.0, linear_sample, teacher, cost_weight=0.0)
    assert float(found.total) == 0
    assert float(found.parts["expected-nfe"]) == 6
    charged = search_loss(sharp, default_options(3.0), 3.0, linear_sample, teacher, cost_weight=2.0)
    assert float(charged.total) == pytest.approx(2.0)
    assert float(search_loss(sharp, default_options(3.0), 3.0, linear_sample, teacher, cost_weight=2.0, budget=4.5).total) == pytest.approx(
        3.0
    )


def test_where_guidance_changes_nothing_every_step_becomes_cheap(ddim: Any) -> None:
    options, logits = default_options(3.0), torch.zeros(4, 5, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)

    def sample(mixture: torch.Tensor) -> torch.Tensor:
        return rollout(lambda x, t: (0.3 * x, 0.3 * x), ddim(4), torch.ones(2, 2), mixture)

    teacher = sample(torch.full((4,), 3.0))
    for _ in range(20):
        optimizer.zero_grad()
        search_loss(logits, options, 3.0, sample, teacher, cost_weight=1.0, budget=6.0).total.backward()
        optimizer.step()
    assert all(options[index].cost == 1 for index in logits.argmax(1).tolist())


def test_a_sharp_alpha_samples_as_its_policy(pipeline: Any, data: gw.Dataset, calls: Any) -> None:
    """The relaxed sampler at alpha one-hot against the runner of policies, in the latents of the same noise."""
    search = prepared(pipeline, data, cost_weight=0.0)
    edges = [3, 2, 1, 0]
    with torch.no_grad():
        search.logits[range(STEPS), edges] = 1e4
    policy = search.policy
    assert [str(one) for one in policy] == ["cfg(4.0)", "cfg(2.0)", "cond", "uncond"]
    call = calls(tuple(PROMPTS[:2]), inputs={})
    plain = call.run(pipeline, output_type="latent")
    with GuidancePolicy.of(policy).attach(pipeline):
        found = call.run(pipeline, output_type="latent")
    loss = search(pipeline, batch(0, 1), 0.0)
    assert loss.total.item() == pytest.approx(float((found - plain).square().mean()), rel=2e-3)


def test_only_alpha_learns_and_the_pipeline_comes_back_as_trainable_as_it_was(unet_pipeline: Any, data: gw.Dataset) -> None:
    network = unet_pipeline.unet
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.conv_in.weight.requires_grad_(False)
    flags = [one.requires_grad for one in network.parameters()]
    search = prepared(unet_pipeline, data)
    assert not any(one.requires_grad for one in network.parameters())
    search(unet_pipeline, batch(0, 2), 0.0).total.backward()
    assert search.logits.grad is not None
    assert (search.logits.grad.abs().sum(1) > 0).all()
    assert [one.shape for one in search.parameters()] == [(STEPS, 5)]
    exported = search.export(unet_pipeline)
    assert [one.requires_grad for one in network.parameters()] == flags
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert exported.guidance.policy == search.policy
    network.conv_in.weight.requires_grad_(True)


def test_a_teacher_is_sampled_once_for_each_prompt(unet_pipeline: Any, data: gw.Dataset, rows: Any) -> None:
    search = prepared(unet_pipeline, data)
    with torch.no_grad():
        with rows(unet_pipeline) as first:
            one = search(unet_pipeline, batch(0, 1), 0.0)
        with rows(unet_pipeline) as second:
            two = search(unet_pipeline, batch(0, 1), 0.0)
    assert sum(first) == 2 * sum(second) == 2 * 2 * 2 * STEPS
    assert torch.equal(one.total, two.total)


def test_the_loss_of_a_batch_is_the_mean_over_its_samples(unet_pipeline: Any, data: gw.Dataset) -> None:
    search = prepared(unet_pipeline, data, cost_weight=0.0)
    with torch.no_grad():
        together = search(unet_pipeline, batch(1, 3), 0.0).total
        alone = [search(unet_pipeline, batch(place), 0.0).total for place in (1, 3)]
    assert float(together) == pytest.approx(float(sum(alone)) / 2, rel=1e-3)


def test_a_pipeline_trains_hands_on_and_saves_its_policy(data: gw.Dataset, unet_pipeline: Any, tmp_path: Path) -> None:
    unet_pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = gw.model("diffusers-pipeline", name=str(tmp_path / "pipeline"))
    config = gw.TrainConfig(steps=3, batch_size=2, optimizer={"use": "adam", "lr": 0.1}, log_every=1)
    rows: list[dict[str, float]] = []
    objective = gw.objective("guidance-policy-search", steps=STEPS, guidance_scale=SCALE, budget=4.5, cost_weight=1e4)
    engine = gw.Engine(loaded, objective, data, config, device="cpu", log=lambda step, row: rows.append(row))
    searched = engine.fit()
    assert isinstance(searched, GuidedPipeline)
    assert [set(row) >= {"loss", "distance", "expected-nfe"} for row in rows] == [True] * 3
    assert rows[-1]["expected-nfe"] < rows[0]["expected-nfe"]
    assert all(one.cost == 1 for one in searched.guidance.policy)
    searched.save_pretrained(tmp_path / "searched")
    kept = json.loads((tmp_path / "searched" / "guidance_policy.json").read_text())["policy"]
    assert GuidancePolicy(kept).policy == searched.guidance.policy
    assert gw.guidance("guidance-policy", searched=searched).policy == searched.guidance.policy
    report = gw.evaluator("guidance-policy-report").evaluate(searched, data)
    assert report.metrics["nfe"] == STEPS
    assert searched("a red one", num_inference_steps=STEPS, guidance_scale=SCALE, output_type="pt").images.shape == (1, 3, 16, 16)
    assert searched.guidance.costs[-1].evaluations == [STEPS]


def test_alpha_is_in_the_state_that_is_saved(unet_pipeline: Any, data: gw.Dataset) -> None:
    first, second = prepared(unet_pipeline, data), prepared(unet_pipeline, data)
    with torch.no_grad():
        first.logits.normal_(generator=torch.Generator().manual_seed(0))
    second.load_state_dict(first.state_dict())
    assert first.policy == second.policy != prepared(unet_pipeline, data).policy


def test_alpha_has_a_row_for_each_step_of_the_solver(unet_pipeline: Any, data: gw.Dataset) -> None:
    assert prepared(unet_pipeline, data, solver="heun").logits.shape == (STEPS, 5)
    assert prepared(unet_pipeline, data, options=["cond", "cfg"]).logits.shape == (STEPS, 2)


def test_what_cannot_be_searched_is_refused(unet_pipeline: Any, data: gw.Dataset) -> None:
    with pytest.raises(ConfigError, match="charge_all charges from the first evaluation on and goes without a budget; found 20"):
        gw.objective("guidance-policy-search", charge_all=True, budget=20)
    with pytest.raises(ConfigError, match="options has 1 entry: a search needs two"):
        gw.objective("guidance-policy-search", options=["cfg"])
    with pytest.raises(DataError, match='reads prompts from "caption", which holds Tensor, not text'):
        prepared(unet_pipeline, data)(unet_pipeline, {"train": {"caption": torch.zeros(2), "index": torch.arange(2)}}, 0.0)
    own = unet_pipeline.scheduler
    unet_pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler()
    try:
        with pytest.raises(InterfaceError, match="adds noise at every step"):
            prepared(unet_pipeline, data)
    finally:
        unet_pipeline.scheduler = own


def test_a_pipeline_carries_one_guidance(unet_pipeline: Any) -> None:
    guided = GuidedPipeline(unet_pipeline, GuidancePolicy.of((Choice("cond"),)))
    assert guided.scheduler is unet_pipeline.scheduler
    assert guided.to("cpu") is guided
    with pytest.raises(InterfaceError, match="carries a guidance already"):
        GuidedPipeline(guided, GuidancePolicy.of((Choice("cond"),)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="searched is a pipeline that carries a policy; StableDiffusionPipeline carries none"):
        gw.guidance("guidance-policy", searched=unet_pipeline)
