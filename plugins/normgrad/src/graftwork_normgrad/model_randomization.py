"""Sanity check by randomisation: does a saliency change when the network forgets what it learned?

Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, https://arxiv.org/abs/1810.03292; in the form of Rebuffi et al., 2020.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from graftwork.errors import DataError, InterfaceError, nearest
from graftwork.interfaces import device_of
from graftwork.kinds.dataset import Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, split_batches
from graftwork.kinds.objective import INPUTS
from graftwork_grad_cam.figures import Cell, as_picture, overlay, sheet
from graftwork_grad_cam.forward import image_key
from graftwork_grad_cam.saliency import Count, SaliencyMethod
from graftwork_normgrad.labels import short_names
from graftwork_normgrad.normgrad import NormGrad
from graftwork_normgrad.saliency_correlation import chosen_target
from graftwork_normgrad.similarity import finite_summary, map_correlation
from graftwork_normgrad.substitution import substituted

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["ModelRandomization", "randomized_parameters", "randomly_initialised", "weighted_modules"]

Kind = Literal["cascade", "independent"]

STREAM = 0x5EED0000
"""Added to seeds, so that a network which was built under one is not given back the very weights that it started from."""


def weighted_modules(model: nn.Module) -> list[str]:
    """Names of the modules that hold parameters of their own, from the output backwards, by order of definition."""
    return [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))][::-1]


@torch.inference_mode(False)
def randomly_initialised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of a model as it might have been before training.

    Modules start anew by their own `reset_parameters`; parameters of others are drawn from a normal distribution of the same mean and
    deviation. The global random state is as before.

    Args:
        model: left as it was.
        seed: of the draw.
    """
    twin = copy.deepcopy(model)
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(STREAM + seed)
        for module in twin.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point() and parameter.numel() > 1:
                    parameter.copy_(torch.randn_like(parameter) * parameter.std() + parameter.mean())
    return twin


def randomized_parameters(model: nn.Module, twin: nn.Module, module: str, kind: Kind = "cascade") -> dict[str, Tensor]:
    """The twin's parameters, of all modules from the output back to one (cascade), or of that one and what it contains (independent).

    Args:
        model: whose modules are counted.
        twin: of the same architecture.
        module: a name.
        kind: which modules.

    Raises:
        ValueError: if there is no such kind.
        InterfaceError: if the model has no such module with parameters, or the twin differs from it.
    """
    if kind not in ("cascade", "independent"):
        raise ValueError(f'kind is cascade or independent; found "{kind}"')
    own, other = dict(model.named_parameters()), dict(twin.named_parameters())
    if {name: each.shape for name, each in own.items()} != {name: each.shape for name, each in other.items()}:
        raise InterfaceError(f"the twin, a {type(twin).__name__}, has other parameters than the {type(model).__name__}")
    backwards = weighted_modules(model)
    inside = [name for name in backwards if name == module or name.startswith(f"{module}.")]
    if not inside:
        raise InterfaceError(f'no module "{module}" with parameters{nearest(module, backwards)}; there are {", ".join(backwards)}')
    chosen = inside if kind == "independent" else backwards[: max(backwards.index(name) for name in inside) + 1]
    names = {f"{name}.{each}" if name else each for name in chosen for each, _ in model.get_submodule(name).named_parameters(recurse=False)}
    return {name: other[name].detach() for name in own if name in names}


class ModelRandomization(Evaluator):
    """Rank correlation of a saliency's maps before and after the network's weights are randomised, module by module from the output.

    A saliency that explains the network forgets with it: its correlation falls. One that only sees edges stays near 1.

    Args:
        split: where to measure.
        saliency: the maps, by default `normgrad`. Its own target is explained.
        kind: all modules from the output back to one, or that one alone.
        modules: names of the modules to stop at; none takes each that has parameters, from the output backwards.
        twin: a network of the same architecture with other weights; none starts a copy anew.
        seed: of the copy's weights.
        retarget: explain the class that the randomised network predicts, as the authors' code does, in place of the same one throughout.
        limit: the first so many samples only.
        batch_size: samples at a time.
        columns: samples in a row of the figure.
    """

    needs = nn.Module

    def __init__(
        self,
        split: Split = "test",
        saliency: SaliencyMethod | None = None,
        kind: Kind = "cascade",
        modules: list[str] | None = None,
        twin: nn.Module | None = None,
        seed: int = 0,
        retarget: bool = False,
        limit: Count | None = 64,
        batch_size: Count = 32,
        columns: Count = 2,
    ):
        self.saliency: SaliencyMethod = NormGrad() if saliency is None else saliency
        self.split, self.kind, self.modules, self.twin, self.seed = split, kind, modules, twin, seed
        self.retarget, self.limit, self.batch_size, self.columns = retarget, limit, batch_size, columns
        self.keys = (INPUTS, *self.saliency.target.keys)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics randomized-correlation and randomized-correlation-abs at the last module; a table with each module; a curve, pictures.

        Raises:
            DataError: if the split is empty.
            InterfaceError: if there is no such module, or the twin differs.
        """
        twin = randomly_initialised(model, self.seed) if self.twin is None else self.twin.to(device_of(model))
        stops = weighted_modules(model) if self.modules is None else list(self.modules)
        values = {stop: randomized_parameters(model, twin, stop, self.kind) for stop in stops}
        found: dict[str, list[tuple[Tensor, Tensor]]] = {stop: [] for stop in stops}
        shown = sorted({round(index * (len(stops) - 1) / 3) for index in range(4)})
        cells: list[Cell] = []
        for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
            ready, asked = chosen_target(model, batch, self.saliency.target)
            before = self.saliency.explain(model, ready, asked).maps
            after: dict[str, Tensor] = {}
            for index, stop in enumerate(stops):
                with substituted(model, values[stop]):
                    given, wanted = chosen_target(model, batch, "predicted") if self.retarget else (ready, asked)
                    maps = self.saliency.explain(model, given, wanted).maps[:, : before.shape[1]]
                signed, absolute = (map_correlation(before, maps, absolute=each).flatten() for each in (False, True))
                found[stop].append((signed, absolute))
                if index in shown:
                    after[stop] = maps
            images = batch[image_key(model, batch)]
            for index in range(min(len(images), 3 * self.columns - len(cells))):
                panels = [as_picture(images[index]), *(overlay(images[index], each[index, 0]) for each in (before, *after.values()))]
                places = [f"module {stops.index(stop) + 1} of {len(stops)}" for stop in after]
                cells.append(Cell(panels, "", None, ["", "trained", *places]))
        if not cells:
            raise DataError(f'split "{self.split}" is empty')
        return self._report(found, cells)

    def _report(self, found: dict[str, list[tuple[Tensor, Tensor]]], cells: list[Cell]) -> Report:
        rows: list[list[Any]] = []
        for stop, pairs in found.items():
            signed, absolute = (finite_summary(torch.cat(each)) for each in zip(*pairs, strict=True))
            rows.append([stop, *(value if value == value else None for value in (*signed[:2], *absolute[:2])), signed[2]])
        last = rows[-1]
        metrics = {"randomized-correlation": last[1], "randomized-correlation-abs": last[3]}
        columns = ["module", "correlation", "std", "of magnitudes", "std of that", "constant maps"]
        which = "from the output back to it" if self.kind == "cascade" else "it alone"
        table = Table(columns, rows, f"Maps before and after a module is randomised, {which}.")
        figure, _ = sheet(cells, self.columns, "As the network forgets", ("jet", "evidence"))
        figures = {
            "curve": Figure(
                _curve(rows, self.kind), "Rank correlation with the trained network's maps; near 1 it tells nothing of the network."
            ),
            "maps": Figure(figure, f"Images of {self.split}: maps of the trained network; randomised to a module of the table, {which}."),
        }
        return Report({name: value for name, value in metrics.items() if value is not None}, {"modules": table}, figures)


def _curve(rows: Sequence[Sequence[Any]], kind: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    names = short_names([row[0] for row in rows], 26)
    canvas = Canvas(figsize=(max(4.5, 1.5 + 0.35 * len(rows)), 3.0 + 0.06 * max(map(len, names))), layout="constrained")
    axes = canvas.add_subplot(ylabel="rank correlation")
    places = range(len(rows))
    for column, name, colour, line in ((1, "signed", "#2166ac", "-"), (3, "of magnitudes", "#b2182b", ":")):
        means = [float("nan") if row[column] is None else row[column] for row in rows]
        spreads = [0.0 if row[column + 1] is None else row[column + 1] for row in rows]
        axes.plot(places, means, marker="o", markersize=4, color=colour, linestyle=line, label=name)
        low, high = ([mean + side * spread for mean, spread in zip(means, spreads, strict=True)] for side in (-1, 1))
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xticks(places, names, rotation=60, ha="right", fontsize=7.5)
    axes.set_xlabel("randomised back to" if kind == "cascade" else "randomised alone")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return canvas
