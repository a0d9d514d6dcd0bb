"""Exponential moving averages of the networks that an objective trains inside a pipeline."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["Averages"]


class Averages(nn.Module):
    """Moving averages of several networks, held in the state of whoever holds this.

    Args:
        networks: name -> network.
        decay: share of the average that stays at each update.
    """

    def __init__(self, networks: Mapping[str, nn.Module], decay: float):
        super().__init__()
        self.averages = nn.ModuleDict(
            {name: AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay)) for name, net in networks.items()}
        )
        self.averages.requires_grad_(False)

    def update(self, networks: Mapping[str, nn.Module]) -> None:
        """Draw the averages towards the networks; the first call copies them."""
        for name, average in self.averages.items():
            average.update_parameters(networks[name])  # type: ignore[operator]

    def networks(self) -> dict[str, nn.Module]:
        """Copies of the networks that have the averaged weights."""
        return {name: copy.deepcopy(average.module).requires_grad_(True) for name, average in self.averages.items()}  # type: ignore[operator, union-attr]
