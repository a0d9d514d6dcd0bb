"""Evaluators: accuracy, regression error, and what frozen features are good for (retrieval, linear probe, nearest neighbours)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from graftwork.builtin.objectives import predict
from graftwork.errors import DataError
from graftwork.interfaces import classify, embed
from graftwork.kinds.dataset import Batch, Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, evaluating, split_batches
from graftwork.kinds.objective import INPUTS
from graftwork.run import Run

__all__ = [
    "Accuracy",
    "KNNProbe",
    "LinearProbe",
    "RegressionError",
    "Retrieval",
    "classification_report",
    "knn_vote",
    "logistic_regression",
    "retrieval_scores",
]

CHUNK = 2**22
"""Entries of a similarity matrix that are held at once."""

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Pair = tuple[Tensor, Tensor]


def _over(model: Any, data: Dataset, split: str, measure: Callable[[Any, Batch], Pair], limit: int | None = None) -> Pair:
    """What `measure(model, batch)` gives over a split, joined, in eval mode and without gradients; DataError if that is empty."""
    with evaluating(model):
        pairs = [measure(model, batch) for batch in split_batches(data, split, model, limit=limit)]
    if not pairs:
        raise DataError(f'split "{split}" is empty')
    first, second = zip(*pairs, strict=True)
    return torch.cat(first), torch.cat(second)


def _embedded(model: Any, data: Dataset, split: str) -> Pair:
    """A split's pooled features (N, D), float32, and labels (N,), on the model's device; DataError if a feature is not finite."""
    features, labels = _over(model, data, split, lambda model, batch: (embed(model, batch).float(), batch["label"]))
    if not features.isfinite().all():
        raise DataError(f'{type(model).__name__} gives features that are not finite on split "{split}"')
    return features, labels


def logistic_regression(features: Tensor, labels: Tensor, strength: float = 1.0, max_iterations: int = 1000) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression: minimise C sum_i cross-entropy_i + ||W||^2 / 2 by L-BFGS, in float64 where the device has it.

    The intercept is not penalised, as in scikit-learn; unlike there, two classes are no special case.

    Args:
        features: (N, D).
        labels: (N,), each of 0..K-1 at least once.
        strength: C > 0; smaller is stronger regularisation.
        max_iterations: of L-BFGS.

    Returns:
        Weights (K, D) and intercepts (K,).
    """
    features = features.detach().to(torch.float32 if features.device.type == "mps" else torch.float64)
    weights = features.new_zeros(int(labels.max()) + 1, features.shape[1] + 1).requires_grad_()  # the last column is the intercept
    solver = torch.optim.LBFGS([weights], 1, max_iterations, tolerance_grad=1e-5, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = functional.cross_entropy(features @ weights[:, :-1].T + weights[:, -1], labels)
        loss = loss + weights[:, :-1].square().sum() / (2 * strength * len(labels))
        torch.autograd.backward(loss)
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()[:, :-1], weights.detach()[:, -1]


def knn_vote(queries: Tensor, keys: Tensor, labels: Tensor, k: int, temperature: float | None = None) -> Tensor:
    """The class that the k most similar keys vote for, by cosine; of classes with equal votes, the first.

    Args:
        queries: (Q, D).
        keys: (N, D), N >= k.
        labels: (N,), from 0.
        k: neighbours.
        temperature: T, by which a vote counts exp(similarity / T) (Wu et al., 2018, section 3.4); None: each counts 1.

    Returns:
        (Q,) predicted labels.
    """
    queries, keys = functional.normalize(queries, dim=1), functional.normalize(keys, dim=1)
    found = []
    for chunk in torch.split(queries, max(1, CHUNK // len(keys))):
        similarity, neighbours = (chunk @ keys.T).topk(k, dim=1)
        # less the largest, a factor common to a query's votes, so that exp cannot overflow
        votes = torch.ones_like(similarity) if temperature is None else ((similarity - similarity[:, :1]) / temperature).exp()
        found.append(votes.new_zeros(len(chunk), int(labels.max()) + 1).scatter_add_(1, labels[neighbours], votes).argmax(dim=1))
    return torch.cat(found)


def retrieval_scores(queries: Tensor, labels: Tensor, gallery: Tensor | None = None, gallery_labels: Tensor | None = None) -> Tensor:
    """Three scores of each query, by cosine similarity.

    Args:
        queries: (Q, D).
        labels: (Q,).
        gallery: (N, D) to search; None searches the queries, each without itself.
        gallery_labels: (N,), with `gallery`.

    Returns:
        (3, Q): how many negatives are more similar than the best positive (a hit at K if fewer than K are); average precision;
        average precision over the first R ranks, where R counts the positives (Musgrave et al., 2020, section 3.2). NaN for a
        query without a positive. Among equal similarities the gallery's order decides.
    """
    queries = functional.normalize(queries, dim=1)
    keys = queries if gallery is None else functional.normalize(gallery, dim=1)
    ranks = torch.arange(1, len(keys) + 1, device=queries.device)
    found = []
    for rows in torch.split(torch.arange(len(queries), device=queries.device), max(1, CHUNK // len(keys))):
        similarity = queries[rows] @ keys.T
        positive = labels[rows, None] == (labels if gallery_labels is None else gallery_labels)
        negative = ~positive
        if gallery is None:
            itself = rows[:, None] == ranks - 1
            positive &= ~itself
            similarity.masked_fill_(itself, -torch.inf)
        best = similarity.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
        relevant = positive.gather(1, similarity.argsort(dim=1, descending=True, stable=True))
        precision = relevant * relevant.cumsum(dim=1) / ranks  # at each positive, else 0
        total = relevant.sum(dim=1)
        ahead = ((similarity > best) & negative).sum(dim=1)
        scores = torch.stack([ahead, precision.sum(dim=1) / total, (precision * (ranks <= total[:, None])).sum(dim=1) / total])
        found.append(scores.masked_fill(total == 0, torch.nan))
    return torch.cat(found, dim=1)


class Accuracy(Evaluator):
    """Accuracy over all samples and averaged over classes, a table of the classes, and the confusion matrix.

    Args:
        split: where to measure.
        top_k: also report how often the label is among the k likeliest classes.
        limit: read the first so many samples only.
    """

    keys = (INPUTS, "label")
    needs = nn.Module

    def __init__(self, split: Split = "test", top_k: Count = 1, limit: Count | None = None):
        self.split, self.top_k, self.limit = split, top_k, limit

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics accuracy, macro-accuracy and, for k above 1, top-k-accuracy.

        Raises:
            DataError: if the split is empty, a label has no output, or k exceeds the number of outputs.
        """
        logits, labels = _over(model, data, self.split, lambda model, batch: (classify(model, batch), batch["label"]), self.limit)
        return classification_report(logits, labels, data.info.classes, self.split, self.top_k)


def classification_report(logits: Tensor, labels: Tensor, classes: Sequence[str], split: str, top_k: int = 1, prefix: str = "") -> Report:
    """Accuracy over all samples and averaged over classes, a table of the classes, and the confusion matrix.

    Args:
        logits: (N, C), or any scores.
        labels: (N,) long.
        classes: their names, as far as they are known.
        split: where this was measured.
        top_k: also count a label among the k likeliest classes.
        prefix: of the metrics' names.

    Raises:
        DataError: if a label has no output, or k exceeds the number of outputs.
    """
    from torchmetrics.functional import confusion_matrix

    outputs = logits.shape[1]
    if top_k > outputs:
        raise DataError(f"top_k is {top_k}, but the model has {outputs} outputs")
    guesses = logits.topk(top_k, dim=1).indices
    if labels.min() < 0 or labels.max() >= outputs:
        raise DataError(f'split "{split}" has labels {labels.min()} to {labels.max()}, but the model has {outputs} outputs')
    confusion = confusion_matrix(guesses[:, 0], labels, task="multiclass", num_classes=outputs)
    counts, hits = confusion.sum(dim=1), confusion.diagonal()
    metrics = {"accuracy": (hits.sum() / counts.sum()).item(), "macro-accuracy": (hits / counts)[counts > 0].mean().item()}
    if top_k > 1:
        metrics[f"top-{top_k}-accuracy"] = (guesses == labels[:, None]).any(dim=1).float().mean().item()
    names = [*classes, *map(str, range(len(classes), outputs))][:outputs]
    rows = [[n, total, hit / total if total else None] for n, total, hit in zip(names, counts.tolist(), hits.tolist(), strict=True)]
    table = Table(["class", "samples", "accuracy"], rows, f"Accuracy on {split}, a class a row.")
    caption = f"Classes of {split} (rows) against what the model takes them for, in percent of the class."
    figures = {"confusion": Figure(_confusion_figure(confusion.cpu(), names), caption)}
    return Report({f"{prefix}{name}": value for name, value in metrics.items()}, {"classes": table}, figures)


def _confusion_figure(confusion: Tensor, names: list[str]) -> Any:
    from matplotlib.figure import Figure as Canvas

    percent = 100 * confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    side = min(12.0, 2.2 + 0.42 * len(names))
    canvas = Canvas(figsize=(side + 0.8, side), layout="constrained")
    axes = canvas.add_subplot(xlabel="predicted", ylabel="label")
    canvas.colorbar(axes.imshow(percent.numpy(), cmap="Blues", vmin=0, vmax=100), shrink=0.8)
    if len(names) <= 40:
        axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) <= 2 else 60)
        axes.set_yticks(range(len(names)), names)
    for row, column in (percent >= 0.5).nonzero().tolist() if len(names) <= 20 else ():
        shade = "white" if percent[row, column] > 50 else "black"
        axes.text(column, row, f"{percent[row, column]:.0f}", ha="center", va="center", fontsize=8, color=shade)
    return canvas


class RegressionError(Evaluator):
    """Root mean squared error, mean absolute error and R2 of the model's output against `target`, and a scatter plot.

    Args:
        split: where to measure.
        limit: read the first so many samples only.
    """

    keys = (INPUTS, "target")
    needs = nn.Module

    def __init__(self, split: Split = "test", limit: Count | None = None):
        self.split, self.limit = split, limit

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics rmse, mae and r2; the columns of the target count equally.

        Raises:
            DataError: if output and target differ in shape, or there are fewer than two samples.
        """
        from matplotlib.figure import Figure as Canvas
        from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

        output, target = _over(model, data, self.split, predict, self.limit)
        if len(target) < 2:
            raise DataError(f'split "{self.split}" has one sample: R2 needs two')
        rmse = mean_squared_error(output.flatten(), target.flatten(), squared=False)
        errors = {"rmse": rmse, "mae": mean_absolute_error(output.flatten(), target.flatten()), "r2": r2_score(output, target)}
        canvas = Canvas(figsize=(4.5, 4.5), layout="constrained")
        axes = canvas.add_subplot(xlabel="target", ylabel="predicted")
        axes.scatter(target.flatten().cpu().numpy(), output.flatten().cpu().numpy(), s=14, alpha=0.6, linewidths=0)
        axes.axline((target.mean().item(), target.mean().item()), slope=1, color="grey", linewidth=1)
        figure = Figure(canvas, f"Predictions on {self.split}; on the line they are exact.")
        return Report({name: value.item() for name, value in errors.items()}, figures={"predictions": figure})


class Retrieval(Evaluator):
    """Recall@K, mAP and MAP@R of embeddings by cosine: are the nearest of the gallery of the query's class?

    A query is a hit at K if fewer than K negatives are more similar than its best positive. Queries without a positive are left
    out, and counted in the table.

    Args:
        query: split of the queries.
        gallery: split that is searched; none searches the queries' own, each without itself.
        recall_at: the Ks of Recall@K.
    """

    keys = (INPUTS, "label")

    def __init__(self, query: Split = "test", gallery: Split | None = None, recall_at: list[Count] = [1, 5, 10]):  # noqa: B006 - read only
        self.query, self.gallery, self.recall_at = query, gallery, recall_at

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics recall@K for each K, map and map@r.

        Raises:
            DataError: if no query has a positive.
        """
        queries, labels = _embedded(model, data, self.query)
        within = self.gallery is None or self.gallery == self.query
        searched = (None, None) if within else _embedded(model, data, str(self.gallery))
        scores = retrieval_scores(queries, labels, *searched)
        counted = scores[:, ~scores[0].isnan()]
        if not counted.shape[1]:
            raise DataError(f'no sample of "{self.query}" has another of its class in "{self.gallery or self.query}"')
        metrics = {f"recall@{k}": (counted[0] < k).float().mean().item() for k in self.recall_at}
        metrics |= {"map": counted[1].mean().item(), "map@r": counted[2].mean().item()}
        row = [len(labels), len(labels) - counted.shape[1], len(labels) if searched[0] is None else len(searched[0])]
        return Report(metrics, {"queries": Table(["queries", "without a positive", "gallery"], [row])})


class LinearProbe(Evaluator):
    """Accuracy of a logistic regression on frozen features, fitted on one split and measured on another (Radford et al., 2021).

    Args:
        train: where it is fitted.
        test: where it is measured.
        strength: C, the inverse of the L2 penalty; smaller is stronger regularisation.
        standardize: whether features are first brought to mean 0 and variance 1 on the training split.
        max_iterations: of L-BFGS.
    """

    keys = (INPUTS, "label")

    def __init__(
        self, train: Split = "train", test: Split = "test", strength: Positive = 1.0, standardize: bool = True, max_iterations: Count = 1000
    ):
        self.train, self.test, self.strength, self.standardize, self.max_iterations = train, test, strength, standardize, max_iterations

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics linear-probe-accuracy and linear-probe-train-accuracy.

        Raises:
            DataError: if the training split has a single class.
        """
        features, labels = _embedded(model, data, self.train)
        held_out, expected = _embedded(model, data, self.test)
        if self.standardize:
            mean, spread = features.mean(dim=0), features.std(dim=0, correction=0)
            features, held_out = ((each - mean) / torch.where(spread > 0, spread, 1) for each in (features, held_out))
        classes, targets = torch.unique(labels, return_inverse=True)  # a class that is not there has no finite optimum
        if len(classes) < 2:
            raise DataError(f'split "{self.train}" has one class only: a linear probe needs two')
        weights, intercepts = logistic_regression(features, targets, self.strength, self.max_iterations)
        shares = {}
        for name, inputs, truth in (("linear-probe-accuracy", held_out, expected), ("linear-probe-train-accuracy", features, labels)):
            guessed = classes[(inputs.to(weights) @ weights.T + intercepts).argmax(dim=1)]
            shares[name] = (guessed == truth).float().mean().item()
        return Report(shares)


class KNNProbe(Evaluator):
    """Accuracy of the k nearest training samples' vote, by cosine between frozen features (Wu et al., 2018).

    Args:
        train: where the neighbours are.
        test: where it is measured.
        k: neighbours that vote.
        temperature: a vote counts exp(similarity / temperature), 0.07 in the paper; none: each counts the same.
    """

    keys = (INPUTS, "label")

    def __init__(self, train: Split = "train", test: Split = "test", k: Count = 20, temperature: Positive | None = None):
        self.train, self.test, self.k, self.temperature = train, test, k, temperature

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metric knn-accuracy.

        Raises:
            DataError: if the training split has fewer than k samples.
        """
        keys, labels = _embedded(model, data, self.train)
        queries, expected = _embedded(model, data, self.test)
        if len(keys) < self.k:
            raise DataError(f'k is {self.k}, but split "{self.train}" has {len(keys)} samples')
        guessed = knn_vote(queries, keys, labels, self.k, self.temperature)
        return Report({"knn-accuracy": (guessed == expected).float().mean().item()})
