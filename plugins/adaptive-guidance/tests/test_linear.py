from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import graftwork as gw
from graftwork import ArtifactError, ConfigError, DataError
from graftwork_adaptive_guidance import (
    CoefficientTable,
    LinearAdaptiveGuidance,
    StreamedLeastSquares,
    alternating_schedule,
    check_schedule,
    evaluations_of,
    fit_coefficients,
    using_solver,
)

STEPS, SCALE = 6, 4.0
MARKS = ("cfg", "estimate", "cfg", "estimate", "cond", "cond")


def made_table(**settings: Any) -> CoefficientTable:
    """Estimates u_1 and u_3 as the conditional prediction of their own step."""
    own = torch.zeros(STEPS, STEPS, dtype=torch.float64)
    own[1, 1] = own[3, 3] = 1
    zeros = torch.zeros(STEPS, STEPS, dtype=torch.float64)
    given = {"conditional": own, "unconditional": zeros, "constant": zeros[0], "schedule": MARKS, "guidance_scale": SCALE}
    return CoefficientTable(**{**given, **settings})


@pytest.fixture(scope="module")
def call(calls: Any) -> Any:
    """Three prompts, in as many steps as there are marks."""
    return calls(("a red one", "a blue seven", "a green four"), steps=STEPS)


@pytest.fixture(scope="module")
def fitted(unet_pipeline: Any, call: Any) -> CoefficientTable:
    return fit(unet_pipeline, call)


def fit(pipeline: Any, call: Any, **settings: Any) -> CoefficientTable:
    return fit_coefficients(pipeline, [call], evaluations_of(pipeline, STEPS), SCALE, schedule=MARKS, **settings)


def draw(pipeline: Any, call: Any, guidance: Any) -> torch.Tensor:
    with guidance.attach(pipeline):
        return call.run(pipeline, output_type="latent")


# -- least squares -------------------------------------------------------------------------------------------------------------


def regression(noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(5, 600, generator=generator)
    truth = torch.tensor([0.5, -1.0, 2.0, 0.0, 0.25])
    return columns, truth @ columns + noise * torch.randn(600, generator=generator), truth


def test_an_exact_combination_is_recovered_from_a_stream() -> None:
    columns, target, truth = regression(0.0)
    streamed = StreamedLeastSquares(5)
    for block in range(0, 600, 90):
        streamed.add(columns[:, block : block + 90], target[block : block + 90])
    found = streamed.solve()
    torch.testing.assert_close(found.coefficients, truth.double(), atol=1e-6, rtol=0)
    assert found.r2 == pytest.approx(1, abs=1e-9)
    assert found.relative_error < 1e-5


def test_the_streamed_fit_is_numpys_dense_one_and_its_errors_are_those_of_the_residual() -> None:
    columns, target, _ = regression(0.7)
    streamed = StreamedLeastSquares(5)
    for block in range(0, 600, 100):
        streamed.add(columns[:, block : block + 100], target[block : block + 100])
    found = streamed.solve()
    dense = numpy.linalg.lstsq(columns.T.double().numpy(), target.double().numpy(), rcond=None)[0]
    numpy.testing.assert_allclose(found.coefficients.numpy(), dense, atol=1e-6)
    residual = target.double() - found.coefficients @ columns.double()
    spread = (target.double() - target.double().mean()).square().sum()
    assert found.r2 == pytest.approx(float(1 - residual.square().sum() / spread), abs=1e-9)
    assert found.relative_error == pytest.approx(float(residual.norm() / target.double().norm()), abs=1e-9)


def test_columns_that_are_alike_share_a_coefficient_and_stay_finite() -> None:
    column = torch.randn(50, generator=torch.Generator().manual_seed(0))
    streamed = StreamedLeastSquares(2)
    streamed.add(torch.stack([column, column]), column)
    torch.testing.assert_close(streamed.solve().coefficients, torch.full((2,), 0.5, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_fit_without_rows_or_with_other_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="a fit needs rows"):
        StreamedLeastSquares(2).solve()
    with pytest.raises(ValueError, match="2 columns are fitted; found 3"):
        StreamedLeastSquares(2).add(torch.ones(3, 4), torch.ones(4))


# -- the rule ------------------------------------------------------------------------------------------------------------------


def test_the_default_schedule_alternates_in_the_first_half() -> None:
    marks = alternating_schedule(20)
    assert marks[:10] == ("cfg", "estimate") * 5
    assert set(marks[10:]) == {"cond"}
    assert sum({"cfg": 2}.get(mark, 1) for mark in marks) == 25


def test_an_oracles_table_gives_plain_guidance(pipeline: Any, call: Any) -> None:
    """Where the negative prompt is the prompt itself u = c, which the table says."""
    (prompt, *_), more = call.prompts, {"negative_prompt": call.prompts[0]}
    alike = dataclasses.replace(call, prompts=(prompt,) * 3, **more)
    guidance = LinearAdaptiveGuidance(made_table(schedule=("cfg", "estimate", "cfg", "estimate", "cfg", "cfg")).to_artifact())
    torch.testing.assert_close(draw(pipeline, alike, guidance), alike.run(pipeline, output_type="latent"), atol=1e-5, rtol=1e-4)


def test_estimates_and_the_tail_cost_one_row(pipeline: Any, call: Any, rows: Any) -> None:
    guidance = LinearAdaptiveGuidance(made_table().to_artifact())
    with rows(pipeline) as counted:
        draw(pipeline, call, guidance)
    assert sum(counted) == 3 * (2 + 1 + 2 + 1 + 1 + 1)
    assert guidance.costs[-1].evaluations == [8, 8, 8]


def test_estimates_enter_later_estimates(unet_pipeline: Any, call: Any) -> None:
    """u^_3 = u^_1 by the table, so a table of another u^_1 must change u^_3 too."""
    bu = torch.zeros(STEPS, STEPS, dtype=torch.float64)
    bu[3, 1] = 1
    bc = torch.zeros(STEPS, STEPS, dtype=torch.float64)
    bc[1, 1] = 0.5
    guidance = LinearAdaptiveGuidance(made_table(conditional=bc, unconditional=bu).to_artifact())
    draw(unet_pipeline, call, guidance)
    history = guidance._rule._history
    torch.testing.assert_close(history[1, 1], 0.5 * history[0, 1])
    torch.testing.assert_close(history[1, 3], history[1, 1])


def test_a_constant_term_is_added(unet_pipeline: Any, call: Any) -> None:
    constant = torch.zeros(STEPS, dtype=torch.float64)
    constant[1] = 0.25
    guidance = LinearAdaptiveGuidance(made_table(constant=constant).to_artifact())
    draw(unet_pipeline, call, guidance)
    torch.testing.assert_close(guidance._rule._history[1, 1], guidance._rule._history[0, 1] + 0.25)


def test_a_stopped_sample_uses_the_conditional_prediction_alone(pipeline: Any, call: Any) -> None:
    stopped = draw(pipeline, call, LinearAdaptiveGuidance(made_table().to_artifact(), threshold=-1.0))
    plain = draw(pipeline, call, gw.guidance("guidance-policy", policy=["cfg"] + ["cond"] * (STEPS - 1)))
    torch.testing.assert_close(stopped, plain, atol=2e-5, rtol=1e-4)


def test_a_history_in_half_precision_gives_nearly_the_same(unet_pipeline: Any, call: Any, fitted: CoefficientTable) -> None:
    whole, half = (LinearAdaptiveGuidance(fitted.to_artifact(), history=kind) for kind in (None, "float16"))
    expected, found = draw(unet_pipeline, call, whole), draw(unet_pipeline, call, half)
    assert half._rule._history.dtype == torch.float16
    assert 0 < (expected - found).abs().max() < 0.05 * expected.std()


# -- the fit -------------------------------------------------------------------------------------------------------------------


def test_the_teacher_forced_fit_is_the_dense_one_on_recorded_predictions(unet_pipeline: Any, call: Any, recorded: Any) -> None:
    u, c = zip(*(output.double().chunk(2) for _, output in recorded(unet_pipeline, call)), strict=True)
    found = fit(unet_pipeline, call, mode="teacher-forced")
    for index in (1, 3):
        columns = torch.stack([one.flatten() for one in (*c[: index + 1], *u[:index])], 1)
        gram = columns.T @ columns
        damped = gram + 1e-8 * gram.diagonal().mean() * torch.eye(len(gram))
        expected = torch.linalg.solve(damped, columns.T @ u[index].flatten())
        row = torch.cat([found.conditional[index, : index + 1], found.unconditional[index, :index]])
        residual = ((columns @ row) - u[index].flatten()).norm() / u[index].norm()
        best = ((columns @ expected) - u[index].flatten()).norm() / u[index].norm()
        assert float(residual) == pytest.approx(float(best), rel=1e-3)
        assert found.relative_error[index // 2] == pytest.approx(float(residual), rel=1e-2)


def test_on_policy_fits_see_the_samples_that_earlier_estimates_lead_to(unet_pipeline: Any, call: Any) -> None:
    """The first estimate meets the teacher's own samples; the second does not."""
    forced, own = fit(unet_pipeline, call, mode="teacher-forced"), fit(unet_pipeline, call)
    torch.testing.assert_close(own.conditional[1], forced.conditional[1])
    assert not torch.allclose(own.conditional[3], forced.conditional[3], rtol=1e-3)
    assert own.mode == "on-policy"


def test_the_fit_costs_no_more_than_the_evaluations_that_it_reads(unet_pipeline: Any, call: Any, rows: Any) -> None:
    with rows(unet_pipeline) as counted:
        fit(unet_pipeline, call)
    assert counted == [6, 6, 6, 3, 6, 6]  # one pass for each estimate


def test_a_fitted_constant_and_a_fit_in_two_calls_work(flow_pipeline: Any, call: Any) -> None:
    found = fit(flow_pipeline, call, constant=True)
    assert found.constant[[1, 3]].abs().min() > 0
    assert min(found.r2) > 0.5
    draw(flow_pipeline, call, LinearAdaptiveGuidance(found.to_artifact()))


def test_the_guidance_fits_itself_on_a_data_set(unet_pipeline: Any, call: Any) -> None:
    data = gw.Dataset({"train": gw.TensorSamples(caption=list(call.prompts))})
    guidance = LinearAdaptiveGuidance(steps=4, guidance_scale=3.0, trajectories=2, schedule=["cfg", "estimate", "cond", "cond"])
    artifact = guidance.fit(unet_pipeline, data)
    assert artifact.type == "linear-guidance-coefficients"
    assert guidance.sample(unet_pipeline, {"prompt": "a red one", "num_inference_steps": 4}).metrics["nfe"] == 5
    with pytest.raises(DataError, match='"text", which is no text in sample 0 of "train"; it has caption'):
        LinearAdaptiveGuidance(key="text").fit(unet_pipeline, data)


# -- the table -----------------------------------------------------------------------------------------------------------------


def test_a_table_comes_back_from_its_folder_and_draws_the_same(
    unet_pipeline: Any, call: Any, fitted: CoefficientTable, tmp_path: Path
) -> None:
    fitted.to_artifact().save(tmp_path)
    loaded = gw.guidance("linear-adaptive-guidance", table=str(tmp_path))
    assert loaded.table.sampler == fitted.sampler
    assert torch.equal(draw(unet_pipeline, call, loaded), draw(unet_pipeline, call, LinearAdaptiveGuidance(fitted.to_artifact())))


def test_a_table_for_another_call_is_refused_and_both_are_named(unet_pipeline: Any, call: Any, fitted: CoefficientTable) -> None:
    guidance = LinearAdaptiveGuidance(fitted.to_artifact())
    with pytest.raises(ArtifactError, match="fitted for steps 6; the call has 5"):
        draw(unet_pipeline, dataclasses.replace(call, steps=5), guidance)
    with pytest.raises(ArtifactError, match=r"fitted for guidance_scale 4.0; the call has 3.0"):
        draw(unet_pipeline, dataclasses.replace(call, guidance_scale=3.0), guidance)
    message = "fitted for scheduler DDIMScheduler; the call has DPMSolverMultistepScheduler"
    with pytest.raises(ArtifactError, match=message), using_solver(unet_pipeline, "dpm-solver++"):
        draw(unet_pipeline, call, guidance)
    renamed = dataclasses.replace(fitted, model="SD3Transformer2DModel")
    with pytest.raises(ArtifactError, match="fitted for model SD3Transformer2DModel; the call has UNet2DConditionModel"):
        draw(unet_pipeline, call, LinearAdaptiveGuidance(renamed.to_artifact()))
    other = dataclasses.replace(fitted, fingerprint="0" * 64)
    with pytest.raises(ArtifactError, match="fitted for weights 000000000000; the call has"):
        draw(unet_pipeline, call, LinearAdaptiveGuidance(other.to_artifact()))
    draw(unet_pipeline, call, LinearAdaptiveGuidance(other.to_artifact(), check_weights=False))


def test_a_changed_setting_of_the_scheduler_is_named(unet_pipeline: Any, call: Any, fitted: CoefficientTable) -> None:
    settings = {**fitted.sampler, "prediction_type": "sample"}
    guidance = LinearAdaptiveGuidance(dataclasses.replace(fitted, sampler=settings).to_artifact())
    with pytest.raises(ArtifactError, match="fitted for scheduler's prediction_type sample; the call has epsilon"):
        draw(unet_pipeline, call, guidance)


def test_a_first_step_that_is_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match="step 0 is marked estimate: no past prediction to combine"):
        check_schedule(["estimate", "cfg"])
    with pytest.raises(ConfigError, match="no past prediction to combine"):
        gw.guidance("linear-adaptive-guidance", schedule=["estimate", "cfg"])
    with pytest.raises(ValueError, match="step 2 is guided after a conditional one"):
        check_schedule(["cfg", "cond", "estimate"])


def test_a_guidance_without_coefficients_says_how_to_get_them(unet_pipeline: Any, call: Any) -> None:
    with pytest.raises(ConfigError, match="has no coefficients: fit them, or take them from guidance-alignment"):
        draw(unet_pipeline, call, LinearAdaptiveGuidance())


def test_a_table_that_looks_ahead_or_is_damaged_is_refused() -> None:
    ahead = torch.zeros(STEPS, STEPS, dtype=torch.float64)
    ahead[1, 2] = 1
    with pytest.raises(ValueError, match="a prediction that is yet to come"):
        made_table(conditional=ahead)
    whole = made_table().to_artifact()
    damaged = dataclasses.replace(whole, data={key: value for key, value in whole.data.items() if key != "schedule"})
    with pytest.raises(ArtifactError, match="the coefficient table is damaged"):
        LinearAdaptiveGuidance(damaged)
    with pytest.raises(ArtifactError, match='type "linear-guidance-coefficients" is expected'):
        LinearAdaptiveGuidance(gw.Artifact("other"))
