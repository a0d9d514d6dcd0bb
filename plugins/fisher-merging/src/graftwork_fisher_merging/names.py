"""Which parameters of several models are merged: the shared body, without each model's own head."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from graftwork import DataError, GraftworkError, InterfaceError
from graftwork.interfaces import CausalLM

__all__ = ["CAUSAL", "Choice", "Unmatched", "check_count", "chosen", "head_names", "is_causal_lm", "matching_names", "mergeable_names"]

Choice: TypeAlias = str | Callable[[str], bool] | None
"""Names: those in which a regular expression is found, those for which a function is true, or all."""

Unmatched: TypeAlias = Literal["refuse", "keep"]
"""What becomes of parameters that some model lacks, or has in another shape."""

HEADS = ("head", "heads", "classifier", "fc", "score", "lm_head", "cls_classifier", "distillation_classifier")
"""Names of heads, for models that do not say which theirs is."""

CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How transformers' names of causal language models end."""

ADAPTERS = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)\b")


def chosen(names: Iterable[str], choice: Choice) -> list[str]:
    """The names that a choice takes, in their order.

    Raises:
        ValueError: if the regular expression cannot be read, or nothing is chosen.
    """
    known = list(names)
    if choice is None:
        return known
    if isinstance(choice, str):
        try:
            pattern = re.compile(choice)
        except re.error as error:
            raise ValueError(f"{choice!r} is no regular expression: {error}") from None
        found = [name for name in known if pattern.search(name)]
    else:
        found = [name for name in known if choice(name)]
    if not found:
        raise ValueError(f"{choice!r} matches none of the {len(known)} parameters, such as {', '.join(known[:3])}")
    return found


def head_names(model: nn.Module) -> set[str]:
    """Names of the parameters of a model's head.

    A transformers model, or a wrapper that holds one as `model`, has as its head what lies outside of its `base_model`; a causal
    language model has none, since its output layer is of the shared vocabulary. A model by timm's convention says by
    `get_classifier()`; any other by the name of a submodule: head, heads, classifier, fc or score.
    """
    held, prefix = _transformers_model(model)
    if held is not None:
        if is_causal_lm(model) or held.base_model is held:
            return set()
        body = {id(one) for one in held.base_model.parameters()}
        return {f"{prefix}{name}" for name, one in held.named_parameters() if id(one) not in body}
    get_classifier = getattr(model, "get_classifier", None)
    classifiers = get_classifier() if callable(get_classifier) else [getattr(model, name, None) for name in HEADS]
    heads = [one for one in (classifiers if isinstance(classifiers, (list, tuple)) else [classifiers]) if isinstance(one, nn.Module)]
    held_by_heads = {id(one) for head in heads for one in head.parameters()}
    elsewhere = {id(one) for module in model.children() if module not in heads for one in module.parameters()}
    return {name for name, one in model.named_parameters() if id(one) in held_by_heads - elsewhere}


def is_causal_lm(model: nn.Module) -> bool:
    """Whether a model gives the logits of next tokens: a causal language model of transformers, or any other with a tokenizer."""
    held, _ = _transformers_model(model)
    return type(held).__name__.endswith(CAUSAL) if held is not None else isinstance(model, CausalLM)


def _transformers_model(model: nn.Module) -> tuple[Any, str]:
    """The transformers model that a module is, or holds as `model`, and what stands before its parameters' names; None for others."""
    if hasattr(model, "base_model_prefix"):
        return model, ""
    return (model.model, "model.") if hasattr(getattr(model, "model", None), "base_model_prefix") else (None, "")


def mergeable_names(models: Sequence[nn.Module], mergeable: Choice = None, unmatched: Unmatched = "refuse") -> list[str]:
    """Names of the parameters that are merged, in the target's order; tied parameters count once.

    Args:
        models: the target first.
        mergeable: which parameters; None takes all but those of each model's head.
        unmatched: "refuse" raises where a model lacks such a parameter or has it in another shape; "keep" leaves it the target's.

    Raises:
        DataError: if the models differ, naming the first parameters that do, or nothing is left to merge.
        InterfaceError: if a model holds adapters that are not merged into its weights.
    """
    parameters: list[dict[str, Tensor]] = [dict(model.named_parameters()) for model in models]
    heads = set[str]() if mergeable is not None else set[str]().union(*(head_names(model) for model in models))
    return matching_names(parameters, mergeable, heads, unmatched)


def matching_names(models: Sequence[Mapping[str, Any]], mergeable: Choice, heads: set[str], unmatched: Unmatched) -> list[str]:
    """As `mergeable_names`, for mappings from name to anything with a shape.

    Args:
        models: the target first.
        mergeable: which; None takes all but `heads`.
        heads: left out where `mergeable` is None.
        unmatched: as for `mergeable_names`.
    """
    everything = list(dict.fromkeys(name for model in models for name in model))
    if adapters := [name for name in everything if ADAPTERS.search(name)]:
        raise InterfaceError(
            f"{adapters[0]} is an adapter's: the product of averaged factors is not the average of the products; merge adapters into "
            "the weights first (peft: model.merge_and_unload())"
        )
    wanted = chosen(everything, mergeable) if mergeable is not None else [name for name in everything if name not in heads]
    whole = [name for name in wanted if all(name in model and model[name].shape == models[0][name].shape for model in models)]
    if unmatched == "refuse" and len(whole) < len(wanted):
        complete = set(whole)
        raise DataError(_difference(models, [name for name in wanted if name not in complete]))
    if not whole:
        what = f"without {len(heads)} of heads" if mergeable is None else f"{len(wanted)} chosen by `mergeable`"
        raise DataError(f"nothing is left to merge: of {len(everything)} parameters, {what}, none is in all models with one shape")
    return whole


def _difference(models: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    told = []
    for name in names[:3]:
        shapes = ", ".join(str(tuple(model[name].shape)) if name in model else "none" for model in models)
        told.append(f"{name} ({shapes})")
    return (
        f"the models differ in {len(names)} parameters: {'; '.join(told)}; name what is to be merged with `mergeable`, or let the target "
        'keep them with unmatched: "keep"'
    )


def check_count(what: str, found: Sequence[object] | None, models: int) -> None:
    """Raise GraftworkError unless there is one of `what` for each model."""
    if found is not None and len(found) != models:
        raise GraftworkError(f"there are {models} models but {len(found)} {what}: one each, in the same order, is needed")
