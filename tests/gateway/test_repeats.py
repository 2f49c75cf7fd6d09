"""Requests with a key, in virtual time: each is worked on once, and whoever waits gets to know."""

import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from forebay.config import Idempotency
from forebay.gateway.asks import Unanswerable, pack, unpack
from forebay.gateway.idempotency import Repeats
from forebay.store.idempotency import AnswerHead
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.idempotency import MemoryStore, answer
from tests.support.virtual_time import run

SETTINGS = Idempotency(lease_s=10, ttl_s=1000, max_answer_bytes=4096)


class Process:
    """One gateway's requests with keys, as the core asks about them."""

    def __init__(self, store: MemoryStore, **options: Any) -> None:
        self.repeats = Repeats(lambda: store, lambda: SETTINGS, **options)

    async def ask(self, kind: str, body: bytes = b"", **head: Any) -> tuple[dict[str, Any], bytes]:
        payload = await self.repeats.handlers[f"idempotency.{kind}"](pack(head, body))
        return unpack(payload, dict[str, Any]) if payload else ({}, b"")

    async def begin(
        self, key: str = "k", *, body: int = 1, wait_s: float = 60, owner: UUID | None = None
    ) -> tuple[dict[str, Any], bytes]:
        return await self.ask(
            "begin",
            account="acme",
            key=key,
            fingerprint=f"{body:064x}",
            owner=owner or uuid4(),
            wait_s=wait_s,
        )

    async def finish(self, owner: UUID, text: str | None = "hello") -> None:
        if text is None:
            await self.ask("finish", owner=owner, answer=None)
        else:
            kept = answer(text)
            await self.ask("finish", kept.body, owner=owner, answer=kept.head)

    async def leave(self, owner: UUID) -> None:
        await self.ask("leave", owner=owner)


@asynccontextmanager
async def processes(count: int = 1, **options: Any) -> Any:
    """So many, on one store; they end with the block."""
    store = MemoryStore(asyncio.get_running_loop().time)
    all_ = [Process(store, **options) for _ in range(count)]
    for one in all_:
        one.repeats.start()
    yield store, *all_
    for one in all_:
        await one.repeats.stop()


def test_the_first_runs_and_a_repeat_gets_its_answer() -> None:
    async def main() -> None:
        async with processes() as (_, one):
            owner = uuid4()
            assert await one.begin(owner=owner) == ({"do": "run", "max_bytes": 4096}, b"")
            assert one.repeats.running == 1
            await one.finish(owner)
            assert one.repeats.running == 0
            said, body = await one.begin()
            assert said["do"] == "replay"
            assert msgspec.convert(said["answer"], AnswerHead) == answer().head
            assert body == b"hello"
            assert (await one.begin(body=2))[0] == {"do": "reused"}

    run(main())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_repeats_wait_for_the_one_that_runs(elsewhere: bool) -> None:
    async def main() -> None:
        async with processes(2) as (store, one, two):
            owner = uuid4()
            await one.begin(owner=owner)
            there = two if elsewhere else one
            waiting = [asyncio.create_task(there.begin()) for _ in range(20)]
            await asyncio.sleep(25)  # longer than a lease: it is renewed
            assert not any(task.done() for task in waiting)
            asked = store.claims
            await one.finish(owner, "late")
            before = asyncio.get_running_loop().time()
            assert {body for _, body in await asyncio.gather(*waiting)} == {b"late"}
            assert asyncio.get_running_loop().time() - before <= (0.2 if elsewhere else 0)
            # Each has asked at its start and at the end, and not in between.
            assert store.claims == asked + 20

    run(main())


def test_what_was_given_up_is_taken_over_by_one_that_waits() -> None:
    async def main() -> None:
        async with processes(2) as (_, one, two):
            owner = uuid4()
            await one.begin(owner=owner)
            waiting = [asyncio.create_task(two.begin()) for _ in range(3)]
            await asyncio.sleep(1)
            await one.leave(owner)
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result()[0]["do"] for task in done] == ["run"]
            await asyncio.sleep(1)
            assert sum(task.done() for task in waiting) == 1
            for task in waiting:
                task.cancel()

    run(main())


def test_a_process_that_died_is_taken_over_from_when_its_lease_lapses() -> None:
    async def main() -> None:
        async with processes(1) as (store, two):
            dead = Process(store)  # its upkeep never began
            await dead.begin()
            began = asyncio.get_running_loop().time()
            assert (await two.begin())[0]["do"] == "run"
            assert 10 <= asyncio.get_running_loop().time() - began < 10.5

    run(main())


def test_who_waits_too_long_is_told() -> None:
    async def main() -> None:
        async with processes() as (_, one):
            await one.begin()
            began = asyncio.get_running_loop().time()
            assert (await one.begin(wait_s=7))[0] == {"do": "busy"}
            assert asyncio.get_running_loop().time() - began == pytest.approx(7)

    run(main())


def test_no_more_than_so_many_wait() -> None:
    async def main() -> None:
        async with processes(max_waiting=3, max_waiting_for_one=2) as (_, one):
            for key in "abc":
                await one.begin(key)
            said = [asyncio.create_task(one.begin(key)) for key in "aaabcc"]
            await asyncio.sleep(1)
            assert [task.done() for task in said] == [False, False, True, False, True, True]
            for task in said:
                task.cancel()
            await asyncio.gather(*said, return_exceptions=True)
            # Those that went make room.
            waits = asyncio.create_task(one.begin("c"))
            await asyncio.sleep(1)
            assert not waits.done()
            waits.cancel()

    run(main())


def test_who_may_not_wait_leaves_no_name() -> None:
    async def main() -> None:
        async with processes(max_waiting=0) as (_, one):
            await one.begin()
            assert (await one.begin())[0] == {"do": "busy"}
            assert not one.repeats._waiting

    run(main())


def test_the_end_waits_no_longer_than_so_for_a_store_that_hangs() -> None:
    async def main() -> None:
        async with processes() as (store, one):
            for number in range(10):
                await one.begin(str(number))

            async def hang(claim: Any) -> None:
                await asyncio.sleep(5)

            store.release = hang
            began = asyncio.get_running_loop().time()
            await one.repeats.stop()
            assert asyncio.get_running_loop().time() - began <= 2
            assert one.repeats.running == 0

    run(main())


def test_a_client_that_leaves_while_it_waits_leaves_nothing() -> None:
    async def main() -> None:
        async with processes() as (store, one):
            first, second = uuid4(), uuid4()
            await one.begin(owner=first)
            waiting = asyncio.create_task(one.begin(owner=second))
            await asyncio.sleep(1)
            await one.leave(second)
            assert (await waiting)[0] == {"do": "left"}
            await one.leave(uuid4())
            await one.leave(first)
            assert not store.rows

    run(main())


def test_a_client_that_leaves_while_the_store_is_asked_leaves_nothing() -> None:
    async def main() -> None:
        async with processes() as (store, one):
            asked, claim = asyncio.Event(), store.claim

            async def slow(*args: Any, **options: Any) -> Any:
                verdict = await claim(*args, **options)
                asked.set()
                await asyncio.sleep(5)
                return verdict

            store.claim = slow
            owner = uuid4()
            begin = asyncio.create_task(one.begin(owner=owner))
            await asked.wait()
            await one.leave(owner)
            assert (await begin)[0] == {"do": "left"}
            assert not store.rows
            assert one.repeats.running == 0

    run(main())


def test_without_the_database_nothing_is_said() -> None:
    async def main() -> None:
        async with processes() as (store, one):
            owner = uuid4()
            await one.begin("held", owner=owner)
            waiting = asyncio.create_task(one.begin("held"))
            await asyncio.sleep(1)
            store.away = True
            with pytest.raises(Unanswerable):
                await one.begin("new")
            await asyncio.sleep(5)
            store.away = False
            # The lease has outlived that, and so has who waits.
            assert not waiting.done()
            await asyncio.sleep(20)
            assert not waiting.done()
            store.away = True
            with pytest.raises(Unanswerable):
                await one.finish(owner)
            with pytest.raises(Unanswerable):
                await waiting
            assert one.repeats.running == 0
            store.away = False
            # What could not be kept is worked on again, once its lease has lapsed.
            assert (await one.begin("held"))[0]["do"] == "run"

    run(main())


def test_before_the_database_was_ever_reached() -> None:
    async def main() -> None:
        one = Repeats(lambda: None, lambda: SETTINGS)
        begin = {"account": "a", "key": "k", "fingerprint": "00" * 32, "wait_s": 1}
        with pytest.raises(Unanswerable):
            await one.handlers["idempotency.begin"](pack({**begin, "owner": uuid4()}))

    run(main())


def test_the_end_of_a_process_gives_up_what_runs() -> None:
    async def main() -> None:
        async with processes(2) as (_, one, two):
            await one.begin()
            waiting = asyncio.create_task(two.begin())
            await asyncio.sleep(1)
            began = asyncio.get_running_loop().time()
            await one.repeats.stop()
            assert (await waiting)[0]["do"] == "run"
            assert asyncio.get_running_loop().time() - began <= 0.2

    run(main())


class Work:
    """What clients did and what came of it, over processes that die."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.done: list[bytes] = []
        self.running: set[UUID] = set()
        self.outcomes: Counter[str] = Counter()

    async def client(self, one: Process, deaths: bool) -> None:
        owner = uuid4()
        said, body = await one.begin(owner=owner, wait_s=500)
        self.outcomes[said["do"]] += 1
        if said["do"] == "replay":
            # Never another answer than the first that was kept.
            assert body == self.done[0]
            return
        assert said["do"] == "run"
        assert not self.running
        assert not self.done
        self.running.add(owner)
        await asyncio.sleep(self.random.choice([0, 0.5, 15, 40]))
        end = self.random.random()
        self.running.discard(owner)
        if deaths and end < 0.3:
            # Nobody renews its lease any more, and nobody says anything.
            one.repeats._running.pop(owner)
            return
        if end < 0.5:
            await one.leave(owner)
            return
        self.done.append(owner.bytes)
        kept = answer()
        await one.ask("finish", owner.bytes, owner=owner, answer=kept.head)


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=60, deadline=None)
def test_whoever_dies_no_two_work_on_one_request(seed: int, deaths: bool) -> None:
    async def main() -> None:
        work = Work(seed)
        async with processes(3) as (_, *all_):
            clients = []
            for _ in range(12):
                clients.append(asyncio.create_task(work.client(work.random.choice(all_), deaths)))
                await asyncio.sleep(work.random.choice([0, 0, 0.3, 7]))
            async with asyncio.timeout(600):
                await asyncio.gather(*clients)
            assert len(work.done) <= 1
            assert sum(work.outcomes.values()) == 12
            if work.done:
                said, body = await all_[0].begin()
                assert (said["do"], body) == ("replay", work.done[0])

    run(main())
