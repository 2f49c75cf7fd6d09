"""What a worker makes of a configuration that its supervisor sends."""

import asyncio
import socket

import msgspec
from forebay.config import Config
from forebay.workers.channel import Channel, Kind, Refusal, Reload, Settings
from forebay.workers.seat import Seat


async def test_a_configuration_is_taken_once_or_refused_with_the_reason() -> None:
    ours, theirs = socket.socketpair()
    supervisor = await Channel.open(ours)
    first = Config()
    settings = Settings(config=first, limits_fd=0, folder="/nowhere")
    seat = Seat(0, settings, await Channel.open(theirs))
    taken: list[float] = []
    last = asyncio.Event()

    def reload(config: Config) -> None:
        if config.drain_s == 13:
            raise ValueError("not that one")
        taken.append(config.drain_s)
        if config.drain_s == 6:
            last.set()

    seat.take(
        drain=lambda: None,
        hurry=lambda: None,
        figures=lambda: "",
        drain_upstream=lambda _name, _draining: None,
        reload=reload,
    )

    def send(number: int, drain_s: float, state: str = "ok") -> None:
        config = msgspec.structs.replace(first, drain_s=drain_s)
        told = Reload(number=number, config=config, state=state)
        supervisor.send(Kind.RELOAD, told.encode())

    send(0, first.drain_s, "degraded: refused")
    send(1, 5)
    send(1, 5)
    send(2, 13)
    async with asyncio.timeout(5):
        message = await supervisor.receive()
    assert message is not None
    assert message[0] == Kind.REFUSED
    assert Refusal.decode(message[1]) == Refusal(number=2, reason="not that one")
    assert taken == [5], "what it has already is not taken again"
    assert seat.config.drain_s == 5, "what was refused leaves what was"
    send(3, 5, "degraded: refused")
    send(4, 6, "degraded: still")
    async with asyncio.timeout(5):
        await last.wait()
    assert seat.reload_state() == "degraded: still"
    seat.leave()
    supervisor.close()
