"""The schema at /openapi.json: what FastAPI derives, with our errors in place of its own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
PROSE = {"application/json": {"schema": {"type": "object"}}}
OTHER_CONTENT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**PROSE, "text/event-stream": {"schema": {"type": "string"}}},
    "/v1/audio/transcriptions": {
        **PROSE,
        "text/plain": {"schema": {"type": "string"}},
        "text/vtt": {"schema": {"type": "string"}},
    },
    "/metrics": {"text/plain": {"schema": {"type": "string"}}},
}
OTHER_CONTENT["/v1/audio/translations"] = OTHER_CONTENT["/v1/audio/transcriptions"]


def schema_of(app: FastAPI) -> dict[str, Any]:
    """OpenAPI document of the app."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = schema.setdefault("components", {})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = ERROR
    refusal = {
        "description": "What is wrong, and what to do about it",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            operation["responses"]["200"]["content"] = OTHER_CONTENT.get(path, PROSE)
            operation["responses"] |= {"4XX": refusal, "5XX": refusal}
            if path.startswith("/v1/") or path == "/metrics":
                operation["security"] = [{"key": []}, {}]
    return schema
