"""Cross-entropy, least squares, distillation and InfoNCE against closed forms and other implementations."""

from __future__ import annotations

import copy
import math

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

import graftwork as gw
from graftwork.builtin.networks import MLP
from graftwork.builtin.objectives import CrossEntropy, Distillation, InfoNCE, MeanSquaredError, distillation_loss, info_nce
from graftwork.engine import Engine
from graftwork.training import TrainConfig


def batch(count: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"features": torch.randn(count, 4, generator=generator), "label": torch.arange(count) % 3}


def net(seed: int = 0, **settings: object) -> MLP:
    torch.manual_seed(seed)
    return MLP(4, hidden=[8], num_classes=3, **settings)


class Pair(nn.Module):
    """A dual encoder of two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(12, 6), nn.Embedding(20, 6)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return self.image(image.flatten(1))

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.text(input_ids).mean(1)


def pairs(count: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 3, 2, 2, generator=generator)
    ids = torch.randint(20, (count, 5), generator=generator)
    return {"image": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


# -- cross-entropy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_mixes_the_label_with_all_classes(smoothing: float) -> None:
    model, data = net(), batch()
    logp = model(data["features"]).log_softmax(1)
    target = (1 - smoothing) * functional.one_hot(data["label"], 3) + smoothing / 3
    loss = CrossEntropy(label_smoothing=smoothing)(model, {"train": data}, 0.0)
    torch.testing.assert_close(loss.total, -(target * logp).sum(1).mean())
    assert loss.parts["accuracy"] == (logp.argmax(1) == data["label"]).float().mean()


def test_cross_entropy_refuses_a_smoothing_of_one() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing is in \[0, 1\); found 1"):
        CrossEntropy(label_smoothing=1.0)


def test_cross_entropy_refuses_a_model_with_too_few_outputs_before_training() -> None:
    data = gw.Dataset({"train": gw.TensorSamples(**batch())}, gw.DatasetInfo(classes=tuple("abcd")))
    with pytest.raises(gw.InterfaceError, match="the dataset has 4 classes, MLP only 3 outputs: build it with 4"):
        CrossEntropy().setup(net(), data)


# -- mean squared error -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_squared_error_is_a_mean_over_samples_and_columns(outputs: int) -> None:
    model = MLP(4, hidden=[], num_classes=outputs)
    features = torch.randn(6, 4)
    target = torch.randn(6) if outputs == 1 else torch.randn(6, outputs)
    expected = ((model(features) - target.view(6, -1)) ** 2).sum() / (6 * outputs)
    torch.testing.assert_close(MeanSquaredError()(model, {"train": {"features": features, "target": target}}, 0.0).total, expected)


def test_a_target_of_another_width_is_not_broadcast() -> None:
    data = {"features": torch.zeros(6, 4), "target": torch.zeros(6)}
    with pytest.raises(gw.DataError, match=r"MLP gives \(6, 3\) where the targets are \(6, 1\)"):
        MeanSquaredError()(net(), {"train": data}, 0.0)


# -- distillation -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_equals_the_divergence_in_float64(temperature: float) -> None:
    generator = numpy.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 7, 5)) * 3
    p, q = (numpy.exp(x / temperature) / numpy.exp(x / temperature).sum(1, keepdims=True) for x in (teacher, student))
    expected = temperature**2 * (p * numpy.log(p / q)).sum(1).mean()
    found = distillation_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    reference = functional.kl_div(torch.tensor(q).log(), torch.tensor(p), reduction="batchmean") * temperature**2
    assert found.item() == pytest.approx(reference.item(), rel=1e-5)


def test_the_gradient_is_that_of_cross_entropy_with_soft_targets_scaled_by_the_temperature_squared() -> None:
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    (found,) = torch.autograd.grad(distillation_loss(student, teacher, 3.0), student)
    expected = 3.0 * ((student / 3).softmax(1) - (teacher / 3).softmax(1)) / 6  # T^2 times 1/T
    torch.testing.assert_close(found, expected)


def test_alpha_mixes_teacher_and_labels() -> None:
    student, teacher, data = net(0), net(1), batch()
    loss = Distillation(teacher, temperature=2.0, alpha=0.3)(student, {"train": data}, 0.0)
    soft = distillation_loss(student(data["features"]), teacher(data["features"]), 2.0)
    hard = functional.cross_entropy(student(data["features"]), data["label"])
    torch.testing.assert_close(loss.total, 0.3 * soft + 0.7 * hard)
    assert set(loss.parts) == {"soft", "hard", "agreement"}


def test_without_weight_on_labels_no_label_is_read() -> None:
    assert Distillation(net(), alpha=1.0).keys == {"train": ("inputs", "features")}
    assert "label" in Distillation(net(), alpha=0.9).keys["train"]
    unlabelled = {"features": batch()["features"]}
    assert Distillation(net(1), alpha=1.0)(net(0), {"train": unlabelled}, 0.0).total > 0


def test_training_leaves_the_teacher_alone_and_out_of_optimiser_and_state() -> None:
    teacher, student = net(1, dropout=0.5).train(), net(0)
    before = copy.deepcopy(teacher.state_dict())
    data = gw.Dataset({"train": gw.TensorSamples(**batch(24))})
    objective = Distillation(teacher, alpha=0.5)
    engine = Engine(student, objective, data, TrainConfig(steps=3, batch_size=8), device="cpu")
    owned = {id(p) for group in engine.optimizers[""].param_groups for p in group["params"]}
    assert owned == {id(p) for p in student.parameters()}
    assert not objective.state_dict()
    engine.fit()
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert teacher.training
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


def test_the_teacher_is_asked_without_dropout() -> None:
    teacher, data = net(1, dropout=0.9).train(), batch()
    losses = [Distillation(teacher, alpha=1.0)(net(0), {"train": data}, 0.0).total for _ in range(2)]
    assert losses[0] == losses[1]
    torch.testing.assert_close(losses[0], distillation_loss(net(0)(data["features"]), teacher.eval()(data["features"]), 4.0))


def test_a_teacher_may_take_other_inputs_of_the_same_samples() -> None:
    teacher = MLP(12, hidden=[5], num_classes=3, input="image")
    data = {**batch(), "image": torch.rand(12, 3, 2, 2)}
    objective = Distillation(teacher)
    assert objective.keys["train"] == ("inputs", "image", "label")
    assert objective(net(), {"train": data}, 0.0).total.isfinite()


def test_distillation_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="differ in shape: they must share the classes"):
        Distillation(MLP(4, num_classes=5))(net(), {"train": batch()}, 0.0)
    with pytest.raises(ValueError, match=r"temperature is above 0 and alpha in \(0, 1\]; found 0.0 and 0.9"):
        Distillation(net(), temperature=0.0)


# -- InfoNCE ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_info_nce_equals_a_loop_in_float64(temperature: float) -> None:
    generator = numpy.random.default_rng(0)
    queries, keys = generator.normal(size=(2, 6, 5))
    unit = [[row / numpy.sqrt((row**2).sum()) for row in side] for side in (queries, keys)]
    terms = []
    for i in range(6):
        scores = [math.exp(float(unit[0][i] @ unit[1][j]) / temperature) for j in range(6)]
        terms.append(-math.log(scores[i] / sum(scores)))
    assert info_nce(torch.tensor(queries), torch.tensor(keys), temperature).item() == pytest.approx(sum(terms) / 6, rel=1e-5)


def test_info_nce_agrees_with_pytorch_metric_learning() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    queries, keys = torch.randn(2, 10, 4)
    # NTXentLoss over labels 0..9 with the keys as reference: one positive a query, the other keys its negatives
    expected = losses.NTXentLoss(temperature=0.2)(queries, torch.arange(10), ref_emb=keys, ref_labels=torch.arange(10))
    torch.testing.assert_close(info_nce(queries, keys, 0.2), expected)


def test_equal_similarities_cost_the_logarithm_of_the_batch() -> None:
    assert info_nce(torch.ones(9, 3), torch.ones(9, 3)).item() == pytest.approx(math.log(9), rel=1e-6)


def test_info_nce_keeps_float32_under_autocast() -> None:
    queries, keys = torch.randn(2, 32, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = info_nce(queries, keys)
    assert torch.equal(found, info_nce(queries, keys))


def test_the_objective_is_the_mean_of_both_directions() -> None:
    model, data = Pair(), pairs()
    loss = InfoNCE(temperature=0.5)(model, {"train": data}, 0.0)
    logits = functional.normalize(model.encode_image(data["image"])) @ functional.normalize(model.encode_text(data["input_ids"])).T / 0.5
    both = [functional.cross_entropy(side, torch.arange(8)) for side in (logits, logits.T)]
    torch.testing.assert_close(loss.total, sum(both) / 2)
    assert loss.parts["temperature"].item() == pytest.approx(0.5)


def test_the_temperature_is_learned_without_weight_decay_and_held_at_its_bound() -> None:
    model, objective = Pair(), InfoNCE(temperature=0.07)
    data = gw.Dataset({"train": gw.TensorSamples(**pairs(16))})
    config = TrainConfig(steps=40, batch_size=8, optimizer={"use": "adamw", "lr": 0.3, "weight_decay": 0.1})
    engine = Engine(model, objective, data, config, device="cpu")
    decays = [group["weight_decay"] for group in engine.optimizers[""].param_groups]
    assert decays == [0.1, 0.0]
    engine.fit()
    assert objective.log_scale.item() != pytest.approx(-math.log(0.07))
    with torch.no_grad():
        objective.log_scale.fill_(10.0)
    assert objective(model, {"train": pairs()}, 1.0).parts["temperature"].item() == pytest.approx(0.01, rel=1e-4)


def test_a_fixed_temperature_is_not_trained() -> None:
    objective = InfoNCE(learnable=False)
    assert objective.param_groups(0.1) == []
    assert not objective(Pair(), {"train": pairs()}, 0.0).parts["temperature"].requires_grad


def test_info_nce_refuses_what_cannot_be() -> None:
    with pytest.raises(gw.DataError, match="batch_size must be at least 2"):
        InfoNCE()(Pair(), {"train": pairs(1)}, 0.0)
    with pytest.raises(ValueError, match=r"temperature is at least 1 / max_scale, 0\.01; found 0\.001"):
        InfoNCE(temperature=0.001)
    for queries, keys, first in (((2, 3), (2, 4), 0), ((3, 3), (2, 3), 0), ((2, 3), (3, 3), 2)):
        with pytest.raises(ValueError, match=r"queries .* and keys .* differ in shape"):
            info_nce(torch.zeros(queries), torch.zeros(keys), first=first)


def test_the_positive_of_a_query_may_stand_anywhere_among_more_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(3, 4, generator=generator), torch.randn(7, 4, generator=generator)
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], keys[None], dim=-1)
    expected = torch.stack([cosines[i].div(0.2).logsumexp(0) - cosines[i, 2 + i] / 0.2 for i in range(3)]).mean()
    torch.testing.assert_close(info_nce(queries, keys, 0.2, first=2), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_losses_on_a_gpu_equal_those_on_the_cpu() -> None:
    queries, keys = torch.randn(2, 64, 32)
    torch.testing.assert_close(info_nce(queries.cuda(), keys.cuda()).cpu(), info_nce(queries, keys), rtol=1e-4, atol=1e-5)
    student, teacher = net(0), net(1)
    expected = Distillation(teacher)(student, {"train": batch()}, 0.0).total
    moved = {key: value.cuda() for key, value in batch().items()}
    found = Distillation(teacher)(student.cuda(), {"train": moved}, 0.0).total  # the teacher follows the student
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
