"""The exact Fisher diagonal against a loop over samples, BackPACK and nngeometry; and the merge against torch's plain mean.

In one process on the same inputs; results are held equal before the race.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from graftwork.testing import Race, race
from graftwork_fisher_merging import diagonal_fisher, merged_tensors

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def perceptron(device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A million parameters, 512 inputs, 10 classes."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 850), nn.ReLU(), nn.Linear(850, 390), nn.ReLU(), nn.Linear(390, 10))
    return model.to(device), torch.randn(512, 784, device=device), torch.randint(10, (512,), device=device)


def told(capsys, what: str, found: Race) -> float:
    with capsys.disabled():
        print(f"\n{what}: {found}")
    return found.ratio


@pytest.mark.bench
@pytest.mark.parametrize("device", DEVICES)
def test_the_fisher_takes_at_most_a_tenth_of_a_loops_time(device, capsys) -> None:
    model, x, _ = perceptron(device)
    parameters = list(model.parameters())

    def loop() -> list[Tensor]:
        sums = [torch.zeros_like(one) for one in parameters]
        for row in x.split(1):
            log_p = model(row).log_softmax(dim=1)[0]
            for one in log_p:
                for total, found in zip(sums, torch.autograd.grad(one, parameters, retain_graph=True), strict=True):
                    total.addcmul_(found, found * one.detach().exp())
        return [total / len(x) for total in sums]

    for ours, theirs in zip(diagonal_fisher(model, [x]).tensors.values(), loop(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-8)
    assert told(capsys, f"loop, {device}", race(lambda: diagonal_fisher(model, [x]), loop, 1)) <= 0.1


@pytest.mark.bench
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # BackPACK's own hooks
@pytest.mark.parametrize("device", DEVICES)
def test_the_fisher_is_not_slower_than_backpacks_gauss_newton_diagonal(device, capsys) -> None:
    backpack = pytest.importorskip("backpack", reason="needs backpack-for-pytorch to race against")
    extensions = pytest.importorskip("backpack.extensions", reason="needs backpack-for-pytorch to race against")
    model, x, y = perceptron(device)
    extended, loss = backpack.extend(copy.deepcopy(model)), backpack.extend(nn.CrossEntropyLoss())

    def theirs() -> None:
        extended.zero_grad()
        with backpack.backpack(extensions.DiagGGNExact()):
            loss(extended(x), y).backward()

    theirs()
    for (name, one), found in zip(extended.named_parameters(), diagonal_fisher(model, [x]).tensors.values(), strict=True):
        torch.testing.assert_close(found, one.diag_ggn_exact, rtol=1e-3, atol=1e-8, msg=name)
    assert told(capsys, f"DiagGGNExact, {device}", race(lambda: diagonal_fisher(model, [x]), theirs, 7)) <= 1.0


@pytest.mark.bench
@pytest.mark.parametrize("device", DEVICES)
def test_the_fisher_is_not_slower_than_nngeometrys(device, capsys) -> None:
    metrics = pytest.importorskip("nngeometry.metrics", reason="needs nngeometry to race against")
    objects = pytest.importorskip("nngeometry.object", reason="needs nngeometry to race against")
    model, x, y = perceptron(device)
    loader = DataLoader(TensorDataset(x, y), batch_size=512)

    def theirs() -> Tensor:
        return metrics.FIM(model, loader, objects.PMatDiag, variant="classif_logits", device=device).get_diag()

    ours = torch.cat([one.flatten() for one in diagonal_fisher(model, [x]).tensors.values()])
    torch.testing.assert_close(ours, theirs(), rtol=1e-3, atol=1e-8)
    assert told(capsys, f"nngeometry, {device}", race(lambda: diagonal_fisher(model, [x]), theirs, 5)) <= 1.0


@pytest.mark.bench
@pytest.mark.parametrize("device", DEVICES)
def test_a_merge_is_told_beside_a_stacked_closed_form(device, capsys) -> None:
    model, _, _ = perceptron(device)
    models = [{name: torch.randn_like(one) for name, one in model.named_parameters()} for _ in range(5)]
    fishers = [{name: torch.rand_like(one) for name, one in model.named_parameters()} for _ in range(5)]

    def ours() -> dict[str, Tensor]:
        return dict(merged_tensors(models, models[0], [0.2] * 5, fishers, 0.0))

    def stacked() -> dict[str, Tensor]:
        found = {}
        for name in models[0]:
            values, weights = torch.stack([one[name] for one in models]), torch.stack([0.2 * one[name] for one in fishers])
            found[name] = (values * weights).sum(dim=0) / weights.sum(dim=0)
        return found

    theirs = stacked()
    for name, one in ours().items():
        torch.testing.assert_close(one, theirs[name], rtol=1e-4, atol=1e-5)
    assert told(capsys, f"merge of 5, {device}", race(ours, stacked, 7)) <= 2.0
