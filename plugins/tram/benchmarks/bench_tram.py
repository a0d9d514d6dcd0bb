"""Norm, ascent and restore against pytorch-optimizer's SAM, and a whole TRAM step against a SAM step, on a ViT-S."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from graftwork.testing import race
from graftwork_tram import InputNoise, TrustRegionStep, ascended

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def vit_small(device: str) -> nn.Module:
    """22 million weights, 64 pixels in patches of 8."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=64,
        patch_size=8,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.ViTForImageClassification(config).to(device).train()


@pytest.mark.bench
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", ["euclidean", "adaptive"])
def test_norm_ascent_and_restore_take_a_fraction_of_pytorch_optimizers_time(metric, device, capsys) -> None:
    peer = pytest.importorskip("pytorch_optimizer", reason="needs pytorch-optimizer to race against")
    ours = vit_small(device)
    theirs = copy.deepcopy(ours)
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(parameter.shape, generator=generator).to(device) for parameter in ours.parameters()]
    # at a rate of 0 and without decay the base step is an addition of zeros, which both sides pay
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.0)
    sam = peer.SAM(theirs.parameters(), torch.optim.SGD, rho=0.05, adaptive=metric == "adaptive", lr=0.0)
    seen: dict[str, list[torch.Tensor]] = {}
    workspace: list[torch.Tensor] = []

    def give(model: nn.Module) -> None:
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient

    def here(keep: bool = False) -> None:
        give(ours)
        with ascended(ours.parameters(), 0.05, metric, workspace=workspace):
            if keep:
                seen["ours"] = [parameter.detach().clone() for parameter in ours.parameters()]
            give(ours)
        optimizer.step()

    def there(keep: bool = False) -> None:
        give(theirs)
        sam.first_step(zero_grad=True)
        if keep:
            seen["theirs"] = [parameter.detach().clone() for parameter in theirs.parameters()]
        give(theirs)
        sam.second_step(zero_grad=True)

    here(keep=True)
    there(keep=True)
    torch.testing.assert_close(seen["ours"], seen["theirs"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=0, atol=0)
    base = race(optimizer.step, optimizer.step, processor=True).ours
    found = race(here, there, 15, processor=True)
    mine, yours = found.ours, found.theirs
    ratio = (mine - base) / (yours - base)
    with capsys.disabled():
        print(
            f"\n{metric}, {device}: {1e3 * (mine - base):.1f} ms against {1e3 * (yours - base):.1f} ms without the base step "
            f"({1e3 * base:.1f} ms), ratio {ratio:.3f}"
        )
    assert ratio <= {"cpu": {"euclidean": 0.6, "adaptive": 0.9}, "cuda": {"euclidean": 0.3, "adaptive": 0.6}}[device][metric]


@pytest.mark.bench
@pytest.mark.parametrize("device", DEVICES)
def test_a_tram_step_takes_at_most_five_quarters_of_a_sam_step(device, capsys) -> None:
    peer = pytest.importorskip("pytorch_optimizer", reason="needs pytorch-optimizer to race against")
    ours = vit_small(device)
    theirs = copy.deepcopy(ours)
    generator = torch.Generator().manual_seed(1)
    image, label = torch.rand(4, 3, 64, 64, generator=generator).to(device), torch.arange(4, device=device)
    step = TrustRegionStep(ours, torch.optim.SGD(ours.parameters(), lr=0.0), InputNoise(0.1))
    sam = peer.SAM(theirs.parameters(), torch.optim.SGD, rho=0.05, lr=0.0)

    def here() -> None:
        step(lambda: cross_entropy(ours(image).logits, label))

    def there() -> None:
        cross_entropy(theirs(image).logits, label).backward()
        sam.first_step(zero_grad=True)
        cross_entropy(theirs(image).logits, label).backward()
        sam.second_step(zero_grad=True)

    found = race(here, there, processor=True)
    with capsys.disabled():
        print(f"\n{device}: TRAM against SAM, {found}")
    assert found.ratio <= 1.25
