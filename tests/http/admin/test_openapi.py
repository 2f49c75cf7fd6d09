"""The OpenAPI document: every route is in it, and it is sound."""

import re
from collections.abc import Iterator
from typing import Any

from forebay.http.admin.table import OPERATIONS
from starlette.applications import Starlette
from starlette.routing import Route

from tests.http.admin.conftest import Admin


def routes(app: Starlette) -> set[tuple[str, str]]:
    """Method and path of all that the application serves below ``/admin``."""
    found = set()
    for route in app.routes:
        if isinstance(route, Route) and route.path.startswith("/admin"):
            path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
            found |= {(method, path) for method in route.methods or () if method != "HEAD"}
    return found


def references(node: Any) -> Iterator[str]:
    """Every ``$ref`` below a node."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


async def test_every_route_is_in_it(admin: Admin) -> None:
    document = await admin.get("/openapi.json")
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    assert described == routes(admin.app)
    assert len(described) == len(OPERATIONS) >= 20


async def test_it_is_sound(admin: Admin) -> None:
    document = await admin.get("/openapi.json")
    assert document["openapi"] == "3.1.0"
    assert {"title", "version"} <= set(document["info"])
    schemas = document["components"]["schemas"]
    for reference in references(document):
        prefix, _, name = reference.rpartition("/")
        assert prefix == "#/components/schemas"
        assert name in schemas
    assert {r.rpartition("/")[2] for r in references(document)} == set(schemas)
    (scheme,) = document["security"][0]
    assert scheme in document["components"]["securitySchemes"]
    ids = []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            ids.append(operation["operationId"])
            parameters = operation.get("parameters", [])
            in_path = {p["name"] for p in parameters if p["in"] == "path"}
            assert in_path == set(re.findall(r"{(\w+)}", path))
            assert all(p["required"] for p in parameters if p["in"] == "path")
            assert len({(p["in"], p["name"]) for p in parameters}) == len(parameters)
            assert ("requestBody" in operation) <= (method in ("post", "put", "patch"))
            good = [status for status in operation["responses"] if status.startswith("2")]
            assert len(good) == 1
            for response in operation["responses"].values():
                assert response["description"]
    assert len(set(ids)) == len(ids)


async def test_money_is_text_and_unknown_fields_are_refused(admin: Admin) -> None:
    schemas = (await admin.get("/openapi.json"))["components"]["schemas"]
    for name in ("KeyCreation", "KeyChanges", "Limits", "AccountCreation", "AccountChanges"):
        assert schemas[name]["additionalProperties"] is False
    variants = schemas["KeyCreation"]["properties"]["budget"]["anyOf"]
    assert {variant["type"] for variant in variants} == {"string", "null"}
    assert not [
        name for schema in schemas.values() for name in schema["properties"] if "digest" in name
    ]
