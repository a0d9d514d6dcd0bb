"""Domain-adversarial training as an objective around any task objective.

From "Domain-Adversarial Training of Neural Networks" (Ganin et al., 2016), https://arxiv.org/abs/1505.07818.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from graftwork import INPUTS, Backbone, Batch, DataError, Dataset, InterfaceError, Loss, Objective
from graftwork.builtin.objectives import CrossEntropy
from graftwork.interfaces import Embedder, inputs, require
from graftwork.kinds.objective import parameter_groups
from graftwork_dann.attachment import BOTTLENECK, TappedModel, activation_widths, concatenated, merged
from graftwork_dann.domain_head import DomainHead, domain_accuracy, domain_loss
from graftwork_dann.reversal import GradientReversal, gradient_reversal, reversal_coefficient

__all__ = ["PRESETS", "DomainAdversarial", "Preset"]


@dataclass(frozen=True)
class Preset:
    """What stands for a parameter of `DomainAdversarial` that is not given; the meanings are its own."""

    domain_loss_weight: float = 1.0
    reduction: Literal["domains", "samples"] = "domains"
    max_iter: int | None = None
    head_lr: float = 1.0
    head_bias_lr: float = 1.0
    gaussian: bool = False


PRESETS: Mapping[str, Preset] = {
    "paper": Preset(),
    "office-caffe": Preset(0.1, "samples", max_iter=10_000, head_lr=10.0, head_bias_lr=20.0, gaussian=True),
}
"""The paper's formulas, and what the authors' Caffe networks for Office do instead."""


class DomainAdversarial(Objective):
    """A task loss, and features of which a domain head cannot tell the domain (Ganin et al., 2016, eqs. 9 and 15).

    total = L_task + w L_domain, with the gradient of L_domain reversed, times lambda, where a head attaches. So the heads learn at
    weight w and the model is pushed away at weight w lambda; lambda rises with training by `reversal_coefficient`.

    Each domain is a feed, and the domain label is its place in `domains`. The task objective sees the labelled feeds, merged into
    one batch; of the others only the model's inputs are handed over, so that their labels cannot be seen. Parts: `task`, `domain`,
    `lambda`, `domain_accuracy`, and the task objective's own.

    The heads belong to the objective: the model that it exports has none.

    Args:
        task: what the labelled feeds are trained on; cross-entropy by default. It draws from one feed and runs the model.
        attach: where heads attach, one or several: `bottleneck`, the pooled features before the classifier (an embedder's
            embedding), or a module by name, whose output is averaged over its positions.
        domains: feeds, one a domain, at least two. More than two are told apart by a softmax.
        labelled: feeds that the task objective sees. One that is no domain joins the task loss alone, such as a few labelled
            target samples.
        mixed: draw from one feed, `train`, whose samples carry `domain`, the place in `domains`; those of domains not in
            `labelled` have their label masked. With cross-entropy as the task only.
        hidden: widths of the heads' hidden layers; none given is the model's own `domain_hidden`, else 1024 and 1024.
        dropout: in the heads; none given is the model's own `domain_dropout`, else 0.5.
        gamma: steepness of lambda's schedule.
        low: lambda at the start.
        high: what lambda rises to.
        max_iter: training batches over which lambda rises; none given is the whole training.
        domain_loss_weight: w; 1 by the paper.
        reduction: "domains" adds up each domain's mean loss; "samples" takes the mean over all rows.
        joint_forward: one pass over all domains, so that batch norm mixes their statistics; otherwise one pass for the labelled
            feeds and one for each other.
        adversarial: false is the paper's control: heads are trained, the model does not feel them.
        scale_head: multiply the heads' own learning by lambda too, as the authors' numpy code does.
        head_lr: factor on the learning rate of the heads' weights.
        head_bias_lr: factor on the learning rate of the heads' biases; none given is `head_lr`.
        preset: what parameters that are not given stand for: the paper, or the authors' Caffe networks for Office (weight 0.1,
            mean over samples, 10,000 batches, head at 10 times the rate and 20 for biases, Gaussian initialisation).

    Raises:
        ValueError: if there are fewer than two domains, no labelled one, or a value is out of range.
    """

    _seen: Tensor

    def __init__(
        self,
        task: Objective | None = None,
        attach: str | list[str] = BOTTLENECK,
        domains: Sequence[str] = ("source", "target"),
        labelled: Sequence[str] = ("source",),
        mixed: bool = False,
        hidden: list[Annotated[int, Field(ge=1)]] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] | None = None,
        gamma: Annotated[float, Field(gt=0)] = 10.0,
        low: float = 0.0,
        high: float = 1.0,
        max_iter: Annotated[int, Field(ge=1)] | None = None,
        domain_loss_weight: Annotated[float, Field(ge=0)] | None = None,
        reduction: Literal["domains", "samples"] | None = None,
        joint_forward: bool = True,
        adversarial: bool = True,
        scale_head: bool = False,
        head_lr: Annotated[float, Field(gt=0)] | None = None,
        head_bias_lr: Annotated[float, Field(gt=0)] | None = None,
        preset: Literal["paper", "office-caffe"] = "paper",
    ):
        super().__init__()
        chosen = PRESETS[preset]
        self.task = task if task is not None else CrossEntropy()
        self.points = [attach] if isinstance(attach, str) else list(attach)
        self.domains, self.labelled, self.mixed = list(domains), list(labelled), mixed
        self.hidden, self.dropout, self.gaussian = hidden, dropout, chosen.gaussian
        self.max_iter = max_iter if max_iter is not None else chosen.max_iter
        self.weight = domain_loss_weight if domain_loss_weight is not None else chosen.domain_loss_weight
        self.reduction = reduction or chosen.reduction
        self.joint_forward, self.adversarial, self.scale_head = joint_forward, adversarial, scale_head
        self.head_lr = head_lr if head_lr is not None else chosen.head_lr
        self.head_bias_lr = head_bias_lr if head_bias_lr is not None else (chosen.head_bias_lr if head_lr is None else head_lr)
        self._check(task, gamma, low, high)
        self._check_head()
        self.reversal = GradientReversal(partial(reversal_coefficient, gamma=gamma, low=low, high=high))
        self.heads = nn.ModuleDict()
        self.batches_seen = 0
        self._mixed_checked = False
        numbers = [number for number, name in enumerate(self.domains) if name in self.labelled]
        self.register_buffer("_seen", torch.tensor(numbers), persistent=False)
        self._arrange()

    def _check(self, task: Objective | None, gamma: float, low: float, high: float) -> None:
        if len(set(self.domains)) < 2:
            raise ValueError(f"domain-adversarial needs at least two domains; found {', '.join(self.domains) or 'none'}")
        if len(set(self.domains)) != len(self.domains) or len(set(self.labelled)) != len(self.labelled):
            raise ValueError(f"a feed is named twice: domains {self.domains}, labelled {self.labelled}")
        if not self.labelled or (self.mixed and not set(self.labelled) <= set(self.domains)):
            raise ValueError(f"labelled names at least one feed, and with mixed domains only; found {self.labelled} of {self.domains}")
        if not self.points or len(set(self.points)) != len(self.points):
            raise ValueError(f"attach names one or more points, each once; found {self.points}")
        if self.mixed and task is not None:
            raise ValueError("mixed masks labels, which only cross-entropy understands: leave `task` out, or give each domain a feed")
        if len(self.task.feeds) > 1:
            raise ValueError(f"the task objective draws from one feed; {type(self.task).__name__} draws from {', '.join(self.task.feeds)}")
        if gamma <= 0 or not all(map(math.isfinite, (gamma, low, high))):
            raise ValueError(f"gamma is above 0, low and high are finite; found {gamma}, {low} and {high}")
        if self.weight < 0 or not math.isfinite(self.weight):
            raise ValueError(f"domain_loss_weight is finite and not negative; found {self.weight}")
        if self.max_iter is not None and self.max_iter < 1:
            raise ValueError(f"max_iter is at least 1; found {self.max_iter}")

    def _check_head(self) -> None:
        if any(width < 1 for width in self.hidden or ()):
            raise ValueError(f"hidden widths are at least 1; found {self.hidden}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is in [0, 1); found {self.dropout}")
        if min(self.head_lr, self.head_bias_lr) <= 0:
            raise ValueError(f"head_lr and head_bias_lr are above 0; found {self.head_lr} and {self.head_bias_lr}")

    def _arrange(self) -> None:
        """Feeds, what is read from each, and what the model must offer."""
        self._task_feed = next(iter(self.task.feeds), "train")
        read = self.task.keys.get(self._task_feed)
        if self.mixed:
            self.feeds = ("train",)
            self.keys = {"train": (INPUTS, "label", "domain")}
        else:
            self._extra = [feed for feed in self.labelled if feed not in self.domains]
            self._labelled = [*self._extra, *(feed for feed in self.domains if feed in self.labelled)]
            self._unlabelled = [feed for feed in self.domains if feed not in self.labelled]
            self.feeds = (*self.domains, *self._extra)
            hidden_from = dict.fromkeys(self._unlabelled, (INPUTS,))
            self.keys = hidden_from if read is None else {**dict.fromkeys(self._labelled, read), **hidden_from}
        self.needs = Backbone if BOTTLENECK in self.points and self.task.needs is not Embedder else self.task.needs

    # -- once ------------------------------------------------------------------------------------------------------------------

    def setup(self, model: Any, data: Dataset) -> None:
        """Set the task objective up and build a head for each attachment point.

        Raises:
            InterfaceError: if the model lacks an attachment point, or what the task objective needs.
        """
        require(model, self.task.needs, type(self.task).__name__)
        self.task.setup(model, data)
        self.build_heads(activation_widths(model, self.points, data), model)

    def build_heads(self, widths: Mapping[str, int], model: Any = None) -> None:
        """Build the heads for activations of known widths; `setup` does so for those of a model.

        Args:
            widths: attachment point -> width.
            model: whose own suggestions hold for what is not given.
        """
        hidden = self.hidden if self.hidden is not None else getattr(model, "domain_hidden", (1024, 1024))
        dropout = self.dropout if self.dropout is not None else getattr(model, "domain_dropout", 0.5)
        heads = {point: DomainHead(width, hidden, len(self.domains), dropout, self.gaussian) for point, width in widths.items()}
        self.heads = nn.ModuleDict({_key(point): head for point, head in heads.items()})

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups: the heads' weights and biases at their own rates, then the task objective's.

        Args:
            lr: base learning rate.
        """
        named = list(self.heads.named_parameters())
        weights = [parameter for name, parameter in named if not name.endswith("bias")]
        biases = [parameter for name, parameter in named if name.endswith("bias")]
        heads = [{"params": weights, "lr": lr * self.head_lr}, {"params": biases, "lr": lr * self.head_bias_lr}]
        return [*heads, *parameter_groups(self.task, SimpleNamespace(lr=lr))]  # type: ignore[arg-type]

    # -- each step -------------------------------------------------------------------------------------------------------------

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The loss of one step.

        Args:
            model: has every attachment point.
            batches: feed -> batch; of a feed that is not labelled, without `label`.
            progress: share of training done, which lambda follows unless `max_iter` is given.

        Raises:
            DataError: if a domain is missing from the batches, or a feed that is not labelled brings labels.
        """
        self.reversal.progress = progress if self.max_iter is None else min(1.0, self.batches_seen / self.max_iter)
        if self.mixed:
            task, activations, domain = self._mixed(model, batches["train"])
        elif self.joint_forward:
            task, activations, domain = self._joint(model, self._checked(batches), progress)
        else:
            task, activations, domain = self._apart(model, self._checked(batches), progress)
        if self.training:
            self.batches_seen += 1
        strength = self.reversal.coefficient
        losses, accuracies = self._domain(activations, domain, strength)
        domain_total = torch.stack(losses).sum()
        total = task.total + self.weight * (strength if self.scale_head else 1.0) * domain_total
        parts = {
            **task.parts,
            "task": task.total,
            "domain": domain_total,
            "lambda": torch.full((), strength, device=domain.device),
            "domain_accuracy": torch.stack(accuracies).mean(),
        }
        if len(losses) > 1:
            parts |= {f"domain/{point}": loss for point, loss in zip(activations, losses, strict=True)}
        return Loss(total, parts)

    def _domain(self, activations: Mapping[str, Tensor], domain: Tensor, strength: float) -> tuple[list[Tensor], list[Tensor]]:
        """Each head's loss and accuracy."""
        losses, accuracies, count = [], [], len(self.domains)
        for point, activation in activations.items():
            reversed_by = 1.0 if self.scale_head else strength
            features = gradient_reversal(activation, reversed_by) if self.adversarial else activation.detach()
            logits = self.heads[_key(point)](features)
            losses.append(domain_loss(logits, domain, count, self.reduction))
            accuracies.append(domain_accuracy(logits.detach(), domain, count))
        return losses, accuracies

    def _joint(self, model: Any, batches: Mapping[str, Batch], progress: float) -> tuple[Loss, dict[str, Tensor], Tensor]:
        """One pass over all feeds."""
        rest = [inputs(model, batches[feed]) for feed in self._unlabelled]
        further = tuple(concatenated(values) for values in zip(*rest, strict=True)) if rest else ()
        seen = merged([batches[feed] for feed in self._labelled])
        with TappedModel(model, self.points, further) as tapped:
            task = self.task(tapped, {self._task_feed: seen}, progress)
        sizes = [len(inputs(model, batches[feed])[0]) for feed in (*self._labelled, *self._unlabelled)]
        return task, *self._rows(tapped.activations, sizes)

    def _apart(self, model: Any, batches: Mapping[str, Batch], progress: float) -> tuple[Loss, dict[str, Tensor], Tensor]:
        """One pass over the labelled feeds, and one over each other."""
        seen = merged([batches[feed] for feed in self._labelled])
        sizes = [len(inputs(model, batches[feed])[0]) for feed in (*self._labelled, *self._unlabelled)]
        with TappedModel(model, self.points) as tapped:
            task = self.task(tapped, {self._task_feed: seen}, progress)
        passes = [tapped.activations]
        for feed in self._unlabelled:
            with TappedModel(model, self.points) as tapped:
                tapped.run(*inputs(model, batches[feed]))
            passes.append(tapped.activations)
        joined = {point: torch.cat([found[point] for found in passes]) for point in passes[0]}
        return task, *self._rows(joined, sizes)

    def _rows(self, activations: Mapping[str, Tensor], sizes: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """The activations of the rows that belong to a domain, and which."""
        skipped = sum(sizes[: len(self._extra)])
        for point in self.points:
            rows = len(activations[point]) if point in activations else 0
            if rows != sum(sizes):
                raise InterfaceError(
                    f'the attachment point "{point}" saw {rows} of {sum(sizes)} rows: {type(self.task).__name__} does not pass its rows '
                    "through it in one call; attach elsewhere"
                )
        order = [self.domains.index(feed) for feed in (*self._labelled, *self._unlabelled)[len(self._extra) :]]
        device = activations[self.points[0]].device
        domain = torch.cat(
            [torch.full((size,), number, device=device) for number, size in zip(order, sizes[len(self._extra) :], strict=True)]
        )
        return {point: activations[point][skipped:] if skipped else activations[point] for point in self.points}, domain

    def _mixed(self, model: Any, batch: Batch) -> tuple[Loss, dict[str, Tensor], Tensor]:
        """One pass over a batch of several domains; labels of those that are not labelled are masked."""
        domain = batch["domain"]
        self._check_mixed(domain)
        with TappedModel(model, self.points) as tapped:
            logits = tapped(*inputs(model, batch))
        seen = torch.isin(domain, self._seen)
        masked = torch.where(seen, batch["label"], -100)
        loss = functional.cross_entropy(logits, masked, ignore_index=-100, reduction="sum") / seen.sum().clamp(min=1)
        return Loss(loss), {point: tapped.activations[point] for point in self.points}, domain

    def _check_mixed(self, domain: Tensor) -> None:
        """Look at the first batch, and only that: looking waits for the device."""
        if self._mixed_checked:
            return
        found = domain.unique().tolist()
        if min(found) < 0 or max(found) >= len(self.domains):
            raise DataError(f"`domain` is the place in {', '.join(self.domains)}, 0 to {len(self.domains) - 1}; the batch has {found}")
        if len(found) < 2:
            raise DataError(f'domain-adversarial needs at least two domains in a batch; this one has "{self.domains[found[0]]}" alone')
        self._mixed_checked = True

    def _checked(self, batches: Mapping[str, Batch]) -> Mapping[str, Batch]:
        absent = [feed for feed in self.feeds if feed not in batches]
        if absent:
            raise DataError(
                f"domain-adversarial needs at least two domains, here {', '.join(self.domains)}; the batches have {', '.join(batches)} "
                f"and lack {', '.join(absent)}"
            )
        for feed in self._unlabelled:
            if "label" in batches[feed]:
                raise DataError(f'the batch of "{feed}" brings labels, which must not be seen: drop them, or name it in `labelled`')
        return batches

    # -- state -----------------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """Batches seen, which lambda follows when `max_iter` is given."""
        return torch.tensor(self.batches_seen)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up a saved state."""
        self.batches_seen = int(state)


def _key(point: str) -> str:
    return point.replace(".", "/")  # a module's name holds no dot
