"""The evaluators: sharpness of losses whose rise is known, and drift of models whose distance is known."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import graftwork as gw
from graftwork_tram import RepresentationDrift, Sharpness, kl_divergence, loss_rises
from graftwork_tram.representation_drift import linear_cka

CURVATURE = torch.tensor([1.0, 3.0], dtype=torch.float64)


def quadratic(at: tuple[float, float] = (1.0, -2.0)):
    weights = nn.Parameter(torch.tensor(at, dtype=torch.float64))

    def losses():
        yield (CURVATURE * weights.square()).sum() / 2, 1

    return weights, losses


# -- sharpness -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_climb_of_a_quadratic_is_in_closed_form(adaptive) -> None:
    weights, losses = quadratic()
    found = loss_rises([weights], losses, [0.1, 0.5], adaptive=adaptive, directions=0)
    w, g = weights.detach(), CURVATURE * weights.detach()
    for radius, rise in zip((0.1, 0.5), found.ascent, strict=True):
        e = radius * w**2 * g / (w.abs() * g).norm() if adaptive else radius * g / g.norm()
        assert rise.item() == pytest.approx(((CURVATURE * (w + e) ** 2).sum() / 2 - (CURVATURE * w**2).sum() / 2).item(), rel=1e-9)
    assert found.loss == pytest.approx(6.5)


def test_random_directions_of_a_bowl_all_rise_by_half_the_squared_radius() -> None:
    weights = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    found = loss_rises([weights], lambda: iter([(weights.square().sum() / 2, 1)]), [0.2, 1.0], directions=4)
    torch.testing.assert_close(found.random, torch.tensor([[0.02] * 4, [0.5] * 4], dtype=torch.float64))
    torch.testing.assert_close(found.largest, torch.tensor([0.02, 0.5], dtype=torch.float64))


def test_more_steps_come_nearer_to_the_largest_rise_in_the_ball() -> None:
    """L = (x^2 + 9 y^2) / 2 from (1, 0.2): the largest value on the circle of radius 1, by search."""
    weights = nn.Parameter(torch.tensor([1.0, 0.2], dtype=torch.float64))
    curvature = torch.tensor([1.0, 9.0], dtype=torch.float64)

    def losses():
        yield (curvature * weights.square()).sum() / 2, 1

    angles = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    circle = torch.stack([1.0 + angles.cos(), 0.2 + angles.sin()], dim=1)
    largest = float(((curvature * circle**2).sum(1) / 2).max() - (curvature * weights.detach() ** 2).sum() / 2)
    rises = [loss_rises([weights], losses, [1.0], steps=steps, directions=0).ascent.item() for steps in (1, 2, 20)]
    assert rises[0] < rises[1] < rises[2] <= largest + 1e-7
    assert rises[2] == pytest.approx(largest, rel=1e-6)


def test_adaptive_sharpness_does_not_change_when_a_relu_networks_weights_are_rescaled() -> None:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    second = copy.deepcopy(first)
    with torch.no_grad():
        second[0].weight.mul_(4)
        second[2].weight.div_(4)
    x, y = torch.randn(20, 6).double(), torch.arange(20) % 3
    rises = {
        adaptive: [
            loss_rises(m.parameters(), lambda m=m: iter([(functional.cross_entropy(m(x), y), 20)]), [0.5], adaptive=adaptive).ascent.item()
            for m in (first, second)
        ]
        for adaptive in (True, False)
    }
    assert rises[True][0] == pytest.approx(rises[True][1], rel=1e-9)
    assert rises[False][0] != pytest.approx(rises[False][1], rel=0.1)


def test_the_batch_size_does_not_matter_and_nothing_is_left_behind(net, data) -> None:
    model = net(norm=True, dropout=0.5)
    before, gradient = copy.deepcopy(model.state_dict()), torch.ones_like(model.head.weight)
    model.head.weight.grad = gradient
    reports = [Sharpness(batch_size=size, directions=3).evaluate(model, data) for size in (7, 64)]
    assert reports[0].metrics == pytest.approx(reports[1].metrics, abs=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.head.weight.grad is gradient
    assert model.body[0].weight.grad is None
    assert model.training


def test_the_report_is_that_of_the_function_with_a_table_and_a_curve(net, data) -> None:
    model = net().eval()
    report = gw.evaluator("sharpness", radius=0.3, radii=[0.1], directions=4, limit=None).evaluate(model, data)
    columns = data["test"].columns
    losses = lambda: iter([(functional.cross_entropy(model(columns["features"]), columns["label"]), 64)])  # noqa: E731
    expected = loss_rises(model.parameters(), losses, [0.1, 0.3], directions=4)
    assert report.metrics == pytest.approx(
        {
            "loss": expected.loss,
            "ascent_rise": expected.ascent[1].item(),
            "random_rise": expected.random[1].mean().item(),
            "max_rise": expected.largest[1].item(),
        },
        abs=1e-6,
    )
    assert [row[0] for row in report.tables["rises"].rows] == [0.1, 0.3]
    assert report.figures["sharpness"].figure.axes[0].get_xlabel() == "radius"


def test_another_objective_gives_another_loss(net, data) -> None:
    plain, smoothed = (
        gw.evaluator("sharpness", objective={"use": "cross-entropy", "label_smoothing": s}, directions=0).evaluate(net(), data)
        for s in (0.0, 0.5)
    )
    assert plain.metrics["loss"] != smoothed.metrics["loss"]
    assert "random_rise" not in plain.metrics


def test_bad_input_of_sharpness_is_named(net, data) -> None:
    weights, losses = quadratic()
    for call, message in (
        (lambda: loss_rises([weights.detach()], losses), "no parameter requires a gradient: there is nothing to perturb"),
        (lambda: loss_rises([weights], losses, []), "radii are one or more numbers above 0; found"),
        (lambda: loss_rises([weights], losses, steps=0), "steps is at least 1 and directions at least 0; found 0 and 10"),
        (lambda: loss_rises([weights], lambda: iter([])), "there is no batch to take a loss of"),
        (lambda: Sharpness(radius=0.0), "radius and radii are above 0; found 0.0"),
        (lambda: Sharpness(steps=0), "steps is at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(gw.ConfigError, match="takes an objective of one feed without parameters; InfoNCE is none"):
        gw.evaluator("sharpness", objective="info-nce")
    empty = gw.Dataset({"test": gw.TensorSamples(features=torch.zeros(0, 6), label=torch.zeros(0, dtype=torch.long))})
    with pytest.raises(gw.DataError, match='split "test" is empty'):
        Sharpness().evaluate(net(), empty)


# -- drift ---------------------------------------------------------------------------------------------------------------------


def test_a_model_has_not_drifted_from_itself_though_noise_moves_it(net, data) -> None:
    report = RepresentationDrift(pretrained=net()).evaluate(net(), data)
    assert report.metrics["prediction_drift"] == 0
    assert report.metrics["prediction_agreement"] == 1
    assert report.metrics["feature_drift"] == pytest.approx(0, abs=1e-6)
    assert report.metrics["feature_cka"] == pytest.approx(1)
    assert report.metrics["noise_prediction_drift"] > 0
    assert report.metrics["noise_feature_drift"] > 0


@pytest.mark.parametrize("kind", ["forward", "reverse", "symmetric"])
def test_drift_is_the_divergence_and_the_cosine_distance(net, data, kind) -> None:
    model, start = net().eval(), net(seed=1).eval()
    report = RepresentationDrift(pretrained=start, type=kind, eps=0.0, batch_size=7).evaluate(model, data)
    x = data["test"].columns["features"]
    assert report.metrics["prediction_drift"] == pytest.approx(kl_divergence(start(x), model(x), kind).item(), rel=1e-5)
    cosine = functional.cosine_similarity(start.body(x), model.body(x))
    assert report.metrics["feature_drift"] == pytest.approx((1 - cosine).mean().item(), rel=1e-5)
    agree = (start(x).argmax(1) == model(x).argmax(1)).float().mean().item()
    assert report.metrics["prediction_agreement"] == pytest.approx(agree)
    assert not any(name.startswith("noise") for name in report.metrics)
    assert len(report.figures["drift"].figure.axes) == 2


def test_more_noise_moves_more_and_the_same_seed_moves_the_same(net, data) -> None:
    found = [RepresentationDrift(eps=eps).evaluate(net(), data).metrics for eps in (0.1, 0.1, 1.0)]
    assert found[0] == found[1]
    assert found[0]["noise_prediction_drift"] < found[2]["noise_prediction_drift"]
    assert found[0]["noise_feature_cka"] > found[2]["noise_feature_cka"]


def test_models_without_features_are_compared_by_predictions(data) -> None:
    class Plain(nn.Module):
        inputs = ("features",)

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, features: Tensor) -> Tensor:
            return self.layer(features)

    report = RepresentationDrift(pretrained=Plain()).evaluate(Plain(), data)
    assert set(report.metrics) == {f"{p}prediction_{what}" for p in ("", "noise_") for what in ("drift", "agreement")}
    assert len(report.figures["drift"].figure.axes) == 1


def test_drift_leaves_both_models_as_they_were(net, data) -> None:
    model, start = net(norm=True, dropout=0.5), net(norm=True, seed=1)
    before = [copy.deepcopy(one.state_dict()) for one in (model, start)]
    RepresentationDrift(pretrained=start).evaluate(model, data)
    for one, held in zip((model, start), before, strict=True):
        assert one.training
        assert all(torch.equal(value, held[key]) for key, value in one.state_dict().items())


def test_linear_cka_is_one_up_to_rotation_scale_and_shift_and_small_for_strangers() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(500, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    assert linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
    assert linear_cka(x, y) < 0.1
    gram = [(one - one.mean(0)) @ (one - one.mean(0)).T for one in (x, y)]
    assert linear_cka(x, y) == pytest.approx(((gram[0] * gram[1]).sum() / (gram[0].norm() * gram[1].norm())).item())


def test_bad_input_of_drift_is_named(net, data) -> None:
    with pytest.raises(ValueError, match="there is nothing to compare with: give pretrained, or eps above 0"):
        RepresentationDrift(eps=0.0)
    with pytest.raises(ValueError, match="features are of as many samples; found 3 and 4"):
        linear_cka(torch.ones(3, 2), torch.ones(4, 2))
    other = net()
    other.head = nn.Linear(8, 5)
    with pytest.raises(gw.InterfaceError, match=r"predictions to compare differ in shape: \(64, 5\) and \(64, 3\)"):
        RepresentationDrift(pretrained=other).evaluate(net(), data)
    broken = net()
    with torch.no_grad():
        broken.head.bias.fill_(math.nan)
    with pytest.raises(gw.DataError, match='the divergence of predictions on split "test" is not finite'):
        RepresentationDrift(pretrained=broken).evaluate(net(), data)
