"""What a model's predictions are compared with: its own under noise at the input, and those of its earlier weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from graftwork import InterfaceError
from graftwork.errors import nearest
from graftwork.kinds.evaluator import evaluating
from graftwork_tram.two_pass import swapped_tensors

__all__ = [
    "EMBEDDINGS",
    "INPUT",
    "InputNoise",
    "NoiseType",
    "ParameterHistory",
    "Region",
    "ShadowDtype",
    "embedding_module",
    "natural_place",
]

NoiseType: TypeAlias = Literal["normal", "uniform"]
ShadowDtype: TypeAlias = Literal["float32", "bfloat16", "float16"]

EMBEDDINGS, INPUT = "embeddings", "input"
"""Where noise goes: on what the model's token embedding gives, or on the input itself."""


class Region(nn.Module):
    """Where targets come from. Subclasses give `forward(model, *args, **kwargs)`: what `model(*args, **kwargs)` is compared with."""

    def begin(self, model: nn.Module) -> None:
        """Once, before the first step. Default: nothing."""

    def follow(self, model: nn.Module) -> None:
        """In each optimiser step, when its target has been used and before the weights move. Default: nothing."""


class InputNoise(Region):
    """f(x + z): a model's predictions with noise at its input (TRAM-x; R3F, https://arxiv.org/abs/2008.03156).

    `InputNoise(0.1)(model, *inputs)` runs the model, in the mode that it is in. Token ids are noised where they become vectors, pixels
    and other numbers as they come in. The noise has a generator of its own, whose state is in the `state_dict`: torch's global one is
    left alone.

    Args:
        eps: standard deviation of normal noise, or half the width of uniform noise; 0 is none.
        type: "normal", N(0, eps^2), or "uniform", U(-eps, eps).
        at: "input", "embeddings", or the name of a module whose output is noised; None: the embeddings if the first tensor among
            the inputs holds integers, else the input.
        seed: of the noise.

    Raises:
        ValueError: if eps is negative or the type unknown.
    """

    def __init__(self, eps: float = 0.1, type: NoiseType = "normal", at: str | None = None, seed: int = 0):
        super().__init__()
        if not eps >= 0:
            raise ValueError(f"eps is at least 0; found {eps}")
        if type not in ("normal", "uniform"):
            raise ValueError(f'type is "normal" or "uniform"; found "{type}"')
        self.eps, self.distribution, self.at, self.seed = eps, type, at, seed
        self._generator: torch.Generator | None = None
        self._pending: Tensor | None = None

    def forward(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What `model(*args, **kwargs)` gives with noise at its input."""
        with self.applied(model, *args, **kwargs):
            return model(*args, **kwargs)

    @contextmanager
    def applied(self, model: nn.Module, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Noise at the input of every call of `model` inside.

        Args:
            model: what will be called.
            args: inputs of such a call, by which `at=None` decides.
            kwargs: the same by name.

        Raises:
            InterfaceError: if the model has no token embedding, or no module of the name `at`.
        """
        if (self.at or natural_place(args, kwargs)) == INPUT:
            handle = model.register_forward_pre_hook(self._noise_inputs, with_kwargs=True)
        else:
            handle = self._module(model).register_forward_hook(lambda module, inputs, output: self._noise_output(output))
        try:
            yield
        finally:
            handle.remove()

    def noise_like(self, tensor: Tensor) -> Tensor:
        """Noise of a tensor's shape, dtype and device, drawn in float32."""
        drawn = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
        generator = self._generator_on(tensor.device)
        if self.distribution == "normal":
            drawn.normal_(0.0, 1.0, generator=generator)
        else:
            drawn.uniform_(-1.0, 1.0, generator=generator)
        return drawn.mul_(self.eps).to(tensor.dtype)

    def get_extra_state(self) -> Tensor:
        """State of the generator; empty before the first draw."""
        if self._generator is None:
            return torch.empty(0, dtype=torch.uint8) if self._pending is None else self._pending
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on drawing where the saved state was."""
        self._generator, self._pending = None, state.cpu() if len(state) else None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which a generator refuses: its state stands for it."""
        return {**self.__dict__, "_generator": None, "_pending": state if len(state := self.get_extra_state()) else None}

    def _generator_on(self, device: torch.device) -> torch.Generator:
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
            if self._pending is not None:
                self._generator.set_state(self._pending)
                self._pending = None
        return self._generator

    def _module(self, model: nn.Module) -> nn.Module:
        if self.at in (None, EMBEDDINGS):
            return embedding_module(model)
        names = dict(model.named_modules())
        if self.at not in names:
            known = [INPUT, EMBEDDINGS, *(name for name in names if name)]
            raise InterfaceError(f'{type(model).__name__} has no module "{self.at}"{nearest(str(self.at), known)} to noise')
        module: nn.Module = names[self.at]
        return module

    def _noise_output(self, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output + self.noise_like(output)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (output[0] + self.noise_like(output[0]), *output[1:])
        raise InterfaceError(f'module "{self.at}" gives {type(output).__name__}: noise is added to a tensor')

    def _noise_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for place, value in enumerate(args):
            if _is_real(value):
                return (*args[:place], value + self.noise_like(value), *args[place + 1 :]), kwargs
        for name, value in kwargs.items():
            if _is_real(value) and not name.endswith("mask"):
                return args, {**kwargs, name: value + self.noise_like(value)}
        raise InterfaceError(f"{type(module).__name__} got no input of real numbers to noise: set at to embeddings, or to a module's name")


class ParameterHistory(Region):
    """A model's own earlier weights, and what it predicts with them: shadow = decay shadow + (1 - decay) w, once a step.

    Decay 0 holds the previous step's weights, 1 those at the start, between them a moving average. `follow` is called before the weights
    move, so that the present ones are not among those that they are compared with. Only what trains is kept, and the buffers; frozen
    weights are the model's. The shadow is no parameter and no buffer: nothing trains, moves or broadcasts it, yet it is in the
    `state_dict`. It predicts in eval mode and without gradients.

    Args:
        decay: in [0, 1].
        device: where the shadow lies between steps; None is where the weights are.
        dtype: of the shadow; None is that of the weights.

    Raises:
        ValueError: if decay is not in [0, 1], or a moving average is to be kept in half precision, which would round its steps away.
    """

    def __init__(self, decay: float, device: str | torch.device | None = None, dtype: ShadowDtype | None = None):
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is in [0, 1]; found {decay}")
        if 0 < decay < 1 and dtype in ("bfloat16", "float16"):
            raise ValueError(f"a moving average in {dtype} rounds its steps away: decay {decay} needs float32")
        self.decay = decay
        self.storage = None if device is None else torch.device(device)
        self.dtype: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
        self.shadow: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(self, model: nn.Module) -> None:
        """Take the weights as they are now, in storage of their own."""
        self.shadow = {name: self._stored(tensor) for name, tensor in _kept(model).items()}

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Take the present weights in, once in each optimiser step and before they move."""
        if self.decay == 1:
            return
        means: list[tuple[Tensor, Tensor]] = []
        for name, tensor in self._current(model).items():
            shadow = self.shadow[name]
            if self.decay == 0 or not tensor.is_floating_point():
                shadow.copy_(tensor)
            else:
                means.append((shadow, tensor.detach().to(shadow)))
        if means:
            torch._foreach_lerp_([shadow for shadow, _ in means], [tensor for _, tensor in means], 1 - self.decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the shadow's weights and buffers, is in eval mode, and records no gradients.

        Raises:
            InterfaceError: if a weight has another shape than the shadow's.
        """
        current = self._current(model)
        values = [self.shadow[name].to(tensor) for name, tensor in current.items()]
        for (name, tensor), value in zip(current.items(), values, strict=True):
            if tensor.shape != value.shape:
                raise InterfaceError(f"{name} is {tuple(tensor.shape)}, in the history {tuple(value.shape)}: it is another model's")
        with evaluating(model), swapped_tensors(list(current.values()), values):
            yield

    def forward(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What `model(*args, **kwargs)` gives with the earlier weights."""
        with self.applied(model):
            return model(*args, **kwargs)

    def _current(self, model: nn.Module) -> dict[str, Tensor]:
        """What is followed; a weight that began to train since then is taken in, and each shadow lies where it belongs."""
        found = _kept(model)
        for name, tensor in found.items():
            held = self.shadow.get(name)
            place = self.storage or tensor.device
            if held is None:
                self.shadow[name] = self._stored(tensor)
            elif held.device != place:
                self.shadow[name] = held.to(place)
        return found

    def _stored(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(device=self.storage or tensor.device, dtype=dtype, copy=True)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({f"{prefix}{name}": tensor for name, tensor in self.shadow.items()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        missing_keys += [f"{prefix}{name}" for name in self.shadow if name not in given]
        for name, value in given.items():
            held = self.shadow.get(name)
            if held is not None and held.shape != value.shape:
                error_msgs.append(f"{prefix}{name} is {tuple(value.shape)} in the state and {tuple(held.shape)} here")
            else:
                self.shadow[name] = value.detach().to(device=value.device if held is None else held.device, copy=True)


def embedding_module(model: nn.Module) -> nn.Module:
    """The module that turns token ids into vectors: the first `get_input_embeddings()` in the model or its parts.

    Raises:
        InterfaceError: if nothing in the model has one.
    """
    for part in model.modules():
        getter = getattr(part, "get_input_embeddings", None)
        if callable(getter):
            try:
                found = getter()
            except (NotImplementedError, AttributeError):
                continue
            if isinstance(found, nn.Module):
                return found
    raise InterfaceError(
        f"{type(model).__name__} has no get_input_embeddings(), so its token embedding is not known: set at to the name of a module"
    )


def _kept(model: nn.Module) -> dict[str, Tensor]:
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    return {**trained, **dict(model.named_buffers())}


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def natural_place(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Where noise goes by itself: on the input if the first tensor among a call's inputs holds real numbers, else on the embeddings."""
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    return INPUT if first is not None and first.is_floating_point() else EMBEDDINGS
