"""LEEP of one classifier, and MS-LEEP and E-LEEP of a set of them, as evaluators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork import Artifact, Dataset, Evaluator, Figure, Report, Split, Table, fingerprint
from graftwork_osborn.eep import expected_empirical_prediction, label_likelihoods
from graftwork_osborn.figures import draw_conditional
from graftwork_osborn.measure import read_pool
from graftwork_osborn.pool import Pool, check_pool, rank_subsets
from graftwork_osborn.sampling import Reading
from graftwork_osborn.table import SetScore

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["ELEEP", "LEEP", "MSLEEP"]


class LEEP(Evaluator):
    """Log expected empirical prediction of the stage's model on a labelled target (Nguyen et al., 2020, section 3).

    Args:
        split: the target's labelled samples.
        reading: how many of them, drawn how.

    Attributes:
        higher_is_better: true.
    """

    needs = nn.Module
    higher_is_better: ClassVar[bool] = True

    def __init__(self, split: Split = "train", reading: Reading = Reading()):  # noqa: B008 - frozen
        self.split, self.reading = split, reading

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metric leep, at most 0; the artifact "eep" with `eep` (n, C_target) and `labels` (n,); P(y | z) drawn.

        Raises:
            DataError: if a target class has no sample or outputs are not finite.
        """
        (found,) = read_pool({type(model).__name__: model}, data, self.split, self.reading, 0 if run is None else run.seed).values()
        eep = expected_empirical_prediction(found.probabilities, found.labels)
        own = eep.gather(1, found.labels[:, None])[:, 0].clamp(max=1).log()
        classes = eep.shape[1]
        counts = torch.bincount(found.labels, minlength=classes)
        sums = own.new_zeros(classes).index_add_(0, found.labels, own)
        names = data.info.classes if len(data.info.classes) == classes else tuple(map(str, range(classes)))
        rows = [[name, count, mean] for name, count, mean in zip(names, counts.tolist(), (sums / counts).tolist(), strict=True)]
        table = Table(["class", "samples", "mean log EEP"], rows, f"How well source classes tell each class of {self.split}.")
        joint = torch.zeros(classes, found.probabilities.shape[1], dtype=eep.dtype, device=eep.device)
        joint.index_add_(0, found.labels, found.probabilities.to(eep.dtype))
        caption = f"P(target class | source class) on {self.split}; a column that is dark in one row determines the class."
        artifact = Artifact("eep", {"eep": eep, "labels": found.labels}, {}, model=fingerprint(model), dataset=data.fingerprint())
        figures = {"conditional": Figure(draw_conditional(joint, names), caption)}
        return Report({"leep": float(own.mean())}, {"classes": table}, figures, {"eep": artifact})


class _SetOfClassifiers(Evaluator):
    """A LEEP of sets: of the whole pool, of each model, and of all subsets of a size."""

    higher_is_better: ClassVar[bool] = True
    metric: ClassVar[str]

    def __init__(
        self,
        pool: Pool,
        split: Split = "train",
        k: Annotated[int, Field(ge=1)] | None = None,
        reading: Reading = Reading(),  # noqa: B008 - frozen
    ):
        """Set up.

        Args:
            pool: name -> classifier or segmenter.
            split: the target's labelled samples.
            k: rank all subsets of so many models too; none leaves that out.
            reading: how many samples, drawn how.
        """
        check_pool(pool, k)
        self.pool, self.split, self.k, self.reading = pool, split, k, reading

    def set_score(self, likelihoods: Tensor) -> SetScore:
        """The score of sets, lower is better, from each model's EEP of each sample's label (M, n)."""
        raise NotImplementedError

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """The metric of the whole pool; a table of each model's LEEP; with `k` the artifact "scores" of all subsets.

        Raises:
            DataError: if a target class has no sample or outputs are not finite.
        """
        found = read_pool(self.pool, data, self.split, self.reading, 0 if run is None else run.seed)
        likelihoods = torch.stack([label_likelihoods(one.probabilities, one.labels) for one in found.values()]).cpu().double()
        score, names = self.set_score(likelihoods), list(self.pool)
        singles = likelihoods.log().mean(dim=1).tolist()
        members = Table(["model", "LEEP"], list(map(list, zip(names, singles, strict=True))), f"Each model's LEEP on {self.split}.")
        metrics, tables = {self.metric: -score.score(range(len(names)))}, {"models": members}
        ranked = None if self.k is None else rank_subsets(score, names, self.k, True, data.fingerprint(), self.metric)
        if ranked is None:
            return Report(metrics, tables)
        return Report(metrics, {**tables, "ranking": ranked[1]}, {}, {"scores": ranked[2]})


class MSLEEP(_SetOfClassifiers):
    """MS-LEEP: the sum of the LEEPs of a set of classifiers (Agostinelli et al., 2022). It sees no model but by itself.

    Attributes:
        higher_is_better: true.
    """

    metric = "ms-leep"

    def set_score(self, likelihoods: Tensor) -> SetScore:
        """-sum_m LEEP_m."""
        return SetScore(-likelihoods.log().mean(dim=1), likelihoods.new_zeros(len(likelihoods), len(likelihoods)))


class ELEEP(_SetOfClassifiers):
    """E-LEEP: the mean log of the averaged expected empirical prediction of a set of classifiers (Agostinelli et al., 2022).

    Attributes:
        higher_is_better: true.
    """

    metric = "e-leep"

    def set_score(self, likelihoods: Tensor) -> SetScore:
        """-1/n sum_i log(1/N sum_m EEP_m)."""
        empty = likelihoods.new_zeros(len(likelihoods))
        return SetScore(empty, empty[:, None] * empty, likelihoods, (1.0, 0.0))
