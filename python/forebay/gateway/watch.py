"""Watching one upstream: how it is, which models it lists, what it has to do, when to wake it."""

import asyncio
import contextlib
import random
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import orjson
import structlog

from forebay.config import Cold, Config
from forebay.gateway import agent, loads, warm_up
from forebay.gateway.agent import Agent, AskAgent, Said
from forebay.gateway.answer import Answer, failure
from forebay.gateway.standing import Found, Standing
from forebay.upstreams import KINDS, describe
from forebay.upstreams.kind import Probe
from forebay.upstreams.listing import model_names

log = structlog.get_logger("forebay.gateway")

RETURN_S = 2.0
"""Seconds at most between two looks at an upstream that is away: its return is noticed as soon."""
FIRST_S = 0.25
"""The same right after it went away."""
LOADING_S = 0.5
"""The same while it is being started: requests wait for it."""
BACK_OFF = 1.5
LOADS_S = 1.0
"""Seconds between two looks at an upstream whose load decides where requests go."""
STILL_WANTED_S = 60.0
"""Seconds after the last request that wanted an engine during which it is looked at for that."""
WAKE_S = 10.0
"""Seconds between two calls to wake an upstream, and the longest wait for their answer."""

_LOAD_POLICIES = ("least_load", "power_of_two", "prefix_affinity")


class Fetch(Protocol):
    """Asks an upstream; None if the question was cancelled."""

    def __call__(
        self, upstream: str, path: str, limit_s: float, method: str, body: bytes | None
    ) -> Awaitable[Answer | None]: ...


class Reports(Protocol):
    """What the core is told and asked; `Core` is one."""

    def report_upstream(self, name: str, state: Any, load: bytes | None) -> bool: ...
    def report_agent(self, name: str, answers: bool) -> bool: ...
    def describe_upstream(self, name: str, said: bytes) -> None: ...
    def take_wanted(self) -> list[str]: ...
    def upstreams(self) -> bytes: ...


class Watch:
    """Follows one upstream of a configuration.

    discovered: the models that upstreams list, by upstream; its own go in there. on_models: called
        when they are others than before. before: what followed it until now, if that was at the
        same address: what is known of it stays.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        core: Reports,
        fetch: Fetch,
        ask_agent: AskAgent,
        discovered: dict[str, list[str]],
        on_models: Callable[[], None],
        clock: Callable[[], float],
        jitter: random.Random | None,
        before: "Watch | None" = None,
    ) -> None:
        settings = config.upstreams[name]
        kind = KINDS[settings.kind]
        cold = settings.cold or (Cold() if kind.starts(settings) else Cold(hold=0))
        self.holds = cold.hold > 0
        self.idle_s = (kind.idle_s if cold.idle is None else cold.idle) if self.holds else 0.0
        self.looked = asyncio.Event()
        self._name = name
        self._config = config
        self._core = core
        self._fetch = fetch
        self._discovered = discovered
        self._on_models = on_models
        self._clock = clock
        # Not for secrets.
        self._jitter = jitter or random.Random()
        self._probe = kind.probe_for(settings)
        self._wake = kind.wake_for(settings) if self.holds else None
        self._discovers = settings.discover and self._probe is not None
        self._listed = before is not None and name in discovered
        self._check_before = None if before is None else before.check
        self._warms_up = self.holds and cold.warm_up
        self._agent = None
        if settings.agent is not None:
            self._agent = Agent(name, settings.agent.member, ask_agent)
        self._said: Said | None = None
        loads_known = self._probe is not None and self._probe.loads is not None
        self._weighs = loads_known or self._agent is not None
        # A port that refuses may be a wrong address: who waits for it has said so.
        awaits = settings.cold is not None and self.holds
        self._standing = Standing(wakes=self._wake is not None, holds=awaits)
        if before is not None:
            self._standing.take_over(before._standing)
        self._refused: int | None = None
        self._described = False
        self._pause_s = FIRST_S
        self._wanted = asyncio.Event()
        self._wanted_at: float = -STILL_WANTED_S if before is None else before._wanted_at
        self._woke_at: float = -WAKE_S if before is None else before._woke_at
        self._waking: asyncio.Task[None] | None = None
        self._told: tuple[str, bool] | None = None
        self._by_load = self._is_by_load()

    def reconfigure(self, config: Config) -> None:
        """Go on under a configuration that says the same of how this upstream is looked at."""
        if config.models != self._config.models:
            self._described = False
        self._config = config
        self._by_load = self._is_by_load()

    def _is_by_load(self) -> bool:
        return self._weighs and any(
            model.policy in _LOAD_POLICIES
            for model in self._config.models.values()
            if any(target.upstream == self._name for target in model.targets)
        )

    @property
    def check(self) -> str:
        """How it is, for `/readyz`."""
        if self._check_before is not None and not self.looked.is_set():
            return self._check_before
        if self._discovers and not self._listed:
            return "down: not ready"
        if self._probe is None or (self._probe.wakes and self._standing.state is None):
            return "ok"
        if self._refused is not None:
            return f"down: its probe was answered with {self._refused}"
        state = self._standing.state
        if state == "warm":
            return "ok"
        if state == "cold":
            return "ok: cold" if self.holds else "down: cold"
        if state == "draining":
            return "down: draining"
        return "down: not ready"

    @property
    def agent_check(self) -> str | None:
        """How its agent is, for `/readyz`; None where it has none."""
        return None if self._agent is None else self._agent.check

    def wanted(self) -> None:
        """A request wants it awake."""
        first = not self._is_wanted()
        self._wanted_at = self._clock()
        if first:
            self._wanted.set()

    def rested(self) -> None:
        """Nobody has used it for so long that it was stopped, as far as can be known."""
        unseen = self._probe is not None and self._probe.wakes
        if unseen and self._standing.state != "cold" and not self._is_wanted():
            self._standing.rested()
            self._tell(None)

    async def run(self) -> None:
        """Look, again and again."""
        if self._probe is None:
            self.looked.set()
            if self._standing.state not in (None, "warm"):
                # It was looked at before; from now on only its requests tell.
                self._core.report_upstream(self._name, "warm", None)
            return
        try:
            while True:
                if self._asks(self._probe):
                    began = self._clock()
                    try:
                        await self._look(self._probe)
                    except Exception as error:  # A fault of ours must not end the upkeep.
                        log.warning("a look failed", upstream=self._name, cause=_cause(error))
                        await asyncio.sleep(RETURN_S)
                        continue
                    finally:
                        self.looked.set()
                    await self._pause(self._probe, self._clock() - began)
                else:
                    self.looked.set()
                    await self._rest()
        finally:
            if self._waking is not None:
                self._waking.cancel()

    def _asks(self, probe: Probe) -> bool:
        """Whether to look now: not at what that alone would start, unless requests want it."""
        if not probe.wakes or (self._discovers and not self._listed):
            return True
        return self._standing.state in ("cold", "loading") and self._is_wanted()

    def _is_wanted(self) -> bool:
        return self._clock() - self._wanted_at < STILL_WANTED_S

    async def _rest(self) -> None:
        if self._standing.state == "loading":
            # It was given up.
            self._standing.rested()
            self._tell(None)
        self._wanted.clear()
        await self._wanted.wait()

    async def _pause(self, probe: Probe, looked_s: float) -> None:
        state = self._standing.state
        if self._standing.doubtful:
            return
        if state == "warm":
            self._pause_s = FIRST_S
            pause_s = min(probe.interval_s, LOADS_S) if self._by_load else probe.interval_s
            if self._agent is not None:
                pause_s = min(pause_s, agent.INTERVAL_S)
        else:
            awaited = state == "loading" or (state == "cold" and self._is_wanted())
            most_s = LOADING_S if awaited else RETURN_S
            pause_s = min(self._pause_s, most_s)
            self._pause_s = min(self._pause_s * BACK_OFF, RETURN_S)
        pause_s *= self._jitter.uniform(0.8, 1.0)
        # The look's own time counts, but one that is slow to answer is not asked all the time.
        pause_s = max(pause_s - looked_s, pause_s / 4)
        self._wanted.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._wanted.wait()
                self._pause_s = FIRST_S

    async def _look(self, probe: Probe) -> None:
        self._call_to_wake()
        self._said = await self._hear()
        before = self._standing.state
        if self._said is not None:
            self._refused = None
            state = self._standing.told(self._said.state)
        else:
            state = self._standing.look(await self._ask(probe), self._clock())
        if state == "warm" and self._discovers and probe.models is not None:
            await self._discover(probe.models)
        if state == "warm" and (self._standing.fresh or not self._described):
            await self._describe(probe)
        # An agent calls an engine warm that has answered already.
        warms_up = self._warms_up and self._said is None
        if state == "warm" and self._standing.fresh and warms_up:
            if before is not None:
                self._core.report_upstream(self._name, "loading", None)
            if not await self._warm_up(probe):
                self._standing.look("loading", self._clock())
        if self._standing.state == "warm":
            self._standing.served()
        if not self._standing.doubtful:
            load = await self._load(probe) if self._standing.state == "warm" else None
            self._tell(load)
        self._call_to_wake()

    async def _hear(self) -> Said | None:
        """What its agent says; None if it has none, or while that is away."""
        if self._agent is None:
            return None
        before = self._agent.answers
        said = await self._agent.state()
        self._core.report_agent(self._name, said is not None)
        if self._agent.answers != before:
            if said is None:
                log.warning("upstream's agent is away", upstream=self._name, cause=self._agent.why)
            else:
                log.info("upstream's agent answers", upstream=self._name)
        return said

    async def _ask(self, probe: Probe) -> Found:
        answer = await self._get(probe.ready, probe.timeout_s)
        self._refused = None
        if answer is None:
            return "closed"
        why = failure(answer)
        if why is not None:
            return "silent" if why == b"upstream_timeout" else "closed"
        status, _, body, _ = answer
        found: Found = probe.judge(status, body)
        if found == "down" and 300 <= status < 400:
            # Modal has an answer fetched elsewhere while it starts.
            return "loading"
        if found == "down" and 400 <= status < 500:
            self._refused = status
            return "refused"
        return found

    async def _get(self, path: str, limit_s: float) -> Answer | None:
        return await self._fetch(self._name, path, limit_s, "GET", None)

    def _tell(self, load: bytes | None) -> None:
        state = self._standing.state
        if state is None:
            return
        self._core.report_upstream(self._name, state, load)
        ready = self.check.startswith("ok")
        if (state, ready) != self._told:
            self._told = (state, ready)
            text = "upstream is ready" if ready else "upstream is not ready"
            log.info(text, upstream=self._name, state=state, refused=self._refused)

    async def _discover(self, path: str) -> None:
        answer = await self._get(path, self._probe.timeout_s if self._probe else RETURN_S)
        if answer is None or answer[0] != 200:
            return
        try:
            models = model_names(answer[2])
        except ValueError as error:
            log.warning("upstream lists no models", upstream=self._name, cause=str(error))
            return
        self._listed = True
        if models != self._discovered.get(self._name):
            self._discovered[self._name] = models
            self._on_models()
            log.info("models discovered", upstream=self._name, models=models)

    async def _describe(self, probe: Probe) -> None:
        """Tell the core what it says of its model; what it does not say is not known."""
        self._described = True
        served = (
            target.model or name
            for name, model in self._config.models.items()
            for target in model.targets
            if target.upstream == self._name
        )
        names = [*served, *self._discovered.get(self._name, [])]
        if probe.info is None or not names:
            return
        info = await self._get(probe.info, probe.timeout_s)
        if info is None or failure(info) is not None:
            self._described = False
            return
        if info[0] != 200:
            return
        embedding, vocab_size = describe.embeds(info[2]), None
        server = await self._get("/server_info", probe.timeout_s)
        if embedding is False and server is not None and describe.checks_bias(server[2]):
            asked = describe.question(names[0])
            said = await self._fetch(self._name, "/v1/completions", probe.timeout_s, "POST", asked)
            vocab_size = None if said is None else describe.vocabulary(said[2])
        # What it says is of one model; which of several is not known.
        told = embedding if len(set(names)) == 1 else None
        said_of = describe.description(names, embedding=told, vocab_size=vocab_size)
        self._core.describe_upstream(self._name, said_of)

    async def _load(self, probe: Probe) -> bytes | None:
        if probe.loads is None:
            return None if self._said is None else self._said.report()
        answer = await self._get(probe.loads, probe.timeout_s)
        return loads.report(answer[2]) if answer is not None and answer[0] == 200 else None

    async def _warm_up(self, probe: Probe) -> bool:
        """Have it answer one token. False: it did not; it refuses or cannot be asked: True."""
        asked = warm_up.request(self._config, self._name, self._discovered.get(self._name, []))
        if asked is None:
            return True
        if probe.info is not None:
            info = await self._get(probe.info, probe.timeout_s)
            if info is None or info[0] != 200 or not warm_up.generates(info[2]):
                return True
        path, body = asked
        began = self._clock()
        answer = await self._fetch(self._name, path, warm_up.LIMIT_S, "POST", body)
        took_s = round(self._clock() - began, 3)
        warm = answer is not None and answer[0] < 500
        log.info("upstream warmed up" if warm else "warm-up failed", upstream=self._name, s=took_s)
        return warm

    def _call_to_wake(self) -> None:
        """Start a call to wake it, if requests want that and none was made just now."""
        now = self._clock()
        due = self._standing.state == "cold" and self._is_wanted() and now - self._woke_at >= WAKE_S
        if not due or not self.holds:
            return
        if self._agent is not None and self._said is not None:
            call = self._wake_by(self._agent)
        elif self._wake is not None:
            self._standing.woken(now)
            call = self._call(self._wake.method, self._wake.path)
        else:
            return
        self._woke_at = now
        self._waking = asyncio.create_task(call, name=f"wake-{self._name}")

    async def _call(self, method: str, path: str) -> None:
        body = orjson.dumps({}) if method == "POST" else None
        answer = await self._fetch(self._name, path, WAKE_S, method, body)
        status = None if answer is None else answer[0]
        log.info("upstream was called to wake", upstream=self._name, status=status)

    async def _wake_by(self, agent: Agent) -> None:
        status = await agent.wake(WAKE_S)
        log.info("upstream's agent was called to wake it", upstream=self._name, status=status)


def _cause(error: Exception) -> str:
    """What was raised, and where; its text may quote an answer."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {where.name}, {Path(where.filename).name}:{where.lineno}"
