"""What is written in Bedrock's dialect, held to the service's own description in botocore."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader  # type: ignore[import-untyped]
from botocore.model import ServiceModel, Shape  # type: ignore[import-untyped]
from botocore.validate import ParamValidator  # type: ignore[import-untyped]

CASES = Path(__file__).parents[1] / "data" / "dialects" / "converse"
SERVICE = ServiceModel(Loader().load_service_model("bedrock-runtime", "service-2"))


def as_python(shape: Shape, value: Any) -> Any:
    """JSON as an SDK would have it: bytes where it has base64."""
    if shape.type_name == "blob":
        return base64.b64decode(value, validate=True)
    if shape.type_name == "list":
        return [as_python(shape.member, item) for item in value]
    if shape.type_name == "structure" and not getattr(shape, "is_document_type", False):
        known = shape.members
        return {k: as_python(known[k], v) if k in known else v for k, v in value.items()}
    return value


def check(shape: Shape, value: Any) -> None:
    """Raises: AssertionError with every unknown, missing or mistyped member."""
    report = ParamValidator().validate(as_python(shape, value), shape)
    assert not report.has_errors(), report.generate_report()


@pytest.mark.parametrize("path", sorted(CASES.glob("*.json")), ids=lambda path: path.stem)
def test_what_is_written_is_what_the_service_describes(path: Path) -> None:
    case = json.loads(path.read_text())
    found = case["expect"]
    if case["to"] != "converse":
        return
    operation = SERVICE.operation_model("Converse")
    if "request" in case and "body" in found:
        check(operation.input_shape, {"modelId": case["model"], **found["body"]})
    if "answer" in case and "body" in found:
        check(operation.output_shape, found["body"])
    events = SERVICE.shape_for("ConverseStreamOutput").members
    for event in found.get("events", []):
        check(events[event["type"]], event["payload"])
