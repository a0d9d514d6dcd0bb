"""A component's parameters are its signature: signature -> pydantic model -> validation and JSON schema."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from graftwork.errors import ConfigError, GraftworkError, nearest

__all__ = [
    "REFERENCE_KEYS",
    "Invalid",
    "Parameter",
    "build",
    "json_schema",
    "parameters",
    "problems_of",
    "reference_kind",
    "shown",
    "validate",
]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a component.

    Args:
        name: as YAML writes it.
        annotation: its type, with pydantic metadata.
        required: whether it has no default.
        default: its default, where it has one.
        description: one line, from its `Field` or from the docstring.
        reference: the kind of component or "artifact" that it refers to, or None for a plain value.
        interface: the class or Protocol that a reference must offer.
        split: whether it names a split of the stage's dataset.
    """

    name: str
    annotation: Any
    required: bool
    default: Any
    description: str
    reference: str | None
    interface: type | None
    split: bool


@dataclass(frozen=True)
class Invalid:
    """One thing that is wrong with a set of parameters: where, and what."""

    path: tuple[str | int, ...]
    message: str


def parameters(target: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters of a class or factory, in order.

    Raises:
        ConfigError: if its annotations cannot be evaluated.
    """
    return dict(_parameters(target))


@functools.cache
def _parameters(target: Callable[..., Any]) -> tuple[tuple[str, Parameter], ...]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:
        raise ConfigError(f"the annotations of {_name(target)} cannot be evaluated: {error}") from error
    described = _described(target)
    found = []
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = hints.get(parameter.name, Any)
        leaf = _reference_leaf(annotation)
        found.append(
            Parameter(
                name=parameter.name,
                annotation=annotation,
                required=parameter.default is parameter.empty,
                default=None if parameter.default is parameter.empty else parameter.default,
                description=_field_description(annotation) or described.get(parameter.name, ""),
                reference=reference_kind(leaf) if leaf else None,
                interface=leaf,
                split=_is_split(annotation),
            )
        )
    return tuple((parameter.name, parameter) for parameter in found)


def reference_kind(annotation: Any) -> str | None:
    """The kind of component that a parameter of this type refers to, or None when it is a plain value."""
    if not isinstance(annotation, type):
        return None
    from torch.nn import Module

    from graftwork.artifact import Artifact
    from graftwork.kinds.dataset import Dataset, Samples
    from graftwork.kinds.evaluator import Evaluator
    from graftwork.kinds.guidance import Guidance
    from graftwork.kinds.objective import Objective

    for base, kind in (
        (Dataset, "dataset"),
        (Objective, "objective"),
        (Guidance, "guidance"),
        (Evaluator, "evaluator"),
        (Artifact, "artifact"),
    ):
        if issubclass(annotation, base):
            return kind
    is_interface = getattr(annotation, "_is_protocol", False) and annotation.__module__ != "typing" and annotation is not Samples
    return "model" if is_interface or issubclass(annotation, Module) else None


def validate(target: Callable[..., Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Invalid]]:
    """Check parameters against a signature.

    Args:
        target: class or factory.
        given: parameter -> value. A reference is a name, a mapping with `use` or `from`, or a built object.

    Returns:
        The values, converted to their types; and everything that is wrong with them.
    """
    model = _model(target)
    try:
        checked = model.model_validate(dict(given))
    except pydantic.ValidationError as error:
        return {}, problems_of(error, list(parameters(target)), "parameter")
    values = {name: getattr(checked, f"p_{name}") for name in parameters(target) if name in given}
    return {**values, **(checked.model_extra or {})}, []


def problems_of(error: pydantic.ValidationError, known: list[str], noun: str) -> list[Invalid]:
    """pydantic's errors in our words: what was expected, what was found.

    Args:
        error: what pydantic raised.
        known: the names that exist at the top level, for hints.
        noun: what a name is called: "parameter" or "key".
    """
    found: dict[tuple[str | int, ...], list[str]] = {}
    for item in error.errors():
        named = item["type"] in ("extra_forbidden", "missing")  # whose last part is a name, whatever it looks like
        around = item["loc"][:-1] if named else item["loc"]
        path = tuple(part for part in around if not (isinstance(part, str) and re.search(r"[\[\]()]", part)))  # pydantic's own words
        path += item["loc"][-1:] if named else ()
        if item["type"] == "extra_forbidden":
            hint = nearest(str(path[-1]), known) if len(path) == 1 else ""
            options = f"; it takes {', '.join(known) or 'none'}" if len(path) == 1 else ""
            message = f'unknown {noun} "{path[-1]}"{hint}{options}'
        elif item["type"] == "missing":
            message = f'{noun} "{path[-1]}" is required'
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
        else:
            message = f"{item['msg'][0].lower()}{item['msg'][1:]}; found {shown(item['input'])}"
        found.setdefault(path, []).append(message)
    return [Invalid(path, "; or ".join(dict.fromkeys(messages))) for path, messages in found.items()]


def build(target: Callable[..., Any], values: Mapping[str, Any], label: str) -> Any:
    """Call a component's class or factory.

    Raises:
        ConfigError: if it refuses its parameters, or fails with them in any other way: whatever a person can write in a file is theirs
            to mend, and the cause is kept for whoever has to mend the component. Other GraftworkErrors pass.
    """
    try:
        return target(**values)
    except GraftworkError:
        raise
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise ConfigError(f"{label} cannot be built: {error}") from error
    except Exception as error:
        said = " ".join(str(error).split())
        if isinstance(error, MemoryError) or "can't allocate memory" in said or "Storage size calculation overflowed" in said:
            raise ConfigError(f"{label} cannot be built: it takes more memory than there is; a size or a count is too large") from error
        raise ConfigError(f"{label} cannot be built: {type(error).__name__}{f': {said}' if said else ''}") from error


def json_schema(target: Callable[..., Any]) -> dict[str, Any]:
    """JSON schema of a component's parameters; one that refers to a component reads {"x-reference": kind}."""
    return _model(target).model_json_schema(by_alias=True, schema_generator=_Schema)


class _Schema(GenerateJsonSchema):
    """JSON schema in which a type that JSON cannot hold (a callable, a dtype) allows anything."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


@functools.cache
def _model(target: Callable[..., Any]) -> type[BaseModel]:
    takes_more = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    fields: dict[str, Any] = {}
    for name, parameter in parameters(target).items():
        default = ... if parameter.required else parameter.default
        annotation = _with_references(parameter.annotation)
        fields[f"p_{name}"] = (annotation, Field(default, alias=name, description=parameter.description or None))
    settings = ConfigDict(arbitrary_types_allowed=True, extra="allow" if takes_more else "forbid", title=_name(target))
    return pydantic.create_model(_name(target), __config__=settings, **fields)


REFERENCE_KEYS = frozenset({"use", "from", "load"})
"""One of them is in every mapping that refers to something: a component, an earlier stage's output, an artifact's folder."""


def _is_reference(value: Any) -> Any:
    unmarked = isinstance(value, dict) and not REFERENCE_KEYS & set(value)
    if unmarked or value is None or isinstance(value, (bool, int, float, bytes, list, tuple)):
        raise ValueError(f"a reference is a name, or a mapping with `use` or `from` (`load` for an artifact); found {shown(value)}")
    return value


REFERENCE = Annotated[Any, AfterValidator(_is_reference)]


def _with_references(annotation: Any) -> Any:
    """The annotation with every component type in it replaced by what a reference to one looks like."""
    kind = reference_kind(annotation)
    if kind:
        return Annotated[REFERENCE, WithJsonSchema({"x-reference": kind})]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[(_with_references(arguments[0]), *arguments[1:])]
    if origin in (Union, types.UnionType):
        return Union[tuple(_with_references(argument) for argument in arguments)]  # noqa: UP007
    if origin is not None and arguments and _reference_leaf(annotation):
        return origin[tuple(_with_references(argument) for argument in arguments)]
    return annotation


def _reference_leaf(annotation: Any) -> type | None:
    """The component type inside an annotation: in `list[Backbone] | None`, Backbone."""
    if reference_kind(annotation):
        return annotation  # type: ignore[no-any-return]
    arguments = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return next((leaf for argument in arguments if (leaf := _reference_leaf(argument))), None)


def _is_split(annotation: Any) -> bool:
    from graftwork.kinds.dataset import SplitName

    if isinstance(annotation, SplitName):
        return True
    return any(_is_split(argument) for argument in get_args(annotation))


def _field_description(annotation: Any) -> str:
    for extra in getattr(annotation, "__metadata__", ()):
        if getattr(extra, "description", None):
            return str(extra.description)
    return ""


def _described(target: Callable[..., Any]) -> dict[str, str]:
    """Parameter -> description, from the `Args:` block of a Google-style docstring."""
    documents = [inspect.getdoc(target) or ""]
    if inspect.isclass(target):
        documents.append(inspect.getdoc(target.__init__) or "")
    found: dict[str, str] = {}
    for document in documents:
        block = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", document, re.MULTILINE)
        for match in re.finditer(r"^(\w+)(?: \([^)]*\))?:\s*((?:.|\n(?!\w))*)", textwrap.dedent(block[1]) if block else "", re.MULTILINE):
            found.setdefault(match[1], " ".join(match[2].split()))
    return found


def _name(target: Callable[..., Any]) -> str:
    return getattr(target, "__name__", type(target).__name__)


def shown(value: Any) -> str:
    """A value as Python writes it, cut off where it is long, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
