"""Work done once for all who wait for it."""

import asyncio

import pytest
from forebay.workers.channel import Rounds


class Work:
    """Counts its rounds; each ends when the test lets it."""

    def __init__(self) -> None:
        self.begun = 0
        self.let = asyncio.Semaphore(0)

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.let.acquire()
        return number


async def turns() -> None:
    """Let every task go on until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_who_comes_during_a_round_gets_the_next_one() -> None:
    work = Work()
    rounds = Rounds(work)
    first = [asyncio.create_task(rounds.join()) for _ in range(5)]
    await turns()
    assert work.begun == 1
    second = [asyncio.create_task(rounds.join()) for _ in range(5)]
    await turns()
    assert work.begun == 1, "one at a time"
    work.let.release()
    assert await asyncio.gather(*first) == [1] * 5
    await turns()
    assert work.begun == 2, "one for all five"
    work.let.release()
    assert await asyncio.gather(*second) == [2] * 5
    await turns()
    assert work.begun == 2, "none that nobody waits for"


async def test_a_failed_round_fails_its_own_only() -> None:
    outcomes = iter([TimeoutError("x"), 7])

    async def work() -> int:
        outcome = next(outcomes)
        await asyncio.sleep(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    rounds = Rounds(work)
    first = asyncio.create_task(rounds.join())
    await turns()
    with pytest.raises(TimeoutError):
        await first
    assert await rounds.join() == 7


async def test_who_gives_up_leaves_the_round_to_the_others() -> None:
    work = Work()
    rounds = Rounds(work)
    impatient = asyncio.create_task(rounds.join())
    patient = asyncio.create_task(rounds.join())
    await turns()
    impatient.cancel()
    await turns()
    work.let.release()
    assert await patient == 1
