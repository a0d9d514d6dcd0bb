from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import graftwork as gw
from graftwork import ArtifactError, ConfigError, DataError, InterfaceError
from graftwork_adaptive_guidance import (
    AdaptiveGuidance,
    GuidanceFidelity,
    choose_threshold,
    guided_steps,
    image_similarity,
    saved_share,
    threshold_artifact,
)

STEPS, SCALE = 6, 4.0
PROMPTS = ["a red one", "a blue seven", "a green four"]
SETTINGS = {"prompts": PROMPTS, "steps": STEPS, "guidance_scale": SCALE, "batch_size": 2}


def gammas() -> torch.Tensor:
    return torch.tensor([[0.1, 0.5], [0.6, 0.4], [0.5, 0.9], [0.9, 0.95]])


# -- the threshold -------------------------------------------------------------------------------------------------------------


def test_guided_steps_end_with_the_first_that_reaches_the_threshold() -> None:
    assert guided_steps(gammas(), 0.55).tolist() == [2, 3]
    assert guided_steps(gammas(), -1.0).tolist() == [1, 1]
    assert guided_steps(gammas(), 0.99).tolist() == [4, 4]
    assert guided_steps(gammas(), -1.0, min_steps=3).tolist() == [3, 3]


def test_what_is_saved_is_what_t_plus_k_leaves_of_two_t() -> None:
    assert saved_share(torch.tensor([1, 4, 10]), 10).tolist() == pytest.approx([0.45, 0.3, 0.0])


def test_the_largest_threshold_that_saves_enough_is_chosen() -> None:
    grid = [0.2, 0.55, 0.7, 0.97]
    assert choose_threshold(gammas(), grid, 0.1) == 0.55  # k = 2, 3: 0.1875; 0.7 has k = 4, 3: 0.0625
    assert choose_threshold(gammas(), grid, 0.05) == 0.7
    assert choose_threshold(gammas(), grid, 0.45) is None


def test_a_threshold_is_handed_on_with_its_space() -> None:
    guidance = gw.guidance("adaptive-guidance", calibration=threshold_artifact(0.9, "x0"))
    assert (guidance.threshold, guidance.space) == (0.9, "x0")
    with pytest.raises(ArtifactError, match="holds no threshold: found None in space None"):
        AdaptiveGuidance(calibration=gw.Artifact("guidance-threshold"))


# -- guidance-alignment --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aligned(unet_pipeline: Any) -> gw.Report:
    evaluator = gw.evaluator("guidance-alignment", **SETTINGS, schedule=["cfg", "estimate", "cfg", "estimate", "cond", "cond"])
    return evaluator.evaluate(unet_pipeline, gw.Dataset({}))


def test_the_table_of_steps_is_the_cosine_of_recorded_predictions(
    unet_pipeline: Any, aligned: gw.Report, calls: Any, recorded: Any
) -> None:
    seen = recorded(unet_pipeline, calls(tuple(PROMPTS), steps=STEPS, inputs={}))
    gamma = torch.stack([functional.cosine_similarity(*output.float().flatten(1).chunk(2), dim=1) for _, output in seen])
    rows = aligned.tables["steps"].rows
    assert [row[0] for row in rows] == list(range(STEPS))
    expected = torch.stack([gamma.mean(1), gamma.amin(1), gamma.amax(1)], 1)
    torch.testing.assert_close(torch.tensor([row[1:] for row in rows]), expected, atol=1e-5, rtol=0)


def test_the_chosen_threshold_saves_what_the_report_says(unet_pipeline: Any, aligned: gw.Report, calls: Any) -> None:
    assert aligned.metrics["nfe-saved"] >= 0.25
    guidance = AdaptiveGuidance(calibration=aligned.artifacts["threshold"])
    with guidance.attach(unet_pipeline):
        calls(tuple(PROMPTS), steps=STEPS, inputs={}).run(unet_pipeline, output_type="latent")
    assert guidance.costs[-1].saved == pytest.approx(aligned.metrics["nfe-saved"], abs=1e-9)


def test_the_coefficients_are_handed_on_with_their_errors(unet_pipeline: Any, aligned: gw.Report, calls: Any) -> None:
    rows = aligned.tables["estimates"].rows
    assert [row[0] for row in rows] == [1, 3]
    assert aligned.metrics["estimate-r2"] == min(row[1] for row in rows)
    guidance = gw.guidance("linear-adaptive-guidance", coefficients=aligned.artifacts["coefficients"])
    with guidance.attach(unet_pipeline):
        calls(tuple(PROMPTS), steps=STEPS, inputs={}).run(unet_pipeline, output_type="latent")
    assert guidance.costs[-1].evaluations == [8, 8, 8]


def test_thresholds_of_ones_own_are_the_grid_and_too_much_saving_chooses_none(unet_pipeline: Any) -> None:
    evaluator = gw.evaluator("guidance-alignment", **SETTINGS, thresholds=[1.5, 2.0], linear=False)
    report = evaluator.evaluate(unet_pipeline, gw.Dataset({}))
    assert [row[0] for row in report.tables["thresholds"].rows] == [1.5, 2.0]
    assert not report.artifacts
    assert "threshold" not in report.metrics


def test_prompts_come_from_a_split_or_are_refused(unet_pipeline: Any) -> None:
    data = gw.Dataset({"val": gw.TensorSamples(caption=PROMPTS, label=torch.arange(3)), "none": gw.TensorSamples(caption=[])})
    settings = {"steps": 2, "guidance_scale": SCALE, "linear": False, "split": "val"}
    report = gw.evaluator("guidance-alignment", **settings, limit=2).evaluate(unet_pipeline, data)
    assert [row[0] for row in report.tables["stops"].rows] == PROMPTS[:2]
    with pytest.raises(DataError, match='prompts are read from "label", which is no text in sample 0 of "val"; it has caption, label'):
        gw.evaluator("guidance-alignment", **settings, key="label").evaluate(unet_pipeline, data)
    with pytest.raises(DataError, match='split "none" is empty'):
        gw.evaluator("guidance-alignment", **{**settings, "split": "none"}).evaluate(unet_pipeline, data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thresholds": [-3.0]}, "threshold is a cosine"),
        ({"prompts": []}, "prompts is empty"),
        ({"schedule": ["estimate"]}, "no past prediction to combine"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gw.evaluator("guidance-alignment", **settings)


# -- guidance-fidelity ---------------------------------------------------------------------------------------------------------


def test_images_alike_have_the_most_decibels_and_noise_the_right_ones() -> None:
    image = torch.full((2, 3, 16, 16), 0.5)
    decibels, structural = image_similarity(image, image)
    assert decibels.tolist() == [100.0, 100.0]
    torch.testing.assert_close(structural, torch.ones(2))
    decibels, _ = image_similarity(image + 0.1, image)
    torch.testing.assert_close(decibels, torch.full((2,), 20.0), atol=1e-3, rtol=0)


def test_a_comparison_on_no_prompt_is_refused():
    with pytest.raises(ValueError, match="prompts is empty; give some, or none to read a split"):
        GuidanceFidelity({"adaptive": AdaptiveGuidance()}, prompts=[])


def test_baselines_are_given_at_least_the_cost_that_they_are_held_against(unet_pipeline: Any) -> None:
    guidances = {
        "adaptive": {"use": "adaptive-guidance", "threshold": -1.0, "min_steps": 3},
        "off": {"use": "adaptive-guidance", "threshold": 2.0},
    }
    report = gw.evaluator("guidance-fidelity", **SETTINGS, guidances=guidances).evaluate(unet_pipeline, gw.Dataset({}))
    metrics = report.metrics
    assert (metrics["cfg/nfe"], metrics["adaptive/nfe"], metrics["adaptive/saved"]) == (12, 9, 0.25)
    assert (metrics["fewer-steps/nfe"], metrics["mirrored/nfe"]) == (10, 9)
    assert (metrics["off/psnr"], metrics["off/saved"]) == (100, 0)
    assert metrics["off/ssim"] == pytest.approx(1, abs=1e-5)
    assert metrics["mirrored/psnr"] < 100
    assert [row[0] for row in report.tables["fidelity"].rows] == ["cfg", "adaptive", "off", "fewer-steps", "mirrored"]
    axes = report.figures["samples"].figure.axes
    assert len(axes) == 5 * 3
    assert [one.get_title() for one in axes[:4]] == [*PROMPTS, ""]


def test_a_run_of_a_pipeline_hands_threshold_and_table_to_the_guidances(unet_pipeline: Any, tmp_path: Path) -> None:
    unet_pipeline.save_pretrained(tmp_path / "model")
    settings = {**SETTINGS, "prompts": PROMPTS[:2]}
    model = {"use": "diffusers-pipeline", "name": str(tmp_path / "model")}
    inputs = {"prompt": ["a red one"], "num_inference_steps": STEPS, "guidance_scale": SCALE}
    adaptive = {"use": "adaptive-guidance", "calibration": {"from": "look/threshold"}}
    linear = {"use": "linear-adaptive-guidance", "coefficients": {"from": "look/coefficients"}}
    stages = {
        "look": {"model": model, "evaluate": [{"use": "guidance-alignment", **settings}]},
        "draw": {"model": {"from": "look"}, "sample": {"guidance": adaptive, "inputs": inputs}},
        "compare": {
            "model": {"from": "look"},
            "evaluate": [{"use": "guidance-fidelity", **settings, "guidances": {"ag": adaptive, "linear": linear}}],
        },
    }
    result = gw.Pipeline.from_dict({"stages": stages}).run(tmp_path / "run", device="cpu")
    assert result.metrics["compare/linear/nfe"] == 2 * 2 + 1 + 3
    assert result.metrics["draw/nfe"] < 2 * STEPS
    assert result.metrics["compare/ag/saved"] == pytest.approx(result.metrics["look/nfe-saved"], abs=1e-9)
    assert (tmp_path / "run" / "stages" / "look" / "guidance-alignment" / "alignment.png").stat().st_size > 5000


class Silent(gw.Guidance):
    @contextmanager
    def attach(self, pipeline: Any) -> Any:
        yield pipeline


def test_what_cannot_be_compared_is_refused(unet_pipeline: Any) -> None:
    for given, message in (
        ({"guidances": {}}, "guidances is empty"),
        ({"guidances": {"cfg": "adaptive-guidance"}}, "names of baselines; found cfg"),
        ({"guidances": {"ag": "adaptive-guidance"}, "match": "aq"}, 'match is one of ag; found "aq"'),
    ):
        with pytest.raises(ConfigError, match=message):
            gw.evaluator("guidance-fidelity", **given)
    with pytest.raises(InterfaceError, match="needs guidances that tell their costs; Silent does not"):
        gw.evaluator("guidance-fidelity", **SETTINGS, guidances={"s": Silent()}).evaluate(unet_pipeline, gw.Dataset({}))
    with pytest.raises(InterfaceError, match="needs a pipeline that carries a policy; StableDiffusionPipeline carries none"):
        gw.evaluator("guidance-policy-report").evaluate(unet_pipeline, gw.Dataset({}))
