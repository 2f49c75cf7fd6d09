"""When a configuration is read again."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from forebay.config import Config, ConfigError
from forebay.reload import LOOK_S, Reloader

from tests.support.virtual_time import run


class Rig:
    """A file whose content is the ``drain_s`` of the configuration, and who reads it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "f"
        self.reads = 0
        self.applied: list[float] = []
        self.write("1")
        self.reloader = Reloader(self.file, self.read)

    def write(self, text: str) -> None:
        self.file.write_text(text)

    def read(self) -> Config:
        self.reads += 1
        try:
            return Config(drain_s=float(self.file.read_text()))
        except (OSError, ValueError):
            raise ConfigError("no number", source="f") from None

    def apply(self, config: Config) -> None:
        if config.drain_s == 13:
            raise ValueError("not that one")
        self.applied.append(config.drain_s)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reloader.run(self.apply))
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    async def at_once(work: object, *arguments: object) -> object:
        return work(*arguments)  # type: ignore[operator]

    # A thread's time is not the loop's.
    monkeypatch.setattr(asyncio, "to_thread", at_once)
    return Rig(tmp_path)


def test_a_file_is_read_once_it_is_still(rig: Rig) -> None:
    async def scene() -> None:
        async with rig.running():
            await asyncio.sleep(60)
            assert rig.reads == 1, "an untouched file is not read again"
            for piece in ("2", "22", "222", "2222"):
                rig.write(piece)
                await asyncio.sleep(LOOK_S)
            await asyncio.sleep(2 * LOOK_S)
            assert rig.applied == [2222]
            other = rig.file.with_name("g")
            other.write_text("3333")
            os.utime(other, ns=(1, rig.file.stat().st_mtime_ns))
            other.rename(rig.file)
            await asyncio.sleep(3 * LOOK_S)
            assert rig.applied == [2222, 3333], "another file in its place, of the same time"
            os.utime(rig.file)
            await asyncio.sleep(3 * LOOK_S)
            assert (rig.reads, rig.applied) == (4, [2222, 3333]), "touched, but the same"

    run(scene())


def test_what_is_refused_leaves_what_was_and_is_not_read_again_for_that(rig: Rig) -> None:
    async def scene() -> None:
        async with rig.running():
            for text in ("x", "13"):
                before = rig.reads
                rig.write(text)
                await asyncio.sleep(30)
                assert rig.reads == before + 1
                assert rig.reloader.state().startswith("degraded: ")
                assert rig.reloader.current == Config(drain_s=1)
            rig.file.unlink()
            await asyncio.sleep(30)
            assert rig.applied == []
            assert 'reloads_total{outcome="refused"} 3' in rig.reloader.figures()
            rig.write("1")
            await asyncio.sleep(3 * LOOK_S)
            assert rig.reloader.state() == "ok"

    run(scene())


def test_a_signal_has_it_read_at_once(rig: Rig) -> None:
    async def scene() -> None:
        async with rig.running():
            await asyncio.sleep(0.1)
            rig.write("5")
            rig.reloader.ask()
            await asyncio.sleep(0.01)
            assert rig.applied == [5]
            await asyncio.sleep(10)
            assert rig.reads == 2

    run(scene())


def test_a_refusal_that_comes_later_brings_the_one_before_back(rig: Rig) -> None:
    async def scene() -> None:
        async with rig.running():
            rig.write("5")
            await asyncio.sleep(3)
        assert rig.reloader.refused("a worker does not take it")
        assert rig.reloader.current == Config(drain_s=1)
        assert not rig.reloader.refused("nor that"), "there is none before"
        assert 'outcome="applied"} 0' in rig.reloader.figures()

    run(scene())


def test_there_may_be_no_file() -> None:
    config = Config()
    reloader = Reloader(None, lambda: msgspec.structs.replace(config, drain_s=2.0))

    async def scene() -> None:
        task = asyncio.create_task(reloader.run(lambda _: pytest.fail("nothing changed")))
        await asyncio.sleep(10)
        assert 'outcome="unchanged"} 0' in reloader.figures()
        task.cancel()

    run(scene())
