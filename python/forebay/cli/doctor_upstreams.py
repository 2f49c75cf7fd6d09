"""What `forebay doctor` finds of upstreams: asked over the core, as the gateway asks them."""

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from forebay._core import Core
from forebay.config import Config, Upstream
from forebay.gateway import agent, snapshot
from forebay.gateway.answer import Answer
from forebay.upstreams import KINDS, Probe
from forebay.upstreams.credentials import SourceError
from forebay.upstreams.listing import model_names

TIMEOUT_S = 5.0
"""Longest wait for a connection, and for an answer to a question that costs nothing."""
CHAT_TIMEOUT_S = 120.0
"""Longest wait for a token: an engine may have to be started for it."""
_SHOWN = 5
"""Names of models that are shown where a list is long."""
_MESSAGE = 200


class Step(NamedTuple):
    """One thing that was looked at. hint: what to do where it is not well."""

    step: str
    ok: bool
    detail: str
    hint: str | None = None


class Examined(NamedTuple):
    """All that was looked at of one upstream."""

    upstream: str
    steps: list[Step]


async def examine(config: Config, *, chat: bool) -> list[Examined]:
    """Look at every upstream; with `chat`, also have each target write one token."""
    core = Core()
    try:
        core.attach(asyncio.get_running_loop())
        core.configure(snapshot.build(config, {}))
        return list(
            await asyncio.gather(
                *(_Examiner(core, config, name).run(chat=chat) for name in config.upstreams)
            )
        )
    finally:
        core.close()


class _Answer(NamedTuple):
    status: int
    body: bytes
    took_ms: float


class _Examiner:
    """Looks at one upstream, one step after the other, as far as it goes."""

    def __init__(self, core: Core, config: Config, name: str) -> None:
        self._core = core
        self._config = config
        self._name = name
        self._upstream = config.upstreams[name]
        self._kind = KINDS[self._upstream.kind]
        self._steps: list[Step] = []

    async def run(self, *, chat: bool) -> Examined:
        state = await self._agent()
        if state == "cold" and not chat:
            # Its port is closed until a request has it started.
            self._note("ready", "not asked: it is cold, and a request has its agent start it")
            return Examined(self._name, self._steps)
        well = await self._credentials() and await self._reachable()
        if well:
            probe = self._kind.probe_for(self._upstream)
            if probe is None:
                self._note("ready", "nothing there can be asked for nothing; --chat tells")
            elif probe.wakes and not chat:
                self._note("ready", "not asked: asking starts it; --chat does")
            else:
                well = await self._look(probe, CHAT_TIMEOUT_S if probe.wakes else TIMEOUT_S)
            if chat and well:
                for model in self._models():
                    await self._chat(model)
        return Examined(self._name, self._steps)

    def _note(self, step: str, detail: str) -> bool:
        self._steps.append(Step(step, True, detail))
        return True

    def _fail(self, step: str, detail: str, hint: str) -> bool:
        self._steps.append(Step(step, False, redacted(detail, self._upstream), hint))
        return False

    async def _agent(self) -> str | None:
        """What its agent says of the engine; None without one, or without its word."""
        if self._upstream.agent is None:
            return None
        start = time.perf_counter()
        try:
            path = agent.of_member(agent.STATE, self._upstream.agent.member)
            said = agent.read(await self._answer(path, agent.TIMEOUT_S, agent=True))
        except agent.Away as away:
            hint = "check the key" if "key" in str(away) else "is `forebay-engine` running there?"
            self._fail("agent", str(away), f"check upstreams.{self._name}.agent: {hint}")
            return None
        took_ms = (time.perf_counter() - start) * 1e3
        parked = ", parked" * said.parked
        self._note("agent", f"says {said.state}{parked} in {took_ms:.0f} ms")
        return said.state

    async def _credentials(self) -> bool:
        source = self._kind.credentials(self._upstream)
        if source is None:
            return True
        try:
            fresh = await asyncio.to_thread(source.fetch)
        except SourceError as error:
            return self._fail(
                "credentials", str(error), f"check upstreams.{self._name}.credentials"
            )
        self._core.set_credentials(self._name, fresh.document())
        return self._note("credentials", "fetched")

    async def _reachable(self) -> bool:
        parts = urlsplit(self._kind.address(self._upstream))
        tls = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if tls else 80)
        start = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                _, writer = await asyncio.open_connection(
                    host, port, ssl=ssl.create_default_context() if tls else None
                )
        except (OSError, TimeoutError) as error:
            reason, hint = _unreachable(error)
            return self._fail("reachable", f"{host}:{port}: {reason}", hint)
        took_ms = (time.perf_counter() - start) * 1e3
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return self._note("reachable", f"{host}:{port} in {took_ms:.0f} ms")

    async def _look(self, probe: Probe, limit_s: float) -> bool:
        """Is it ready, does it take the key, and does it have the models?"""
        answer = await self._ask(probe.ready, limit_s)
        if answer.status in (401, 403):
            return self._refused(answer)
        state = probe.judge(answer.status, answer.body)
        said = f"{probe.ready} answered {answer.status} in {answer.took_ms:.0f} ms"
        if state == "loading":
            return self._fail("ready", f"{said}: it is being started", "wait, or look at its log")
        if state == "down":
            text = message_of(answer.body)
            return self._fail("ready", f"{said}{': ' if text else ''}{text}", _hint(answer.status))
        self._note("ready", f"{said}{', asleep: a request starts it' * (state == 'cold')}")
        if state == "cold" or (probe.models is None and probe.auth is None):
            return True
        return await self._listed(probe, limit_s)

    async def _listed(self, probe: Probe, limit_s: float) -> bool:
        if probe.auth is not None:
            answer = await self._ask(probe.auth, limit_s)
            if answer.status in (401, 403):
                return self._refused(answer)
        if probe.models is None:
            return self._note("authenticated", "the key is taken")
        answer = await self._ask(probe.models, limit_s)
        if answer.status in (401, 403):
            return self._refused(answer)
        if answer.status != 200:
            return self._fail(
                "models", f"{probe.models} answered {answer.status}", _hint(answer.status)
            )
        self._note("authenticated", "the key is taken" if self._has_key() else "no key is needed")
        try:
            names = model_names(answer.body)
        except ValueError as error:
            return self._fail("models", f"{probe.models}: {error}", "check url")
        if self._kind.any_model:
            return self._note("models", "it serves what it has under any name")
        missing = [name for name in self._models() if name not in names]
        gone = [name for name in missing if not await self._resolves(probe.models, name)]
        if gone:
            return self._fail(
                "models",
                f"it does not have {', '.join(gone)}",
                f"it lists {_some(names)}" if names else "it lists none",
            )
        return self._note("models", f"{len(names)} listed, with all that are configured")

    async def _resolves(self, path: str, model: str) -> bool:
        """Whether a name that is not listed is known all the same: an alias."""
        answer = await self._ask(f"{path.partition('?')[0]}/{quote(model, safe='/')}", TIMEOUT_S)
        return answer.status == 200

    async def _chat(self, model: str) -> None:
        path = self._kind.paths(self._upstream).chat
        if path is None:
            return
        dialect = self._kind.dialect_for(self._upstream)
        path = path.replace("{model}", quote(model, safe=""))
        body = json.dumps(_ONE_TOKEN[dialect](model)).encode()
        answer = await self._ask(path, CHAT_TIMEOUT_S, method="POST", body=body)
        step = f"chat {model}"
        if answer.status == 200:
            self._note(step, f"answered in {answer.took_ms:.0f} ms")
            return
        text = message_of(answer.body)
        detail = f"answered {answer.status}{': ' if text else ''}{text}"
        self._fail(step, detail, _hint(answer.status))

    def _refused(self, answer: _Answer) -> bool:
        what = "api_key or credentials" if self._has_key() else "api_key: none is set"
        return self._fail(
            "authenticated",
            f"refused with {answer.status}",
            f"check upstreams.{self._name}: {what}",
        )

    def _has_key(self) -> bool:
        return bool(self._upstream.api_key or self._upstream.credentials or self._upstream.headers)

    def _models(self) -> list[str]:
        """The names there of all models that are served there."""
        return sorted(
            {
                target.model or name
                for name, model in self._config.models.items()
                for target in model.targets
                if target.upstream == self._name
            }
        )

    async def _ask(
        self, path: str, limit_s: float, *, method: str = "GET", body: bytes | None = None
    ) -> _Answer:
        start = time.perf_counter()
        answer = await self._answer(path, limit_s, method=method, body=body)
        return _Answer(answer[0], answer[2], (time.perf_counter() - start) * 1e3)

    async def _answer(
        self,
        path: str,
        limit_s: float,
        *,
        method: str = "GET",
        body: bytes | None = None,
        agent: bool = False,
    ) -> Answer:
        exchange = self._core.fetch(
            self._name, path, limit_s, method=method, body=body, agent=agent
        )
        answer = exchange.start()
        if isinstance(answer, asyncio.Future):
            answer = await answer
        assert answer is not None
        return answer


def _openai(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


def _gemini(model: str) -> dict[str, Any]:
    return {
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
        "generationConfig": {"maxOutputTokens": 1},
    }


def _converse(model: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": [{"text": "Hi"}]}],
        "inferenceConfig": {"maxTokens": 1},
    }


_ONE_TOKEN = {
    "open_ai": _openai,
    "anthropic": _openai,
    "gemini": _gemini,
    "converse": _converse,
}
"""The smallest request of each dialect; Anthropic's is OpenAI's."""


def _unreachable(error: OSError | TimeoutError) -> tuple[str, str]:
    if isinstance(error, TimeoutError):
        return "no connection in time", "check the network between here and there"
    if isinstance(error, socket.gaierror):
        return "its name is not known", "check url"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or 'no secure connection'}", "check url and certificate"
    if isinstance(error, ConnectionRefusedError):
        return "refused the connection", "is it running, and is the port right?"
    return error.strerror or type(error).__name__, "check url and network"


def _hint(status: int) -> str:
    match status:
        case 401 | 403:
            return "check the key, and what it may do"
        case 402:
            return "the account there has no credit"
        case 404:
            return "check url, and the model's name there"
        case 400 | 422:
            return "check the model's name there, and that it is one for chat"
        case 429:
            return "the account there is over its rate or its quota"
        case 503 | 529:
            return "it is starting or overloaded: try again"
        case _:
            return "look at its log"


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def message_of(body: bytes) -> str:
    """What an answer says of its failure, in one short line; "" for what is no text."""
    try:
        said: Any = json.loads(body)
    except ValueError:
        said = body.decode(errors="replace")
    if isinstance(said, list) and said:
        said = said[0]
    if isinstance(said, dict):
        said = said.get("error", said.get("message", said.get("detail", "")))
    if isinstance(said, dict):
        said = said.get("message", "")
    return " ".join(str(said).split())[:_MESSAGE] if isinstance(said, str) else ""


def _secrets(upstream: Upstream) -> Iterator[str]:
    yield upstream.api_key or ""
    yield (upstream.agent.key if upstream.agent is not None else None) or ""
    yield from upstream.headers.values()
    if upstream.credentials is not None:
        for field in upstream.credentials.__struct_fields__:
            yield getattr(upstream.credentials, field) or ""


def redacted(text: str, upstream: Upstream) -> str:
    """The text without what the upstream's settings have of secrets."""
    for secret in sorted(_secrets(upstream), key=len, reverse=True):
        if len(secret) >= 4:
            text = text.replace(secret, "***")
    return text
