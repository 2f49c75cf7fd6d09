"""One engine process: started, warmed, watched, parked, drained and ended."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Literal

from forebay_engine.serve import process, weights
from forebay_engine.serve.client import LOAD_S, Client, NotWarm
from forebay_engine.serve.clock import Changes, Clock, SystemClock, first_of
from forebay_engine.serve.crashes import Crashes
from forebay_engine.serve.ending import finish, report
from forebay_engine.serve.engines import Call, EngineKind, Load
from forebay_engine.serve.gpu import Gpu
from forebay_engine.serve.http import Http, HttpxHttp
from forebay_engine.serve.launch import StartError, check_ports, gpus_of, launch, locate
from forebay_engine.serve.phases import Phases, Timeline
from forebay_engine.serve.plan import conceal
from forebay_engine.serve.profile import Profile
from forebay_engine.serve.warmup import warm_up

State = Literal["cold", "loading", "warm", "draining", "down"]

UNREADY_LOOKS = 3
"""In a row, and a warm engine is not any more, until it says that it is ready again."""


class Supervisor:
    """One engine process.

    `wake` and `park` return when the change has begun, `drain` and `stop` when it is done. All are
    idempotent; use them in one event loop.
    """

    def __init__(
        self,
        profile: Profile,
        kind: EngineKind,
        *,
        clock: Clock | None = None,
        spawn: process.Spawn = process.spawn,
        http: Http | None = None,
        gpus: Sequence[Gpu] | None = None,
        say: Callable[[str], None] | None = None,
        output: tuple[int, int] = (1, 2),
    ) -> None:
        """gpus: None asks the driver. say: where its own messages go; none: stderr.

        Raises ValueError: the extra is not installed.
        """
        self.profile = profile
        self.kind = kind
        self.state: State = "cold"
        self.parked = False
        self.phases = Phases()
        self.preloaded: weights.Preloaded | None = None
        self.exit_status: int | None = None
        """Of the last process; negative: by that signal."""
        self.error = ""
        """Why it is `down`, where nobody asked for that; with the engine's last lines."""
        self.crashes = 0
        self._clock = clock or SystemClock()
        self._spawn = spawn
        self._client = Client(profile, kind, http or HttpxHttp(), self._clock)
        self._gpus = gpus
        self._say = say or _say
        self._output = output
        self._since = self._clock.now()
        self._process: process.Process | None = None
        self._life: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._parking: asyncio.Task[None] | None = None
        self._then: Literal["cold", "down"] = "down"
        """What it is to be when it has ended."""
        self._hurry = asyncio.Event()
        self._gate_open = asyncio.Event()
        self._gated = asyncio.Event()
        self._leaving = False
        self._serving = False
        """The process has been warm: there may be requests."""
        self._changes = Changes(self._clock)
        self._policy = Crashes(profile.restart)

    @property
    def pid(self) -> int | None:
        """Of the engine."""
        return self._process.pid if self._process is not None else None

    @property
    def since_s(self) -> float:
        """Seconds in this state."""
        return self._clock.now() - self._since

    @property
    def load(self) -> Load | None:
        """What it does; None while unknown."""
        return self._client.load

    @property
    def load_age_s(self) -> float | None:
        """How old `load` is."""
        return self._client.load_age_s

    async def wake(self) -> None:
        """Cold or down → loading; parked → its memory again. A draining one is left to end."""
        if self.state not in ("cold", "down") or self._parking is not None:
            return
        self._gate_open.set()
        calls = self.kind.park(self.profile)
        if self.parked and calls is not None:
            self._become("loading")
            self._parking = asyncio.ensure_future(self._resume(calls.resume))
            return
        if self._life is not None:  # it waits at its gate
            self._become("loading")
            return
        self._policy.forget()
        self._begin()

    async def park(self) -> None:
        """Release the memory where the profile enables that, else end the process: → cold.

        With `park: gate` another process is then held before its weights.
        """
        if self.parked or self._parking is not None or self.state in ("draining", "down"):
            return
        if self.state == "cold":
            if self.kind.gate(self.profile) is not None and self._life is None:
                self._gate_open.clear()
                self._begin(gated=True)
            return
        releases = self._serving and self.kind.park(self.profile) is not None
        if releases or self._ending is None:
            self._become("draining")
        self._parking = asyncio.ensure_future(self._park(releases))

    async def drain(self, grace_s: float) -> None:
        """Stop admitting, let requests finish for `grace_s` at most, end the process: → down."""
        await self._end(grace_s, "down")

    async def stop(self) -> None:
        """End the process without waiting for requests: → down."""
        self._hurry.set()
        await self._end(0.0, "down")

    async def wait_for(self, state: State, timeout_s: float) -> None:
        """Return when in `state`. Raises TimeoutError."""
        await self._changes.until(lambda: self.state == state, timeout_s)

    async def wait_parked(self, timeout_s: float) -> None:
        """Return when parked. Raises TimeoutError."""
        await self._changes.until(lambda: self.parked, timeout_s)

    async def failed(self) -> None:
        """Return when it is `down` though nobody asked for that. `error` says why."""
        await self._changes.until(lambda: self.state == "down" and bool(self.error))

    async def close(self) -> None:
        """End all, at once."""
        await self.stop()
        await self._client.http.close()

    # What follows changes the state.

    def _become(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self._since = self._clock.now()
        self._changes.notify()

    def _begin(self, *, gated: bool = False) -> None:
        self._leaving = False
        self._hurry.clear()
        self.error = ""
        if not gated:
            self._become("loading")
        self._life = asyncio.ensure_future(self._live())

    async def _live(self) -> None:
        """Start it, and again when it crashes, until it is to end or crashes in a loop."""
        try:
            while True:
                try:
                    why = await self._once()
                    pause = None if self._leaving else self._policy.crashed(self._clock.now())
                except (StartError, ValueError, FileNotFoundError) as error:
                    why, pause = str(error), None
                except OSError as error:  # a store away, a disk full: that may mend
                    why, pause = str(error), self._policy.crashed(self._clock.now())
                except Exception as error:  # never without a word, nor `loading` for good
                    why = f"{type(error).__name__}: {error}"
                    pause = self._policy.crashed(self._clock.now())
                parked = self.parked and self.kind.park(self.profile) is not None
                self._process = None
                self.parked = False
                self._client.forget()
                if self._leaving:
                    return
                self.crashes = self._policy.total
                if parked and self._parking is None:  # nobody waits for it
                    self._say(f"while parked, {why}")
                    self._life = None
                    self._become("cold")
                    return
                if pause is None:
                    self.error = why
                    self._say(why)
                    self._life = None
                    self._become("down")
                    return
                self._say(f"{why}; it is started again in {pause:g} s")
                if self._gate_open.is_set():
                    self._become("loading")
                await self._clock.sleep(pause)
        finally:
            self._process = None

    async def _once(self) -> str:
        """One process, from its start to its end. Returns how it ended."""
        self._gated.clear()
        self._serving = False
        timeline = Timeline(self.kind.marks, self._clock.now())
        self.phases = timeline.phases
        gate = self.kind.gate(self.profile)
        check_ports(self.profile, None if gate is None else gate.port)
        located = await locate(self.profile, self._say)
        if located.lease is not None:
            timeline.prepared(self._clock.now())
            try:
                return await self._held(located, timeline)
            finally:
                located.lease.close()
        return await self._held(located, timeline)

    async def _held(self, located: weights.Located, timeline: Timeline) -> str:
        """The process, once its weights are at their place."""
        if self._gpus is None:
            self._gpus = await gpus_of(self.profile)

        def on_line(text: str) -> None:
            if "gated" in timeline.line(text, self._clock.now()):
                self._gated.set()

        held = self._process = await launch(
            located.profile,
            self.kind,
            self._gpus,
            on_line=on_line,
            output=self._output,
            spawn=self._spawn,
        )
        timeline.spawned(self._clock.now())
        self.exit_status = None
        preloading = asyncio.ensure_future(self._preload(located))
        exiting = asyncio.ensure_future(held.wait())
        serving = asyncio.ensure_future(self._serve(timeline))
        try:
            await asyncio.wait((exiting, serving), return_when=asyncio.FIRST_COMPLETED)
            why = ""
            if not exiting.done():
                why = _reason(serving)
                held.kill()
            self.exit_status = await exiting
        finally:
            for task in (serving, preloading, exiting):
                task.cancel()
            await asyncio.gather(serving, preloading, exiting, return_exceptions=True)
            held.kill()
        return conceal(report(why, self.exit_status, held.tail()), self.profile)

    async def _preload(self, located: weights.Located) -> None:
        self.preloaded = await weights.preload(located, self.profile.weights)

    async def _serve(self, timeline: Timeline) -> None:
        """From the start to warm, then look at it. Ends only where that fails, by an exception."""
        gate = self.kind.gate(self.profile)
        began = self._clock.now()
        if gate is not None and await self._pass_gate(gate):
            began = self._clock.now()
            timeline.woken(began)
        await self._client.until_ready(self.profile.load_timeout_s, began)
        timeline.ready(self._clock.now())
        await warm_up(
            self._client,
            self.profile,
            self.kind,
            lambda: timeline.first_token(self._clock.now()),
        )
        self._gate_open.set()
        self._serving = True
        if self.state == "loading":
            self._become("warm")
        await self._watch()

    async def _pass_gate(self, gate: Call) -> bool:
        """Returns whether it has waited there for somebody. Raises NotWarm: it does not come."""
        limit = self.profile.load_timeout_s
        coming = asyncio.ensure_future(self._gated.wait())
        try:
            await first_of(self._clock, limit, coming)
        finally:
            coming.cancel()
        if not self._gated.is_set():
            raise NotWarm(f"it was not at its gate within {limit:g} s")
        waits = not self._gate_open.is_set()
        if waits:
            self.parked = True
            self._changes.notify()
            await self._gate_open.wait()
            self.parked = False
        await self._client.open_gate(gate)
        return waits

    async def _watch(self) -> None:
        """Keep `load` fresh, and `warm` true."""
        misses = 0
        since: float | None = None
        while True:
            await self._client.look()
            if not self.parked and self.state in ("warm", "loading") and self._parking is None:
                if await self._client.ready():
                    misses, since = 0, None
                    if self.state == "loading":
                        self._become("warm")
                else:
                    misses += 1
                    since = self._clock.now() if since is None else since
                    if misses >= UNREADY_LOOKS and self.state == "warm":
                        self._say("it does not say that it is ready any more")
                        self._become("loading")
                    limit = self.profile.restart.unready_s
                    if limit is not None and self._clock.now() - since >= limit:
                        raise NotWarm(f"it was not ready for {limit:g} s")
            await self._clock.sleep(LOAD_S)

    async def _resume(self, call: Call) -> None:
        try:
            await self._client.call(call)
            await self._client.until_ready(self.profile.load_timeout_s)
            self.parked = False
            self._become("warm")
        except NotWarm as error:
            self._say(f"its memory cannot be taken again ({error}); it is started anew")
            self.parked = False
            if self._process is not None:
                self._process.kill()
        finally:
            self._parking = None

    async def _park(self, releases: bool) -> None:
        grace = self.profile.drain.grace_s
        calls = self.kind.park(self.profile)
        try:
            if releases and calls is not None and await self._release(calls.release, grace):
                self.parked = True
                self._client.forget()
                self._become("cold")
                return
            if self._ending is None:
                await self._end(grace, "cold")
            if self.state == "cold" and self.kind.gate(self.profile) is not None:
                self._gate_open.clear()
                self._begin(gated=True)
        finally:
            self._parking = None

    async def _release(self, call: Call, grace_s: float) -> bool:
        deadline = self._clock.now() + grace_s
        await self._clock.sleep(min(self.profile.drain.settle_s, grace_s))
        await self._client.until_idle(
            deadline, lambda: self._ending is not None or self._process is None
        )
        if self._ending is not None or self._process is None:
            return False
        try:
            await self._client.call(call)
        except NotWarm as error:
            self._say(f"its memory cannot be released: {error}")
            return False
        return True

    async def _end(self, grace_s: float, then: Literal["cold", "down"]) -> None:
        if then == "down" and self._parking is not None:
            self._parking.cancel()
            self._parking = None
        if self._ending is None or then == "down":
            self._then = then
        if self._ending is None:
            if self._life is not None:
                self._leaving = True
                self._become("draining")
            self._ending = asyncio.ensure_future(self._finish(grace_s))
        await asyncio.shield(self._ending)

    async def _finish(self, grace_s: float) -> None:
        try:
            life, held = self._life, self._process
            if life is not None:
                if held is None:  # it syncs weights, or waits to be started again
                    life.cancel()
                else:
                    serves = self._serving and not self.parked
                    await finish(
                        held,
                        drain=self.profile.drain,
                        grace_s=grace_s if serves else 0.0,
                        kind=self.kind,
                        client=self._client,
                        clock=self._clock,
                        hurry=self._hurry,
                        say=self._say,
                    )
                await asyncio.gather(life, return_exceptions=True)
            self._life = None
            self.parked = False
            self._become(self._then)
        finally:
            self._ending = None


def _reason(serving: asyncio.Future[None]) -> str:
    """Why an engine that lives is given up."""
    error = serving.exception()
    return str(error) if error is not None else "it was let go"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"forebay-engine serve: {text}", file=sys.stderr, flush=True)
