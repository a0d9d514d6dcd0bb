from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

from graftwork_dann import MSDA, ShallowDANN, shallow_losses, shallow_steps
from graftwork_dann.shallow import ShallowWeights


def tensor(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


WEIGHTS = ShallowWeights(
    W=tensor([0.1, 0.2], [-0.3, 0.4]),
    b=tensor(0.05, -0.05),
    V=tensor([0.5, -0.4], [-0.2, 0.3]),
    c=tensor(0.0, 0.0),
    u=tensor(0.7, -0.6),
    d=torch.tensor(0.1, dtype=torch.float64),
)
EXAMPLE = (tensor([1.0, 2.0]), torch.tensor([0]), tensor([-1.0, 0.5]))


def test_the_losses_are_those_of_the_worked_example() -> None:
    label, domain = shallow_losses(WEIGHTS, *EXAMPLE)
    assert label.item() == pytest.approx(0.6849572700, abs=5e-11)
    assert domain.item() == pytest.approx(1.3487206429, abs=5e-11)


def test_the_gradients_are_those_of_the_worked_example() -> None:
    steps = shallow_steps(WEIGHTS, *EXAMPLE, adaptation=0.5)
    assert torch.allclose(steps.W, tensor([0.00221272, -0.10992569], [0.01271484, 0.11870395]), atol=5e-9)
    assert torch.allclose(steps.u, tensor(-0.02092544, 0.04111827), atol=5e-9)


def test_without_the_adversary_only_the_label_loss_moves_the_features() -> None:
    steps = shallow_steps(WEIGHTS, *EXAMPLE, adaptation=0.5, adversarial=False)
    assert torch.allclose(steps.W, tensor([-0.0805349, -0.1610698], [0.08253131, 0.16506262]), atol=5e-9)
    assert torch.allclose(steps.u, tensor(-0.02092544, 0.04111827), atol=5e-9)


def test_on_a_batch_the_closed_form_is_autograds() -> None:
    torch.manual_seed(0)
    leaves = ShallowWeights(*(torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((4, 3), 4, (2, 4), 2, 4, ())))
    source, target, labels = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2
    label, domain = shallow_losses(leaves, source, labels, target)
    saddle = torch.autograd.grad(label - 0.7 * domain, leaves[:4], retain_graph=True)
    head = torch.autograd.grad(domain, leaves[4:])
    with torch.no_grad():
        steps = shallow_steps(leaves, source, labels, target, adaptation=0.7)
        scaled = shallow_steps(leaves, source, labels, target, adaptation=0.7, scale_head=True)
    assert all(torch.allclose(a, b) for a, b in zip(steps, (*saddle, *head), strict=True))
    assert torch.allclose(scaled.u, 0.7 * head[0])
    assert torch.allclose(scaled.W, saddle[0])


def test_initial_weights_are_uniform_within_the_glorot_bound_and_the_domain_head_is_zero() -> None:
    model = ShallowDANN(40, 3, hidden=60)
    bound = math.sqrt(6 / 100)
    assert model.trunk.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert model.head.weight.abs().max() <= math.sqrt(6 / 63)
    assert all(weight.abs().sum() == 0 for weight in (model.weights.b, model.weights.c, model.weights.u, model.weights.d))


def moons(seed: int, samples: int = 150) -> tuple[torch.Tensor, ...]:
    """Source and target by the recipe of section 5.1.1, target rotated by 35 degrees."""
    (x, y), (other, truth) = (make_moons(samples, noise=0.05, random_state=2 * seed + k) for k in (1, 2))
    centre, angle = x.mean(axis=0), math.radians(35)
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    found = 2 * (x - centre), y, 2 * (other - centre) @ rotation, truth
    return tuple(torch.tensor(part) for part in found)


def test_one_pass_is_one_step_a_source_sample_in_order() -> None:
    source, labels, target, _ = moons(0)
    torch.manual_seed(0)
    model = ShallowDANN(2, hidden=5).double()
    by_hand = [weight.clone() for weight in model.weights]
    model.one_pass(source[:3], labels[:3], target[:3], adaptation=2.0, lr=0.1)
    for row in range(3):
        steps = shallow_steps(
            ShallowWeights(*by_hand), source[row : row + 1], labels[row : row + 1], target[row : row + 1], 2.0, scale_head=True
        )
        by_hand = [weight - 0.1 * step for weight, step in zip(by_hand, steps, strict=True)]
    assert all(torch.allclose(a, b) for a, b in zip(model.weights, by_hand, strict=True))


def test_training_learns_the_source_and_is_repeatable() -> None:
    source, labels, target, _ = moons(0)

    def trained(passes: int) -> ShallowDANN:
        torch.manual_seed(0)
        model = ShallowDANN(2, hidden=15).double()
        assert model.fit(source, labels, target, passes=passes, generator=torch.Generator().manual_seed(1)) == passes
        return model

    assert (trained(40)(source).argmax(dim=1) == labels).double().mean() > 0.85
    assert torch.equal(*(trained(3).trunk.weight for _ in range(2)))


def test_the_control_trains_a_domain_head_that_tells_the_domains_apart() -> None:
    source, labels, target, _ = moons(0)
    torch.manual_seed(0)
    model = ShallowDANN(2, hidden=15).double()
    model.fit(source, labels, target + 4, passes=20, adversarial=False)
    assert (model.predict_domain(source) == 0).double().mean() > 0.9
    assert (model.predict_domain(target + 4) == 1).double().mean() > 0.9


def test_early_stopping_keeps_the_best_weights_and_waits_for_thirty_passes() -> None:
    source, labels, target, _ = moons(0, 60)
    torch.manual_seed(0)
    model = ShallowDANN(2, hidden=15).double()
    wrong = (source, 1 - labels)  # validation error only grows, so the best pass comes early
    best = model.fit(source, labels, target, wrong, passes=300, lr=0.2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    again = ShallowDANN(2, hidden=15).double()
    again.fit(source, labels, target, passes=best + 1, lr=0.2, generator=torch.Generator().manual_seed(0))
    assert best < 30
    assert torch.equal(model.trunk.weight, again.trunk.weight)
    assert not torch.equal(model.domain_weights, again.domain_weights)  # it went on for at least thirty passes


def test_a_representation_comes_first_and_is_neither_trained_nor_saved() -> None:
    features = torch.rand(50, 4)
    text = MSDA(4, layers=2)
    text.fit(features)
    model = ShallowDANN(representation=text, hidden=5)
    assert model.trunk.in_features == 12
    assert torch.allclose(model.represent(features), text.transform(features))
    assert not any("representation" in name or "maps" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({}, "in_features is needed"), ({"in_features": 0}, "at least 1"), ({"in_features": 3, "num_classes": 1}, "num_classes at least 2")],
)
def test_bad_sizes_are_refused(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShallowDANN(**parameters)


def test_bad_training_data_is_refused() -> None:
    model, rows, labels = ShallowDANN(2), torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="at least two domains; found 3 source and 0 target samples"):
        model.fit(rows, labels, rows[:0])
    with pytest.raises(ValueError, match="3 source samples and 2 labels"):
        model.fit(rows, labels[:2], rows)
    with pytest.raises(ValueError, match="lr above 0"):
        model.fit(rows, labels, rows, lr=0.0)


@pytest.mark.slow
def test_the_reversed_gradient_carries_over_to_rotated_moons() -> None:
    """Hidden 15, lambda 6, 500 passes, as in the authors' script; five draws of the data."""
    gains = []
    for seed in range(5):
        source, labels, target, truth = moons(seed)
        accuracy = []
        for adversarial in (True, False):
            torch.manual_seed(seed)
            model = ShallowDANN(2, hidden=15).double()
            model.fit(source, labels, target, adaptation=6.0, passes=500, adversarial=adversarial)
            accuracy.append((model(target).argmax(dim=1) == truth).double().mean().item())
        gains.append(accuracy[0] - accuracy[1])
    gain = np.asarray(gains)
    assert gain.mean() > gain.std(ddof=1) / math.sqrt(len(gain)), gains
