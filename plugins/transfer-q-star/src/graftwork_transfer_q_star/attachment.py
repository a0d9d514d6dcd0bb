"""A logits processor on a model's `generate`, for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from transformers import LogitsProcessorList

from graftwork import InterfaceError
from graftwork.kinds.evaluator import evaluating
from graftwork_transfer_q_star.models import ends_of_call

__all__ = ["guided_generate"]

GUIDED = "_graftwork_guided"


@contextmanager
def guided_generate(
    model: Any, tokenizer: Any, make: Callable[[Tensor | None, list[int]], Any], others: Sequence[Any] = ()
) -> Iterator[None]:
    """Let every call of a model's `generate` have a logits processor of its own, behind those that the caller gives.

    transformers applies temperature, top-k and top-p after it. At the end the model is as it was.

    Args:
        model: of transformers.
        tokenizer: the model's.
        make: the processor, from the prompts' attention mask (None if none is given) and the tokens that end a text.
        others: modules that are in evaluation mode while `generate` runs, as is the model.

    Raises:
        InterfaceError: if the model is guided already.
    """
    before = vars(model).get("generate")
    if getattr(before, GUIDED, False):
        raise InterfaceError(f"this {type(model).__name__} is guided already, and this guidance does not stack: detach the other first")
    original = model.generate

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        _check(model, kwargs)
        ends = ends_of_call(model, tokenizer, kwargs)
        processors = LogitsProcessorList([*(kwargs.pop("logits_processor", None) or ()), make(kwargs.get("attention_mask"), ends)])
        with ExitStack() as stack:
            for module in (model, *others):
                stack.enter_context(evaluating(module))
            return original(*args, logits_processor=processors, **kwargs)

    setattr(generate, GUIDED, True)
    model.generate = generate
    try:
        yield
    finally:
        if before is None:
            del model.generate
        else:
            model.generate = before


def _check(model: Any, kwargs: dict[str, Any]) -> None:
    """Raise for ways of decoding that a processor of next-token scores does not fit."""
    config = kwargs.get("generation_config") or model.generation_config
    beams = kwargs.get("num_beams", getattr(config, "num_beams", 1)) or 1
    if beams > 1:
        raise ValueError(f"num_beams is 1 under guidance, as a beam would add up the values of all its steps; found {beams}")
    for name in ("assistant_model", "prompt_lookup_num_tokens", "inputs_embeds"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} does not go with guidance, which needs every token of the text when it is chosen")
