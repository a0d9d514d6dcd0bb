"""The objective under the engine: what feeds hand over, state, optimisers, what is exported."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_dann import DomainAdversarial

FEEDS = {"source": "source/train", "target": "target/train"}


def plan(**parameters: Any) -> gw.TrainConfig:
    return gw.TrainConfig.model_validate(
        {"steps": 6, "batch_size": 12, "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9}, "feeds": FEEDS, **parameters}
    )


def trained(model: nn.Module, objective: gw.Objective, data: gw.Dataset, **parameters: Any) -> nn.Module:
    return gw.Engine(model, objective, data, plan(**parameters), device="cpu").fit()


@pytest.fixture
def model(towers: Any) -> nn.Module:
    torch.manual_seed(0)
    return towers()


def test_lambda_zero_gives_the_weights_of_plain_source_training_to_the_bit(model: nn.Module, data: gw.Dataset) -> None:
    plain = trained(copy.deepcopy(model), gw.objective("cross-entropy"), data, feeds={"train": "source/train"})
    apart = trained(copy.deepcopy(model), DomainAdversarial(high=0.0, joint_forward=False), data)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), apart.parameters(), strict=True))
    joint = trained(copy.deepcopy(model), DomainAdversarial(high=0.0), data)  # a sum over more rows, of zeros
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain.parameters(), joint.parameters(), strict=True))


def test_lambda_above_zero_does_not(model: nn.Module, data: gw.Dataset) -> None:
    plain = trained(copy.deepcopy(model), DomainAdversarial(high=0.0), data)
    pushed = trained(copy.deepcopy(model), DomainAdversarial(), data)
    assert not torch.allclose(plain.trunk[0].weight, pushed.trunk[0].weight, atol=1e-4)


def test_target_labels_cannot_reach_training(model: nn.Module, data: gw.Dataset) -> None:
    wrong = gw.TensorSamples(**{**data["target/train"].columns, "label": torch.zeros(48, dtype=torch.long)})
    absent = gw.TensorSamples(features=wrong.columns["features"])
    results = [
        trained(copy.deepcopy(model), DomainAdversarial(), gw.Dataset({**data, "target/train": samples}, data.info))
        for samples in (data["target/train"], wrong, absent)
    ]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0].parameters(), other.parameters(), strict=True))


def test_the_keys_hide_the_target_labels() -> None:
    assert DomainAdversarial().keys == {"source": (gw.INPUTS, "label"), "target": (gw.INPUTS,)}


def test_the_exported_model_has_no_head_and_needs_none(model: nn.Module, data: gw.Dataset) -> None:
    names = set(model.state_dict())
    exported = trained(model, DomainAdversarial(), data)
    assert exported is model
    assert set(exported.state_dict()) == names
    assert exported(data["target/test"].columns["features"]).shape == (48, 3)


def test_the_heads_have_parameter_groups_at_their_own_rates(model: nn.Module, data: gw.Dataset) -> None:
    engine = gw.Engine(model, DomainAdversarial(head_lr=10.0, head_bias_lr=20.0), data, plan(), device="cpu")
    (optimizer,) = engine.optimizers.values()
    heads = {id(p): name for name, p in engine.objective.heads.named_parameters()}
    rates = {heads.get(id(p), "model")[-4:]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == pytest.approx({"odel": 0.05, "ight": 0.5, "bias": 1.0})


def test_the_papers_learning_rate_schedule_keeps_the_heads_factor(model: nn.Module, data: gw.Dataset) -> None:
    schedule = {"use": "inverse-decay", "alpha": 10, "beta": 0.75}
    engine = gw.Engine(model, DomainAdversarial(head_lr=10.0), data, plan(schedule=schedule, steps=10), device="cpu")
    (optimizer,) = engine.optimizers.values()
    for count, batches in enumerate(engine.batches()):
        if count == 5:
            break
        engine.objective.update(engine, batches)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05 * 6**-0.75, 0.5 * 6**-0.75, 0.5 * 6**-0.75])


def test_lambda_follows_the_engines_progress(model: nn.Module, data: gw.Dataset) -> None:
    rows: list[dict] = []
    engine = gw.Engine(model, DomainAdversarial(), data, plan(log_every=1), device="cpu", log=lambda step, row: rows.append(row))
    engine.fit()
    expected = [2 / (1 + torch.exp(torch.tensor(-10 * step / 6))) - 1 for step in range(6)]
    assert [row["lambda"] for row in rows] == pytest.approx([value.item() for value in expected], abs=1e-6)


def test_with_max_iter_lambda_saturates_after_so_many_batches_and_the_count_is_saved(model: nn.Module, data: gw.Dataset) -> None:
    first = DomainAdversarial(max_iter=4)
    trained(model, first, data)
    assert first.batches_seen == 6
    assert first.reversal.progress == 1.0
    resumed = DomainAdversarial(max_iter=40)
    resumed.setup(model, data)
    resumed.load_state_dict(first.state_dict())
    assert resumed.batches_seen == 6
    batches = {feed: data[split].__getitems__(range(8)) for feed, split in FEEDS.items()}
    del batches["target"]["label"]
    resumed(model, batches, 0.9)
    assert resumed.reversal.progress == 6 / 40


def test_evaluation_does_not_count_as_training(model: nn.Module, data: gw.Dataset) -> None:
    objective = DomainAdversarial(max_iter=4)
    objective.setup(model, data)
    batches = {feed: {"features": torch.randn(4, 4), "label": torch.zeros(4, dtype=torch.long)} for feed in FEEDS}
    del batches["target"]["label"]
    objective.eval()(model, batches, 0.5)
    assert objective.batches_seen == 0


def test_the_head_that_a_model_suggests_is_built(data: gw.Dataset, model: nn.Module) -> None:
    model.domain_hidden, model.domain_dropout = (7,), 0.25
    objective = DomainAdversarial()
    objective.setup(model, data)
    assert [tuple(p.shape) for p in objective.heads["bottleneck"].parameters()] == [(7, 6), (7,), (1, 7), (1,)]
    assert objective.heads["bottleneck"].hidden[0][2].p == 0.25


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="does not hold on these blobs: 0.128 against 0.144; the recipe's digits are where it is measured")
def test_it_adapts_on_blobs(model: nn.Module, data: gw.Dataset) -> None:
    """Three blobs and the same moved: training with the target's inputs leaves the domains closer together than without."""
    distance = gw.evaluator("domain-scatter", source="source/test", target="target/test")

    def gap(high: float) -> float:
        found = []
        for seed in range(6):
            objective = DomainAdversarial(high=high, hidden=[16])
            adapted = gw.Engine(copy.deepcopy(model), objective, data, plan(steps=300), device="cpu", seed=seed).fit()
            found.append(distance.evaluate(adapted, data).metrics["centroid-distance"])
        return sum(found) / len(found)

    assert gap(1.0) < 0.7 * gap(0.0)


def test_a_pipeline_builds_it_with_a_task_by_reference(data: gw.Dataset) -> None:
    objective = gw.objective("domain-adversarial", task={"use": "cross-entropy", "label_smoothing": 0.1}, attach=["bottleneck"])
    assert objective.task.label_smoothing == 0.1


def test_one_mixed_feed_trains_under_the_engine(model: nn.Module, data: gw.Dataset) -> None:
    both = {key: torch.cat([data[split].columns[key] for split in FEEDS.values()]) for key in ("features", "label", "domain")}
    whole = gw.Dataset({"train": gw.TensorSamples(**both)}, data.info)
    trained(model, DomainAdversarial(mixed=True), whole, feeds={})


def _two_processes(rank: int, folder: str, model: nn.Module, batches: dict) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    objective = DomainAdversarial(hidden=[5], dropout=0.0)
    objective.build_heads({"bottleneck": 6})

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.objective = model, objective

        def forward(self, mine: dict) -> torch.Tensor:
            return self.objective(self.model, mine, 0.5).total

    wrapped = nn.parallel.DistributedDataParallel(Joined())
    wrapped({feed: {key: value.chunk(2)[rank] for key, value in batch.items()} for feed, batch in batches.items()}).backward()
    if rank == 0:
        torch.save([p.grad for p in wrapped.parameters()], f"{folder}/gradients.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(model: nn.Module, tmp_path: Any) -> None:
    batches = {
        "source": {"features": torch.randn(8, 4), "label": torch.arange(8) % 3},
        "target": {"features": torch.randn(6, 4)},
    }
    torch.multiprocessing.spawn(_two_processes, args=(str(tmp_path), model, batches), nprocs=2)
    torch.manual_seed(0)
    objective = DomainAdversarial(hidden=[5], dropout=0.0)
    objective.build_heads({"bottleneck": 6})
    objective(model, batches, 0.5).total.backward()
    alone = [p.grad for p in (*model.parameters(), *objective.parameters())]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(alone, torch.load(tmp_path / "gradients.pt"), strict=True))


@pytest.mark.gpu
def test_on_a_gpu_a_step_gives_the_same_numbers(model: nn.Module, data: gw.Dataset) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    losses = []
    objective = DomainAdversarial(hidden=[5], dropout=0.0)
    objective.setup(model, data)
    for device in ("cpu", "cuda"):
        batches = {feed: {"features": data[split].columns["features"].to(device)} for feed, split in FEEDS.items()}
        batches["source"]["label"] = data["source/train"].columns["label"].to(device)
        found = objective.to(device)(model.to(device), batches, 0.5)
        losses.append([found.total.item(), *(part.item() for part in found.parts.values())])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
