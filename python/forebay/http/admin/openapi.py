"""The OpenAPI document, made of the operations and their types."""

import inspect
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from forebay.http.admin.operation import PREFIX, Operation

_REF = "#/components/schemas/{name}"
_PARAMETERS = {
    "key_id": "A key's id.",
    "account": "An account's id.",
    "upstream": "An upstream's name.",
    "price_id": "A price's id.",
    "event_id": "A log's id, which is its usage event's.",
    "number": "An invoice's number.",
    "month": "A month, YYYY-MM, in the account's time zone.",
    "term": "A term's id.",
    "model": "A model's own name; slashes in it may stand as they are.",
}


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong. param: the field or parameter at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """An error, in OpenAI's shape."""

    error: ErrorDetail


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """An OpenAPI 3.1 document of these operations."""
    operations = tuple(operations)
    types: list[Any] = [Error]
    types += [operation.body for operation in operations if operation.body is not None]
    types += [operation.answer for operation in operations if operation.answer is not None]
    unique = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    by_type = dict(zip(unique, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        item = paths.setdefault(PREFIX + operation.path, {})
        item[operation.method.lower()] = _operation(operation, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Forebay admin API",
            "version": "1",
            "description": "Accounts, API keys, limits, prices, invoices, logs and the audit log."
            " Money is text, in US dollars unless a currency is named; times are Unix seconds, on"
            " invoices RFC 3339. A change holds in every gateway within a second.",
        },
        "security": [{"adminKey": []}],
        "paths": paths,
        "components": {
            "schemas": {name: _clean(schema) for name, schema in components.items()},
            "securitySchemes": {
                "adminKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of the kind admin.",
                }
            },
        },
    }


def _clean(schema: dict[str, Any]) -> dict[str, Any]:
    if "description" in schema:
        return {**schema, "description": inspect.cleandoc(schema["description"])}
    return schema


def _operation(operation: Operation, by_type: dict[Any, Any]) -> dict[str, Any]:
    done: dict[str, Any] = {"description": "Done."}
    if operation.answer is not None:
        done["content"] = _json(by_type[operation.answer])
    described: dict[str, Any] = {
        "operationId": operation_id(operation),
        "summary": operation.summary,
        "responses": {
            str(operation.status): done,
            **{
                status: {"description": told, "content": _json(by_type[Error])}
                for status, told in _errors(operation).items()
            },
        },
    }
    if parameters := [*_path_parameters(operation.path), *_query_parameters(operation.query)]:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {
            "required": not operation.bare,
            "content": _json(by_type[operation.body]),
        }
    return described


def operation_id(operation: Operation) -> str:
    """A name for the operation, of its method and its path."""
    words = re.findall(r"[a-z_]+", operation.path.replace(".json", ""))
    return "_".join([operation.method.lower(), *words])


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _errors(operation: Operation) -> dict[str, str]:
    errors = {"400": "The request is wrong; `param` names the field."}
    errors["401"] = "No key, or none that is good."
    errors["403"] = "The key is no admin key."
    named = (operation.query, operation.body)
    if "{" in operation.path or any(_names_an_account(given) for given in named):
        errors["404"] = "There is nothing of that name."
    if operation.body is not None:
        errors["413"] = "The body is too large."
    errors["503"] = "The database cannot be reached now."
    return errors


def _names_an_account(given: Any) -> bool:
    return "account" in getattr(given, "__struct_fields__", ())


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PARAMETERS[name],
            "schema": {"type": "string"},
        }
        for name in re.findall(r"{(\w+)}", path)
    ]


def _query_parameters(query: type[msgspec.Struct] | None) -> list[dict[str, Any]]:
    if query is None:
        return []
    (_,), components = msgspec.json.schema_components([query], ref_template=_REF)
    schema = components[query.__name__]
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", ()),
            "schema": field,
        }
        for name, field in schema["properties"].items()
    ]
