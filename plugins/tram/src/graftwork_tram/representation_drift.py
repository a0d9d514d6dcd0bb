"""How far a tuned model's predictions and features are from those it started with, and how far noise at the input moves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from graftwork import INPUTS, Backbone, DataError, Dataset, Evaluator, Figure, InterfaceError, Report, Split, Table
from graftwork.interfaces import Embedder, TextEncoder, device_of, embed, inputs
from graftwork.kinds.evaluator import evaluating, split_batches
from graftwork_tram.calls import logits_of, token_mask
from graftwork_tram.divergence import KLType, class_axis, kl_rows
from graftwork_tram.figures import draw_drift
from graftwork_tram.regions import INPUT, InputNoise, NoiseType, natural_place

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["RepresentationDrift", "linear_cka"]

Count = Annotated[int, Field(ge=1)]


@dataclass
class _Comparison:
    """Row by row over a split, on the CPU: divergence of predictions, agreement, features of both."""

    divergences: list[Tensor] = field(default_factory=list)
    agreements: list[Tensor] = field(default_factory=list)
    features: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def pair(self) -> tuple[Tensor, Tensor] | None:
        """Features (N, D) of the reference and of the model; None where one offers none."""
        if not self.features:
            return None
        first, second = zip(*self.features, strict=True)
        return torch.cat(first), torch.cat(second)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features (Kornblith et al., 2019, section 3), in [0, 1]; 1 up to rotation and scale.

    Args:
        first: (N, D).
        second: (N, E), the same N samples.

    Raises:
        ValueError: if N differs.
    """
    if len(first) != len(second):
        raise ValueError(f"features are of as many samples; found {len(first)} and {len(second)}")
    x, y = ((one.double() - one.double().mean(dim=0)) for one in (first, second))
    cross, own = (x.T @ y).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
    return float(cross / own) if own > 0 else 1.0


class RepresentationDrift(Evaluator):
    """How far predictions and features moved: from a model that they started at, and under noise at the input.

    Predictions are compared by KL(target || model), where the target is the other model or the noisy pass; features, of models that
    offer them, by 1 - cosine and by linear CKA. Everything in eval mode.

    Args:
        split: where to measure.
        pretrained: the model that training started from, by reference; none: noise alone.
        type: "forward" KL(target || model), "reverse" or "symmetric".
        eps: of the noise: deviation, or half width if uniform; 0 leaves noise out.
        noise: "normal" or "uniform".
        at: where the noise goes: "input", "embeddings" or a module by name; none: on the embeddings of tokens, else on the input.
        logits_key: where the logits are in what the models give.
        limit: take the first so many samples only.
        batch_size: samples that a model sees at once.
        seed: of the noise.

    Raises:
        ValueError: if there is nothing to compare with: no pretrained model, and eps 0.
    """

    keys = (INPUTS,)
    needs = nn.Module

    def __init__(
        self,
        split: Split = "test",
        pretrained: nn.Module | None = None,
        type: KLType = "forward",
        eps: Annotated[float, Field(ge=0)] = 0.1,
        noise: NoiseType = "normal",
        at: str | None = None,
        logits_key: str | None = None,
        limit: Count | None = None,
        batch_size: Count = 128,
        seed: int = 0,
    ):
        if pretrained is None and eps == 0:
            raise ValueError("there is nothing to compare with: give pretrained, or eps above 0")
        InputNoise(eps, noise, at)  # refuses what it would refuse later
        self.split, self.pretrained, self.type, self.logits_key = split, pretrained, type, logits_key
        self.eps, self.noise, self.at, self.limit, self.batch_size, self.seed = eps, noise, at, limit, batch_size, seed

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics prediction_drift, prediction_agreement, feature_drift, feature_cka against `pretrained`; noise_... with noise.

        Raises:
            DataError: if the split is empty or a prediction is not finite.
            InterfaceError: if the two models' predictions or features differ in shape.
        """
        started, noise = _Comparison(), InputNoise(self.eps, self.noise, self.at, self.seed)
        shaken, labels = _Comparison(), []
        pretrained = self.pretrained
        if pretrained is not None and device_of(pretrained) != device_of(model):
            pretrained = pretrained.to(device_of(model))
        with evaluating(model), evaluating(pretrained):
            for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
                here = self._seen(model, batch)
                if pretrained is not None:
                    self._compare(started, self._seen(pretrained, batch), here)
                if self.eps > 0:
                    with _noisy(noise, model, batch) as noised:
                        self._compare(shaken, self._seen(model, noised), here)
                if isinstance(batch.get("label"), Tensor):
                    labels.append(batch["label"].cpu())
        if not started.divergences and not shaken.divergences:
            raise DataError(f'split "{self.split}" is empty')
        compared = {"": started, "noise_": shaken}
        metrics = {name: value for prefix, one in compared.items() if one.divergences for name, value in _metrics(prefix, one).items()}
        rows = [[{"": "pretrained", "noise_": f"noise {self.eps}"}[p], *_row(c)] for p, c in compared.items() if c.divergences]
        columns = ["compared with", "KL, mean", "KL, median", "KL, 95 %", "agree", "1 - cosine", "CKA"]
        caption = f"Predictions and features on {self.split}, and those of the model that training started from or with noise at the input."
        shown = {name: torch.cat(one.divergences) for name, one in (("pretrained", started), ("noise", shaken)) if one.divergences}
        pair = started.pair if started.divergences else shaken.pair
        figure = draw_drift(shown, pair, torch.cat(labels) if labels else None, "pretrained" if started.divergences else "with noise")
        return Report(metrics, {"drift": Table(columns, rows, caption)}, {"drift": Figure(figure, caption)})

    def _seen(self, model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logits with their mask, and features where the model offers them."""
        given = inputs(model, batch)
        logits = logits_of(model(*given), self.logits_key, type(model).__name__)
        offers = isinstance(model, (Backbone, Embedder, TextEncoder))
        return logits, token_mask(model.forward, given, {}, logits), embed(model, batch).float() if offers else None

    def _compare(self, into: _Comparison, target: tuple[Any, ...], here: tuple[Any, ...]) -> None:
        if target[0].shape != here[0].shape:
            raise InterfaceError(f"predictions to compare differ in shape: {tuple(target[0].shape)} and {tuple(here[0].shape)}")
        axis = class_axis(here[0])
        rows = kl_rows(target[0], here[0], self.type, dim=axis)
        if not bool(torch.isfinite(rows).all()):
            raise DataError(f'the divergence of predictions on split "{self.split}" is not finite: a model gives logits that are not')
        agree = (target[0].argmax(dim=axis) == here[0].argmax(dim=axis)).float()
        into.divergences.append(_by_sample(rows, here[1]).clamp(min=0).cpu())
        into.agreements.append(_by_sample(agree, here[1]).cpu())
        if target[2] is not None and here[2] is not None and target[2].shape == here[2].shape:
            into.features.append((target[2].cpu(), here[2].cpu()))


@contextmanager
def _noisy(noise: InputNoise, model: Any, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A batch whose passes are noised: itself, or with noise on its embeddings by a hook."""
    given = inputs(model, batch)
    if (noise.at or natural_place(given, {})) != INPUT:
        with noise.applied(model, *given):
            yield dict(batch)
        return
    keys = tuple(getattr(model, "inputs", ("image",)))
    first = next((key for key in keys if isinstance(batch[key], Tensor) and batch[key].is_floating_point()), None)
    if first is None:
        raise InterfaceError(f"{type(model).__name__} takes {', '.join(keys)}, none of real numbers to noise: set at to embeddings")
    yield {**batch, first: batch[first] + noise.noise_like(batch[first])}


def _by_sample(values: Tensor, mask: Tensor | None) -> Tensor:
    """(B, ...) to means (B,) over what counts."""
    if values.ndim == 1:
        return values
    flat = values.flatten(1)
    if mask is None:
        return flat.mean(dim=1)
    counted = mask.flatten(1)
    return torch.where(counted, flat, 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def _metrics(prefix: str, one: _Comparison) -> dict[str, float]:
    found = {
        f"{prefix}prediction_drift": float(torch.cat(one.divergences).mean()),
        f"{prefix}prediction_agreement": float(torch.cat(one.agreements).mean()),
    }
    pair = one.pair
    if pair is not None:
        found[f"{prefix}feature_drift"] = float((1 - functional.cosine_similarity(*pair)).clamp(min=0).mean())
        found[f"{prefix}feature_cka"] = linear_cka(*pair)
    return found


def _row(one: _Comparison) -> list[Any]:
    divergences, metrics = torch.cat(one.divergences), _metrics("", one)
    spread = [float(value) for value in (divergences.mean(), divergences.median(), divergences.quantile(0.95))]
    features = [metrics.get(name) for name in ("feature_drift", "feature_cka")]
    numbers = [*spread, metrics["prediction_agreement"]]
    return [*(round(value, 5) for value in numbers), *("" if value is None else round(value, 5) for value in features)]
