"""A gRPC listener that says whether the gateway may take traffic.

Protocol: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

import asyncio
from collections.abc import Callable

import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health

from forebay.config import Address

POLL_S = 0.25
"""Seconds between two looks at the gateway's state."""


class GrpcServer:
    """Serves `grpc.health.v1.Health` for the whole server (service name "").

    shared: others of our processes serve the address too.
    Raises: OSError when the address cannot be listened on.
    """

    def __init__(
        self, address: Address, ready: Callable[[], bool], *, shared: bool = False
    ) -> None:
        self._ready = ready
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", int(shared)),))
        self._health = health.HealthServicer()
        from grpc_health.v1 import health_pb2_grpc

        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            port = self._server.add_insecure_port(str(address))
        except RuntimeError:
            raise OSError(
                f"cannot listen on {address} for gRPC: it is in use, or not ours"
            ) from None
        self.address = Address(address.host, port)
        self._follow: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, and follow the gateway's state."""
        await self._server.start()
        self._follow = asyncio.create_task(self._run(), name="grpc-health")

    async def stop(self) -> None:
        """Tell clients to go elsewhere, and close."""
        if self._follow is not None:
            self._follow.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace=0.5)

    async def _run(self) -> None:
        status = health_pb2.HealthCheckResponse
        while True:
            await self._health.set("", status.SERVING if self._ready() else status.NOT_SERVING)
            await asyncio.sleep(POLL_S)
