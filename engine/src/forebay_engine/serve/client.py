"""What a running engine is asked: is it ready, what does it do, and its control calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from forebay_engine.serve.engines import Call, EngineKind, Load
from forebay_engine.serve.http import Http, Unanswered

if TYPE_CHECKING:
    from forebay_engine.serve.clock import Clock
    from forebay_engine.serve.profile import Profile

PROBE_S = 0.2
"""Between looks at the ready path while it loads."""
LOAD_S = 1.0
"""Between looks at load and readiness while it is warm."""
GATE_S = 30.0
"""For a gate to listen after it was announced."""
PARK_CALL_S = 120.0
"""For releasing or resuming memory: tens of GB cross the bus."""


class NotWarm(Exception):
    """It lives, and does not serve."""


class Client:
    """One engine, over HTTP on this machine."""

    def __init__(self, profile: Profile, kind: EngineKind, http: Http, clock: Clock) -> None:
        self._profile = profile
        self._kind = kind
        self._clock = clock
        self.http = http
        self.load: Load | None = None
        """What it said last."""
        self._load_at: float | None = None

    @property
    def load_age_s(self) -> float | None:
        """How old `load` is."""
        return None if self._load_at is None else self._clock.now() - self._load_at

    def forget(self) -> None:
        """Another engine stands there now, or none."""
        self.load = self._load_at = None

    @property
    def authorization(self) -> dict[str, str]:
        """The header with the engine's key, where it has one."""
        key = self._profile.api_key
        return {} if key is None else {"authorization": f"Bearer {key}"}

    async def ready(self) -> bool:
        """Whether its ready path says so. Never raises for what the engine does."""
        try:
            status, _ = await self._get(self._kind.ready_path)
        except Unanswered:
            return False
        return status == 200

    async def until_ready(self, timeout_s: float, began: float | None = None) -> None:
        """Look until it is; the time counts from `began`, or now. Raises NotWarm: too late."""
        deadline = (self._clock.now() if began is None else began) + timeout_s
        while not await self.ready():
            if self._clock.now() >= deadline:
                raise NotWarm(f"it was not ready within {timeout_s:g} s")
            await self._clock.sleep(PROBE_S)

    async def look(self) -> bool:
        """Ask for its load. What it does not say leaves `load` as it was, ever older.

        Returns whether it has answered (TensorRT-LLM's says nothing where there is nothing new).
        """
        if self._kind.load_path is None:
            return False
        try:
            status, body = await self._get(self._kind.load_path)
        except Unanswered:
            return False
        found = self._kind.load(body) if status == 200 else None
        if found is not None:
            self.load, self._load_at = found, self._clock.now()
        return status == 200

    async def until_idle(
        self, deadline: float, given_up: Callable[[], bool] = lambda: False
    ) -> None:
        """Look until nothing runs or waits, twice in a row: engines tell their load late.

        An engine that does not tell its load may be at work: that is waited for to the deadline.
        """
        idle = 0
        while idle < 2 and self._clock.now() < deadline and not given_up():
            told, load = await self.look(), self.load
            nothing = told and load is not None and load.running == 0 and load.queued == 0
            idle = idle + 1 if nothing else 0
            await self._clock.sleep(LOAD_S)

    async def open_gate(self, call: Call) -> None:
        """Let an engine on that has said that it waits: its gate may come to listen after that.

        Raises NotWarm: it was not there, or said no.
        """
        deadline = self._clock.now() + GATE_S
        while True:
            try:
                return await self._control(call, PARK_CALL_S)
            except Unanswered as error:
                if self._clock.now() >= deadline:
                    raise NotWarm(f"it cannot be let on: {error}") from None
            await self._clock.sleep(PROBE_S)

    async def call(self, call: Call, timeout_s: float = PARK_CALL_S) -> None:
        """A control call. Raises NotWarm: it was not answered with 200."""
        try:
            await self._control(call, timeout_s)
        except Unanswered as error:
            raise NotWarm(str(error)) from None

    async def _control(self, call: Call, timeout_s: float) -> None:
        url = self._profile.url
        if call.port is not None:
            url = url.rpartition(":")[0] + f":{call.port}"
        headers = {"content-type": "application/json", **self.authorization}
        status, _ = await self.http.request(
            "POST", url + call.path, body=call.data(), headers=headers, timeout_s=timeout_s
        )
        if status != 200:
            raise NotWarm(f"{call.path} answered {status}")

    async def _get(self, path: str) -> tuple[int, bytes]:
        return await self.http.request(
            "GET", self._profile.url + path, headers=self.authorization, timeout_s=5.0
        )
