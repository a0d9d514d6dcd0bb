"""The prototype loss: every anchor is drawn to the centre of its cluster, at that cluster's own temperature (PCL, arXiv:2005.04966)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork_meta_path_contrast.clustering import Clustering, Density, concentrations

__all__ = ["prototype_loss", "prototype_loss_of"]


def prototype_loss_of(anchors: Tensor, assignments: Tensor, centroids: Tensor, phi: Tensor) -> Tensor:
    """-mean_i log[ exp(a_i . mu_s(i) / phi_s(i)) / ((N / M) sum_m exp(a_i . mu_m / phi_m)) ] of one clustering (Yu et al., 2023).

    The factor N / M is the authors' code's, which multiplies a mean over clusters by N; it shifts the loss and no gradient.

    Args:
        anchors: (N, D), rows of unit length.
        assignments: (N,) long, s.
        centroids: (M, D) mu, rows of unit length.
        phi: (M,) positive temperatures.

    Returns:
        0-d.
    """
    anchors = anchors.to(torch.promote_types(anchors.dtype, torch.float32))
    with torch.autocast(anchors.device.type, enabled=False):
        similarity = anchors @ centroids.to(anchors).T / phi.to(anchors)
    own = similarity.gather(1, assignments[:, None]).squeeze(1)
    return (similarity.logsumexp(dim=1) - own).mean() + math.log(len(anchors) / len(centroids))


def prototype_loss(anchors: Tensor, clusterings: Sequence[Clustering], temperature: float = 0.4, density: Density = "similarity") -> Tensor:
    """The mean over clusterings of `prototype_loss_of`, each cluster's temperature being its concentration.

    Args:
        anchors: (N, D), rows of unit length; gradients go to these alone.
        clusterings: spherical, of N points each.
        temperature: the mean of the concentrations.
        density: as in `concentrations`.

    Raises:
        ValueError: if there is no clustering, or the temperature is not positive.
    """
    if not clusterings:
        raise ValueError("clusterings holds at least one clustering")
    losses = [prototype_loss_of(anchors, one.assignments, one.centroids, concentrations(one, temperature, density)) for one in clusterings]
    return torch.stack(losses).mean()
