"""One table of limits in several processes: exact, also when some are killed."""

import os
import random
import subprocess
import sys
import time

import pytest
from forebay._core import Core, Limiter, SharedLimits

RUN = """
import sys
from forebay._core import Limiter
fd, worker, rounds = map(int, sys.argv[1:4])
limiter = Limiter(rpm=6000, rpm_burst=50_000, concurrency=5, limits_fd=fd, worker=worker)
print("ready", flush=True)
sys.stdin.readline()
admitted = 0
for _ in range(rounds):
    if limiter.admit(7, 0, 1) == 0:
        admitted += 1
        if sys.argv[4] == "hold":
            print("holding", flush=True)
            sys.stdin.readline()
        limiter.settle(7, 0, 0)
print(admitted, flush=True)
"""


class Worker:
    """A process that admits as fast as it can, from when it is told to."""

    def __init__(self, fd: int, number: int, rounds: int, how: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(fd), str(number), str(rounds), how],
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        """Let it run, or go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()
        for end in (self.process.stdin, self.process.stdout):
            assert end is not None
            end.close()

    def admitted(self) -> int:
        """How many it admitted in all."""
        count = int(self.line())
        self.process.communicate()
        return count


def test_processes_admit_the_burst_exactly() -> None:
    shared = SharedLimits(4)
    workers = [Worker(shared.fd, number, 40_000) for number in range(4)]
    for worker in workers:
        worker.go()
    # At a frozen clock: the burst and not one more. A permit may be busy, never the last ones all.
    admitted = sum(worker.admitted() for worker in workers)
    rest = Limiter(rpm=6000, rpm_burst=50_000, concurrency=5, limits_fd=shared.fd, worker=0)
    while rest.admit(7, 0, 1) == 0:
        rest.settle(7, 0, 0)
        admitted += 1
    assert admitted == 50_000
    assert rest.state(7, 1) == (0, None, 0)


def test_a_killed_process_holds_nothing_for_ever() -> None:
    shared = SharedLimits(2)
    other = Limiter(rpm=6000, rpm_burst=50_000, concurrency=5, limits_fd=shared.fd, worker=1)
    held = [Worker(shared.fd, 0, 1, "hold") for _ in range(5)]
    for worker in held:
        worker.go()
        assert worker.line() == "holding"
    assert other.admit(7, 0, 1) > 0
    for worker in held:
        worker.kill()
    assert other.admit(7, 0, 1) > 0, "nobody has said yet that they are dead"
    shared.reclaim(0)
    for _ in range(5):
        assert other.admit(7, 0, 1) == 0
    assert other.admit(7, 0, 1) > 0


def test_kills_at_random_leave_no_lock_and_no_overshoot() -> None:
    shared = SharedLimits(2)
    chance = random.Random(4)
    for _ in range(5):
        worker = Worker(shared.fd, 0, 10_000_000)
        worker.go()
        time.sleep(chance.uniform(0.005, 0.05))
        worker.kill()
        shared.reclaim(0)
    last = Limiter(rpm=6000, rpm_burst=50_000, concurrency=5, limits_fd=shared.fd, worker=1)
    remaining, _, in_flight = last.state(7, 1)
    assert remaining is not None
    assert in_flight == 0
    admitted = 0
    while last.admit(7, 0, 1) == 0:
        last.settle(7, 0, 0)
        admitted += 1
    assert admitted == remaining


def test_what_is_no_table_is_refused() -> None:
    shared = SharedLimits(1)
    with pytest.raises(OSError, match="none of which is number 1"):
        Core(limits_fd=shared.fd, worker=1)
    nothing = os.open(os.devnull, os.O_RDWR)
    with pytest.raises(OSError, match=r"no limit table|Invalid argument"):
        Core(limits_fd=nothing)
    os.close(nothing)
    with pytest.raises(ValueError, match="no descriptor"):
        Core(limits_fd=-1)
    with pytest.raises(ValueError, match="no such worker"):
        shared.reclaim(1)
    with pytest.raises(OSError, match="1 to 256 workers"):
        SharedLimits(0)
