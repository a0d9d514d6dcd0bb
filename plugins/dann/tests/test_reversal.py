from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from graftwork.schedules import inverse_decay
from graftwork_dann import GradientReversal, gradient_reversal, reversal_coefficient

PROGRESS = (0.0, 0.1, 0.25, 0.5, 1.0)


def test_lambda_rises_by_the_papers_schedule() -> None:
    found = [reversal_coefficient(p) for p in PROGRESS]
    assert found == pytest.approx([0, 0.4621171573, 0.8482836400, 0.9866142982, 0.9999092043], abs=5e-11)


def test_the_learning_rate_falls_by_the_papers_schedule() -> None:
    found = [0.01 * inverse_decay(p, alpha=10, beta=0.75) for p in PROGRESS]
    assert found == pytest.approx([0.01, 0.0059460356, 0.0039079497, 0.0026084743, 0.0016556003], abs=5e-11)


def test_beyond_the_end_both_schedules_stay() -> None:
    assert reversal_coefficient(1.7) == reversal_coefficient(1.0)
    assert inverse_decay(1.7) == inverse_decay(1.0)


def test_lambda_runs_between_the_given_bounds() -> None:
    assert reversal_coefficient(0, low=0.2, high=0.6) == 0.2
    assert reversal_coefficient(1, gamma=60, low=0.2, high=0.6) == pytest.approx(0.6)


def test_forward_is_the_identity_and_shares_storage() -> None:
    x = torch.randn(3, 2)
    y = gradient_reversal(x, 0.7)
    assert torch.equal(x, y)
    assert y.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 2.0, torch.tensor(0.3)])
def test_the_gradient_comes_back_times_minus_the_coefficient(coefficient: float | torch.Tensor) -> None:
    x = torch.randn(4, requires_grad=True)
    gradient_reversal(x, coefficient).square().sum().backward()
    assert torch.allclose(x.grad, -coefficient * 2 * x.detach())


def test_the_coefficient_gets_no_gradient() -> None:
    coefficient = torch.tensor(0.5, requires_grad=True)
    gradient_reversal(torch.randn(3, requires_grad=True), coefficient).sum().backward()
    assert coefficient.grad is None


def test_two_reversals_in_series_multiply_by_plus_ab() -> None:
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    gradient_reversal(gradient_reversal(x, 0.3), 0.7).sin().sum().backward()
    assert torch.allclose(x.grad, 0.21 * x.detach().cos())


def test_training_through_the_reversal_descends_the_saddle_function() -> None:
    """d(L_y - lambda L_d)/d theta_f by finite differences equals autograd of L_y + L_d through the reversal."""
    torch.manual_seed(0)
    features, label_head, domain_head = (nn.Linear(a, b, dtype=torch.float64) for a, b in ((3, 4), (4, 2), (4, 1)))
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    domain = torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.float64)

    def losses(weight: torch.Tensor, coefficient: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.tanh(functional.linear(x, weight, features.bias))
        reversed_h = h if coefficient is None else gradient_reversal(h, coefficient)
        domain_logits = domain_head(reversed_h)[:, 0]
        return functional.cross_entropy(label_head(h), y), functional.binary_cross_entropy_with_logits(domain_logits, domain)

    def saddle(weight: torch.Tensor) -> torch.Tensor:
        task, domains = losses(weight, None)
        return task - 0.4 * domains

    assert torch.autograd.gradcheck(saddle, features.weight.detach().requires_grad_())
    sum(losses(features.weight, 0.4)).backward()
    reference = features.weight.detach().requires_grad_()
    assert torch.allclose(features.weight.grad, torch.autograd.grad(saddle(reference), reference)[0], rtol=1e-12)


def test_the_heads_gradient_does_not_depend_on_lambda() -> None:
    head, x = nn.Linear(4, 1), torch.randn(6, 4, requires_grad=True)
    first, second = (torch.autograd.grad(head(gradient_reversal(x, c)).square().sum(), list(head.parameters())) for c in (0.1, 5.0))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_it_can_be_differentiated_twice() -> None:
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(gradient_reversal(x, 0.5).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    # the inner pass gives -0.5 * 3 x^2, and x reaches that again through the reversal: -0.5 * (-0.5 * 6 x)
    assert torch.allclose(gradient, -1.5 * x.detach().square())
    assert torch.allclose(second, 1.5 * x.detach())


def test_a_gradient_penalty_on_the_head_trains_both_sides() -> None:
    head, x = nn.Linear(3, 1), torch.randn(5, 3, requires_grad=True)
    reversed_x = gradient_reversal(x, 0.5)
    (gradient,) = torch.autograd.grad(torch.sigmoid(head(reversed_x)).sum(), reversed_x, create_graph=True)
    (gradient.norm(dim=1) - 1).square().mean().backward()
    assert head.weight.grad.abs().sum() > 0
    assert x.grad.isfinite().all()


def test_under_autocast_the_gradient_keeps_its_scale() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = layer(x)
        y = gradient_reversal(h, 0.25)
    assert y.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(y.float().sum(), h)
    assert torch.equal(gradient, torch.full_like(h, -0.25))


def test_torch_compile_takes_it_whole() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x: torch.Tensor, coefficient: float) -> torch.Tensor:
        return gradient_reversal(x.sin(), coefficient).square().sum()

    for coefficient in (0.1, 0.2, 0.3):  # the coefficient changes every step
        x = torch.randn(5, requires_grad=True)
        step(x, coefficient).backward()
        assert torch.allclose(x.grad, -coefficient * 2 * x.detach().sin() * x.detach().cos(), atol=1e-6)


def test_the_module_follows_its_progress_and_saves_it() -> None:
    reversal = GradientReversal()
    reversal.progress = 0.25
    x = torch.ones(2, requires_grad=True)
    reversal(x).sum().backward()
    assert torch.allclose(x.grad, torch.full((2,), -0.84828364))
    restored = GradientReversal()
    restored.load_state_dict(reversal.state_dict())
    assert restored.coefficient == reversal.coefficient


def test_a_constant_coefficient_stays() -> None:
    reversal = GradientReversal(0.3)
    reversal.progress = 0.9
    assert reversal.coefficient == 0.3


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reversed in floating point; found a tensor of torch.int64"):
        gradient_reversal(torch.arange(3), 1.0)


@pytest.mark.parametrize("coefficient", [math.nan, math.inf])
def test_a_coefficient_that_is_not_finite_is_refused(coefficient: float) -> None:
    with pytest.raises(ValueError, match="is finite; found"):
        gradient_reversal(torch.ones(2), coefficient)
    with pytest.raises(ValueError, match="is finite; found"):
        GradientReversal(coefficient)


def test_gradients_agree_with_pytorch_adapt() -> None:
    peer = pytest.importorskip("pytorch_adapt.layers", reason="pytorch-adapt is not installed", exc_type=ImportError)
    ours, theirs = (torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    gradient_reversal(ours, 0.37).pow(3).sum().backward()
    peer.GradientReversal(0.37)(theirs).pow(3).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-6, atol=0)


@pytest.mark.gpu
def test_on_a_gpu_the_numbers_are_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.randn(64, 8)
    grads = []
    for device in ("cpu", "cuda"):
        leaf = x.to(device).requires_grad_()
        gradient_reversal(leaf, 0.37).pow(3).sum().backward()
        grads.append(leaf.grad.cpu())
    assert torch.allclose(*grads)
