"""The ready file: there while requests are taken."""

from pathlib import Path
from typing import Any

import orjson


def write_ready_file(path: Path, facts: dict[str, Any]) -> None:
    """Write the file whole: whoever waits for it never reads half of it. Readable by us alone."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    part.write_bytes(orjson.dumps(facts))
    part.replace(path)


def remove_ready_file(path: Path) -> None:
    """The gateway takes no more requests."""
    path.unlink(missing_ok=True)
