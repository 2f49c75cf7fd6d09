"""What every SDK is tried with: a running gateway, a key, and an engine of many words."""

import pytest

from tests.support.processes import Gateway, Key

TOOL_PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
"""Of the tool `get_weather`, which the simulated engine calls when it is told `/tool`."""

SGLANG_METADATA = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
"""SGLang's answers have a list in `metadata` where OpenAI has texts; the SDK warns of that."""


@pytest.fixture
def base(gateway: Gateway) -> str:
    """OpenAI's base address."""
    return gateway.url + "/v1"


@pytest.fixture
def secret(key: Key) -> str:
    """A key without limits."""
    return key.secret
