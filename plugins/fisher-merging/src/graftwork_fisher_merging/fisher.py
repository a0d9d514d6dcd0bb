"""The diagonal of a model's Fisher information (Matena and Raffel, 2022, section 3, https://arxiv.org/abs/2111.09832).

F_j = 1/N sum_n E_{y ~ p(y|x_n)} (d log p(y|x_n) / d theta_j)^2, the expectation under the model's own distribution and never over the
labels of the data set, each gradient squared before anything is summed.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from graftwork import Artifact, DataError, fingerprint
from graftwork.builtin.language_objectives import next_token_logits, next_token_targets
from graftwork.interfaces import classify, device_of
from graftwork.kinds.dataset import to_device
from graftwork.kinds.evaluator import evaluating
from graftwork_fisher_merging.capture import Batch, Forward, rows, rows_of
from graftwork_fisher_merging.estimators import ESTIMATORS, Estimator, Targets, empirical, exact, regression, sampled
from graftwork_fisher_merging.names import Choice, chosen, is_causal_lm
from graftwork_fisher_merging.squared_gradients import BUDGET, Cotangents, SquaredGradients, Way

__all__ = ["ARTIFACT", "DiagonalFisher", "Predicts", "diagonal_fisher", "digest", "next_tokens", "observed_positions", "outputs_of"]

ARTIFACT = "diagonal-fisher"
"""Type of the artifact."""

Predicts: TypeAlias = Literal["class", "next-token", "labelled-tokens"]
"""What a model's outputs are of: a class a sample; at each token the next one; at each token whose label is not -100 that label."""


@dataclass(frozen=True)
class DiagonalFisher:
    """The Fisher information's diagonal of one model.

    Args:
        tensors: name of the parameter -> non-negative tensor of its shape; 0 for parameters that require no gradient.
        n_examples: inputs that were averaged over.
        estimator: by which it was estimated.
        draws: labels a sample; 1 where none are drawn.
        ways: name of the parameter -> how its per-sample gradients came about.
    """

    tensors: Mapping[str, Tensor]
    n_examples: int
    estimator: str
    draws: int = 1
    ways: Mapping[str, Way] = field(default_factory=dict)

    def artifact(self, model: nn.Module, dataset: str = "") -> Artifact:
        """As an artifact that `save` writes and that can be used with this model alone.

        Args:
            model: what it was computed from.
            dataset: fingerprint of the data, where it is known.
        """
        data = {
            "n_examples": self.n_examples,
            "estimator": self.estimator,
            "draws": self.draws,
            "ways": dict(Counter(self.ways.values())),
            "weights": {name: digest(one) for name, one in model.named_parameters() if name in self.tensors},
        }
        tensors = {name: tensor.cpu() for name, tensor in self.tensors.items()}
        return Artifact(ARTIFACT, tensors, data, model=fingerprint(model), dataset=dataset)


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Any],
    estimator: Estimator = "exact",
    *,
    draws: int = 1,
    predicts: Predicts | None = None,
    n_examples: int | None = None,
    parameters: Choice = None,
    forward: Forward | None = None,
    targets: Targets | None = None,
    seed: int = 0,
    budget: int = BUDGET,
) -> DiagonalFisher:
    """The diagonal Fisher of a model, in eval mode, streamed over batches; the model is left as it was found.

    The cost is a forward pass and as many backward passes a batch as there are classes ("exact"), draws ("sampled"), outputs
    ("regression") or one ("empirical"); memory is that of the parameters and of one part of a batch, whatever the batches' size.

    Args:
        model: any module; where batches are no dicts, or the model is one of transformers, nothing else needs to be said.
        batches: dicts by graftwork's keys or by the names that a transformers model takes; or inputs; or (inputs, labels).
        estimator: "exact" over classes; "sampled" draws labels or whole sequences; "empirical" takes the data's labels, which is
            not the Fisher information; "regression" is exact for outputs with normal noise of variance 1.
        draws: labels or sequences a sample, where they are sampled.
        predicts: what the outputs are of; by default next tokens for causal language models and a class for others.
        n_examples: stop after so many; None reads all.
        parameters: whose Fisher to compute: a regular expression that is searched for in names, or a function of the name; None
            takes all. Others are left out of the result.
        forward: outputs (N, ...) of the model for a batch; by default `outputs_of`.
        targets: for sequences, which tokens are predicted; instead of `predicts`.
        seed: of what is drawn.
        budget: numbers of activations, and of per-sample gradients, that are held at once.

    Returns:
        Name of the parameter -> float32 tensor (float64 where the parameter is), and how it came about.

    Raises:
        ValueError: if a parameter is out of range, or names nothing in the model.
        DataError: if there is no example, the outputs do not fit the estimator, or are not finite.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f'estimator is one of {", ".join(ESTIMATORS)}; found "{estimator}"')
    if draws < 1 or (n_examples is not None and n_examples < 1):
        raise ValueError(f"draws and n_examples are at least 1; found {draws} and {n_examples}")
    names = set(chosen((name for name, _ in model.named_parameters()), parameters))
    predicts = predicts or ("next-token" if is_causal_lm(model) else "class")
    if targets is None and predicts != "class":
        targets = next_tokens if predicts == "next-token" else observed_positions
    device = device_of(model)
    cotangents = _cotangents(estimator, draws, targets, torch.Generator(device).manual_seed(seed))
    with _training_only(model, names), evaluating(model, gradients=True):
        squares = SquaredGradients(model, forward or outputs_of, budget) if any(p.requires_grad for p in model.parameters()) else None
        count = 0
        for batch in batches:
            given = to_device(_as_batch(model, batch), device)
            given = dict(rows(given, 0, n_examples - count)) if n_examples is not None else given
            count += rows_of(given)
            if squares is not None:
                squares.add(given, cotangents)
            if count == n_examples:
                break
    if not count:
        raise DataError("there is no example to compute a Fisher from")
    sums = squares.sums if squares is not None else {}
    tensors = {
        name: sums[name] / count if name in sums else torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
        for name, parameter in model.named_parameters()
        if name in names
    }
    return DiagonalFisher(tensors, count, estimator, draws if estimator == "sampled" else 1, squares.ways if squares is not None else {})


def digest(tensor: Tensor) -> str:
    """16 hexadecimal digits of a tensor's shape and float32 bytes, by which a checkpoint is known key by key, whatever its type."""
    data = tensor.detach().cpu().float().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(repr(tuple(tensor.shape)).encode() + data.tobytes()).hexdigest()[:16]


def outputs_of(model: nn.Module, batch: Batch) -> Tensor:
    """Logits of a batch: (N, C), or (N, T, V) of a model of tokens.

    A transformers model is called with those of the batch's entries that its forward names, labels left out; a causal language model
    of graftwork with its tokens; any other as `graftwork.interfaces.classify` does.
    """
    if hasattr(model, "main_input_name") and hasattr(model, "config"):  # transformers
        names = list(inspect.signature(model.forward).parameters)
        given = {name: batch[name] for name in names if name in batch and name not in ("labels", "label")}
        more = {"use_cache": False} if "use_cache" in names else {}
        return model(**given, **more).logits  # type: ignore[no-any-return]
    if is_causal_lm(model):
        return next_token_logits(model, batch)
    return classify(model, batch)


def next_tokens(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Targets of a causal language model: at each position the token that follows, where neither is padding.

    Args:
        logits: (N, T, V).
        batch: `input_ids` (N, T), and `attention_mask` (N, T) where there is padding.
    """
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    following, counted = next_token_targets(ids, torch.ones_like(ids) if mask is None else mask)
    last = torch.zeros_like(ids[:, :1])  # the last position predicts nothing that is known
    return torch.cat([following, last], dim=1), torch.cat([counted, last.bool()], dim=1)


def observed_positions(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Targets of masked language models and of token classification: `labels` (N, T), where they are not -100.

    Raises:
        DataError: if the batch has no `labels`.
    """
    if "labels" not in batch:
        raise DataError(f"labelled tokens are told by `labels`, -100 where nothing is predicted; the batch has {', '.join(batch)}")
    return batch["labels"], batch["labels"] != -100


def _cotangents(estimator: Estimator, draws: int, targets: Targets | None, generator: torch.Generator) -> Cotangents:
    """The estimator as a function of outputs and batch."""

    def cotangents(outputs: Tensor, batch: Batch) -> Iterator[Tensor]:
        labels, positions = targets(outputs, batch) if targets is not None else (None, None)
        if estimator == "exact":
            return exact(outputs)
        if estimator == "sampled":
            return sampled(outputs, draws, generator, positions)
        if estimator == "regression":
            return regression(outputs)
        return empirical(outputs, _observed(batch) if labels is None else labels, positions)

    return cotangents


def _observed(batch: Batch) -> Tensor:
    for key in ("label", "labels"):
        if key in batch:
            return batch[key]  # type: ignore[no-any-return]
    raise DataError(f'the empirical Fisher reads "label"; the batch has {", ".join(batch)}')


def _as_batch(model: nn.Module, batch: Any) -> dict[str, Any]:
    """A batch by graftwork's keys: what comes as a tensor or a tuple gets them."""
    if isinstance(batch, Mapping):
        return dict(batch)
    first, *more = batch if isinstance(batch, (tuple, list)) else [batch]
    key = next(iter(getattr(model, "inputs", ("image",))))
    return {key: first, **dict(islice(zip(("label",), more, strict=False), 1))}


@contextmanager
def _training_only(model: nn.Module, names: set[str]) -> Iterator[None]:
    """Let only some parameters require gradients for a while: what the others would cost is saved."""
    stopped = [one for name, one in model.named_parameters() if name not in names and one.requires_grad]
    for parameter in stopped:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in stopped:
            parameter.requires_grad_(True)
