"""What a process holds in memory."""

from pathlib import Path


def anonymous_bytes(pid: int) -> int:
    """Its own memory: without copies of files' pages, as a spool's are."""
    return _bytes(pid, "RssAnon")


def resident_bytes(pid: int) -> int:
    """All of its memory."""
    return _bytes(pid, "VmRSS")


def _bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"the system does not tell {name} of process {pid}")
