"""What the OpenAPI documents say is so: schemathesis, with few examples and always the same."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import schemathesis
from forebay._core import WAYS
from forebay.http.core_only import CORE_ONLY, PASSED
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.doors.conftest import Stage
from tests.support.doors.engine import good
from tests.support.processes import Key

CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
BOUNDED = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def inference_key(stage: Stage) -> Key:
    stage.engine.script = good
    return stage.admin.make()


def _problems(schema: Any, secret: str) -> dict[str, str]:
    """What is not as the document says, by operation."""
    found = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        @BOUNDED
        @given(case=operation.as_strategy())
        def attempt(case: Any) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                response = case.call(headers={"authorization": f"Bearer {secret}"}, timeout=10)
                case.validate_response(response, checks=CHECKS)

        try:
            attempt()
        except* AssertionError as error:
            found[operation.label] = str(error.exceptions)
    return found


def test_inference(stage: Stage, inference_key: Key) -> None:
    schema = schemathesis.openapi.from_url(f"{stage.gateway.url}/openapi.json")
    assert _problems(schema, inference_key.secret) == {}


def test_admin(stage: Stage) -> None:
    headers = {"authorization": f"Bearer {stage.admin.key}"}
    url = f"{stage.gateway.url}/admin/v1/openapi.json"
    schema = schemathesis.openapi.from_url(url, headers=headers)
    assert _problems(schema, stage.admin.key) == {}


def test_nothing_is_open(stage: Stage) -> None:
    """Whatever the document asks a key for is refused without one and with a wrong one."""
    for path in ("/openapi.json", "/admin/v1/openapi.json"):
        document = stage.gateway.call(path, key=stage.admin.key).json()
        for route, item in document["paths"].items():
            for method, operation in item.items():
                if operation.get("security") == []:
                    continue
                body = {} if "requestBody" in operation else None
                address = re.sub(r"{\w+}", "x", route)
                for key in (None, "fb-wrong"):
                    answer = stage.gateway.call(address, body, key=key, method=method.upper())
                    assert answer.status == 401, (method, route, answer)


def test_every_way_is_in_the_document(stage: Stage) -> None:
    document = stage.gateway.call("/openapi.json").json()
    described = set(document["paths"])
    ways = {path for path in WAYS if not path.startswith("/forebay.")}
    assert ways <= described
    told = {(path, method) for path, item in document["paths"].items() for method in item}
    assert {(path, method.lower()) for path, method, _ in PASSED} <= told
    passed = {re.sub("{id}.*", "{rest:path}", path) for path, _, _ in PASSED}
    assert set(CORE_ONLY) == passed | (ways & set(CORE_ONLY))
    assert {"/v1/models", "/healthz", "/readyz", "/metrics"} <= described
    assert not [path for path in described if path.startswith("/admin")]
    operations = [one for item in document["paths"].values() for one in item.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    for path, item in document["paths"].items():
        for operation in item.values():
            told = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert told == set(re.findall(r"{(\w+)}", path))
