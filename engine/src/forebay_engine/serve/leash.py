"""Holds an engine for its supervisor: run as a script, `leash.py REPORT_FD PARENT GRACE ARGV…`.

It stands between the two as a process of its own, because engines have children that outlive them:
the scheduler of a killed SGLang keeps the GPU's memory and its port. This process adopts what is
orphaned below it (PR_SET_CHILD_SUBREAPER), and when the engine has ended kills all that is left. It
is told by the kernel when the supervisor dies (PR_SET_PDEATHSIG), even by kill -9, and then ends
the engine: SIGTERM, and SIGKILL after GRACE seconds. If it is killed itself, the engine is too.
SIGTERM of others (a service manager's to the whole group, say) is the supervisor's to act on.

On REPORT_FD it says `pid N`, and in the end `exit N` (negative: by that signal).

Started with `python -I -S`: only what comes with the interpreter is imported, 20 ms of CPU.
"""

import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SWEEP_S = 5.0
"""For what is left to be gone after SIGKILL; an uninterruptible call may take longer."""

_HELD = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _children() -> list[int]:
    """From all of /proc: not every kernel, nor gVisor, has a list of children."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == os.getpid():
                found.append(int(name))
    return found


def _kill(pid: int) -> None:
    """A negative one is a process group. It may be gone."""
    try:  # noqa: SIM105 (contextlib takes a third of the start)
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass


def _sweep(group: int) -> None:
    """Kill the engine's process group and every descendant, level by level, and reap them."""
    _kill(-group)
    deadline = time.monotonic() + SWEEP_S
    while time.monotonic() < deadline:
        for pid in _children():
            _kill(pid)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _engine(argv: list[str], leash: int) -> None:
    """Become the engine. Does not return."""
    try:
        os.setsid()
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != leash:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def main(report: int, parent: int, grace: float, argv: list[str]) -> int:
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked to be told
        return 1
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    os.set_inheritable(report, False)
    leash = os.getpid()
    pid = os.fork()
    if pid == 0:
        _engine(argv, leash)
    os.write(report, f"pid {pid}\n".encode())
    # The engine's output has to end with the engine, not with us.
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    deadline = None
    while True:
        signal.sigtimedwait(_HELD, 1.0)
        if deadline is None and os.getppid() != parent:
            deadline = time.monotonic() + grace
            os.kill(pid, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _sweep(pid)
            return 1
        while True:
            try:
                found, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                found = 0
            if found == pid:
                _sweep(pid)
                os.write(report, f"exit {os.waitstatus_to_exitcode(status)}\n".encode())
                return 0
            if not found:
                break


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
