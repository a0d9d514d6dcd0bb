"""Shallow DANN: one sigmoid layer, a softmax over classes, a logistic domain head; gradients written out.

From "Domain-Adversarial Training of Neural Networks" (Ganin et al., 2016), section 4.1 and algorithm 1,
https://arxiv.org/abs/1505.07818; numbers by the authors' numpy code.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from graftwork.interfaces import Embedder

__all__ = ["ShallowDANN", "ShallowWeights", "shallow_losses", "shallow_steps"]


class ShallowWeights(NamedTuple):
    """W (H, D), b (H,), V (K, H), c (K,), u (H,) and d (): the hidden layer, the classifier and the domain head."""

    W: Tensor
    b: Tensor
    V: Tensor
    c: Tensor
    u: Tensor
    d: Tensor


def shallow_losses(weights: ShallowWeights, source: Tensor, labels: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """L_y and L_d of shallow DANN (Ganin et al., 2016, eqs. 5 and 8).

    h = sigmoid(W x + b), L_y = -log softmax(V h + c)_y, L_d = -log o(h_source) - log(1 - o(h_target)) with o(h) = sigmoid(u h + d)
    the probability of the source. Each term is a mean over its rows.

    Args:
        weights: W, b, V, c, u, d.
        source: (B, D).
        labels: (B,) long.
        target: (M, D).

    Returns:
        Two 0-d tensors.
    """
    of_source, of_target = (torch.sigmoid(rows @ weights.W.T + weights.b) for rows in (source, target))
    label_loss = functional.cross_entropy(of_source @ weights.V.T + weights.c, labels)
    at_source, at_target = (hidden @ weights.u + weights.d for hidden in (of_source, of_target))
    return label_loss, functional.softplus(-at_source).mean() + functional.softplus(at_target).mean()


def shallow_steps(
    weights: ShallowWeights,
    source: Tensor,
    labels: Tensor,
    target: Tensor,
    adaptation: float = 1.0,
    adversarial: bool = True,
    scale_head: bool = False,
) -> ShallowWeights:
    """What a step of shallow DANN subtracts, times the learning rate, in closed form (Ganin et al., 2016, algorithm 1).

    Args:
        weights: W, b, V, c, u, d.
        source: (B, D).
        labels: (B,) long.
        target: (B, D), one row for each of the source.
        adaptation: the paper's lambda.
        adversarial: false keeps the domain head from W and b: the paper's control.
        scale_head: multiply u's and d's part by `adaptation` too, as algorithm 1 and the authors' code do.

    Returns:
        For W, b, V, c the gradient of L_y - adaptation L_d (see `shallow_losses`); for u, d that of L_d, which they descend.
    """
    rows = len(source)
    both = torch.cat([source, target])
    hidden = torch.sigmoid(torch.addmm(weights.b, both, weights.W.T))  # (2B, H)
    to_logits = torch.addmm(weights.c, hidden[:rows], weights.V.T).softmax(dim=1)
    to_logits.scatter_add_(1, labels[:, None], to_logits.new_full((rows, 1), -1.0))
    to_logits /= rows
    to_domain = torch.sigmoid(hidden @ weights.u + weights.d)  # (2B,), gradient of L_d at the domain head's logit
    to_domain[:rows] -= 1
    to_domain /= rows
    to_hidden = torch.outer(to_domain, weights.u).mul_(-adaptation) if adversarial else torch.zeros_like(hidden)
    to_hidden[:rows] += to_logits @ weights.V
    to_hidden *= hidden * (1 - hidden)
    if scale_head:
        to_domain *= adaptation
    return ShallowWeights(
        W=to_hidden.T @ both,
        b=to_hidden.sum(dim=0),
        V=to_logits.T @ hidden[:rows],
        c=to_logits.sum(dim=0),
        u=to_domain @ hidden,
        d=to_domain.sum(),
    )


class ShallowDANN(nn.Module):
    """softmax(V h + c) on h = sigmoid(W x + b), with a domain head sigmoid(u h + d) (Ganin et al., 2016, section 4.1).

    `fit` is the paper's algorithm 1, with every step's gradients in closed form. The domain head's u and d are buffers, which only
    `fit` moves. As a model under the objective `domain-adversarial` it brings W, b, V and c alone, and suggests a logistic head.

    Args:
        in_features: width of the input.
        num_classes: outputs.
        hidden: H, width of the hidden layer.
        input: the sample key that it takes; images are flattened.
        representation: a frozen feature map that comes first, such as `msda`; `in_features` is then its `embedding_dim`.

    Attributes:
        num_features: H.
        domain_hidden: none: the domain head is logistic.
    """

    domain_hidden: tuple[int, ...] = ()
    domain_dropout = 0.0
    domain_weights: Tensor
    domain_bias: Tensor

    def __init__(
        self,
        in_features: Annotated[int, Field(ge=1)] | None = None,
        num_classes: Annotated[int, Field(ge=2)] = 2,
        hidden: Annotated[int, Field(ge=1)] = 25,
        input: Literal["features", "image"] = "features",
        representation: Embedder | None = None,
    ):
        super().__init__()
        width = in_features if representation is None else representation.embedding_dim
        if width is None or (in_features is not None and width != in_features):
            raise ValueError(f"in_features is needed, and that of a representation is its own; found {in_features} and {width}")
        if width < 1 or num_classes < 2 or hidden < 1:
            raise ValueError(f"in_features and hidden are at least 1, num_classes at least 2; found {width}, {hidden}, {num_classes}")
        self._representation = (representation,)  # in a tuple, so that it is neither trained nor saved
        self.inputs = (input,)
        self.num_classes, self.num_features = num_classes, hidden
        self.trunk = nn.Linear(width, hidden)
        self.head = nn.Linear(hidden, num_classes)
        self.register_buffer("domain_weights", torch.zeros(hidden))
        self.register_buffer("domain_bias", torch.zeros(()))
        self.reset()

    def reset(self) -> None:
        """Start anew: W and V uniform in +-sqrt(6 / (fan in + fan out)), all else zero."""
        with torch.no_grad():
            for layer in (self.trunk, self.head):
                bound = math.sqrt(6 / (layer.in_features + layer.out_features))
                layer.weight.uniform_(-bound, bound)
                layer.bias.zero_()
            self.domain_weights.zero_()
            self.domain_bias.zero_()

    @property
    def weights(self) -> ShallowWeights:
        """W, b, V, c, u and d themselves, without gradients."""
        shared = (self.trunk.weight, self.trunk.bias, self.head.weight, self.head.bias, self.domain_weights, self.domain_bias)
        return ShallowWeights(*(tensor.detach() for tensor in shared))

    def represent(self, x: Tensor) -> Tensor:
        """(B, ...) as rows (B, in_features), through the representation where there is one."""
        (representation,) = self._representation
        rows = x.flatten(1)
        if representation is None:
            return rows
        with torch.no_grad():
            return cast(Any, representation).to(rows.device).embed(rows).to(self.trunk.weight.dtype)  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, ...) to h (B, hidden)."""
        return torch.sigmoid(self.trunk(self.represent(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """h (B, hidden) to logits (B, num_classes), or as it is."""
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def predict_domain(self, x: Tensor) -> Tensor:
        """(B, ...) to (B,) long: 0 where the domain head that `fit` trained says source, 1 where it says target."""
        return (self.forward_features(x) @ self.domain_weights + self.domain_bias < 0).long()

    @torch.no_grad()
    def fit(
        self,
        source: Tensor,
        labels: Tensor,
        target: Tensor,
        validation: tuple[Tensor, Tensor] | None = None,
        *,
        adaptation: float = 1.0,
        lr: float = 0.05,
        passes: int = 200,
        batch_size: int = 1,
        adversarial: bool = True,
        scale_head: bool = True,
        generator: torch.Generator | None = None,
    ) -> int:
        """Stochastic descent over the source in its order, with one random target sample for each (algorithm 1).

        With a validation set the weights of W, b, V and c with the least error on it are kept, the later of equals. Training ends
        before its time once a pass beyond max(30, 1.5 times the best pass) brought no such weights.

        Args:
            source: (N, ...).
            labels: (N,) long.
            target: (M, ...).
            validation: labelled source samples that are not in `source`: (V, ...) and (V,).
            adaptation: the paper's lambda; 0 leaves the domain head untrained where `scale_head` holds.
            lr: learning rate.
            passes: over the source.
            batch_size: pairs a step; 1 is the paper's.
            adversarial: false is the paper's control: the domain head is trained, W and b do not feel it.
            scale_head: multiply the domain head's learning by `adaptation`.
            generator: draws the target samples, on the CPU; torch's global one by default.

        Returns:
            The pass, from 0, whose weights are kept; `passes` without a validation set.

        Raises:
            ValueError: if a set is empty, a value out of range, or labels and source differ in number.
        """
        _check_fit(source, labels, target, adaptation, lr, passes, batch_size)
        source, target = self.represent(source), self.represent(target)
        best_risk, best, best_pass, until = math.inf, self.weights, passes, 30
        for number in range(passes):
            drawn = torch.randint(len(target), (len(source),), generator=generator).to(target.device)
            self.one_pass(source, labels, target[drawn], adaptation, lr, batch_size, adversarial, scale_head)
            if validation is None:
                continue
            risk = (self(validation[0]).argmax(dim=1) != validation[1]).float().mean().item()
            if risk <= best_risk:
                best_risk, best_pass, until = risk, number, max(until, int(1.5 * number))
                best = ShallowWeights(*(tensor.clone() for tensor in self.weights))
            elif number > until:
                break
        if validation is not None:
            for held, kept in zip(self.weights[:4], best[:4], strict=True):
                held.copy_(kept)
        return best_pass

    @torch.no_grad()
    def one_pass(
        self,
        source: Tensor,
        labels: Tensor,
        paired: Tensor,
        adaptation: float,
        lr: float,
        batch_size: int = 1,
        adversarial: bool = True,
        scale_head: bool = True,
    ) -> None:
        """One pass of `fit` over source rows (N, D), each with the target row (N, D) that it is paired with."""
        weights = self.weights
        for rows, truth, other in zip(source.split(batch_size), labels.split(batch_size), paired.split(batch_size), strict=True):
            steps = shallow_steps(weights, rows, truth, other, adaptation, adversarial, scale_head)
            torch._foreach_add_(list(weights), list(steps), alpha=-lr)


def _check_fit(source: Tensor, labels: Tensor, target: Tensor, adaptation: float, lr: float, passes: int, batch_size: int) -> None:
    if not len(source) or not len(target):
        raise ValueError(f"shallow-dann needs at least two domains; found {len(source)} source and {len(target)} target samples")
    if len(source) != len(labels):
        raise ValueError(f"{len(source)} source samples and {len(labels)} labels")
    if adaptation < 0 or lr <= 0 or passes < 1 or batch_size < 1:
        raise ValueError(
            f"adaptation is not negative, lr above 0, passes and batch_size at least 1; found {adaptation}, {lr}, {passes}, {batch_size}"
        )
