from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graftwork_adaptive_guidance import AdaptiveGuider, guidance_cosine


def predictions(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three samples whose cosines rise with the step, the first fastest."""
    generator = torch.Generator().manual_seed(0)
    c, noise = torch.randn(2, 3, 4, 6, 6, generator=generator)
    return c, c + noise * torch.tensor([0.2, 0.6, 1.0]).view(3, 1, 1, 1) * (1 - step / 6)


def run(guider: AdaptiveGuider, steps: int = 6) -> list[tuple[int, torch.Tensor]]:
    found = []
    for step in range(steps):
        guider.set_state(step, steps, torch.tensor(1000 - step))
        c, u = predictions(step)
        count = guider.num_conditions
        found.append((count, guider(guider_states(c, u)[:count])[0]))
    return found


def guider_states(c: torch.Tensor, u: torch.Tensor) -> list[object]:
    from diffusers.modular_pipelines.modular_pipeline import BlockState

    return [BlockState(noise_pred=one, __guidance_identifier__=name) for one, name in ((c, "pred_cond"), (u, "pred_uncond"))]


def test_the_conditions_fall_to_one_when_the_last_sample_has_stopped() -> None:
    cosines = torch.stack([guidance_cosine(*predictions(step)) for step in range(6)])
    threshold = float(cosines[3, 2])  # the slowest sample reaches it in step 3
    found = run(AdaptiveGuider(guidance_scale=3.0, threshold=threshold))
    assert [count for count, _ in found] == [2, 2, 2, 2, 1, 1]
    for step, (_, result) in enumerate(found):
        c, u = predictions(step)
        for sample in range(3):
            before = bool((cosines[:step, sample] >= threshold).any())
            expected = c[sample] if before else u[sample] + 3 * (c[sample] - u[sample])
            torch.testing.assert_close(result[sample], expected, atol=0, rtol=0)


def test_a_threshold_above_one_never_stops_and_min_steps_delays() -> None:
    assert [count for count, _ in run(AdaptiveGuider(threshold=1.5))] == [2] * 6
    assert [count for count, _ in run(AdaptiveGuider(threshold=-1.0, min_steps=3))] == [2, 2, 2, 1, 1, 1]


def test_a_new_call_opens_the_latches() -> None:
    guider = AdaptiveGuider(threshold=-1.0)
    first, second = run(guider), run(guider)
    assert [count for count, _ in first] == [count for count, _ in second] == [2, 1, 1, 1, 1, 1]
    guider.set_state(3, 6, torch.tensor(0))
    guider.set_state(2, 6, torch.tensor(0))  # a call that was cut short, and another
    assert guider.num_conditions == 2


def test_settings_are_saved_loaded_and_checked(tmp_path: Path) -> None:
    AdaptiveGuider(guidance_scale=4.0, threshold=0.97).save_pretrained(tmp_path)
    loaded = AdaptiveGuider.from_pretrained(tmp_path)
    assert (loaded.threshold, loaded.guidance_scale) == (0.97, 4.0)
    with pytest.raises(ValueError, match="threshold is a cosine; values above 1 switch the stop off; found -2"):
        AdaptiveGuider(threshold=-2.0)
    with pytest.raises(ValueError, match="min_steps is at least 1"):
        AdaptiveGuider(min_steps=0)
