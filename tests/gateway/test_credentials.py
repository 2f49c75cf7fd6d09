"""A gateway fetches credentials that change, sends them, renews them, and waits for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Gateway
from tests.support.wait import until
from tests.support.wire import CHAT, chat
from tests.upstreams.test_credentials import service_account
from tests.upstreams.token_server import TokenServer

PATH = "/v1/projects/p/locations/global/endpoints/openapi/chat/completions"
ANSWER = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 1,
    "model": "google/m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


@pytest.fixture
def cloud() -> Iterator[TokenServer]:
    """Token server and provider in one; it has no token yet."""
    with TokenServer() as server:
        server.by_path |= {PATH: (200, ANSWER), "/token": (503, {"error": "away"})}
        yield server


def grant(cloud: TokenServer, token: str, expires_in: int = 3600) -> None:
    answer = {"access_token": token, "expires_in": expires_in, "token_type": "Bearer"}
    cloud.by_path["/token"] = (200, answer)


def sent(cloud: TokenServer) -> list[str | None]:
    """The credentials of every chat that came."""
    return [headers.get("authorization") for path, headers, _ in cloud.asked if path == PATH]


def test_tokens_of_google(tmp_path: Path, session_database_url: str, cloud: TokenServer) -> None:
    file = service_account(tmp_path, f"{cloud.url}/token")
    vertex: dict[str, Any] = {
        "kind": "vertex",
        "url": cloud.url,
        "project": "p",
        "location": "global",
        "credentials": {"file": str(file)},
    }
    config = {
        "upstreams": {"v": vertex},
        "models": {"m": {"targets": [{"upstream": "v", "model": "google/m"}]}},
    }
    gateway = Gateway(tmp_path / "gateway", config, session_database_url)
    gateway.start()
    key = gateway.key().secret
    # Nothing is sent without them, and the health says why.
    early = gateway.call(CHAT, chat("m"), key=key)
    assert early.status == 503
    assert "no credentials" in gateway.health()["checks"]["credentials:v"]
    assert sent(cloud) == []
    grant(cloud, "t-1", expires_in=3)
    until(lambda: gateway.health()["checks"]["credentials:v"] == "ok", "the first token")
    first = gateway.call(CHAT, chat("m"), key=key)
    assert first.status == 200
    assert sent(cloud) == ["Bearer t-1"]
    grant(cloud, "t-2")

    def renewed() -> bool:
        return gateway.call(CHAT, chat("m"), key=key).status == 200 and (
            sent(cloud)[-1] == "Bearer t-2"
        )

    until(renewed, "the second token")
    assert set(sent(cloud)) == {"Bearer t-1", "Bearer t-2"}
    assert gateway.stop() == 0
    log = gateway.log()
    assert "Bearer t-" not in log
    assert "Traceback" not in log
