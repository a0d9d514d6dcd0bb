"""Marginalised stacked denoising autoencoders: a feature map in closed form, fitted on both domains.

From "Marginalized Denoising Autoencoders for Domain Adaptation" (Chen et al., 2012), https://arxiv.org/abs/1206.4683, which the text
experiments of "Domain-Adversarial Training of Neural Networks" start from; numbers by the authors' `mSDA.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork import DataError, Dataset, Split
from graftwork.kinds.evaluator import split_batches

__all__ = ["MSDA", "denoising_map", "scatter_matrix"]

CHUNK = 4096
"""Rows whose products are added up at once."""


def scatter_matrix(features: Tensor) -> Tensor:
    """S = X^T X of the rows with a 1 appended, accumulated in float64 (float32 on devices without it) by chunks.

    Args:
        features: (N, D).

    Returns:
        (D + 1, D + 1).
    """
    wide = torch.float32 if features.device.type == "mps" else torch.float64
    total = torch.zeros(features.shape[1] + 1, features.shape[1] + 1, dtype=wide, device=features.device)
    for rows in features.split(CHUNK):
        padded = nn.functional.pad(rows.to(wide), (0, 1), value=1.0)
        total.addmm_(padded.T, padded)
    return total


def denoising_map(scatter: Tensor, noise: float = 0.5, eta: float = 1e-5) -> Tensor:
    """The linear map that best undoes random zeroing of features, with the noise integrated out (Chen et al., 2012, eq. 3).

    W = P (Q + eta I)^-1 with q = 1 - noise (1 for the bias), Q = S q q^T off the diagonal and S q on it, P = S q without its last
    row, and no eta for the bias. One Cholesky solve.

    Args:
        scatter: S (D + 1, D + 1), of `scatter_matrix`.
        noise: probability that a feature is zeroed, in [0, 1).
        eta: ridge, not negative.

    Returns:
        (D, D + 1), bias last. [I 0] for noise 0 and eta 0.

    Raises:
        ValueError: if a value is out of range, or the system is singular.
    """
    if not 0 <= noise < 1 or eta < 0:
        raise ValueError(f"noise is in [0, 1) and eta is not negative; found {noise} and {eta}")
    kept = torch.full_like(scatter[0], 1 - noise)
    kept[-1] = 1
    corrupted = scatter * kept[:, None] * kept
    corrupted.diagonal().copy_(scatter.diagonal() * kept)
    corrupted.diagonal()[:-1].add_(eta)
    products = scatter[:-1] * kept  # (D, D + 1)
    factor, failed = torch.linalg.cholesky_ex(corrupted)
    if failed:
        raise ValueError(f"features that are constant or depend on one another make mSDA singular at eta {eta:g}: raise eta")
    return torch.cholesky_solve(products.T, factor).T


class MSDA(nn.Module):
    """The input and `layers` layers tanh(W [h; 1]), each fitted by `denoising_map` to the one before (Chen et al., 2012).

    Fit it on source and target together; no label is read. As a model it is an embedder: `embed` is `transform`.

    Args:
        in_features: D, width of the input; that of `data` by default.
        layers: how many are stacked.
        noise: probability that a feature is zeroed.
        eta: ridge.
        data: fit on this dataset at once.
        splits: on which of its splits; by default on every one called train.

    Attributes:
        embedding_dim: (layers + 1) D.
        maps: (layers, D, D + 1), zero before `fit`.
    """

    inputs = ("features",)
    maps: Tensor

    def __init__(
        self,
        in_features: Annotated[int, Field(ge=1)] | None = None,
        layers: Annotated[int, Field(ge=1)] = 5,
        noise: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        eta: Annotated[float, Field(ge=0)] = 1e-5,
        data: Dataset | None = None,
        splits: list[Split] | None = None,
    ):
        super().__init__()
        width = in_features if in_features is not None else (data.info.features if data is not None else 0)
        if width < 1 or layers < 1:
            raise ValueError(f"in_features and layers are at least 1; found {width} and {layers}")
        if not 0 <= noise < 1 or eta < 0:
            raise ValueError(f"noise is in [0, 1) and eta is not negative; found {noise} and {eta}")
        self.in_features, self.noise, self.eta = width, noise, eta
        self.embedding_dim = (layers + 1) * width
        self.register_buffer("maps", torch.zeros(layers, width, width + 1))
        if data is not None:
            self.fit(_read(data, splits, self))

    @torch.no_grad()
    def fit(self, features: Tensor) -> Tensor:
        """Fit every layer.

        Args:
            features: (N, D), source and target rows together, in any order.

        Returns:
            What `transform` gives for them.

        Raises:
            ValueError: if they are of another width.
        """
        hidden = self._checked(features)
        found = [hidden]
        for layer in range(len(self.maps)):
            self.maps[layer] = denoising_map(scatter_matrix(hidden), self.noise, self.eta).to(self.maps)
            hidden = self._layer(hidden, layer)
            found.append(hidden)
        return torch.cat(found, dim=1)

    @torch.no_grad()
    def transform(self, features: Tensor) -> Tensor:
        """(N, D) to (N, (layers + 1) D): the input and every layer."""
        found = [self._checked(features)]
        for layer in range(len(self.maps)):
            found.append(self._layer(found[-1], layer))
        return torch.cat(found, dim=1)

    def embed(self, features: Tensor) -> Tensor:
        """As `transform`."""
        return self.transform(features)

    forward = embed

    def _layer(self, hidden: Tensor, layer: int) -> Tensor:
        weights = self.maps[layer].to(hidden)
        return torch.tanh(hidden @ weights[:, :-1].T + weights[:, -1])

    def _checked(self, features: Tensor) -> Tensor:
        if features.ndim != 2 or features.shape[1] != self.in_features:
            raise ValueError(f"msda was built for (N, {self.in_features}) and got {tuple(features.shape)}")
        return features


def _read(data: Dataset, splits: Sequence[str] | None, model: Any) -> Tensor:
    """The features (N, D) of some splits."""
    chosen = list(splits) if splits else [split for split in data if split.rpartition("/")[2] == "train"]
    if not chosen:
        raise DataError(f"no split is called train: name those to fit msda on; the dataset has {', '.join(data)}")
    for split in chosen:
        if "features" not in data[split][0]:
            raise DataError(f'msda reads "features"; the samples of "{split}" have {", ".join(data[split][0])}')
    return torch.cat([batch["features"] for split in chosen for batch in split_batches(data, split, model)])
