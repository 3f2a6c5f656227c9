"""The description of the API, with the bodies that FastAPI does not parse itself."""

from collections.abc import Callable
from typing import Any


def body_schema(adapter: Any, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a body in an endpoint's description.

    Args:
        adapter: pydantic's `TypeAdapter` of the body.
        definitions: receives the schemas of the body's parts.
    """
    schema = adapter.json_schema(ref_template=f"#/components/schemas/{name}.{{model}}")
    definitions.update({f"{name}.{key}": part for key, part in schema.pop("$defs", {}).items()})
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def described(describe: Callable[[], dict[str, Any]], definitions: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's description of the application, with the definitions of `body_schema`."""
    description = describe()
    description.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
    return description
