from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import graftwork as gw
from graftwork import INPUTS, Loss, Objective
from graftwork.interfaces import embed
from graftwork_dann import DomainAdversarial, DomainHead, reversal_coefficient


def built(model: nn.Module, **parameters: Any) -> DomainAdversarial:
    """An objective with heads for the model's bottleneck, without dropout."""
    torch.manual_seed(3)
    objective = DomainAdversarial(hidden=[5], dropout=0.0, **parameters)
    objective.build_heads(dict.fromkeys(objective.points, model.num_features), model)
    return objective.to(next(model.parameters()))


def gradients(loss: torch.Tensor, module: nn.Module) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(module.parameters(), found, strict=True)]


def same(first: list[torch.Tensor], second: list[torch.Tensor], **how: float) -> bool:
    return all(torch.allclose(a, b, **how) for a, b in zip(first, second, strict=True))


def written_out(model: nn.Module, head: DomainHead, batches: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """L_y and L_d by their definitions, without a reversal."""
    source, target = (model.forward_features(batches[feed]["features"]) for feed in ("source", "target"))
    label = functional.cross_entropy(model.head(source), batches["source"]["label"])
    return label, -functional.logsigmoid(-head(source)).mean() - functional.logsigmoid(head(target)).mean()


# -- the loss ------------------------------------------------------------------------------------------------------------------


def test_loss_and_every_gradient_are_the_papers(tower: nn.Module, batches: dict) -> None:
    """theta_f descends L_y - lambda L_d, theta_y descends L_y, theta_d descends L_d at full strength; sizes differ."""
    objective = built(tower)
    found = objective(tower, batches, 0.1)
    label, domain = written_out(tower, objective.heads["bottleneck"], batches)
    strength = reversal_coefficient(0.1)
    assert torch.allclose(found.total, label + domain)
    assert same(gradients(found.total, tower.trunk), gradients(label - strength * domain, tower.trunk))
    assert same(gradients(found.total, tower.head), gradients(label, tower.head))
    assert same(gradients(found.total, objective.heads), gradients(domain, objective.heads))


def test_parts_are_tensors_that_nothing_was_waited_for(tower: nn.Module, batches: dict) -> None:
    parts = built(tower)(tower, batches, 0.25).parts
    assert {"task", "domain", "lambda", "domain_accuracy", "accuracy"} == set(parts)
    assert all(isinstance(part, torch.Tensor) and part.ndim == 0 for part in parts.values())
    assert parts["lambda"].item() == pytest.approx(0.84828364)


def test_lambda_moves_the_model_and_not_the_heads(tower: nn.Module, batches: dict) -> None:
    objective = built(tower)
    early, late = (objective(tower, batches, progress).total for progress in (0.05, 1.0))
    assert same(gradients(early, objective.heads), gradients(late, objective.heads))
    assert not same(gradients(early, tower.trunk), gradients(late, tower.trunk))


def test_a_head_with_zero_weights_sends_no_gradient(tower: nn.Module, batches: dict) -> None:
    objective = built(tower)
    for parameter in objective.heads.parameters():
        nn.init.zeros_(parameter)
    plain = functional.cross_entropy(tower(batches["source"]["features"]), batches["source"]["label"])
    assert same(gradients(objective(tower, batches, 1.0).total, tower), gradients(plain, tower))


def test_the_control_trains_the_head_and_leaves_the_model_alone(tower: nn.Module, batches: dict) -> None:
    objective, control = built(tower), built(tower, adversarial=False)
    found = control(tower, batches, 1.0)
    plain = functional.cross_entropy(tower(batches["source"]["features"]), batches["source"]["label"])
    assert same(gradients(found.total, tower), gradients(plain, tower))
    assert same(gradients(found.total, control.heads), gradients(objective(tower, batches, 1.0).total, objective.heads))


def test_scale_head_multiplies_the_heads_learning_by_lambda_too(tower: nn.Module, batches: dict) -> None:
    plain, scaled = built(tower), built(tower, scale_head=True)
    ours, theirs = scaled(tower, batches, 0.1).total, plain(tower, batches, 0.1).total
    strength = reversal_coefficient(0.1)
    assert same(gradients(ours, scaled.heads), [strength * g for g in gradients(theirs, plain.heads)])
    assert same(gradients(ours, tower.trunk), gradients(theirs, tower.trunk))


def test_the_domain_loss_weight_scales_head_and_reversed_gradient(tower: nn.Module, batches: dict) -> None:
    objective = built(tower, domain_loss_weight=0.1)
    total = objective(tower, batches, 0.5).total
    label, domain = written_out(tower, objective.heads["bottleneck"], batches)
    assert same(gradients(total, objective.heads), gradients(0.1 * domain, objective.heads))
    assert same(gradients(total, tower.trunk), gradients(label - 0.1 * reversal_coefficient(0.5) * domain, tower.trunk))


def test_reduction_over_samples_weighs_rows_alike(tower: nn.Module, batches: dict) -> None:
    objective = built(tower, reduction="samples")
    head = objective.heads["bottleneck"]
    source, target = (head(tower.trunk(batches[feed]["features"])) for feed in ("source", "target"))
    rows = torch.cat([-functional.logsigmoid(-source), -functional.logsigmoid(target)])
    assert torch.allclose(objective(tower, batches, 0.0).parts["domain"], rows.mean())


def test_the_caffe_preset_is_what_its_networks_do() -> None:
    objective = DomainAdversarial(preset="office-caffe")
    assert (objective.weight, objective.max_iter, objective.reduction) == (0.1, 10_000, "samples")
    assert DomainAdversarial(preset="office-caffe", domain_loss_weight=0.5).weight == 0.5
    objective.build_heads({"bottleneck": 256})
    assert objective.heads["bottleneck"].output.weight.std().item() == pytest.approx(0.3, rel=0.15)
    rates = [group["lr"] for group in objective.param_groups(0.001)]
    assert rates == pytest.approx([0.01, 0.02])


# -- passes and attachment -----------------------------------------------------------------------------------------------------


def test_one_pass_takes_both_domains_through_the_trunk(tower: nn.Module, batches: dict) -> None:
    rows: list[int] = []
    tower.trunk.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    built(tower)(tower, batches, 0.5)
    built(tower, joint_forward=False)(tower, batches, 0.5)
    assert rows == [8, 5, 3]


def test_passes_together_and_apart_agree_without_batch_norm(tower: nn.Module, batches: dict) -> None:
    joint, apart = built(tower), built(tower, joint_forward=False)
    first, second = (objective(tower, batches, 0.5).total for objective in (joint, apart))
    assert torch.allclose(first, second)
    assert same(gradients(first, tower), gradients(second, tower))


def test_a_joint_pass_mixes_the_domains_batch_statistics(tower: nn.Module, batches: dict) -> None:
    tower.trunk = nn.Sequential(*tower.trunk, nn.BatchNorm1d(6, dtype=torch.float64))
    joint, apart = (built(tower, joint_forward=flag)(tower, batches, 0.5).parts["task"] for flag in (True, False))
    assert not torch.allclose(joint, apart)


def test_a_head_attaches_to_any_module_by_name(tower: nn.Module, batches: dict, data: gw.Dataset) -> None:
    objective = DomainAdversarial(attach="trunk.0", hidden=[5], dropout=0.0)
    objective.setup(tower.float(), data)
    assert objective.heads["trunk/0"].hidden[0][0].in_features == 8
    single = {feed: {key: value.float() if key == "features" else value for key, value in batch.items()} for feed, batch in batches.items()}
    found = objective(tower, single, 1.0)
    domain = functional.logsigmoid
    logits = [objective.heads["trunk/0"](tower.trunk[0](single[feed]["features"])) for feed in ("source", "target")]
    assert torch.allclose(found.parts["domain"], -domain(-logits[0]).mean() - domain(logits[1]).mean())
    assert gradients(found.parts["domain"], tower.trunk[2])[0].abs().sum() == 0  # later layers do not feel this head


def test_several_heads_add_up_and_each_is_told(tower: nn.Module, batches: dict) -> None:
    torch.manual_seed(0)
    objective = DomainAdversarial(attach=["bottleneck", "trunk.0", "head"], hidden=[5], dropout=0.0)
    objective.build_heads({"bottleneck": 6, "trunk.0": 8, "head": 3})
    parts = objective.double()(tower, batches, 0.5).parts
    each = [parts[f"domain/{point}"] for point in ("bottleneck", "trunk.0", "head")]
    assert torch.allclose(parts["domain"], torch.stack(each).sum())
    assert len({round(value.item(), 6) for value in each}) == 3


def test_no_hook_is_left_behind(tower: nn.Module, batches: dict) -> None:
    objective = DomainAdversarial(attach="trunk.0", hidden=[], dropout=0.0)
    objective.build_heads({"trunk.0": 8})
    objective.double()(tower, batches, 0.5)
    assert not any(module._forward_hooks for module in tower.modules())


def test_maps_and_tokens_are_averaged_over_their_positions() -> None:
    from graftwork_dann.attachment import pooled

    assert torch.equal(pooled(torch.arange(8.0).view(1, 2, 2, 2)), torch.tensor([[1.5, 5.5]]))
    assert torch.equal(pooled(torch.arange(6.0).view(1, 3, 2)), torch.tensor([[2.0, 3.0]]))


def test_an_unknown_attachment_point_lists_the_modules(tower: nn.Module, data: gw.Dataset) -> None:
    with pytest.raises(gw.InterfaceError, match=r'no module "trnk" \(did you mean "trunk"\?\); it has bottleneck, trunk, trunk.0'):
        DomainAdversarial(attach="trnk").setup(tower.float(), data)


# -- tasks ---------------------------------------------------------------------------------------------------------------------


class Contrast(Objective):
    """Binomial deviance on the cosine similarity of all pairs, as the paper's descriptors are trained."""

    keys = {"train": (INPUTS, "label")}

    def forward(self, model: Any, batches: Any, progress: float) -> Loss:
        unit = functional.normalize(embed(model, batches["train"]), dim=1)
        label = batches["train"]["label"]
        sign = torch.where(label[:, None] == label, 1.0, -1.0)
        return Loss(functional.softplus(-2 * sign * (unit @ unit.T - 0.5)).mean())


def test_descriptors_are_adapted_with_a_metric_loss_inside(tower: nn.Module, batches: dict) -> None:
    objective = built(tower, task=Contrast())
    found = objective(tower, batches, 0.5)
    alone = Contrast()(tower, {"train": batches["source"]}, 0.5).total
    assert torch.allclose(found.parts["task"], alone)
    _, domain = written_out(tower, objective.heads["bottleneck"], batches)
    assert same(gradients(found.total, tower), gradients(alone - reversal_coefficient(0.5) * domain, tower))


def test_an_embedders_bottleneck_is_its_embedding(batches: dict) -> None:
    class Embedding(nn.Module):
        inputs, embedding_dim = ("features",), 6

        def __init__(self) -> None:
            super().__init__()
            self.num_features, self.layer = 6, nn.Linear(4, 6, dtype=torch.float64)
            del self.num_features

        def embed(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    class Descriptor(Contrast):
        needs = gw.interfaces.Embedder

    for joint in (True, False):
        objective = DomainAdversarial(task=Descriptor(), hidden=[5], dropout=0.0, joint_forward=joint)
        objective.build_heads({"bottleneck": 6})
        assert objective.needs is gw.interfaces.Embedder
        assert objective.double()(Embedding(), batches, 0.5).total.isfinite()


class Siamese(Contrast):
    """Runs the model twice in a step."""

    def forward(self, model: Any, batches: Any, progress: float) -> Loss:
        first, second = (model(batches["train"]["features"]) for _ in range(2))
        assert len(first) == len(second) == len(batches["train"]["label"])
        return Loss((first - second).square().sum() + first.square().mean())


def test_a_task_may_run_the_model_more_than_once(tower: nn.Module, batches: dict) -> None:
    found = built(tower, task=Siamese())(tower, batches, 0.5)
    assert torch.allclose(found.parts["task"], tower(batches["source"]["features"]).square().mean())


def test_labelled_target_samples_join_the_task_loss_alone(tower: nn.Module, batches: dict) -> None:
    few = {"features": torch.randn(2, 4, dtype=torch.float64), "label": torch.tensor([2, 0])}
    objective = built(tower, labelled=["source", "few"])
    assert objective.feeds == ("source", "target", "few")
    for joint in (True, False):
        objective.joint_forward = joint
        parts = objective(tower, {**batches, "few": few}, 0.5).parts
        rows = torch.cat([few["features"], batches["source"]["features"]])
        labels = torch.cat([few["label"], batches["source"]["label"]])
        assert torch.allclose(parts["task"], functional.cross_entropy(tower(rows), labels))
        _, domain = written_out(tower, objective.heads["bottleneck"], batches)
        assert torch.allclose(parts["domain"], domain)


def test_any_number_of_domains_is_told_apart(tower: nn.Module, batches: dict) -> None:
    more = {**batches, "third": {"features": torch.randn(4, 4, dtype=torch.float64)}}
    objective = built(tower, domains=["source", "target", "third"])
    parts = objective(tower, more, 0.5).parts
    logits = [objective.heads["bottleneck"](tower.trunk(more[feed]["features"])) for feed in ("source", "target", "third")]
    expected = sum(functional.cross_entropy(rows, torch.full((len(rows),), number)) for number, rows in enumerate(logits))
    assert torch.allclose(parts["domain"], expected)


def test_every_domain_may_be_labelled(tower: nn.Module, batches: dict) -> None:
    both = {**batches, "target": {**batches["target"], "label": torch.tensor([0, 1, 2])}}
    parts = built(tower, labelled=["source", "target"])(tower, both, 0.5).parts
    rows, labels = (torch.cat([both[feed][key] for feed in ("source", "target")]) for key in ("features", "label"))
    assert torch.allclose(parts["task"], functional.cross_entropy(tower(rows), labels))


# -- one feed with domain ids --------------------------------------------------------------------------------------------------


def mixed(batches: dict, label: int = 0) -> dict:
    rows = torch.cat([batches["target"]["features"], batches["source"]["features"]])
    labels = torch.cat([torch.full((3,), label), batches["source"]["label"]])
    return {"train": {"features": rows, "label": labels, "domain": torch.tensor([1, 1, 1, 0, 0, 0, 0, 0])}}


def test_one_feed_with_domain_ids_gives_what_two_feeds_give(tower: nn.Module, batches: dict) -> None:
    one, two = built(tower, mixed=True), built(tower)
    first, second = one(tower, mixed(batches), 0.5), two(tower, batches, 0.5)
    assert torch.allclose(first.total, second.total)
    assert same(gradients(first.total, tower), gradients(second.total, tower))


def test_labels_of_unlabelled_domains_are_masked(tower: nn.Module, batches: dict) -> None:
    objective = built(tower, mixed=True)
    first, second = (objective(tower, mixed(batches, label), 0.5).total for label in (0, 2))
    assert torch.equal(first, second)


def test_a_batch_of_one_domain_is_refused(tower: nn.Module, batches: dict) -> None:
    batch = mixed(batches)["train"]
    with pytest.raises(gw.DataError, match='needs at least two domains in a batch; this one has "source" alone'):
        built(tower, mixed=True)(tower, {"train": {**batch, "domain": torch.zeros(8, dtype=torch.long)}}, 0.5)
    with pytest.raises(gw.DataError, match=r"`domain` is the place in source, target, 0 to 1; the batch has \[0, 4\]"):
        built(tower, mixed=True)(tower, {"train": {**batch, "domain": batch["domain"] * 4}}, 0.5)


# -- what is refused -----------------------------------------------------------------------------------------------------------


def test_no_target_data_is_refused(tower: nn.Module, batches: dict) -> None:
    with pytest.raises(gw.DataError, match="needs at least two domains, here source, target; the batches have source and lack target"):
        built(tower)(tower, {"source": batches["source"]}, 0.5)
    with pytest.raises(ValueError, match="needs at least two domains; found source"):
        DomainAdversarial(domains=["source"])


def test_target_labels_are_refused(tower: nn.Module, batches: dict) -> None:
    with pytest.raises(gw.DataError, match='batch of "target" brings labels, which must not be seen'):
        built(tower)(tower, {**batches, "target": {**batches["target"], "label": torch.zeros(3)}}, 0.5)


def test_domains_of_different_size_are_passed_apart(tower: nn.Module, batches: dict) -> None:
    odd = {**batches, "target": {"features": torch.randn(3, 5, dtype=torch.float64)}}
    with pytest.raises(gw.DataError, match=r"differ in shape, \(4,\) and \(5,\): pass them apart with joint_forward: false"):
        built(tower)(tower, odd, 0.5)


def test_a_task_that_bypasses_the_attachment_point_is_named(tower: nn.Module, batches: dict) -> None:
    class Aside(Contrast):
        def forward(self, model: Any, batches: Any, progress: float) -> Loss:
            return Loss(model.trunk(batches["train"]["features"]).sum())

    with pytest.raises(gw.InterfaceError, match='attachment point "bottleneck" saw 0 of 8 rows: Aside does not pass'):
        built(tower, task=Aside())(tower, batches, 0.5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"domains": ["a", "a"]}, "at least two domains"),
        ({"domains": ["a", "b", "a"]}, "named twice"),
        ({"labelled": []}, "labelled names at least one feed"),
        ({"attach": []}, "attach names one or more points"),
        ({"gamma": 0.0}, "gamma is above 0"),
        ({"high": float("nan")}, "low and high are finite"),
        ({"domain_loss_weight": -1.0}, "domain_loss_weight is finite and not negative; found -1"),
        ({"max_iter": 0}, "max_iter is at least 1"),
        ({"hidden": [0]}, "hidden widths"),
        ({"dropout": 1.0}, "dropout is in"),
        ({"head_lr": 0.0}, "head_lr and head_bias_lr are above 0"),
        ({"mixed": True, "task": Contrast()}, "only cross-entropy understands"),
        ({"task": DomainAdversarial()}, "draws from one feed; DomainAdversarial draws from source, target"),
    ],
)
def test_bad_values_are_refused(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DomainAdversarial(**parameters)


# -- autocast, peers -----------------------------------------------------------------------------------------------------------


def test_under_autocast_the_domain_loss_is_summed_in_single_precision(towers: Any, batches: dict) -> None:
    model = towers()
    objective = built(model)
    single = {feed: {key: value.float() if key == "features" else value for key, value in batch.items()} for feed, batch in batches.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective(model, single, 0.5)
    assert found.total.dtype == torch.float32
    found.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_torch_compile_keeps_loss_and_gradients(tower: nn.Module, batches: dict) -> None:
    objective = built(tower)
    compiled = torch.compile(objective, backend="aot_eager")
    for progress in (0.1, 0.2):
        first, second = objective(tower, batches, progress).total, compiled(tower, batches, progress).total
        assert same(gradients(first, tower), gradients(second, tower))


def test_a_step_agrees_with_pytorch_adapt(tower: nn.Module, batches: dict) -> None:
    peer = pytest.importorskip("pytorch_adapt.hooks", reason="pytorch-adapt is not installed", exc_type=ImportError)
    objective = built(tower)
    head = copy.deepcopy(objective.heads["bottleneck"])
    theirs = copy.deepcopy(tower)
    strength = reversal_coefficient(0.25)
    parts = nn.ModuleDict({"G": theirs.trunk, "C": theirs.head, "D": head})
    frozen = torch.optim.SGD(parts.parameters(), lr=0.0)
    weighters = pytest.importorskip("pytorch_adapt.weighters", exc_type=ImportError)
    mean_of_three = weighters.MeanWeighter(scale=3)  # its own total is the mean of three losses, ours their sum
    hook = peer.DANNHook([frozen], gradient_reversal_weight=strength, weighter=mean_of_three)
    given = {
        "src_imgs": batches["source"]["features"],
        "src_labels": batches["source"]["label"],
        "src_domain": torch.zeros(5, dtype=torch.float64),
        "target_imgs": batches["target"]["features"],
        "target_domain": torch.ones(3, dtype=torch.float64),
        **parts,
    }
    hook(given)
    found = objective(tower, batches, 0.25)
    ours = [*gradients(found.total, tower.trunk), *gradients(found.total, tower.head), *gradients(found.total, objective.heads)]
    assert same(ours, [p.grad for p in parts.parameters()], rtol=1e-6, atol=1e-12)
