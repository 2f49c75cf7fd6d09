"""What bounds waits, and what wakes the loop."""

import asyncio

import pytest
from forebay.grpc.bounded import Bounded
from forebay.grpc.wakeups import _Sockets


async def test_what_comes_in_time_is_given() -> None:
    bounded = Bounded(5)
    assert await bounded.wait(asyncio.sleep(0, "a")) == "a"
    with pytest.raises(KeyError):
        await bounded.wait(_fails())


async def _fails() -> None:
    raise KeyError


async def test_each_wait_has_its_own_end() -> None:
    bounded = Bounded(0.2)
    loop = asyncio.get_running_loop()

    async def late() -> float:
        began = loop.time()
        with pytest.raises(TimeoutError):
            await bounded.wait(asyncio.Event().wait())
        return loop.time() - began

    first = asyncio.create_task(late())
    await asyncio.sleep(0.1)
    # One that ends before its time leaves the timer to the others.
    assert await bounded.wait(asyncio.sleep(0, 1)) == 1
    took = await asyncio.gather(first, late(), late())
    assert all(0.19 < seconds < 2 for seconds in took), took
    # And again, once none was left.
    assert await late() > 0.19


async def test_a_cancelled_wait_is_no_timeout() -> None:
    bounded = Bounded(5)
    task = asyncio.create_task(bounded.wait(asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_wake_up_takes_all_that_is_there() -> None:
    read, write = _Sockets.socketpair()
    with read, write:
        for _ in range(100):
            write.send(b"1")
        assert read.recv(1) == b"1" * 100
        write.send(b"1")
        assert read.recv(1) == b"1"
