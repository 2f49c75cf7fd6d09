"""One gateway with every door open, in front of scripted engines."""

from collections.abc import Iterator
from typing import Any

import pytest
from forebay.store import EmbeddedPostgres

from tests.limits_e2e.conftest import new_database
from tests.support.admin import Admin
from tests.support.doors.engine import good
from tests.support.processes import Gateway
from tests.support.upstream import ScriptedUpstream
from tests.support.wait import until

DEADLINE_S = 0.4
"""The whole time of the model `hurried`, seconds."""
PRICE = {"input": "1", "output": "2"}


class Stage:
    """The gateway, and the engines behind it.

    billed: how many requests of each key were seen to be billed.
    """

    def __init__(self, gateway: Gateway, engine: ScriptedUpstream, down: ScriptedUpstream) -> None:
        self.gateway = gateway
        self.engine = engine
        self.down = down
        self.admin = Admin(gateway)
        self.billed: dict[str, int] = {}
        self.grpc_port = int(str(gateway.facts["grpc"]).rpartition(":")[2])


def config(engine: ScriptedUpstream, down: ScriptedUpstream) -> dict[str, Any]:
    """What is behind the doors."""
    raw = {"upstream": "raw", "model": "tiny"}
    never: dict[str, Any] = {"outlier": None}
    return {
        "listen": {"grpc": "127.0.0.1:0"},
        "upstreams": {
            "raw": {"kind": "sglang", "url": engine.url, **never},
            "down": {"kind": "sglang", "url": down.url, **never},
        },
        "models": {
            "tiny": {"targets": [raw]},
            "other": {"targets": [raw]},
            "frail": {"targets": [raw]},
            "priced": {"targets": [raw], "price": PRICE},
            "hurried": {"targets": [raw], "timeouts": {"total": DEADLINE_S}},
            "covered": {
                "targets": [{"upstream": "down", "model": "tiny"}, {**raw, "tier": 1}],
                "retry": {"min_per_second": 1000},
            },
        },
        "limits": {"header_bytes": 16_384, "body_bytes": 1_048_576},
    }


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[Stage]:
    """The gateway of all tests of doors. At the end its log must hold no traceback."""
    engine, down = ScriptedUpstream(), ScriptedUpstream()
    engine.start()
    down.start()
    gateway = Gateway(
        tmp_path_factory.mktemp("doors"), config(engine, down), new_database(postgres, "doors")
    )
    gateway.start()
    until(lambda: gateway.health()["checks"]["upstream:raw"] == "ok", "the engine")
    yield Stage(gateway, engine, down)
    assert gateway.stop() == 0, gateway.log()
    assert "Traceback (most recent" not in gateway.log(), gateway.log()
    assert "panicked" not in gateway.log(), gateway.log()
    engine.stop()
    down.stop()


@pytest.fixture
def engine(stage: Stage) -> Iterator[ScriptedUpstream]:
    """The engine behind every model, which answers well until a test says otherwise."""
    stage.engine.wait_idle()
    stage.engine.reset()
    stage.engine.script = good
    stage.down.reset()
    yield stage.engine
    stage.engine.wait_idle()
    stage.gateway.wait_idle()
    assert not stage.engine.failures, stage.engine.failures
