"""Cells of the phase-1 x phase-2 grid, some of which are known by name: NormGrad, Grad-CAM, the linear approximation, the gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from graftwork.errors import ConfigError, nearest
from graftwork_normgrad.phases import PHASE1, PHASE2, Contributions, Phase1, Phase2, saliency_of

__all__ = ["CELLS", "GRID", "Cell", "as_cell"]


@dataclass(frozen=True)
class Cell:
    """One way to make a map of a layer's contributions.

    Args:
        phase1: whose weights a position contributes to.
        phase2: how a contribution becomes a number.
        spatial_average: average the gradient over positions first, as Grad-CAM does. That is exact where the gradient does not
            depend on the position, before global average pooling, and nowhere else.
        clamp: negative values become 0.

    Raises:
        ValueError: if there is no such phase.
    """

    phase1: Phase1 = "conv1x1"
    phase2: Phase2 = "norm"
    spatial_average: bool = False
    clamp: bool = False

    def __post_init__(self) -> None:
        for name, found, choices in (("phase1", self.phase1, PHASE1), ("phase2", self.phase2, PHASE2)):
            if found not in choices:
                raise ValueError(f'{name} is one of {", ".join(choices)}; found "{found}"')

    @property
    def label(self) -> str:
        """Its name, or its phases: "normgrad", "conv3x3+max"."""
        named = next((name for name, cell in CELLS.items() if cell == self), None)
        return named or f"{self.phase1}+{self.phase2}"

    def map(self, contributions: Contributions, naive: bool = False) -> Tensor:
        """(B, T, h, w), or (B, T, C', h, w) without aggregation.

        Args:
            contributions: of a layer.
            naive: form them, in place of the closed forms.
        """
        if self.spatial_average:
            contributions = replace(
                contributions, terms=[replace(term, gradients=_averaged(term.gradients)) for term in contributions.terms]
            )
        found = saliency_of(contributions, self.phase1, self.phase2, naive=naive)
        return found.clamp(min=0) if self.clamp else found


def _averaged(gradients: Tensor) -> Tensor:
    return gradients.mean(dim=(-2, -1), keepdim=True).expand_as(gradients)


CELLS: dict[str, Cell] = {
    "normgrad": Cell("conv1x1", "norm"),
    "selective-normgrad": Cell("scaling", "filter-norm"),
    "linear-approximation": Cell("scaling", "sum"),
    "grad-cam": Cell("scaling", "sum", spatial_average=True, clamp=True),
    "gradient": Cell("bias", "abs-max"),
    "gradient-sum": Cell("bias", "sum"),
    "own-convolution": Cell("conv", "norm"),
}
"""Methods that are cells; `own-convolution` is NormGrad without a virtual identity."""

GRID: tuple[tuple[Phase1, ...], tuple[Phase2, ...]] = (
    ("bias", "scaling", "conv1x1", "conv3x3", "conv3x3-depthwise"),
    ("sum", "filter-norm", "norm", "max"),
)
"""Rows and columns of the authors' figure of the grid."""


def as_cell(name: str) -> Cell:
    """A cell by its method's name, or by its phases: "normgrad", "conv3x3+max".

    Raises:
        ConfigError: if there is none.
    """
    if name in CELLS:
        return CELLS[name]
    phase1, plus, phase2 = name.partition("+")
    if not plus:
        raise ConfigError(f'no cell "{name}"{nearest(name, CELLS)}; there are {", ".join(CELLS)}, and phases such as "conv3x3+max"')
    try:
        return Cell(phase1, phase2)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(f'"{name}" is no cell: {error}') from None
