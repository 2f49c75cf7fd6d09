"""`grpc.health.v1`, for each service and for all together (the name "").

Written anew as that of grpcio-health-checking tells its watchers one after the other under a lock:
one that does not read would hold up what all the others are told.
Protocol: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from grpc_health.v1 import health_pb2 as pb

from forebay._core import Core
from forebay.grpc.call import Context, Handler, Reply, refuse, streaming, unary
from forebay.grpc.models import read_as

SERVICE = "grpc.health.v1.Health"
POLL_S = 0.25
"""Seconds between two looks at how the services are."""

_States = Mapping[str, bool]


class Health:
    """Answers checks and tells watchers of changes.

    look: whether each service serves, by its full name.
    """

    def __init__(self, core: Core, look: Callable[[], _States]) -> None:
        self._core = core
        self._look = look
        self._states: _States = look()
        self._changed = asyncio.Event()
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    def handlers(self) -> dict[str, Handler]:
        """Each method's handler by its full name."""
        watch = streaming(self._core, self._watch, pb.HealthCheckResponse.SerializeToString)
        return {f"/{SERVICE}/Check": unary(self._core, self._check), f"/{SERVICE}/Watch": watch}

    def start(self) -> None:
        """Follow the services."""
        self._task = asyncio.create_task(self._follow(), name="grpc-health")

    def end(self) -> None:
        """Nothing serves any more; watchers are told, and their calls end."""
        if self._task is not None:
            self._task.cancel()
        self._ended = True
        self._set(dict.fromkeys(self._states, False))

    async def _follow(self) -> None:
        while True:
            self._refresh()
            await asyncio.sleep(POLL_S)

    def _refresh(self) -> None:
        states = self._states if self._ended else self._look()
        if states != self._states:
            self._set(states)

    def _set(self, states: _States) -> None:
        self._states = states
        self._changed.set()
        self._changed = asyncio.Event()

    def _state(self, service: str) -> Any:
        serves = self._states.get(service)
        if serves is None:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        status = pb.HealthCheckResponse
        return status.SERVING if serves else status.NOT_SERVING

    async def _check(self, context: Context) -> Reply:
        request = await read_as(pb.HealthCheckRequest, context, self._core)
        self._refresh()
        if request.service not in self._states:
            await refuse(context, self._core, "not_found", "There is no service of that name.")
        answer = pb.HealthCheckResponse(status=self._state(request.service))
        return (), answer.SerializeToString(), ()

    async def _watch(self, context: Context) -> None:
        request = await read_as(pb.HealthCheckRequest, context, self._core)
        self._refresh()
        told = None
        while True:
            changed, ended, state = self._changed, self._ended, self._state(request.service)
            if state != told:
                await context.write(pb.HealthCheckResponse(status=state))
                told = state
            if ended:
                return
            await changed.wait()
