"""Images encoded once: a data set whose pictures are an autoencoder's latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork import Batch, Dataset, InterfaceError, Samples, fingerprint
from graftwork.interfaces import device_of
from graftwork.kinds.dataset import fetch
from graftwork.kinds.evaluator import evaluating
from graftwork_testbed.cache import cached

__all__ = ["EncodedLatents"]


class _Encoded:
    """Samples whose `image` is left out and whose latents are computed when the first is asked for."""

    def __init__(self, samples: Samples, data: Dataset, autoencoder: Any, batch_size: int, key: dict[str, Any]):
        self.samples, self.data, self.autoencoder, self.batch_size, self.key = samples, data, autoencoder, batch_size, key
        self._columns: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = {key: value for key, value in self.samples[index].items() if key != "image"}
        return {**sample, **{key: column[index] for key, column in self.columns.items()}}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch of the samples at `indices`, collated."""
        batch = {key: value for key, value in fetch(self.samples, indices, self.data.collate).items() if key != "image"}
        chosen = torch.as_tensor(indices)
        return {**batch, **{key: column[chosen] for key, column in self.columns.items()}}

    @property
    def columns(self) -> dict[str, Tensor]:
        """`latents` and `latent_std`, (N, C, h, w) each."""
        if not self._columns:
            self._columns = cached("encoded-latents", self.key, self._encode)
        return self._columns

    def _encode(self) -> dict[str, Tensor]:
        device, found = device_of(self.autoencoder), []
        scale = self.autoencoder.config.scaling_factor
        with evaluating(self.autoencoder):
            for indices in torch.arange(len(self)).split(self.batch_size):
                images = fetch(self.samples, indices.tolist(), self.data.collate)["image"].to(device)
                posterior = self.autoencoder.encode(2 * images - 1).latent_dist
                found.append((scale * posterior.mean.cpu(), scale * posterior.std.cpu()))
        mean, std = (torch.cat(parts) for parts in zip(*found, strict=True))
        return {"latents": mean, "latent_std": std}


class EncodedLatents(Dataset):
    """A data set whose images are encoded once by an autoencoder, and kept in the cache.

    Samples hold, in place of `image`: `latents` (C, h, w), the posterior's mean, and `latent_std` (C, h, w), both times the
    autoencoder's `scaling_factor`; a split is encoded when its first sample is asked for.

    Args:
        data: the dataset; images in [0, 1].
        autoencoder: as diffusers has it: `encode(images in [-1, 1]).latent_dist`, and `config.scaling_factor`.
        batch_size: images that are encoded at once.

    Raises:
        InterfaceError: if the autoencoder has no `encode` or no scaling factor.
    """

    def __init__(self, data: Dataset, autoencoder: nn.Module, batch_size: Annotated[int, Field(ge=1)] = 64):
        scale = getattr(getattr(autoencoder, "config", None), "scaling_factor", None)
        if scale is None or not hasattr(autoencoder, "encode"):
            raise InterfaceError(
                f"encoded-latents needs an autoencoder with `encode` and `config.scaling_factor`, as diffusers' have; "
                f"{type(autoencoder).__name__} lacks one"
            )
        made = {"data": data.fingerprint(), "autoencoder": fingerprint(autoencoder), "scale": scale}
        splits: dict[str, Samples] = {
            name: _Encoded(samples, data, autoencoder, batch_size, {**made, "split": name}) for name, samples in data.items()
        }
        super().__init__(splits, data.info, data.collate)
        self.data = data
