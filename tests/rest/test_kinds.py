"""Every kind of upstream has what its file says beside text, and nothing else."""

from collections.abc import Iterator
from typing import Any

import pytest
from forebay.config import Upstream
from forebay.upstreams import KINDS

from tests.rest.test_audio import BOUND, FILE, field, form
from tests.support.processes import Gateway, Key
from tests.support.simulated import TARGETS, SimThread, section, sim_options
from tests.support.wait import until
from tests.support.wire import Answer

TRIED = (
    *("sglang", "vllm", "together", "fireworks", "anyscale", "openai", "azure"),
    *("litellm", "openai_compatible", "tgi"),
)
JSON: dict[str, tuple[str, dict[str, Any]]] = {
    "rerank": ("/v1/rerank", {"query": "a", "documents": ["a", "b"]}),
    "score": ("/v1/score", {"text_1": "a", "text_2": "b", "query": "a", "items": ["b"]}),
    "moderations": ("/v1/moderations", {"input": "a"}),
    "images": ("/v1/images/generations", {"prompt": "a"}),
    "speech": ("/v1/audio/speech", {"input": "a", "voice": "x"}),
}
FORMS = {
    "transcriptions": "/v1/audio/transcriptions",
    "translations": "/v1/audio/translations",
    "image_edits": "/v1/images/edits",
    "image_variations": "/v1/images/variations",
}


@pytest.fixture(scope="module")
def kinds(
    tmp_path_factory: pytest.TempPathFactory, rest_database_url: str
) -> Iterator[tuple[Gateway, Key]]:
    """A gateway before one upstream of each kind; a model has its kind's name."""
    with SimThread() as thread:
        upstreams, models = {}, {}
        for name in TRIED:
            target = TARGETS[name]
            sim = thread.bind(**sim_options(target)).start()
            upstreams[name] = section(target, sim.url)
            models[name] = {"targets": [{"upstream": name, "model": target.model}]}
        config = {"upstreams": upstreams, "models": models}
        gateway = Gateway(tmp_path_factory.mktemp("kinds"), config, rest_database_url)
        gateway.start()
        until(lambda: gateway.health()["checks"]["upstream:vllm"] == "ok", "the upstreams")
        yield gateway, gateway.key()
        assert gateway.stop() == 0, gateway.log()


def ask(gateway: Gateway, key: Key, kind: str, api: str) -> Answer:
    if api in JSON:
        path, body = JSON[api]
        return gateway.call(path, {"model": kind, **body}, key=key.secret)
    sent = form(field("model", kind.encode()), FILE)
    media = f"multipart/form-data; boundary={BOUND}"
    return gateway.call(FORMS[api], sent, key=key.secret, content_type=media)


@pytest.mark.parametrize("kind", TRIED)
def test_what_a_kind_has(kinds: tuple[Gateway, Key], kind: str) -> None:
    gateway, key = kinds
    target = TARGETS[kind]
    settings = Upstream(kind=target.kind, url="http://h", **target.section)  # type: ignore[arg-type]
    paths = KINDS[kind].paths(settings)
    for api in (*JSON, *FORMS):
        got = ask(gateway, key, kind, api)
        if getattr(paths, api) is None:
            assert (got.status, got.error()["code"]) == (400, "unsupported_endpoint"), api
        else:
            assert got.status == 200, (api, got.body)
            row = gateway.usage_of(got)
            assert (row["endpoint"], row["upstream"], row["outcome"]) == (api, kind, "ok")


def test_without_an_upstream_for_them_there_are_no_files(kinds: tuple[Gateway, Key]) -> None:
    gateway, key = kinds
    got = gateway.call("/v1/files", key=key.secret)
    assert (got.status, got.error()["code"]) == (404, "files_not_configured")
