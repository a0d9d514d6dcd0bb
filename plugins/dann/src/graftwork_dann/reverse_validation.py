"""Reverse validation: choose hyperparameters of domain-adversarial training without a target label.

From "Domain-Adversarial Training of Neural Networks" (Ganin et al., 2016), section 5.1.1, https://arxiv.org/abs/1505.07818, after
Zhong et al., "Cross Validation Framework to Choose amongst Models and Datasets for Transfer Learning" (2010).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork import (
    INPUTS,
    Artifact,
    DataError,
    Dataset,
    Engine,
    Evaluator,
    Report,
    Split,
    Table,
    TensorSamples,
    TrainConfig,
    config,
)
from graftwork.interfaces import classify, device_of, input_keys
from graftwork.kinds.dataset import Samples
from graftwork.kinds.evaluator import evaluating, split_batches
from graftwork.training import Validation
from graftwork_dann.objective import DomainAdversarial

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["Fit", "ReverseRisk", "ReverseValidation", "reverse_risk"]

MEASUREMENTS = 20
"""Of validation accuracy, where the length of training is given in steps."""

Fit: TypeAlias = Callable[[Samples, Samples, Samples, Any], Any]
"""`fit(source, target, validation, start)` trains on labelled source and unlabelled target samples with early stopping on labelled
validation samples, from the weights of `start` or anew where that is None, and gives a model."""


class ReverseRisk(NamedTuple):
    """What one setting reached.

    Args:
        reverse: error on held-out source samples of the model that learned from the target's predicted labels; what selects.
        forward: error on the same samples of the model that labelled the target.
    """

    reverse: float
    forward: float


def reverse_risk(
    fit: Fit,
    predict: Callable[[Any, Samples], Tensor],
    source: TensorSamples,
    target: TensorSamples,
    held_out: float = 0.1,
    seed: int = 0,
) -> ReverseRisk:
    """The reverse risk of one setting (Ganin et al., 2016, section 5.1.1).

    Source S is split into S' and S_v, target T into T' and T_v. A model learns from S' and unlabelled T' and labels T' and T_v. A
    second one, from the first one's weights, learns from T' so labelled and S' without labels, with early stopping on T_v so
    labelled. Its error on S_v is the reverse risk.

    Args:
        fit: trains a model with the setting.
        predict: labels (N,) that a model gives to samples.
        source: has `label`.
        target: a `label` that it has is dropped at once.
        held_out: share of S_v and T_v.
        seed: of the split.

    Raises:
        DataError: if a part would be empty, or the source has no labels.
    """
    if "label" not in source.columns:
        raise DataError(f"reverse validation needs source labels; the source has {', '.join(source.columns)}")
    blind = TensorSamples(**{key: column for key, column in target.columns.items() if key != "label"})
    generator = torch.Generator().manual_seed(seed)
    (train, held), (goal, goal_held) = _split(source, held_out, generator), _split(blind, held_out, generator)
    unlabelled = TensorSamples(**{key: column for key, column in train.columns.items() if key != "label"})

    forward = fit(train, goal, held, None)
    relabelled, relabelled_held = (TensorSamples(**part.columns, label=predict(forward, part)) for part in (goal, goal_held))
    error_forward = _error(predict(forward, held), held)
    backward = fit(relabelled, unlabelled, relabelled_held, forward)
    return ReverseRisk(_error(predict(backward, held), held), error_forward)


def _split(samples: TensorSamples, share: float, generator: torch.Generator) -> tuple[TensorSamples, TensorSamples]:
    count = round(share * len(samples))
    if not 0 < count < len(samples):
        raise DataError(f"{len(samples)} samples cannot be split at {share:g}: both parts need one at least")
    order = torch.randperm(len(samples), generator=generator)
    return samples.select(order[count:]), samples.select(order[:count])


def _error(guesses: Tensor, samples: TensorSamples) -> float:
    truth = torch.as_tensor(samples.columns["label"])
    return (guesses.cpu() != truth.cpu()).float().mean().item()


class ReverseValidation(Evaluator):
    """Reverse risk of several settings of `domain-adversarial`; the one with the least is to be chosen (Ganin et al., 2016).

    Each setting trains twice, from copies of the stage's model as it stands: put it into a stage without training. No target label
    is read, so the choice may be reported honestly.

    Args:
        source: a labelled training split of the source.
        target: a training split of the target.
        settings: name -> parameters of `domain-adversarial`, and `lr` for another learning rate.
        train: how to train, as a stage's `train`; without `feeds` and `validate`.
        patience: measurements without a better validation accuracy after which training stops, one an epoch, or twenty over all
            steps; the best weights are kept in any case.
        held_out: share of each domain that is held out.
        seed: of the split and of training.

    Raises:
        ValueError: if there is no setting, or one has an unknown or wrong parameter.
        DataError: in evaluate, if a part of the split would be empty.
    """

    keys = (INPUTS,)
    needs = nn.Module

    def __init__(
        self,
        source: Split,
        target: Split,
        settings: Annotated[dict[str, dict[str, Any]], Field(min_length=1)],
        train: TrainConfig | None = None,
        patience: Annotated[int, Field(ge=1)] = 10,
        held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        seed: Annotated[int, Field(ge=0)] = 0,
    ):
        if not settings:
            raise ValueError("settings is empty: name at least one setting to measure")
        if patience < 1 or not 0 < held_out < 1:
            raise ValueError(f"patience is at least 1 and held_out in (0, 1); found {patience} and {held_out}")
        self.train = train or TrainConfig.model_validate({"epochs": 30, "optimizer": {"use": "sgd", "lr": 0.01, "momentum": 0.9}})
        if self.train.feeds or self.train.validate_ is not None:
            raise ValueError("train.feeds and train.validate are set by reverse validation itself: leave them out")
        self.source, self.target, self.patience, self.held_out, self.seed = source, target, patience, held_out, seed
        self.settings = {name: _checked(name, values) for name, values in settings.items()}

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Measure; metrics reverse-risk (the least) and reverse-risk/SETTING, and the artifact `setting` with the one to choose."""
        source, target = (_samples(data, split, model, labelled) for split, labelled in ((self.source, True), (self.target, False)))
        risks = {}
        for name, setting in self.settings.items():
            with torch.random.fork_rng():
                risks[name] = reverse_risk(self._fit(model, data, setting), _predict, source, target, self.held_out, self.seed)
        chosen = min(risks, key=lambda name: risks[name].reverse)
        rows = [[name, risk.forward, risk.reverse, "chosen" if name == chosen else ""] for name, risk in risks.items()]
        table = Table(
            ["setting", "source error", "reverse risk", ""], rows, "The setting of least reverse risk is chosen; no target label was read."
        )
        metrics = {"reverse-risk": risks[chosen].reverse, **{f"reverse-risk/{name}": risk.reverse for name, risk in risks.items()}}
        artifact = Artifact("hyperparameters", data={"name": chosen, "parameters": self.settings[chosen]})
        return Report(metrics, {"settings": table}, artifacts={"setting": artifact})

    def _fit(self, model: Any, data: Dataset, setting: Mapping[str, Any]) -> Fit:
        """Training with one setting, as `reverse_risk` calls it."""
        parameters = {name: value for name, value in setting.items() if name != "lr"}
        how = self.train.model_copy(deep=True)
        how.feeds = {"source": "source/train", "target": "target/train"}
        every = 1 if how.steps is None else max(1, how.steps // MEASUREMENTS)
        how.validate_ = Validation(evaluate=None, metric="accuracy", every=every, patience=self.patience)
        if "lr" in setting:
            how.optimizer.lr = setting["lr"]

        def fit(source: Samples, target: Samples, validation: Samples, start: Any) -> Any:
            splits = {"source/train": source, "target/train": target, "source/val": validation}
            fresh = copy.deepcopy(model if start is None else start)
            validator = _HeldOut()
            parts = Dataset(splits, data.info, data.collate)
            device = device_of(model)
            return Engine(fresh, DomainAdversarial(**parameters), parts, how, seed=self.seed, device=device, validator=validator).fit()

        return fit


class _HeldOut(Evaluator):
    """Accuracy on the held-out part, and no more: it is measured often."""

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        samples: Any = data["source/val"]
        return Report({"accuracy": 1 - _error(_predict(model, samples), samples)})


def _checked(name: str, setting: Mapping[str, Any]) -> dict[str, Any]:
    """A setting with its values converted.

    Raises:
        ValueError: naming the setting and what is wrong with it.
    """
    parameters = {key: value for key, value in setting.items() if key != "lr"}
    refused = [key for key in ("task", "domains", "labelled", "mixed") if key in parameters]
    values, invalid = config.validate(DomainAdversarial, parameters)
    problems = [f"{'.'.join(map(str, one.path))}: {one.message}" for one in invalid] + [f"{key} cannot be a setting" for key in refused]
    if "lr" in setting and not (isinstance(setting["lr"], (int, float)) and setting["lr"] > 0):
        problems.append(f"lr: a number above 0; found {setting['lr']!r}")
    if not problems:
        try:
            DomainAdversarial(**values)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f'setting "{name}": {"; ".join(problems)}')
    return {**values, **({"lr": float(setting["lr"])} if "lr" in setting else {})}


def _samples(data: Dataset, split: str, model: Any, labelled: bool) -> TensorSamples:
    """A split's model inputs, and labels where asked for, as columns."""
    keys = (*input_keys(model), *(("label",) if labelled else ()))
    samples: Any = data[split]
    absent = [key for key in keys if not len(samples) or key not in samples[0]]
    if absent:
        raise DataError(f'reverse-validation reads {", ".join(keys)}; split "{split}" lacks {", ".join(absent)}')
    batch = data.collate([samples[index] for index in range(len(samples))])
    return TensorSamples(**{key: batch[key] for key in keys})


def _predict(model: Any, samples: Samples) -> Tensor:
    with evaluating(model):
        found = [classify(model, batch).argmax(dim=1) for batch in split_batches(Dataset({"": samples}), "", model)]
    return torch.cat(found).cpu()
