"""The tests with a real engine; what came of them goes into docs/engine-test.md.

Run by `make engine-test`, which makes the engine's environment. Options are pytest's; with any, the
page stays as it is, since not everything may have run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from tests.engine_real.conftest import why_not
from tests.engine_real.engines import versions

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "engine-test.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
TIMEOUT_S = 3600


@dataclass
class Tally:
    """What came of a file of tests. seconds: of its tests, without what they share."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: int = 0
    seconds: float = 0.0


def tallies(report: ElementTree.Element) -> dict[str, Tally]:
    """By file."""
    found: dict[str, Tally] = defaultdict(Tally)
    for case in report.iter("testcase"):
        tally = found[case.get("classname", "").rsplit(".", 1)[-1]]
        tally.seconds += float(case.get("time", "0"))
        if case.find("failure") is not None or case.find("error") is not None:
            tally.failed.append(case.get("name", ""))
        elif case.find("skipped") is not None:
            tally.skipped += 1
        else:
            tally.passed += 1
    return found


def measured(report: ElementTree.Element) -> list[tuple[str, str]]:
    """What tests noted."""
    return [(p.get("name", ""), p.get("value", "")) for p in report.iter("property")]


def page(report: ElementTree.Element, closing: str) -> str:
    """The results as the page has them."""
    kind, model = os.environ.get("ENGINE", "cpu"), os.environ.get("MODEL") or "the tiny one"
    told = versions(Path(os.environ["FOREBAY_ENGINE_PYTHON"]))
    lines = [
        f"Last run: {datetime.now(UTC):%Y-%m-%d}, ENGINE={kind}, model: {model}, "
        f"{os.cpu_count()} cores; " + ", ".join(f"{name} {v}" for name, v in told.items()) + ".",
        "",
        f"`{closing}`",
        "",
        "| file | passed | failed | skipped | s |",
        "|---|---|---|---|---|",
    ]
    for name, tally in tallies(report).items():
        failed = ", ".join(tally.failed) or "none"
        lines.append(
            f"| `{name}.py` | {tally.passed} | {failed} | {tally.skipped} | {tally.seconds:.0f} |"
        )
    lines += ["", "| measured | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in measured(report)]
    return "\n".join(lines)


def main(options: list[str]) -> int:
    """Run them; pytest's exit status."""
    reason = why_not()
    if reason is not None:
        print(f"engine-test skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="forebay-engine-test-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-v", "-rs", "tests/engine_real"]
        command += ["-o", "junit_family=xunit1", *options]  # the one that has properties
        process = subprocess.Popen(
            [*command, f"--junit-xml={report}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip().strip("= "))
        status = process.wait(TIMEOUT_S)
        if options:
            return status
        closing = next(
            (x for x in reversed(lines) if re.search(r"\d+ (passed|failed|error)", x)), ""
        )
        found = page(ElementTree.parse(report).getroot(), closing)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{found}\n{END}{after}")
    print(found)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
