"""The port serves what the core asks, whatever its handlers do."""

import asyncio
from collections.abc import Awaitable, Callable

from forebay.gateway.asks import Unanswerable
from forebay.gateway.port import ENDINGS, Port

Asks = list[tuple[int, str, bytes]]


class Core:
    """Asks as the core does, and remembers the replies."""

    def __init__(self) -> None:
        self.replies: dict[int, bytes | None] = {}
        self._asks: Asks = []
        self._future: asyncio.Future[Asks] | None = None
        self.broken = 0
        self.replied = asyncio.Event()

    def ask(self, *asks: tuple[int, str, bytes]) -> None:
        self._asks += asks
        if self._future is not None and not self._future.done():
            self._future.set_result(self._asks)
            self._asks = []

    def asks(self) -> Asks | asyncio.Future[Asks]:
        if self.broken:
            self.broken -= 1
            raise RuntimeError("broken")
        if self._asks:
            taken, self._asks = self._asks, []
            return taken
        self._future = asyncio.get_running_loop().create_future()
        return self._future

    def close(self) -> None:
        assert self._future is not None
        self._future.cancel()

    def reply(self, ticket: int, payload: bytes | None) -> None:
        assert ticket not in self.replies
        self.replies[ticket] = payload
        self.replied.set()


async def echo(payload: bytes) -> bytes:
    return payload


async def fail(payload: bytes) -> bytes:
    raise RuntimeError("boom")


async def refuse(payload: bytes) -> bytes:
    raise Unanswerable("the database is away")


async def settled(core: Core, count: int) -> None:
    async with asyncio.timeout(5):
        while len(core.replies) < count:
            core.replied.clear()
            await core.replied.wait()


async def test_each_ask_gets_its_answer_or_has_failed() -> None:
    core = Core()
    port = Port(core, {"echo": echo, "fail": fail, "refuse": refuse})
    port.start()
    core.ask((1, "echo", b"one"), (2, "fail", b""), (3, "refuse", b""), (4, "nobody", b""))
    await settled(core, 4)
    core.ask((5, "echo", b"five"))
    await settled(core, 5)
    assert core.replies == {1: b"one", 2: None, 3: None, 4: None, 5: b"five"}
    await port.stop()


async def test_an_ask_that_waits_holds_up_no_other() -> None:
    core, free = Core(), asyncio.Event()

    async def wait(payload: bytes) -> bytes:
        await free.wait()
        return payload

    port = Port(core, {"echo": echo, "wait": wait}, most=3)
    port.start()
    core.ask((1, "wait", b"a"), (2, "wait", b"b"), (3, "echo", b"c"))
    await settled(core, 1)
    assert core.replies == {3: b"c"}
    # No more than so many at a time: others are told at once.
    core.ask((4, "wait", b"d"), (5, "wait", b"e"))
    await settled(core, 2)
    assert core.replies == {3: b"c", 5: None}
    assert port.busy == 3
    free.set()
    await settled(core, 5)
    assert core.replies == {1: b"a", 2: b"b", 3: b"c", 4: b"d", 5: None}
    await port.stop()


async def test_what_makes_room_is_always_taken() -> None:
    core, free = Core(), asyncio.Event()

    async def wait(payload: bytes) -> bytes:
        await free.wait()
        return payload

    endings = {kind: wait for kind in ENDINGS}
    port = Port(core, {"echo": echo, "wait": wait, **endings}, most=1)
    port.start()
    core.ask(*((number, kind, b"") for number, kind in enumerate(sorted(ENDINGS))))
    core.ask((10, "wait", b""), (11, "wait", b""))
    await settled(core, 1)
    assert core.replies == {11: None}, "one of the others has its place"
    free.set()
    await settled(core, 2 + len(ENDINGS))
    core.ask((12, "echo", b"e"))
    await settled(core, 3 + len(ENDINGS))
    assert [ticket for ticket, reply in core.replies.items() if reply is None] == [11]
    await port.stop()


async def test_what_the_core_does_not_end_it() -> None:
    core = Core()
    core.broken = 1
    core.ask((1, "echo", b"one"))
    port = Port(core, {"echo": echo})
    port.start()
    await settled(core, 1)
    core.ask((2, "echo", b"two"))
    await settled(core, 2)
    core.close()
    await port.stop()


async def test_the_end_waits_a_moment_for_what_runs() -> None:
    core, begun = Core(), asyncio.Event()

    def after(wait_s: float) -> Callable[[bytes], Awaitable[bytes]]:
        async def handler(payload: bytes) -> bytes:
            begun.set()
            await asyncio.sleep(wait_s)
            return payload

        return handler

    port = Port(core, {"soon": after(0.01), "never": after(1e6)})
    port.start()
    core.ask((1, "soon", b"a"), (2, "never", b"b"))
    await begun.wait()
    await port.stop(0.1)
    assert core.replies == {1: b"a", 2: None}
    assert port.busy == 0
