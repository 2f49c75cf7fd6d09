"""The gRPC listener: its services, its bounds, and its end."""

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

# What clients send that is no gRPC is no news, and gRPC's core would write it to stderr.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from forebay.config import Address, Config, parse_address
from forebay.grpc import reflection
from forebay.grpc.accept import Server
from forebay.grpc.admin import Admin
from forebay.grpc.call import Handler
from forebay.grpc.health import SERVICE as HEALTH
from forebay.grpc.health import Health
from forebay.grpc.inference import Inference
from forebay.grpc.models import Models
from forebay.grpc.tls import CertificateFiles

if TYPE_CHECKING:
    from forebay.gateway import Gateway
    from forebay.http.admin import DatabaseSource

INFERENCE = "forebay.v1.InferenceService"
ADMIN = "forebay.v1.AdminService"
STOP_S = 5.0
"""Seconds that answers which are complete have to reach their clients before the end."""
STREAMS = 1000
"""Calls that one connection may have at once."""
KEEPALIVE_S = 60
"""Seconds without a byte after which a connection is asked whether it is alive."""
KEEPALIVE_WAIT_S = 20
PING_S = 10
"""Seconds between pings of clients, at least; a client that pings more often is sent away."""
PING_STRIKES = 3
IDLE_S = 900
"""Seconds after which a connection without calls is closed."""
HANDSHAKE_S = 15


class _Known(logging.Filter):
    """Lets no traceback through for metadata that is not UTF-8: it is read as Latin-1."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Invalid encoding on")


def options(config: Config, *, shared: bool) -> list[tuple[str, Any]]:
    """gRPC's arguments for the listener.

    Source: https://github.com/grpc/grpc/blob/master/include/grpc/impl/channel_arg_names.h
    """
    limits = config.limits
    return [
        ("grpc.so_reuseport", int(shared)),
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.header_bytes),
        ("grpc.absolute_max_metadata_size", limits.header_bytes),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_WAIT_S * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_S * 1000),
        ("grpc.http2.max_ping_strikes", PING_STRIKES),
        ("grpc.max_connection_idle_ms", IDLE_S * 1000),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
    ]


class GrpcServer:
    """Serves `gateway` at the address of its configuration.

    database: what `AdminService` administers. shared: others of our processes serve the address
        too.
    Raises: OSError when the address cannot be listened on or a certificate cannot be read.
    """

    def __init__(
        self, gateway: "Gateway", database: "DatabaseSource", *, shared: bool = False
    ) -> None:
        config = gateway.config
        assert config.listen.grpc is not None
        logging.getLogger("grpc._cython.cygrpc").addFilter(_Known())
        self._gateway = gateway
        self._health = Health(gateway.core, self._look)
        handlers: dict[str, Handler] = {
            **Inference(gateway).handlers(),
            **Models(gateway.core).handlers(),
            **Admin(gateway, database).handlers(),
            **self._health.handlers(),
            **reflection.handlers((INFERENCE, ADMIN, HEALTH)),
        }
        self._server = Server(handlers, options(config, shared=shared))
        self._draining: asyncio.Task[None] | None = None
        self.address = self._listen(config)

    def _listen(self, config: Config) -> Address:
        assert config.listen.grpc is not None
        address = parse_address(config.listen.grpc)
        tls = config.listen.grpc_tls
        try:
            credentials = None if tls is None else CertificateFiles(tls).credentials()
            port = self._server.listen(str(address), credentials)
        except ValueError as error:
            raise OSError(f"listen.grpc_tls: {error}") from None
        except RuntimeError:
            raise OSError(
                f"cannot listen on {address} for gRPC: it is in use, or not ours"
            ) from None
        return Address(address.host, port)

    def _look(self) -> dict[str, bool]:
        health = self._gateway.health()
        stored = not health.checks.get("database", "ok").startswith("down")
        return {
            "": health.ready,
            INFERENCE: health.ready,
            ADMIN: stored and not self._gateway.draining,
        }

    async def start(self) -> None:
        """Listen, and follow the gateway's state."""
        await self._server.start()
        self._health.start()

    def leave(self) -> None:
        """Say that it does not serve; calls are taken all the same."""
        self._health.end()

    async def drain(self, within_s: float) -> None:
        """Take no new connections and calls, and tell clients so; what runs goes on.

        within_s: seconds that it has at most.
        """
        self.leave()
        # Those who watch are told before their connection is.
        await asyncio.sleep(0)
        self._draining = asyncio.create_task(self._server.stop(within_s + STOP_S))

    async def stop(self) -> None:
        """Close. Answers that are complete get `STOP_S` seconds to leave."""
        self._health.end()
        with contextlib.suppress(TimeoutError):
            await self._server.idle(INFERENCE, STOP_S)
        await self._server.stop(0.1)
        if self._draining is not None:
            await self._draining
