"""What one forward and one backward pass tell of any number of layers: contributions, laid out in space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

from graftwork.errors import InterfaceError
from graftwork_grad_cam.capture import find_module
from graftwork_grad_cam.evidence import IMAGE, Layers, Observation, Surroundings, full_precision, layer_names, observe_prepared, prepared
from graftwork_grad_cam.targets import Target
from graftwork_normgrad.phases import Contributions, Term
from graftwork_normgrad.windows import Window

__all__ = ["Observed", "chosen_layers", "observe_layers"]

Observed: TypeAlias = Observation[Contributions]
"""What a pass told: of each layer, what its positions contribute."""


def chosen_layers(model: nn.Module, batch: Mapping[str, Any], target: Target, layer: Layers) -> list[str]:
    """Names of the layers that are asked for, "auto" replaced by the one that is found, the input called `IMAGE`.

    Raises:
        InterfaceError: if there is no such layer.
    """
    asked = list(layer) if isinstance(layer, Sequence) and not isinstance(layer, str) else [layer]
    names: list[str] = []
    for each in asked:
        if isinstance(each, str) and each in ("", IMAGE):
            names.append(IMAGE)
        else:
            (known,) = layer_names(model, batch, target, each)
            names.append(find_module(model, known)[0])
    if not names:
        raise ValueError('no layer is given: name one, or "auto"')
    return names


def observe_layers(
    model: nn.Module,
    batch: Tensor | Mapping[str, Any],
    target: Any = "predicted",
    layer: Layers = "auto",
    *,
    own_convolution: bool = False,
    surroundings: Surroundings | None = None,
) -> Observed:
    """Run a model forward, and backward from a target to layers; the model is left as it was.

    In-place operations behind a layer do not touch what is recorded, and no module's `inplace` is changed for that.

    Args:
        model: any torch module that takes images.
        batch: images (B, C, H, W), or a batch with the keys that the model and the target read.
        target: as `as_target` takes it.
        layer: one or several, by name or module; "auto"; "" or "image" for the input.
        own_convolution: the layers are convolutions, whose own input and weights are meant.
        surroundings: of the layers.

    Raises:
        InterfaceError: if there is no such layer, it keeps no positions, is no convolution where one is needed, did not run, ran
            repeatedly where that is refused, or no gradient comes to it.
        DataError: if the batch lacks what is read.
    """
    ready, asked = prepared(model, batch, target)
    names = chosen_layers(model, ready, asked, layer)
    convolutions = {name: _convolution(model, name) for name in names} if own_convolution else {}
    modules = [name for name in names if name != IMAGE]
    with _inputs(convolutions) as entering:
        seen = observe_prepared(model, ready, asked, modules, surroundings, with_image=IMAGE in names)
    found: dict[str, Contributions] = {}
    for name in names:
        lefts = [full_precision(entering[name][each.run]) if name in entering else each.activations for each in seen.layers[name]]
        terms = [Term(left, each.gradients) for left, each in zip(lefts, seen.layers[name], strict=True)]
        shape = (Window.of(convolutions[name]), convolutions[name].groups) if name in convolutions else (None, 1)
        if surroundings is not None and surroundings.repeats == "each" and len(terms) > 1:
            found.update({f"{name}[{run}]": Contributions([term], *shape) for run, term in enumerate(terms)})
        else:
            found[name] = Contributions(terms, *shape)
    return Observation(found, seen.scores, seen.output, seen.batch, seen.target, seen.size)


def _convolution(model: nn.Module, name: str) -> nn.Conv2d:
    module = find_module(model, name)[1] if name != IMAGE else model
    if not isinstance(module, nn.Conv2d):
        what = "the input" if name == IMAGE else f'layer "{name}" is a {type(module).__name__}, and'
        raise InterfaceError(f"without a virtual identity the layer must be a Conv2d; {what} has no convolution's weights")
    return module


@contextmanager
def _inputs(convolutions: Mapping[str, nn.Conv2d]) -> Iterator[dict[str, list[Tensor]]]:
    """What comes into each convolution, for each of its runs."""
    entering: dict[str, list[Tensor]] = {name: [] for name in convolutions}

    def keeper(name: str) -> Any:
        # a copy, as what comes into a convolution may be written over behind it
        return lambda module, arguments: entering[name].append(arguments[0].detach().clone())

    handles = [module.register_forward_pre_hook(keeper(name)) for name, module in convolutions.items()]
    try:
        yield entering
    finally:
        for handle in handles:
            handle.remove()
