"""The acceptance run of the limits, short: full speed, one worker killed, no request too many."""

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "benches" / "load" / "limits.py"


def test_the_bound_holds_while_a_worker_is_killed(database_url: str) -> None:
    command = [sys.executable, str(BENCH), "--database-url", database_url, "--workers", "3"]
    options = ["--seconds", "6", "--kill-every", "4", "--connections", "100"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:-1])
    assert rows["above it"] == "0"
    assert rows["workers killed / taking requests at the end"] == "1 / 3"
    assert rows["of them others"] == "0"
    assert float(rows["of it used"].rstrip("%")) > 80, "the load was heavy enough to tell"
