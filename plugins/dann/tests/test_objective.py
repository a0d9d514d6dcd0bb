"""The objective: its loss and gradients, passes and heads, precision, and agreement with another library."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import graftwork as gw
from graftwork_dann import DomainAdversarial, reversal_coefficient

# -- the loss ------------------------------------------------------------------------------------------------------------------


def test_loss_and_every_gradient_are_the_papers(
    tower: nn.Module, batches: dict, built: Callable, gradients: Callable, same: Callable, written_out: Callable
) -> None:
    """theta_f descends L_y - lambda L_d, theta_y descends L_y, theta_d descends L_d at full strength; sizes differ."""
    objective = built(tower)
    found = objective(tower, batches, 0.1)
    label, domain = written_out(tower, objective.heads["bottleneck"], batches)
    strength = reversal_coefficient(0.1)
    assert torch.allclose(found.total, label + domain)
    assert same(gradients(found.total, tower.trunk), gradients(label - strength * domain, tower.trunk))
    assert same(gradients(found.total, tower.head), gradients(label, tower.head))
    assert same(gradients(found.total, objective.heads), gradients(domain, objective.heads))


def test_parts_are_tensors_that_nothing_was_waited_for(tower: nn.Module, batches: dict, built: Callable) -> None:
    parts = built(tower)(tower, batches, 0.25).parts
    assert {"task", "domain", "lambda", "domain_accuracy", "accuracy"} == set(parts)
    assert all(isinstance(part, torch.Tensor) and part.ndim == 0 for part in parts.values())
    assert parts["lambda"].item() == pytest.approx(0.84828364)


def test_lambda_moves_the_model_and_not_the_heads(
    tower: nn.Module, batches: dict, built: Callable, gradients: Callable, same: Callable
) -> None:
    objective = built(tower)
    early, late = (objective(tower, batches, progress).total for progress in (0.05, 1.0))
    assert same(gradients(early, objective.heads), gradients(late, objective.heads))
    assert not same(gradients(early, tower.trunk), gradients(late, tower.trunk))


def test_a_head_with_zero_weights_sends_no_gradient(
    tower: nn.Module, batches: dict, built: Callable, gradients: Callable, same: Callable
) -> None:
    objective = built(tower)
    for parameter in objective.heads.parameters():
        nn.init.zeros_(parameter)
    plain = functional.cross_entropy(tower(batches["source"]["features"]), batches["source"]["label"])
    assert same(gradients(objective(tower, batches, 1.0).total, tower), gradients(plain, tower))


def test_the_control_trains_the_head_and_leaves_the_model_alone(
    tower: nn.Module, batches: dict, built: Callable, gradients: Callable, same: Callable
) -> None:
    objective, control = built(tower), built(tower, adversarial=False)
    found = control(tower, batches, 1.0)
    plain = functional.cross_entropy(tower(batches["source"]["features"]), batches["source"]["label"])
    assert same(gradients(found.total, tower), gradients(plain, tower))
    assert same(gradients(found.total, control.heads), gradients(objective(tower, batches, 1.0).total, objective.heads))


def test_scale_head_multiplies_the_heads_learning_by_lambda_too(
    tower: nn.Module, batches: dict, built: Callable, gradients: Callable, same: Callable
) -> None:
    plain, scaled = built(tower), built(tower, scale_head=True)
    ours, theirs = scaled(tower, batches, 0.1).total, plain(tower, batches, 0.1).total
    strength = reversal_coefficient(0.1)
    assert same(gradients(ours, scaled.heads), [strength * g for g in gradients(theirs, plain.heads)])
    assert same(gradients(ours, tower.trunk), gradients(theirs, tower.trunk))


def test_the_domain_loss_weight_scales_head_and_reversed_gradient(
    tower: nn.Module, batches: dict, built: Callable, gradients: Callable, same: Callable, written_out: Callable
) -> None:
    objective = built(tower, domain_loss_weight=0.1)
    total = objective(tower, batches, 0.5).total
    label, domain = written_out(tower, objective.heads["bottleneck"], batches)
    assert same(gradients(total, objective.heads), gradients(0.1 * domain, objective.heads))
    assert same(gradients(total, tower.trunk), gradients(label - 0.1 * reversal_coefficient(0.5) * domain, tower.trunk))


def test_reduction_over_samples_weighs_rows_alike(tower: nn.Module, batches: dict, built: Callable) -> None:
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


def test_one_pass_takes_both_domains_through_the_trunk(tower: nn.Module, batches: dict, built: Callable) -> None:
    rows: list[int] = []
    tower.trunk.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    built(tower)(tower, batches, 0.5)
    built(tower, joint_forward=False)(tower, batches, 0.5)
    assert rows == [8, 5, 3]


def test_passes_together_and_apart_agree_without_batch_norm(
    tower: nn.Module, batches: dict, built: Callable, gradients: Callable, same: Callable
) -> None:
    joint, apart = built(tower), built(tower, joint_forward=False)
    first, second = (objective(tower, batches, 0.5).total for objective in (joint, apart))
    assert torch.allclose(first, second)
    assert same(gradients(first, tower), gradients(second, tower))


def test_a_joint_pass_mixes_the_domains_batch_statistics(tower: nn.Module, batches: dict, built: Callable) -> None:
    tower.trunk = nn.Sequential(*tower.trunk, nn.BatchNorm1d(6, dtype=torch.float64))
    joint, apart = (built(tower, joint_forward=flag)(tower, batches, 0.5).parts["task"] for flag in (True, False))
    assert not torch.allclose(joint, apart)


def test_a_head_attaches_to_any_module_by_name(tower: nn.Module, batches: dict, data: gw.Dataset, gradients: Callable) -> None:
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


# -- autocast, peers -----------------------------------------------------------------------------------------------------------


def test_under_autocast_the_domain_loss_is_summed_in_single_precision(towers: Any, batches: dict, built: Callable) -> None:
    model = towers()
    objective = built(model)
    single = {feed: {key: value.float() if key == "features" else value for key, value in batch.items()} for feed, batch in batches.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective(model, single, 0.5)
    assert found.total.dtype == torch.float32
    found.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_torch_compile_keeps_loss_and_gradients(
    tower: nn.Module, batches: dict, built: Callable, gradients: Callable, same: Callable
) -> None:
    objective = built(tower)
    compiled = torch.compile(objective, backend="aot_eager")
    for progress in (0.1, 0.2):
        first, second = objective(tower, batches, progress).total, compiled(tower, batches, progress).total
        assert same(gradients(first, tower), gradients(second, tower))


def test_a_step_agrees_with_pytorch_adapt(tower: nn.Module, batches: dict, built: Callable, gradients: Callable, same: Callable) -> None:
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
