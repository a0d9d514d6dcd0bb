"""A whole step in one's own loop: against SAM written out, what d = 0 leaves, batch norm, dropout, micro-batches, float16."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import graftwork as gw
from graftwork_tram import Divergence, InputNoise, ParameterHistory, Region, TrustRegionStep

OPTIMIZERS = [(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), (torch.optim.AdamW, {"lr": 1e-2})]


class Fixed(Region):
    """A region whose distance is a number: the target's logits are moved by it (for the L2 divergence)."""

    def __init__(self, distance: float):
        super().__init__()
        self.distance = distance

    def forward(self, model: nn.Module, *args, **kwargs) -> Tensor:
        moved = model(*args, **kwargs).detach().clone()
        moved[:, 0] += self.distance
        return moved


def sam_by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, loss, rho: float, adaptive: bool) -> None:
    """Foret et al., algorithm 1, a weight at a time."""
    optimizer.zero_grad()
    loss().backward()
    scaled = [p.grad * p.detach().abs() if adaptive else p.grad for p in model.parameters()]
    norm = math.sqrt(sum(float((one * one).sum()) for one in scaled))
    saved = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p += rho / (norm + 1e-12) * (p**2 if adaptive else 1.0) * p.grad
    optimizer.zero_grad()
    loss().backward()
    with torch.no_grad():
        for p, value in zip(model.parameters(), saved, strict=True):
            p.copy_(value)
    optimizer.step()


def batches(count: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(7)
    for _ in range(count):
        yield torch.randn(16, 6, generator=generator, dtype=torch.float64).to(dtype), torch.randint(3, (16,), generator=generator)


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS)
@pytest.mark.parametrize(("metric", "rho"), [("euclidean", 0.05), ("adaptive", 0.5)])
def test_without_a_region_it_is_sam_and_asam_for_twenty_steps(net, metric, rho, kind, settings) -> None:
    ours, theirs = net().double(), net().double()
    step, optimizer = (
        TrustRegionStep(ours, kind(ours.parameters(), **settings), metric=metric, rho=rho),
        kind(theirs.parameters(), **settings),
    )
    for x, y in batches(20):
        step(lambda x=x, y=y: cross_entropy(ours(x), y))
        sam_by_hand(theirs, optimizer, lambda x=x, y=y: cross_entropy(theirs(x), y), rho, metric == "adaptive")
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_it_agrees_with_pytorch_optimizers_sam(net, adaptive) -> None:
    peer = pytest.importorskip("pytorch_optimizer", reason="needs pytorch-optimizer to compare with")
    ours, theirs = net().double(), net().double()
    metric = "adaptive" if adaptive else "euclidean"
    step = TrustRegionStep(ours, torch.optim.SGD(ours.parameters(), lr=0.1), metric=metric, rho=0.3)
    sam = peer.SAM(theirs.parameters(), torch.optim.SGD, rho=0.3, adaptive=adaptive, lr=0.1)
    for x, y in batches(20):
        step(lambda x=x, y=y: cross_entropy(ours(x), y))
        cross_entropy(theirs(x), y).backward()
        sam.first_step(zero_grad=True)
        cross_entropy(theirs(x), y).backward()
        sam.second_step(zero_grad=True)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS)
@pytest.mark.parametrize("distance", [0.0, 0.2])
def test_the_radius_is_the_measured_distance(net, kind, settings, distance) -> None:
    """At 0 the step is the base optimiser's to the bit, otherwise SAM's with that radius."""
    ours, theirs = net().double(), net().double()
    optimizer = kind(theirs.parameters(), **settings)
    step = TrustRegionStep(ours, kind(ours.parameters(), **settings), Fixed(distance), divergence=Divergence("l2"))
    for x, y in batches(5):
        found = step(lambda x=x, y=y: cross_entropy(ours(x), y))
        assert found.divergence.item() == found.radius.item() == pytest.approx(distance, abs=1e-12)
        if distance:
            sam_by_hand(theirs, optimizer, lambda x=x, y=y: cross_entropy(theirs(x), y), distance, False)
        else:
            optimizer.zero_grad()
            cross_entropy(theirs(x), y).backward()
            optimizer.step()
    if distance:
        torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-6, atol=1e-12)
    else:
        assert same(ours, theirs)


def test_a_larger_distance_goes_further_and_a_cap_is_told_beside_the_distance(net) -> None:
    found = {}
    for distance, cap in ((0.2, None), (0.4, None), (0.4, 0.1)):
        model = net().double()
        step = TrustRegionStep(
            model, torch.optim.SGD(model.parameters(), lr=0.1), Fixed(distance), divergence=Divergence("l2"), max_radius=cap
        )
        (x, y), *_ = batches(1)
        found[distance, cap] = step(lambda model=model, x=x, y=y: cross_entropy(model(x), y))
    assert found[0.4, None].perturbation_norm.item() == pytest.approx(2 * found[0.2, None].perturbation_norm.item())
    assert found[0.4, 0.1].divergence.item() == pytest.approx(0.4)
    assert found[0.4, 0.1].radius.item() == pytest.approx(0.1)
    assert found[0.4, 0.1].perturbation_norm.item() == pytest.approx(0.1)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_a_history_gives_distance_zero_at_the_first_step_and_more_at_the_second(net, decay) -> None:
    model = net()
    step = TrustRegionStep(model, torch.optim.SGD(model.parameters(), lr=0.1), ParameterHistory(decay))
    found = [step(lambda x=x, y=y: cross_entropy(model(x), y)) for x, y in batches(2, torch.float32)]
    assert found[0].divergence == found[0].perturbation_norm == 0
    assert found[1].divergence == found[1].radius
    assert found[1].divergence > 0


@pytest.mark.parametrize(
    ("decay", "expected"), [(0.0, lambda w: w[-2]), (1.0, lambda w: w[0]), (0.5, lambda w: (w[0] + w[1]) / 4 + w[2] / 2)]
)
def test_the_weights_compared_with_are_earlier_ones_and_never_the_present(net, decay, expected) -> None:
    """After three steps the shadow is that of the third step's start, of the very start, or the mean of the earlier ones."""
    model, history = net(), ParameterHistory(decay)
    step = TrustRegionStep(model, torch.optim.SGD(model.parameters(), lr=0.1), history)
    weights = [model.head.weight.detach().clone()]
    for x, y in batches(3, torch.float32):
        step(lambda x=x, y=y: cross_entropy(model(x), y))
        weights.append(model.head.weight.detach().clone())
    torch.testing.assert_close(history.shadow["head.weight"], expected(weights))


def test_d_is_no_part_of_the_loss(net) -> None:
    model = net().double()
    step = TrustRegionStep(model, torch.optim.SGD(model.parameters(), lr=0.1), Fixed(5.0), divergence=Divergence("l2"))
    ((x, y),) = batches(1)
    expected = cross_entropy(model(x), y)
    found = step(lambda: cross_entropy(model(x), y))
    torch.testing.assert_close(found.loss, expected.detach())
    assert not found.divergence.requires_grad


def test_a_step_reports_both_losses_and_both_gradients(net) -> None:
    model = net().double()
    step = TrustRegionStep(model, torch.optim.SGD(model.parameters(), lr=0.0), rho=0.3)
    ((x, y),) = batches(1)
    cross_entropy(model(x), y).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, g in zip(moved.parameters(), gradients, strict=True):
            p += 0.3 * g / norm
    moved.zero_grad()
    there = cross_entropy(moved(x), y)
    there.backward()
    found = step(lambda: cross_entropy(model(x), y))
    torch.testing.assert_close(found.perturbed_loss, there.detach())
    torch.testing.assert_close(found.gradient_norm, norm)
    flat = [torch.cat([g.flatten() for g in one]) for one in (gradients, [p.grad for p in moved.parameters()])]
    torch.testing.assert_close(found.gradient_cosine, nn.functional.cosine_similarity(*flat, dim=0))
    assert (
        TrustRegionStep(model, torch.optim.SGD(model.parameters()), cosine=False)(lambda: cross_entropy(model(x), y)).gradient_cosine
        is None
    )


@pytest.mark.parametrize("region", [None, InputNoise(0.1), ParameterHistory(1.0)])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_batch_norm_records_once_a_step(net, region, statistics) -> None:
    model, once = net(norm=True), net(norm=True)
    step = TrustRegionStep(model, torch.optim.SGD(model.parameters(), lr=0.1), region, batch_norm=statistics)
    ((x, y),) = batches(1, torch.float32)
    step(lambda: cross_entropy(model(x), y))
    once(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(model.body[1], name), getattr(once.body[1], name))


@pytest.mark.parametrize("same_rng", [True, False])
def test_the_second_pass_draws_the_same_dropout_masks_where_asked_for(net, same_rng) -> None:
    ((x, y),) = batches(1, torch.float32)
    model = net(dropout=0.5)
    masks: list[Tensor] = []
    model.body[3].register_forward_hook(lambda module, inputs, output: masks.append(output == 0))
    TrustRegionStep(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.0, same_rng=same_rng)(lambda: cross_entropy(model(x), y))
    assert len(masks) == 2
    assert torch.equal(*masks) == same_rng


def test_the_random_stream_goes_on_as_after_one_pass_of_the_same_masks(net) -> None:
    model, once = net(dropout=0.5), net(dropout=0.5)
    ((x, y),) = batches(1, torch.float32)
    torch.manual_seed(1)
    TrustRegionStep(model, torch.optim.SGD(model.parameters(), lr=0.1), InputNoise(0.1), same_rng=True)(lambda: cross_entropy(model(x), y))
    after = torch.get_rng_state()
    torch.manual_seed(1)
    once(x)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("metric", ["euclidean", "adaptive", "fisher"])
@pytest.mark.parametrize("region", [None, "history"])
def test_micro_batches_of_one_size_are_one_batch(net, metric, region) -> None:
    models = [net().double() for _ in range(2)]
    ((x, y),) = batches(1)
    for model, sizes in zip(models, ((16,), (4, 4, 4, 4)), strict=True):
        history = None if region is None else ParameterHistory(1.0)
        step = TrustRegionStep(model, torch.optim.SGD(model.parameters(), lr=0.1), history, metric=metric, rho=0.2)
        for _ in range(3):
            closures = [
                lambda model=model, a=a, b=b: cross_entropy(model(a), b) for a, b in zip(x.split(sizes), y.split(sizes), strict=True)
            ]
            found = step(*closures)
    torch.testing.assert_close(list(models[0].parameters()), list(models[1].parameters()), rtol=1e-7, atol=1e-10)
    assert found.loss.ndim == 0


def test_fisher_of_the_divergence_is_the_square_of_its_gradient(net) -> None:
    """TRAM-Fisher, against autograd on a divergence written out."""
    model, eta, rho = net().double(), 0.8, 0.3
    start = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)).double()
    ((x, y),) = batches(1)
    target = start(x).detach().log_softmax(1)
    reference = copy.deepcopy(model)
    parameters = list(reference.parameters())
    d = (target.exp() * (target - reference(x).log_softmax(1))).sum(1).mean()
    f = [g.square() for g in torch.autograd.grad(d, parameters)]
    g = torch.autograd.grad(cross_entropy(reference(x), y), parameters)
    scaled = [a / (1 + eta * b) for a, b in zip(g, f, strict=True)]
    length = torch.stack([(a * b).sum() for a, b in zip(g, scaled, strict=True)]).sum().sqrt()
    with torch.no_grad():
        for p, s in zip(parameters, scaled, strict=True):
            p += rho * s / length
    expected = torch.autograd.grad(cross_entropy(reference(x), y), parameters)

    history = ParameterHistory(1.0)
    step = TrustRegionStep(model, torch.optim.SGD(model.parameters(), lr=1.0), history, metric="fisher", rho=rho, eta=eta)
    history.begin(start)
    before = [p.detach().clone() for p in model.parameters()]
    found = step(lambda: cross_entropy(model(x), y))
    torch.testing.assert_close([b - p.detach() for b, p in zip(before, model.parameters(), strict=True)], list(expected))
    assert found.radius.item() == rho
    torch.testing.assert_close(found.divergence, d.detach())


@pytest.mark.parametrize("broken", [0, 1])
def test_float16_skips_the_step_whole_if_either_pass_overflows(net, broken) -> None:
    model = net()
    before = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    step = TrustRegionStep(model, torch.optim.AdamW(model.parameters(), lr=0.1), rho=0.1, scaler=scaler)
    ((x, y),) = batches(1, torch.float32)
    calls: list[int] = []

    def loss() -> Tensor:
        calls.append(1)
        return cross_entropy(model(x), y) * (math.inf if len(calls) == broken + 1 else 1.0)

    step(loss)
    assert same(model, before)
    assert scaler.get_scale() == 2.0**9
    found = step(loss)
    assert not same(model, before)
    assert found.perturbation_norm.item() == pytest.approx(0.1, rel=1e-5)


def test_float16s_scale_cancels(net) -> None:
    plain, scaled = net(), net()
    steps = [
        TrustRegionStep(model, torch.optim.SGD(model.parameters(), lr=0.1), InputNoise(0.1, seed=1), scaler=scaler)
        for model, scaler in ((plain, None), (scaled, torch.amp.GradScaler("cpu", init_scale=2.0**12)))
    ]
    for x, y in batches(5, torch.float32):
        found = [step(lambda model=model, x=x, y=y: cross_entropy(model(x), y)) for step, model in zip(steps, (plain, scaled), strict=True)]
        torch.testing.assert_close(found[0].gradient_norm, found[1].gradient_norm)
    torch.testing.assert_close(list(plain.parameters()), list(scaled.parameters()))


def test_low_rank_adapters_alone_move_and_alone_are_remembered(net) -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = net().requires_grad_(False)
            self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))

    model, history = Adapted(), ParameterHistory(1.0)
    base = copy.deepcopy(model.base)
    step = TrustRegionStep(model, torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1), history)
    norms = [step(lambda x=x, y=y: cross_entropy(model(x), y)) for x, y in batches(3, torch.float32)]
    assert set(history.shadow) == {"down.weight", "up.weight"}
    assert same(model.base, base)
    assert norms[-1].perturbation_norm.item() == pytest.approx(norms[-1].radius.item(), rel=1e-5)


def test_training_in_bfloat16_autocast_keeps_the_divergence_in_float32(net) -> None:
    model = net()
    step = TrustRegionStep(model, torch.optim.SGD(model.parameters(), lr=0.1), InputNoise(0.5))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return cross_entropy(model(x), y)

    for x, y in batches(2, torch.float32):
        found = step(lambda x=x, y=y: loss(x, y))
    assert found.divergence.dtype == found.gradient_norm.dtype == torch.float32
    assert found.perturbation_norm.item() == pytest.approx(found.divergence.item(), rel=1e-4)


def test_a_schedule_of_the_base_optimiser_is_obeyed(net) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    step = TrustRegionStep(model, optimizer, rho=0.1)
    states = [copy.deepcopy(model)]
    for x, y in batches(2, torch.float32):
        step(lambda x=x, y=y: cross_entropy(model(x), y))
        schedule.step()
        states.append(copy.deepcopy(model))
    assert not same(states[0], states[1])
    assert same(states[1], states[2])


def test_bad_input_is_named(net) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"optimizer is the base optimiser that takes the step, a torch\.optim\.Optimizer; found None"):
        TrustRegionStep(model, None)
    with pytest.raises(ValueError, match="a step needs at least one closure"):
        TrustRegionStep(model, optimizer)()
    other = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="no trainable parameter received a gradient"):
        TrustRegionStep(model, optimizer)(lambda: other.sum())
    with pytest.raises(gw.DataError, match="the gradient of the first pass is not finite"):
        TrustRegionStep(model, optimizer)(lambda: model(torch.full((1, 6), math.nan)).sum())
    for settings, message in (
        ({"rho": -1.0}, "rho is at least 0; found -1.0"),
        ({"max_radius": 0.0}, "max_radius is above 0; found 0.0"),
        ({"batch_norm": "ema"}, 'batch_norm is "batch" or "running"; found "ema"'),
        ({"metric": "l1"}, 'metric is one of euclidean, adaptive, fisher; found "l1"'),
    ):
        with pytest.raises(ValueError, match=message):
            TrustRegionStep(model, optimizer, **settings)


def test_a_step_that_failed_leaves_nothing_for_the_next(net) -> None:
    model, twin = net(), net()
    steps = [TrustRegionStep(one, torch.optim.SGD(one.parameters(), lr=0.1), InputNoise(0.1, seed=1)) for one in (model, twin)]
    ((x, y),) = batches(1, torch.float32)

    def fail() -> Tensor:
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        steps[0](lambda: cross_entropy(model(x), y), fail)
    steps[0].region.load_state_dict(steps[1].region.state_dict())
    for step, one in zip(steps, (model, twin), strict=True):
        step(lambda one=one: cross_entropy(one(x), y))
    assert same(model, twin)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", ["euclidean", "adaptive", "fisher"])
def test_a_gpu_takes_the_same_step(net, metric) -> None:
    models = [net(), net().cuda()]
    for x, y in batches(3, torch.float32):
        for model in models:
            where = next(model.parameters()).device
            step = TrustRegionStep(model, torch.optim.SGD(model.parameters(), lr=0.1), metric=metric, rho=0.1)
            step(lambda model=model, x=x, y=y, where=where: cross_entropy(model(x.to(where)), y.to(where)))
    torch.testing.assert_close([p.cpu() for p in models[1].parameters()], list(models[0].parameters()), rtol=1e-4, atol=1e-5)
