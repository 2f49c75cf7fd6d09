"""Azure OpenAI: deployments with a dated API version, and the v1 API."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote

from forebay_engine.sim.errors import dump
from forebay_engine.sim.history import Record
from forebay_engine.sim.jobs import new_id
from forebay_engine.sim.kinds.base import Call, header
from forebay_engine.sim.kinds.failure import Failure, Problem
from forebay_engine.sim.kinds.openai import ManagedForm, OpenAI
from forebay_engine.sim.kinds.openai_form import APIS, event
from forebay_engine.sim.wire import Exchange

_CLASSIC = re.compile(r"/openai/deployments/([^/]+)(/.+)")
_SAFE = {
    name: {"filtered": False, "severity": "safe"}
    for name in ("hate", "self_harm", "sexual", "violence")
}
_BARE = {"id": "", "object": "", "created": 0, "model": ""}


class AzureForm(ManagedForm):
    """Chat of Azure: the prompt's filter results first, and annotations that come late."""

    _opened = False

    def delta_extra(self) -> dict[str, Any]:
        return {}

    def begin(self, answer: Any, index: int) -> list[bytes]:
        events = super().begin(answer, index)
        if self._opened:
            return events
        self._opened = True
        results = [{"prompt_index": 0, "content_filter_results": _SAFE}]
        return [event({"choices": [], **_BARE, "prompt_filter_results": results}), *events]

    def finish(self, answer: Any, index: int, reason: str) -> list[bytes]:
        # The annotation has no delta at all.
        offsets = {"check_offset": 0, "start_offset": 0, "end_offset": 64}
        late: dict[str, Any] = {
            "index": index,
            "finish_reason": None,
            "content_filter_results": _SAFE,
        }
        late["content_filter_offsets"] = offsets
        return [*super().finish(answer, index, reason), event({"choices": [late], **_BARE})]


class Azure(OpenAI):
    """`{resource}.openai.azure.com`, with `api-key` or a bearer token."""

    base = "/openai/v1"
    beside_apis = OpenAI.beside_apis - {"moderations", "image_variations"}
    chat_form = AzureForm

    def authorized(self, exchange: Exchange) -> bool:
        return self.same(exchange.header(b"api-key"), self.key) or super().authorized(exchange)

    def call(self, exchange: Exchange) -> Call | None:
        found = _CLASSIC.fullmatch(exchange.path)
        if found is None:
            return super().call(exchange)
        api = APIS.get(found.group(2))
        if api is None or "api-version" not in parse_qs(exchange.query):
            return None
        return Call(api, unquote(found.group(1)))

    def control(self, exchange: Exchange) -> Callable[[], None] | None:
        if exchange.method == "GET" and exchange.path == "/openai/models":
            return lambda: self.reply(exchange, dump(self.model_list()))
        found: Callable[[], None] | None = super().control(exchange)
        return found

    def headers(self, record: Record) -> bytes:
        more = b"x-ratelimit-remaining-requests: -1\r\nx-ratelimit-remaining-tokens: 0\r\n"
        return header("apim-request-id", new_id()) + header("x-ms-region", "Sweden Central") + more

    def failure(self, problem: Problem) -> Failure:
        failure = super().failure(problem)
        if problem.retry_after_s is None:
            return failure
        wait = b"retry-after-ms: %d\r\n" % (problem.retry_after_s * 1000)
        wait += b"retry-after: %d\r\n" % problem.retry_after_s
        return Failure(failure.status, failure.body, wait)

    def error_value(self, problem: Problem) -> dict[str, Any]:
        why, status = problem.why, problem.status
        if why == "auth":
            text = "Access denied due to invalid subscription key or wrong API endpoint. Make sure "
            text += "to provide a valid key for an active subscription and use a correct regional "
            return {"error": {"code": "401", "message": text + "API endpoint for your resource."}}
        if why == "path":
            return {"error": {"code": "404", "message": "Resource not found"}}
        if why == "model" and status == 404:
            text = "The API deployment for this resource does not exist. If you created the "
            text += "deployment within the last 5 minutes, please wait a moment and try again."
            return {"error": {"code": "DeploymentNotFound", "message": text}}
        if why in ("rate", "full"):
            text = "Requests to the ChatCompletions_Create Operation have exceeded the call rate "
            return {"error": {"code": "429", "message": text + "limit of your pricing tier."}}
        if why == "filter":
            result = {**_SAFE, "violence": {"filtered": True, "severity": "high"}}
            text = "The response was filtered due to the prompt triggering Azure OpenAI's content "
            fields = {"message": text + "management policy.", "type": None, "param": "prompt"}
            inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": result}
            more = {"code": "content_filter", "status": 400, "innererror": inner}
            return {"error": {**fields, **more}}
        return super().error_value(problem)
