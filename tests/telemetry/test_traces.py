"""Spans of ended requests reach a collector, as OpenTelemetry's conventions have them."""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from forebay.config import Config
from forebay.config.kinds import UpstreamKind
from forebay.config.schema import Telemetry, Upstream
from forebay.telemetry import traces

from tests.support.collector import Collector, Span, collector
from tests.support.processes import Gateway, Key
from tests.support.upstream import ScriptedUpstream
from tests.support.wait import until
from tests.support.wire import CHAT, chat

SERVER, CLIENT = 2, 3
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Core:
    """Stands for the core: batches wait to be taken."""

    def __init__(self, *batches: list[dict[str, Any]]) -> None:
        self.batches = list(batches)
        self.sample: float | None = None
        self.dropped = 0

    def trace(self, sample: float) -> None:
        self.sample = sample

    def take_traces(self, limit: int) -> bytes | None:
        return msgspec.json.encode(self.batches.pop(0)) if self.batches else None

    def drop_traces(self, count: int) -> None:
        self.dropped += count


def ended(**changes: Any) -> dict[str, Any]:
    """A request that had two attempts."""
    first = {
        "span_id": "00000000000000aa", "number": 1, "upstream": "gpu", "model": "org/m",
        "why": "first", "reason": "unavailable", "status": 503, "start_us": 100,
        "duration_us": 400,
    }  # fmt: skip
    second = {
        "span_id": "00000000000000ab", "number": 2, "upstream": "cloud", "model": "m-2",
        "why": "fallback", "reason": "ok", "start_us": 600, "duration_us": 9_000,
    }  # fmt: skip
    return {
        "trace_id": TRACE, "span_id": "00000000000000a0", "parent_id": PARENT,
        "request_id": "r-1", "admitted_us": 1_700_000_000_000_000,
        "ended_us": 1_700_000_000_010_000, "model_asked": "m", "model_served": "big",
        "endpoint": "chat", "stream": True, "outcome": "ok", "status": 200,
        "finish_reason": "stop", "error_kind": None, "input_tokens": 7, "cached_tokens": 2,
        "cache_write_tokens": 0, "output_tokens": 3, "reasoning_tokens": 0, "ttft_ms": 2.5,
        "attempts": [first, second],
    } | changes  # fmt: skip


@pytest.fixture
def kept() -> Iterator[Collector]:
    with collector() as running:
        yield running


def started(core: Core, kept: Collector | None, **env: str) -> traces.Traces | None:
    """What exports, with an upstream `cloud` of AWS's."""
    endpoint = None if kept is None else kept.url
    config = Config(
        telemetry=Telemetry(otlp_endpoint=endpoint, sample=0.25),
        upstreams={"cloud": _upstream("bedrock"), "gpu": _upstream("vllm")},
    )
    return traces.start(config, core, env)


def _upstream(kind: UpstreamKind) -> Upstream:
    return Upstream(kind=kind, url="http://127.0.0.1:1")


async def exported(core: Core, kept: Collector) -> list[Span]:
    """The spans of all batches."""
    running = started(core, kept)
    assert running is not None
    await running.close()
    return kept.spans


async def test_a_request_and_its_attempts(kept: Collector) -> None:
    core = Core([ended()])
    whole, first, second = await exported(core, kept)
    assert (core.sample, core.dropped) == (0.25, 0)
    assert {span.trace for span in kept.spans} == {TRACE}
    assert (whole.id, whole.parent, whole.kind) == ("00000000000000a0", PARENT, SERVER)
    assert (whole.name, whole.service, whole.failed) == ("chat m", "forebay", False)
    assert whole.end_ns - whole.start_ns == 10_000_000
    assert whole.attributes["gen_ai.operation.name"] == "chat"
    assert whole.attributes["gen_ai.response.model"] == "big"
    assert whole.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert whole.attributes["gen_ai.response.time_to_first_chunk"] == 0.0025
    assert whole.attributes["gen_ai.usage.input_tokens"] == 7
    assert whole.attributes["gen_ai.usage.cache_read.input_tokens"] == 2
    assert whole.attributes["forebay.request_id"] == "r-1"
    assert "error.type" not in whole.attributes
    for span in (first, second):
        assert (span.parent, span.kind) == (whole.id, CLIENT)
    assert (first.id, first.failed) == ("00000000000000aa", True)
    assert first.attributes["error.type"] == "unavailable"
    assert first.attributes["http.response.status_code"] == 503
    assert first.attributes["gen_ai.provider.name"] == "vllm"
    assert (first.start_ns - whole.start_ns, first.end_ns - first.start_ns) == (100_000, 400_000)
    assert (second.name, second.failed) == ("chat m-2", False)
    assert second.attributes["gen_ai.provider.name"] == "aws.bedrock"
    assert second.attributes["forebay.attempt.why"] == "fallback"


@pytest.mark.parametrize(
    ("outcome", "status", "kind", "error", "failed"),
    [
        ("error", 502, "upstream_error", "upstream_error", True),
        ("error", 400, "invalid_request", "invalid_request", False),
        ("upstream_cut", 200, "upstream_timeout", "upstream_timeout", True),
        ("gateway_died", 200, None, "gateway_died", True),
        ("client_closed", 499, "client_closed", None, False),
    ],
)
async def test_what_failed_says_so(
    kept: Collector, outcome: str, status: int, kind: str | None, error: str | None, failed: bool
) -> None:
    request = ended(outcome=outcome, status=status, error_kind=kind, attempts=[], parent_id=None)
    [span] = await exported(Core([request]), kept)
    assert (span.attributes.get("error.type"), span.failed) == (error, failed)
    assert span.parent == ""


async def test_what_is_not_taken_is_counted(kept: Collector) -> None:
    kept.status = 400
    core = Core([ended(), ended()])
    assert await exported(core, kept) == []
    assert core.dropped == 2


async def test_batches_go_out_until_it_is_cancelled(kept: Collector) -> None:
    core = Core([ended()], [ended()])
    running = started(core, kept)
    assert running is not None
    running._interval_s = 0.01
    task = asyncio.create_task(running.run())
    async with asyncio.timeout(10):
        await asyncio.to_thread(until, lambda: len(kept.spans) >= 6, "the spans")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await running.close()


def test_it_is_off_unless_said(kept: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    core = Core()
    assert started(core, None) is None
    assert core.sample is None
    name = "OTEL_EXPORTER_OTLP_ENDPOINT"
    base = kept.url.removesuffix("/v1/traces")
    monkeypatch.setenv(name, base)
    running = started(core, None, **{name: base})
    assert running is not None
    assert running._exporter._endpoint == kept.url  # type: ignore[attr-defined]
    assert core.sample == 0.25


@pytest.fixture(scope="module")
def traced(
    tmp_path_factory: pytest.TempPathFactory, session_database_url: str
) -> Iterator[tuple[Gateway, Key, ScriptedUpstream, Collector]]:
    """A gateway whose first target is busy, and which traces only where clients say so."""
    busy, engine = ScriptedUpstream(models=("m",)), ScriptedUpstream(models=("m",))
    busy.start()
    engine.start()
    busy.script = lambda c, _: c.json({"error": {"message": "busy"}}, 503)
    with collector() as kept:
        config = {
            "upstreams": {
                "a": {"kind": "sglang", "url": busy.url, "outlier": None},
                "b": {"kind": "sglang", "url": engine.url},
            },
            "models": {"m": {"targets": [{"upstream": "a"}, {"upstream": "b", "tier": 1}]}},
            "telemetry": {"otlp_endpoint": kept.url, "sample": 0, "service_name": "gw"},
        }
        process = Gateway(tmp_path_factory.mktemp("traced"), config, session_database_url)
        process.start()
        for name in ("a", "b"):
            check = f"upstream:{name}"
            until(lambda check=check: process.health()["checks"][check] == "ok", check)
        yield process, process.key(), engine, kept
        assert process.stop() == 0
    busy.stop()
    engine.stop()


def test_the_clients_trace_goes_on_through_the_gateway(
    traced: tuple[Gateway, Key, ScriptedUpstream, Collector],
) -> None:
    gateway, key, engine, kept = traced
    engine.reset()
    header = ("traceparent", f"00-{TRACE}-{PARENT}-01")
    got = gateway.call(CHAT, chat("m"), key=key.secret, headers=[header])
    assert got.status == 200
    until(lambda: len(kept.spans) > 0, "the spans")
    whole, *attempts = kept.spans
    assert (whole.trace, whole.parent, whole.service) == (TRACE, PARENT, "gw")
    assert whole.attributes["forebay.request_id"] == got.header("x-request-id")
    assert [span.attributes["forebay.attempt.reason"] for span in attempts] == [
        "unavailable",
        "ok",
    ]
    assert {span.parent for span in attempts} == {whole.id}
    assert attempts[-1].attributes["forebay.upstream"] == "b"
    sent = engine.only().header("traceparent")
    assert sent == f"00-{TRACE}-{attempts[-1].id}-01"


def test_a_client_that_does_not_sample_is_not_traced(
    traced: tuple[Gateway, Key, ScriptedUpstream, Collector],
) -> None:
    gateway, key, engine, kept = traced
    engine.reset()
    before = len(kept.spans)
    header = ("traceparent", f"00-{TRACE}-{PARENT}-00")
    for headers in ([header], []):
        assert gateway.call(CHAT, chat("m"), key=key.secret, headers=headers).status == 200
    sent = [request.header("traceparent") for request in engine.requests if request.path == CHAT]
    assert sent == [header[1], None]
    # One that is traced comes after what came before it.
    last = ("traceparent", f"00-{TRACE}-{PARENT}-01")
    assert gateway.call(CHAT, chat("m"), key=key.secret, headers=[last]).status == 200
    until(lambda: len(kept.spans) > before, "the spans")
    assert sum(span.kind == SERVER for span in kept.spans[before:]) == 1
