"""Traces: spans of ended requests, exported by OpenTelemetry's OTLP over HTTP.

The core hands over what has ended in batches; spans are made here, away from every request. Names
and attributes are those of OpenTelemetry's semantic conventions for generative AI.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog

from forebay import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

    from forebay.config import Config

log = structlog.get_logger("forebay.traces")

INTERVAL_S = 0.5
"""Seconds between two looks at what has ended."""
BATCH = 1_000
"""Requests of which the spans go out in one call."""
TIMEOUT_S = 10.0
"""What one export may take, with the attempts that the exporter makes."""
CLOSE_S = 3.0
"""What the last exports may take when the gateway stops."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables of OpenTelemetry that say where traces go."""

_OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_PROVIDERS = {
    "bedrock": "aws.bedrock",
    "azure": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
}


class Attempt(msgspec.Struct, frozen=True):
    """One attempt. Times are microseconds, of the start since the request came."""

    span_id: str
    number: int
    upstream: str
    model: str
    why: str
    reason: str
    start_us: int
    duration_us: int
    status: int | None = None


class Request(msgspec.Struct, frozen=True):
    """One ended request, as the core tells it."""

    trace_id: str
    span_id: str
    parent_id: str | None
    request_id: str
    admitted_us: int
    ended_us: int
    model_asked: str
    model_served: str
    endpoint: str
    stream: bool
    outcome: str
    status: int
    finish_reason: str | None
    error_kind: str | None
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    ttft_ms: float | None
    attempts: tuple[Attempt, ...]


class Source(Protocol):
    """The core, as far as traces go."""

    def trace(self, sample: float) -> None: ...
    def take_traces(self, limit: int) -> bytes | None: ...
    def drop_traces(self, count: int) -> None: ...


class Exporter(Protocol):
    """Where spans go. `export` blocks, and says whether they are there."""

    def export(self, spans: "Sequence[ReadableSpan]") -> Any: ...
    def shutdown(self) -> None: ...


def providers(config: "Config") -> dict[str, str]:
    """What OpenTelemetry calls the provider of each upstream."""
    kinds = {name: upstream.kind for name, upstream in config.upstreams.items()}
    return {name: _PROVIDERS.get(kind, kind) for name, kind in kinds.items()}


class Spans:
    """Makes spans of ended requests.

    service: the name of the service that they are of. providers: by upstream.

    Raises: ImportError without OpenTelemetry's SDK.
    """

    def __init__(self, service: str, providers: Mapping[str, str]) -> None:
        self._trace: Any = import_module("opentelemetry.trace")
        self._sdk: Any = import_module("opentelemetry.sdk.trace")
        resources: Any = import_module("opentelemetry.sdk.resources")
        scope: Any = import_module("opentelemetry.sdk.util.instrumentation")
        self._resource = resources.Resource.create(
            {"service.name": service, "service.version": __version__}
        )
        self._scope = scope.InstrumentationScope("forebay", __version__)
        self._providers = providers

    def of(self, request: Request) -> "list[ReadableSpan]":
        """The span of a request, and those of its attempts."""
        context = self._context(request, request.span_id)
        parent = None
        if request.parent_id is not None:
            parent = self._context(request, request.parent_id, remote=True)
        operation = _OPERATIONS.get(request.endpoint, request.endpoint)
        common = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": request.model_asked,
            "gen_ai.request.stream": request.stream,
        }
        # What failed by the client's fault is no error of the server (HTTP conventions).
        failed = request.outcome in ("error", "upstream_cut", "gateway_died")
        served = request.status >= 500 or request.outcome != "error"
        whole = {
            **common,
            "gen_ai.response.model": request.model_served,
            "gen_ai.response.finish_reasons": _one(request.finish_reason),
            "gen_ai.response.time_to_first_chunk": _seconds(request.ttft_ms),
            "gen_ai.usage.input_tokens": request.input_tokens,
            "gen_ai.usage.output_tokens": request.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": request.cached_tokens,
            "gen_ai.usage.cache_creation.input_tokens": request.cache_write_tokens,
            "gen_ai.usage.reasoning.output_tokens": request.reasoning_tokens,
            "http.response.status_code": request.status,
            "error.type": (request.error_kind or request.outcome) if failed else None,
            "forebay.request_id": request.request_id,
            "forebay.outcome": request.outcome,
            "forebay.attempts": len(request.attempts),
        }
        name = f"{operation} {request.model_asked}"
        times = (request.admitted_us, request.ended_us)
        kind = self._trace.SpanKind
        spans = [self._span(name, context, parent, kind.SERVER, times, whole, failed and served)]
        for attempt in request.attempts:
            lost = attempt.reason not in ("ok", "hedge_lost", "client_closed")
            own = {
                **common,
                "gen_ai.request.model": attempt.model,
                "gen_ai.provider.name": self._providers.get(attempt.upstream),
                "error.type": attempt.reason if lost else None,
                "http.response.status_code": attempt.status,
                "forebay.upstream": attempt.upstream,
                "forebay.attempt": attempt.number,
                "forebay.attempt.why": attempt.why,
                "forebay.attempt.reason": attempt.reason,
            }
            began = request.admitted_us + attempt.start_us
            times = (began, began + attempt.duration_us)
            below = self._context(request, attempt.span_id)
            name = f"{operation} {attempt.model}"
            spans.append(self._span(name, below, context, kind.CLIENT, times, own, lost))
        return spans

    def _context(self, request: Request, span_id: str, *, remote: bool = False) -> "SpanContext":
        context: SpanContext = self._trace.SpanContext(
            int(request.trace_id, 16),
            int(span_id, 16),
            remote,
            self._trace.TraceFlags(self._trace.TraceFlags.SAMPLED),
        )
        return context

    def _span(
        self,
        name: str,
        context: "SpanContext",
        parent: "SpanContext | None",
        kind: Any,
        times: tuple[int, int],
        attributes: Mapping[str, Any],
        failed: bool,
    ) -> "ReadableSpan":
        status = self._trace.StatusCode.ERROR if failed else self._trace.StatusCode.UNSET
        span: ReadableSpan = self._sdk.ReadableSpan(
            name,
            context,
            parent=parent,
            resource=self._resource,
            attributes={name: value for name, value in attributes.items() if value is not None},
            kind=kind,
            status=self._trace.Status(status),
            start_time=times[0] * 1_000,
            end_time=times[1] * 1_000,
            instrumentation_scope=self._scope,
        )
        return span


class Traces:
    """Takes ended requests from the core and exports their spans, until it is cancelled.

    What cannot be exported is dropped, and counted by the core.
    """

    def __init__(
        self, core: Source, spans: Spans, exporter: Exporter, *, interval_s: float = INTERVAL_S
    ) -> None:
        self._core = core
        self._spans = spans
        self._exporter = exporter
        self._interval_s = interval_s
        self._failing = False

    async def run(self) -> None:
        """Export what there is, for ever."""
        while True:
            await asyncio.sleep(self._interval_s)
            while await self._once():
                pass

    async def close(self) -> None:
        """Export what is left, within some seconds."""
        try:
            async with asyncio.timeout(CLOSE_S):
                while await self._once():
                    pass
        except TimeoutError:
            log.warning("traces_left", reason="the collector takes too long")
        self._exporter.shutdown()

    async def _once(self) -> bool:
        """Export one batch. Whether there may be more."""
        taken = self._core.take_traces(BATCH)
        if taken is None:
            return False
        requests = msgspec.json.decode(taken, type=list[Request])
        if not await asyncio.to_thread(self._export, requests):
            self._core.drop_traces(len(requests))
        return len(requests) == BATCH

    def _export(self, requests: list[Request]) -> bool:
        try:
            spans = [span for request in requests for span in self._spans.of(request)]
            result = self._exporter.export(spans)
            reason = None if result.name == "SUCCESS" else "the collector did not take them"
        except Exception as error:
            # A collector that fails, however it does, costs spans and nothing else.
            reason = f"{type(error).__name__}: {error}"
        if reason is not None and not self._failing:
            log.warning("traces_dropped", reason=reason, requests=len(requests))
        elif reason is None and self._failing:
            log.info("traces_exported_again")
        self._failing = reason is not None
        return reason is None


def start(config: "Config", core: Source, env: Mapping[str, str] = os.environ) -> Traces | None:
    """Have the core trace requests, where the configuration or OpenTelemetry's variables say so.

    What keeps it from that is logged: the gateway serves all the same.
    """
    settings = config.telemetry
    if settings.otlp_endpoint is None and not any(env.get(name) for name in ENDPOINTS):
        return None
    try:
        otlp: Any = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        service = settings.service_name or env.get("OTEL_SERVICE_NAME") or "forebay"
        spans = Spans(service, providers(config))
    except ImportError:
        log.error("traces_off", reason="needs OpenTelemetry: pip install 'forebay[otel]'")
        return None
    # Without an endpoint the exporter reads the variables itself; headers and the like always.
    exporter = otlp.OTLPSpanExporter(endpoint=settings.otlp_endpoint, timeout=TIMEOUT_S)
    core.trace(settings.sample)
    return Traces(core, spans, exporter)


def _one(text: str | None) -> list[str] | None:
    return None if text is None else [text]


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1e3
