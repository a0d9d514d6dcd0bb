"""The classifier that tells domains apart, its loss and its accuracy.

From "Domain-Adversarial Training of Neural Networks" (Ganin et al., 2016), https://arxiv.org/abs/1505.07818.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["DomainHead", "domain_accuracy", "domain_loss"]


class DomainHead(nn.Module):
    """Fully connected layers that tell domains apart: by default 1024-1024-1 with ReLU and dropout, as on Office.

    Args:
        in_features: width of what it reads.
        hidden: width of each hidden layer; none makes it logistic regression.
        domains: number of domains; two share a single logit.
        dropout: after each hidden layer.
        gaussian: initialise as the authors' Caffe networks do: biases 0, weights Gaussian with deviation 0.01, in the last layer 0.3.

    Raises:
        ValueError: if a width is below 1, there are fewer than two domains, or the dropout is outside [0, 1).
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (1024, 1024),
        domains: int = 2,
        dropout: float = 0.5,
        gaussian: bool = False,
    ):
        super().__init__()
        if domains < 2:
            raise ValueError(f"a domain head needs at least two domains; found {domains}")
        if in_features < 1 or any(width < 1 for width in hidden):
            raise ValueError(f"widths are at least 1; found in_features {in_features} and hidden {list(hidden)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is in [0, 1); found {dropout}")
        self.domains = domains
        blocks = [
            nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)) for before, after in pairwise([in_features, *hidden])
        ]
        self.hidden = nn.Sequential(*blocks)
        self.output = nn.Linear([in_features, *hidden][-1], 1 if domains == 2 else domains)
        if gaussian:
            self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.3 if layer is self.output else 0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) to logits: (B,) of domain 1 for two domains, else (B, domains)."""
        logits: Tensor = self.output(self.hidden(x))
        return logits.squeeze(1) if self.domains == 2 else logits


def domain_loss(logits: Tensor, domain: Tensor, domains: int = 2, reduction: Literal["domains", "samples"] = "domains") -> Tensor:
    """Cross-entropy of a domain head, L_d (Ganin et al., 2016, eq. 9).

    "domains" takes each domain's mean and adds these up, so that the domains weigh alike whatever their share of the batch; one
    that the batch lacks adds nothing. "samples" is the mean over all rows, as in the authors' Caffe networks.

    Args:
        logits: (B,) of domain 1 for two domains, else (B, domains).
        domain: (B,) long, in [0, domains).
        domains: number of domains.
        reduction: see above.

    Returns:
        0-d, float32 or wider.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if domains == 2:
        losses = functional.binary_cross_entropy_with_logits(logits, domain.to(logits.dtype), reduction="none")
    else:
        losses = functional.cross_entropy(logits, domain, reduction="none")
    return losses.mean() if reduction == "samples" else _means(losses, domain, domains)[0].sum()


def domain_accuracy(logits: Tensor, domain: Tensor, domains: int = 2) -> Tensor:
    """Share of rows whose domain is recognised, averaged over the domains in the batch: 1 / domains when they cannot be told apart.

    Args:
        logits: (B,) of domain 1 for two domains, else (B, domains).
        domain: (B,) long, in [0, domains).
        domains: number of domains.
    """
    guesses = (logits > 0).long() if domains == 2 else logits.argmax(dim=1)
    means, present = _means((guesses == domain).float(), domain, domains)
    return means.sum() / present.sum()


def _means(values: Tensor, domain: Tensor, domains: int) -> tuple[Tensor, Tensor]:
    """Each domain's mean of the values (B,), 0 where it has no row; and which domains have one. Both (domains,)."""
    members = domain[:, None] == torch.arange(domains, device=domain.device)  # (B, domains)
    counts = members.sum(dim=0)
    return (members * values[:, None]).sum(dim=0) / counts.clamp(min=1), counts > 0
