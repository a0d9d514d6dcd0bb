"""Proxy A-distance: how well a linear classifier tells two domains apart.

From "Analysis of Representations for Domain Adaptation" (Ben-David et al., 2006), as "Domain-Adversarial Training of Neural Networks"
(Ganin et al., 2016, section 5.1.5, https://arxiv.org/abs/1505.07818) measures it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from graftwork import INPUTS, DataError, Dataset, Evaluator, Figure, Report, Split, Table
from graftwork.interfaces import embed, inputs
from graftwork.kinds.evaluator import evaluating, split_batches

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["STRENGTHS", "ProbeResult", "ProxyADistance", "logistic_errors", "proxy_a_distance", "svm_errors"]

STRENGTHS = tuple(10.0**power for power in range(-5, 5))
"""The values of C that are tried."""


class ProbeResult(NamedTuple):
    """What one linear classifier reached.

    Args:
        strength: C, the inverse of the penalty; nan for the logistic probe, which has none.
        train_error: share of its training rows that it takes for the other domain.
        test_error: share of the held-out rows; at most 1/2, since a classifier that is wrong more often can be turned round.
        converged: whether it was solved within its iterations.
    """

    strength: float
    train_error: float
    test_error: float
    converged: bool


def proxy_a_distance(
    source: Tensor,
    target: Tensor,
    probe: Literal["svm", "logistic"] = "svm",
    strengths: Sequence[float] = STRENGTHS,
    max_iterations: int = 100_000,
    seed: int = 0,
) -> tuple[float, list[ProbeResult]]:
    """2 (1 - 2 e), e the least held-out error of a linear classifier between two domains (Ganin et al., 2016, eq. 6).

    Args:
        source: (N, D), at least 4 rows.
        target: (M, D), at least 4 rows.
        probe: "svm": linear SVMs, one for each C, on a random half of each domain, the other half held out. "logistic": one
            logistic layer, as in TLL: 80 % of each domain, 10 epochs of SGD.
        strengths: values of C.
        max_iterations: of each SVM's solver; at large C it may stop there, which the results tell.
        seed: of the halves, and of the logistic layer.

    Returns:
        The distance in [0, 2], and what each classifier reached. The same for source and target exchanged.

    Raises:
        DataError: if a domain has fewer than 4 samples, or features are not finite or differ in width.
    """
    for name, rows in (("source", source), ("target", target)):
        if len(rows) < 4:
            raise DataError(f"the proxy A-distance needs at least 4 samples a domain; the {name} has {len(rows)}")
        if not rows.isfinite().all():
            raise DataError(f"the {name}'s features are not finite")
    if source.shape[1] != target.shape[1]:
        raise DataError(f"source features are {source.shape[1]} wide, target features {target.shape[1]}")
    share = 0.5 if probe == "svm" else 0.8
    train, train_domain, test, test_domain = _halves(source, target, share, seed)
    if probe == "svm":
        results = svm_errors(train, train_domain, test, test_domain, strengths, max_iterations)
    else:
        results = [logistic_errors(train, train_domain, test, test_domain, seed=seed)]
    return 2 * (1 - 2 * min(result.test_error for result in results)), results


def _halves(source: Tensor, target: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A share of each domain to train on and the rest to test on, each with the domain of its rows."""
    parts: dict[str, list[Tensor]] = {"train": [], "test": []}
    for rows in (source, target):  # the draw depends on the number of rows alone, so that exchanging the domains changes nothing
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(rows.device)
        count = int(share * len(rows))
        parts["train"].append(rows[order[:count]])
        parts["test"].append(rows[order[count:]])

    def domain(halves: list[Tensor]) -> Tensor:
        return torch.cat([torch.full((len(rows),), number, device=rows.device) for number, rows in enumerate(halves)])

    return torch.cat(parts["train"]), domain(parts["train"]), torch.cat(parts["test"]), domain(parts["test"])


def svm_errors(
    train: Tensor, train_domain: Tensor, test: Tensor, test_domain: Tensor, strengths: Sequence[float], max_iterations: int = 100_000
) -> list[ProbeResult]:
    """Errors of linear SVMs with hinge loss, one for each C; the products of rows are computed once for all.

    Args:
        train: (N, D).
        train_domain: (N,) long, 0 or 1.
        test: (M, D).
        test_domain: (M,) long.
        strengths: values of C.
        max_iterations: of each solver.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import SVC

    wide = torch.float32 if train.device.type == "mps" else torch.float64
    rows, held_out = train.to(wide), test.to(wide)
    kernel, cross = (rows @ rows.T).cpu().numpy(), (held_out @ rows.T).cpu().numpy()
    truth, expected = train_domain.cpu().numpy(), test_domain.cpu().numpy()
    results = []
    for strength in strengths:
        solver = SVC(C=strength, kernel="precomputed", max_iter=max_iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            solver.fit(kernel, truth)
        error = float((solver.predict(cross) != expected).mean())
        train_error = float((solver.predict(kernel) != truth).mean())
        results.append(ProbeResult(strength, train_error, min(error, 1 - error), solver.fit_status_ == 0))
    return results


def logistic_errors(
    train: Tensor,
    train_domain: Tensor,
    test: Tensor,
    test_domain: Tensor,
    lr: float = 0.01,
    epochs: int = 10,
    batch_size: int = 32,
    seed: int = 0,
) -> ProbeResult:
    """Errors of one logistic layer trained by SGD; arguments as of `svm_errors`."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(train.shape[1], 1, device=train.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    rows, held_out, truth = train.detach().float(), test.detach().float(), train_domain.float()
    with torch.enable_grad():
        for _ in range(epochs):
            for chosen in torch.randperm(len(rows), generator=generator).to(rows.device).split(batch_size):
                loss = functional.binary_cross_entropy_with_logits(layer(rows[chosen])[:, 0], truth[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def error(features: Tensor, domain: Tensor) -> float:
        with torch.no_grad():
            return float(((layer(features)[:, 0] > 0) != domain.bool()).float().mean())

    wrong = error(held_out, test_domain)
    return ProbeResult(float("nan"), error(rows, train_domain), min(wrong, 1 - wrong), True)


class ProxyADistance(Evaluator):
    """The proxy A-distance between two splits, with the error for each C as table and figure (Ganin et al., 2016, section 5.1.5).

    0 when no linear classifier does better than chance, 2 when one makes no error. Features are taken as they are, not scaled.

    Args:
        source: a split of the source domain.
        target: a split of the target domain.
        on: "features", the model's pooled ones, or "input", what it takes, flattened.
        probe: "svm": the best of ten linear SVMs, by the paper. "logistic": one logistic layer, by the transfer-learning library TLL.
        limit: read the first so many samples of each split only; the SVMs' time grows with its square.
        max_iterations: of each SVM's solver.
        seed: of the halves that train and test.

    Raises:
        DataError: in evaluate, if a split has fewer than 4 samples.
    """

    keys = (INPUTS,)
    needs = nn.Module

    def __init__(
        self,
        source: Split,
        target: Split,
        on: Literal["features", "input"] = "features",
        probe: Literal["svm", "logistic"] = "svm",
        limit: Annotated[int, Field(ge=4)] | None = 1000,
        max_iterations: Annotated[int, Field(ge=1)] = 100_000,
        seed: Annotated[int, Field(ge=0)] = 0,
    ):
        if limit is not None and limit < 4:
            raise ValueError(f"limit is at least 4, since that many samples a domain are needed; found {limit}")
        self.source, self.target, self.on, self.probe = source, target, on, probe
        self.limit, self.max_iterations, self.seed = limit, max_iterations, seed

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Measure; metrics proxy-a-distance and domain-error."""
        with evaluating(model):
            source, target = (self._rows(model, data, split) for split in (self.source, self.target))
        distance, results = proxy_a_distance(source, target, probe=self.probe, max_iterations=self.max_iterations, seed=self.seed)
        caption = f"A linear classifier between {self.source} and {self.target} on the {self.on}; {len(source) + len(target)} samples."
        table = Table(
            ["C", "train error", "test error", "converged"],
            [
                [one.strength if one.strength == one.strength else "-", one.train_error, one.test_error, "yes" if one.converged else "no"]
                for one in results
            ],
            caption,
        )
        metrics = {"proxy-a-distance": distance, "domain-error": min(result.test_error for result in results)}
        figures = {"errors": Figure(_errors_figure(results, distance), caption)} if self.probe == "svm" else {}
        return Report(metrics, {"errors": table}, figures)

    def _rows(self, model: Any, data: Dataset, split: str) -> Tensor:
        found = []
        for batch in split_batches(data, split, model, limit=self.limit):
            if self.on == "features":
                found.append(embed(model, batch).float().flatten(1))
            else:
                found.append(torch.cat([value.float().flatten(1) for value in inputs(model, batch)], dim=1))
        return torch.cat(found) if found else torch.empty(0, 0)


def _errors_figure(results: Sequence[ProbeResult], distance: float) -> Any:
    """Training and held-out error against C."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(5.2, 3.4), layout="constrained")
    axes = canvas.add_subplot()
    strengths = [result.strength for result in results]
    axes.axhline(0.5, color="0.7", linewidth=1, linestyle="--")
    axes.text(strengths[0], 0.505, "chance: the domains cannot be told apart", color="0.5", fontsize=8, va="bottom")
    axes.plot(strengths, [result.train_error for result in results], color="#9ecae1", marker="o", markersize=4, label="training half")
    axes.plot(strengths, [result.test_error for result in results], color="#08519c", marker="o", markersize=4, label="held-out half")
    stopped = [result for result in results if not result.converged]
    if stopped:
        where = [result.strength for result in stopped], [result.test_error for result in stopped]
        axes.scatter(*where, s=16, color="white", edgecolors="#08519c", linewidths=1.2, zorder=3, label="solver stopped early")
    best = min(results, key=lambda result: result.test_error)
    axes.scatter([best.strength], [best.test_error], s=110, facecolors="none", edgecolors="#d94801", linewidths=1.6, zorder=3)
    axes.set(xscale="log", xlabel="C of the linear SVM", ylabel="domain error", ylim=(-0.02, 0.57))
    axes.set_title(f"proxy A-distance {distance:.2f} = 2 (1 - 2 x {best.test_error:.3f})", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")
    return canvas
