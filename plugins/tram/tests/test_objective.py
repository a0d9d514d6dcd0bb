"""The two-pass objectives under the engine: what they wrap, report, carry over and refuse; micro-batches and processes."""

from __future__ import annotations

import copy
import math
import os
import socket
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_tram import TRAM, SharpnessAware

SGD = {"use": "sgd", "lr": 0.1, "momentum": 0.9}
PARTS = {"perturbed_loss", "radius", "gradient_norm", "perturbation_norm", "gradient_cosine"}


def trained(objective: gw.Objective, model: nn.Module, data: gw.Dataset, rows: list | None = None, **settings: Any) -> nn.Module:
    config = gw.TrainConfig.model_validate({"steps": 6, "batch_size": 16, "optimizer": SGD, "log_every": 1, **settings})
    log = None if rows is None else lambda step, row: rows.append(row)
    return gw.Engine(model, objective, data, config, device="cpu", log=log).fit()


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


class Embedding(gw.Objective):
    """Draws features together; asks the model for features only, and keeps a queue and a count."""

    keys = {"train": (gw.INPUTS, "label")}

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(8))
        self.seen = 0

    def forward(self, model: Any, batches: Mapping[str, gw.Batch], progress: float) -> gw.Loss:
        features = model.forward_head(model.forward_features(batches["train"]["features"]), pre_logits=True)
        self.queue.mul_(0.9).add_(features.detach().mean(dim=0))
        self.seen += 1
        return gw.Loss((features - self.queue).square().mean(), {"seen": torch.tensor(float(self.seen))})

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.seen)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.seen = int(state)


class OwnStep(gw.Objective):
    def update(self, engine, batches):
        return super().update(engine, batches)


# -- steps ---------------------------------------------------------------------------------------------------------------------


def test_radius_zero_trains_as_the_inner_objective_does_to_the_bit(net, data) -> None:
    plain = trained(gw.objective("cross-entropy"), net(norm=True), data)
    assert same(trained(SharpnessAware(rho=0.0), net(norm=True), data), plain)
    assert same(trained(TRAM(eps=0.0), net(norm=True).eval(), data), plain)  # without noise there is no distance
    assert not same(trained(SharpnessAware(rho=0.3), net(norm=True), data), plain)
    assert not same(trained(TRAM(eps=0.5), net(norm=True), data), plain)


@pytest.mark.parametrize(("metric", "rho"), [("euclidean", 0.05), ("adaptive", 0.5), ("fisher", 0.1)])
def test_tram_without_a_region_is_sharpness_aware_with_the_usual_radii(net, data, metric, rho) -> None:
    one = trained(SharpnessAware(metric=metric), net(), data)
    assert same(trained(TRAM(region=None, metric=metric, rho=rho), net(), data), one)


@pytest.mark.parametrize("region", ["input-noise", "previous", "pretrained", "ema"])
@pytest.mark.parametrize("metric", ["euclidean", "adaptive", "fisher"])
def test_every_region_and_metric_trains_and_reports(net, data, region, metric) -> None:
    rows: list[dict] = []
    model = trained(TRAM(region=region, metric=metric, rho=0.05), net(), data, rows, steps=30)
    assert {"loss", "accuracy", "divergence", *PARTS} <= set(rows[0])
    assert rows[-1]["loss"] < rows[0]["loss"]
    if region != "input-noise":
        assert rows[0]["divergence"] == 0
    assert all(row["divergence"] > 0 for row in rows[1:])
    if metric != "fisher":
        assert [row["radius"] for row in rows] == [row["divergence"] for row in rows]
    if metric == "euclidean":
        assert [row["perturbation_norm"] for row in rows] == pytest.approx([row["radius"] for row in rows], rel=1e-4)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_first_loss_is_reported_and_not_the_perturbed_one(net, data) -> None:
    rows: list[dict] = []
    trained(SharpnessAware(rho=1.0), net(), data, rows, steps=1)
    plain: list[dict] = []
    trained(gw.objective("cross-entropy"), net(), data, plain, steps=1)
    assert rows[0]["loss"] == plain[0]["loss"] < rows[0]["perturbed_loss"]
    assert rows[0]["accuracy"] == plain[0]["accuracy"]


def test_the_exported_model_is_the_model_and_nothing_else(net, data) -> None:
    model = net()
    names = set(model.state_dict())
    assert trained(TRAM(region="ema"), model, data) is model
    assert set(model.state_dict()) == names


# -- around any objective ------------------------------------------------------------------------------------------------------


def test_feeds_keys_needs_and_loss_are_the_inner_objectives(net, batch) -> None:
    base = gw.objective("cross-entropy", label_smoothing=0.3)
    for objective in (TRAM(base), SharpnessAware(base)):
        assert (objective.feeds, objective.keys, objective.needs) == (base.feeds, base.keys, base.needs)
        torch.testing.assert_close(objective(net(), {"train": batch}, 0.5), base(net(), {"train": batch}, 0.5))


def test_a_reference_names_the_inner_objective() -> None:
    objective = gw.objective("tram", base={"use": "cross-entropy", "label_smoothing": 0.1}, region="ema", decay=0.9)
    assert objective.base.label_smoothing == 0.1
    assert objective.trust_region.region.decay == 0.9
    assert gw.objective("sharpness-aware", base="mse").base.keys == {"train": (gw.INPUTS, "target")}


def test_the_inner_objectives_own_parameters_are_trained_and_perturbed_too(net, data) -> None:
    class Scaled(gw.Objective):
        keys = {"train": (gw.INPUTS, "label")}

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.seen: list[float] = []

        def param_groups(self, lr: float) -> list[dict]:
            return [{"params": [self.scale], "lr": lr / 2}]

        def forward(self, model, batches, progress):
            self.seen.append(self.scale.item())
            return gw.Loss(nn.functional.cross_entropy(self.scale * model(batches["train"]["features"]), batches["train"]["label"]))

    base = Scaled()
    objective = SharpnessAware(base, rho=0.5)
    config = gw.TrainConfig.model_validate({"steps": 1, "batch_size": 16, "optimizer": SGD})
    engine = gw.Engine(net(), objective, data, config, device="cpu")
    rates = {id(p): group["lr"] for group in engine.optimizers[""].param_groups for p in group["params"]}
    assert rates[id(base.scale)] == 0.05
    engine.fit()
    first, second = base.seen
    assert first == 1.0
    assert second != 1.0
    assert base.scale.item() != 1.0


def test_an_inner_objective_that_asks_for_features_only_is_measured_on_the_models_predictions(net, data) -> None:
    rows: list[dict] = []
    trained(TRAM(Embedding()), net(), data, rows)
    assert all(row["divergence"] > 0 for row in rows)


def test_the_second_pass_leaves_no_trace_in_the_inner_objectives_state(net, data) -> None:
    base, rows = Embedding(), []
    trained(SharpnessAware(base, rho=0.3), net(), data, rows, steps=4)
    assert base.seen == 4
    assert [row["seen"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", [TRAM, SharpnessAware])
def test_an_inner_objective_that_owns_its_step_is_refused(kind) -> None:
    name = "tram" if kind is TRAM else "sharpness-aware"
    with pytest.raises(gw.ConfigError, match=f"{name} owns the step, and so does OwnStep, which brings a step of its own"):
        kind(OwnStep())
    with pytest.raises(gw.ConfigError, match="and so does TRAM"):
        kind(TRAM())


# -- state ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", ["input-noise", "previous", "pretrained", "ema"])
def test_a_resumed_run_equals_an_unbroken_one(net, data, region) -> None:
    """The state dicts of model, objective and optimiser are all that crosses from one engine to the other."""
    config = gw.TrainConfig.model_validate({"steps": 8, "batch_size": 16, "optimizer": SGD})

    def engine() -> gw.Engine:
        return gw.Engine(net(), TRAM(region=region), data, config, device="cpu")

    def steps(of: gw.Engine, batches: list) -> None:
        for batch in batches:
            of.objective.update(of, batch)

    samples = data["train"].__getitems__(list(range(64)))
    batches = [{"train": {key: value[i : i + 16] for key, value in samples.items()}} for i in (0, 16, 32, 48)]
    unbroken, first, second = engine(), engine(), engine()
    steps(unbroken, batches)
    steps(first, batches[:2])
    second.joined.load_state_dict(copy.deepcopy(first.joined.state_dict()))
    second.optimizers[""].load_state_dict(copy.deepcopy(first.optimizers[""].state_dict()))
    steps(second, batches[2:])
    assert same(second.model, unbroken.model)
    assert same(second.objective, unbroken.objective)


def test_the_state_holds_tensors_only_so_that_safetensors_can_keep_it(net, data) -> None:
    for region in ("input-noise", "ema"):
        objective = TRAM(region=region)
        trained(objective, net(), data, steps=2)
        assert objective.state_dict()
        assert all(isinstance(value, torch.Tensor) for value in objective.state_dict().values())


def test_a_copy_of_a_trained_objective_holds_no_model(net, data) -> None:
    objective = TRAM()
    trained(objective, net(), data, steps=2)
    other = copy.deepcopy(objective)
    assert not list(other.parameters())
    assert other._passes is None
    assert same(other, objective)


def test_the_best_weights_of_validation_come_back(net, data) -> None:
    validate = {"evaluate": {"use": "sharpness", "split": "val"}, "metric": "loss", "direction": "lower"}
    config = gw.TrainConfig.model_validate({"steps": 4, "batch_size": 16, "optimizer": SGD, "validate": validate})
    objective, evaluator = TRAM(region="ema"), gw.evaluator("sharpness", split="val", radii=[0.05], directions=0)
    engine = gw.Engine(net(), objective, data, config, device="cpu", validator=evaluator)
    model = engine.fit()
    best = evaluator.evaluate(model, data).metrics["loss"]
    assert best == pytest.approx(min(value for _, value in engine.history))


def test_the_runs_seed_draws_the_noise(net, data) -> None:
    def run(seed: int) -> nn.Module:
        config = gw.TrainConfig.model_validate({"steps": 3, "batch_size": 64, "optimizer": SGD})
        return gw.Engine(net(), TRAM(eps=1.0), data, config, device="cpu", seed=seed).fit()

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


# -- micro-batches and processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", [lambda: SharpnessAware(rho=0.3), lambda: TRAM(region="pretrained"), lambda: TRAM(region="ema", metric="fisher")]
)
def test_accumulated_micro_batches_are_one_batch(net, data, objective) -> None:
    rows: list[list[dict]] = [[], []]
    whole = trained(objective(), net(), data, rows[0], batch_size=16)
    parts = trained(objective(), net(), data, rows[1], batch_size=4, accumulate=4)
    torch.testing.assert_close(list(parts.parameters()), list(whole.parameters()), rtol=1e-4, atol=1e-6)
    assert len(rows[1]) == len(rows[0]) == 6
    for one, other in zip(*rows, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _process(rank: int, port: int, folder: str, model: nn.Module, data: gw.Dataset, settings: dict, accumulate: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    rows: list[dict] = []
    trained(TRAM(**settings), model, data, rows, batch_size=8 // accumulate, accumulate=accumulate, steps=4)
    torch.save({"state": model.state_dict(), "rows": rows}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("settings", [{"region": "pretrained"}, {"region": None, "rho": 0.3}, {"region": "ema", "metric": "fisher"}])
def test_two_processes_take_the_steps_of_one(net, data, tmp_path, settings, accumulate) -> None:
    torch.multiprocessing.spawn(_process, args=(_free_port(), str(tmp_path), net(), data, settings, accumulate), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone: list[dict] = []
    model = trained(TRAM(**settings), net(), data, alone, batch_size=16, steps=4)
    for one in found:
        torch.testing.assert_close(one["state"], dict(model.state_dict()), rtol=1e-4, atol=1e-6)
    assert [row["radius"] for row in found[0]["rows"]] == [row["radius"] for row in found[1]["rows"]]
    assert [row["radius"] for row in found[0]["rows"]] == pytest.approx([row["radius"] for row in alone], rel=1e-3)


# -- bad input -----------------------------------------------------------------------------------------------------------------


def test_an_inner_objective_without_an_optimiser_is_refused(net, data) -> None:
    class Idle(gw.Objective):
        def optimizers(self, model, make):
            return {}

        def forward(self, model, batches, progress):
            return gw.Loss(model(batches["train"]["features"]).sum())

    with pytest.raises(gw.ConfigError, match="Idle made no base optimiser, which takes the step"):
        trained(TRAM(Idle()), net(), data)


def test_a_loss_that_no_trained_parameter_has_a_part_in_is_refused(net, data) -> None:
    class Elsewhere(gw.Objective):
        def forward(self, model, batches, progress):
            return gw.Loss(torch.ones((), requires_grad=True) * 2)

    for objective in (TRAM(Elsewhere()), SharpnessAware(Elsewhere())):
        with pytest.raises(gw.ConfigError, match="no trainable parameter received a gradient: the loss of Elsewhere does not depend"):
            trained(objective, net(), data)


def test_logits_that_are_not_finite_stop_training_by_name(net, data) -> None:
    broken = gw.TensorSamples(features=torch.full((64, 6), math.nan), label=data["train"].columns["label"])
    with pytest.raises(gw.DataError, match="the divergence is not finite: the first pass gave logits"):
        trained(TRAM(), net(), gw.Dataset({"train": broken}, data.info))


@pytest.mark.filterwarnings("always")
def test_an_untrained_model_is_warned_of_as_a_pretrained_region(net, data) -> None:
    model = net()
    with torch.no_grad():
        model.head.weight.mul_(0.01)
    with pytest.warns(UserWarning, match="region pretrained holds the model to its weights at the start"):
        trained(TRAM(region="pretrained"), model, data, steps=1)


def test_a_region_needs_a_module(data) -> None:
    class Needless(gw.Objective):
        needs = object

    for kind in ("tram", "trust-region-regulariser"):
        with pytest.raises(gw.InterfaceError, match="compares the predictions of a module; object is none"):
            gw.objective(kind, base=Needless()).setup(object(), data)


def test_pipelines_name_what_is_out_of_range() -> None:
    for name, settings, message in (
        ("tram", {"eps": -0.1}, "eps: input should be greater than or equal to 0"),
        ("tram", {"region": "futrue"}, "region: input should be 'input-noise'"),
        ("tram", {"decay": 0.9}, "decay is of the region ema"),
        ("sharpness-aware", {"rho": -1}, "rho: input should be greater than or equal to 0"),
        ("trust-region-regulariser", {"weight": -1}, "weight: input should be greater than or equal to 0"),
    ):
        with pytest.raises(gw.ConfigError, match=message):
            gw.objective(name, **settings)
