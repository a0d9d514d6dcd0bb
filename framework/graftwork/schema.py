"""JSON schema of a pipeline over what is installed: editors complete and check YAML with it."""

from __future__ import annotations

from typing import Any

from graftwork import config
from graftwork.component import KINDS
from graftwork.errors import PluginError
from graftwork.registry import Registered, Registry
from graftwork.spec import PipelineSpec

__all__ = ["pipeline_schema"]


def pipeline_schema(registry: Registry) -> dict[str, Any]:
    """The schema of a pipeline document.

    Args:
        registry: whose components are allowed. One that cannot be loaded is allowed with any parameters.
    """
    schema = PipelineSpec.model_json_schema()
    definitions = schema["$defs"]
    for kind in KINDS:
        definitions[kind] = _kind(kind, [one for one in registry if one.kind == kind], definitions)
    definitions["artifact"] = {"anyOf": [_only("from"), _only("load")]}
    stage = definitions["StageSpec"]["properties"]
    for part in ("dataset", "model", "objective"):
        stage[part] = {"description": stage[part]["description"], "$ref": f"#/$defs/{part}"}
    evaluator = {"$ref": "#/$defs/evaluator"}
    stage["evaluate"] = {"anyOf": [evaluator, {"type": "array", "items": evaluator}]}
    definitions["SampleSpec"]["properties"]["guidance"] = {"$ref": "#/$defs/guidance"}
    definitions["Validation"]["properties"]["evaluate"] = evaluator
    schema = _with_references(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "graftwork pipeline"}


def _with_references(value: Any) -> Any:
    """Each {"x-reference": kind} as a reference to that kind's definition."""
    if isinstance(value, list):
        return [_with_references(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("x-reference")
    kept = {key: _with_references(item) for key, item in value.items() if key != "x-reference"}
    return {**kept, "$ref": f"#/$defs/{kind}"} if isinstance(kind, str) else kept


def _kind(kind: str, components: list[Registered], definitions: dict[str, Any]) -> dict[str, Any]:
    """What may stand where a component of this kind is asked for: a name, `use` with parameters, or `from`."""
    options: list[dict[str, Any]] = [{"type": "string", "enum": [one.name for one in components]}] if components else []
    options += [_use(one, definitions) for one in components]
    if kind in ("dataset", "model"):
        options.append(_only("from"))
    return {"anyOf": options} if options else {"not": {}}


def _only(key: str) -> dict[str, Any]:
    """A mapping of one key to a string."""
    return {"type": "object", "required": [key], "properties": {key: {"type": "string"}}, "additionalProperties": False}


def _use(one: Registered, definitions: dict[str, Any]) -> dict[str, Any]:
    use = {"const": one.name, "description": one.component.summary}
    try:
        schema = config.json_schema(one.load())
    except PluginError:
        return {"type": "object", "required": ["use"], "properties": {"use": use}}
    definitions.update(schema.pop("$defs", {}))
    properties = {"use": use, **schema.get("properties", {})}
    if one.kind == "evaluator":
        properties["as"] = {"type": "string", "description": "label of its metrics"}
    return {**schema, "title": one.name, "properties": properties, "required": ["use", *schema.get("required", [])]}
