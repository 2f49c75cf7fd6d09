"""One gateway for all tests of what there is beside text, in front of simulated providers."""

from collections.abc import Iterator
from typing import Any

import pytest
from forebay.store import EmbeddedPostgres
from openai import OpenAI

from tests.support.databases import create_database
from tests.support.ports import closed_port
from tests.support.processes import Gateway, Key
from tests.support.simulated import SimThread, Simulated
from tests.support.wait import until

MODELS = ("tiny", "whisper-tiny", "gpt-image-tiny")


@pytest.fixture(scope="session")
def sims() -> Iterator[dict[str, Simulated]]:
    """A simulator of each kind that these tests need."""
    with SimThread() as thread:
        yield {
            "openai": thread.bind(kind="openai", models=MODELS).start(),
            "second": thread.bind(kind="openai", models=MODELS).start(),
            "vllm": thread.bind(kind="vllm", models=MODELS).start(),
            "sglang": thread.bind(kind="sglang", models=MODELS).start(),
        }


@pytest.fixture(scope="session")
def rest_database_url(postgres: EmbeddedPostgres) -> str:
    """URL of a migrated database that this gateway has for itself."""
    return create_database(postgres, "rest")


def config(sims: dict[str, Simulated]) -> dict[str, Any]:
    """The gateway's configuration."""

    def at(upstream: str, model: str = "tiny") -> dict[str, Any]:
        return {"upstream": upstream, "model": model}

    return {
        "upstreams": {
            "openai": {"kind": "openai", "url": sims["openai"].url},
            "second": {"kind": "openai", "url": sims["second"].url},
            "vllm": {"kind": "vllm", "url": sims["vllm"].url},
            "sglang": {"kind": "sglang", "url": sims["sglang"].url},
            "gone": {"kind": "openai", "url": f"http://127.0.0.1:{closed_port()}"},
        },
        "models": {
            "rank-v": {"targets": [at("vllm")], "aliases": ["rank-alias"]},
            "rank-s": {"targets": [at("sglang")]},
            "mod": {"targets": [at("openai")]},
            "image": {"targets": [at("openai", "gpt-image-tiny")]},
            "voice": {"targets": [at("openai")]},
            "ears": {"targets": [at("openai", "whisper-tiny")]},
            "ears-2": {"targets": [at("openai")]},
            "fallen": {"targets": [at("gone"), {**at("second"), "tier": 1}]},
            "twice": {"targets": [at("openai"), {**at("second"), "tier": 1}]},
            "text": {"targets": [at("openai")]},
        },
        "files": {"upstream": "openai"},
        "limits": {"body_bytes": 100_000, "upload_bytes": 64 * 1024 * 1024},
    }


@pytest.fixture(scope="session")
def rest(
    tmp_path_factory: pytest.TempPathFactory, rest_database_url: str, sims: dict[str, Simulated]
) -> Iterator[Gateway]:
    """A running gateway. At the end of the session its log must hold no traceback."""
    folder = tmp_path_factory.mktemp("rest")
    process = Gateway(folder, config(sims), rest_database_url)
    process.start()
    until(lambda: process.health()["checks"]["upstream:openai"] == "ok", "the upstream")
    yield process
    status = process.stop()
    assert status == 0, process.log()
    assert "Traceback (most recent" not in process.log(), process.log()


@pytest.fixture(scope="session")
def rest_key(rest: Gateway) -> Key:
    """A key without limits."""
    return rest.key()


@pytest.fixture(scope="session")
def client(rest: Gateway, rest_key: Key) -> Iterator[OpenAI]:
    """OpenAI's SDK with that key."""
    with OpenAI(base_url=rest.url + "/v1", api_key=rest_key.secret, max_retries=0) as opened:
        yield opened
