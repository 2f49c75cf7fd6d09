"""The cron lines: whole, and the same jobs as the chart's."""

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.deploy.chart import CHART, DEPLOY

FILES = sorted((DEPLOY / "cron").iterdir())
each = pytest.mark.parametrize("file", FILES, ids=lambda p: p.name)
_RANGES = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]


class Line(NamedTuple):
    when: str
    user: str
    command: str


def _lines(file: Path) -> list[Line]:
    entries = [
        line
        for line in file.read_text().splitlines()
        if line and not line.startswith("#") and not re.match(r"\w+=", line)
    ]
    out = []
    for entry in entries:
        *when, user, command = entry.split(maxsplit=6)
        out.append(Line(" ".join(when), user, command))
    return out


def _arguments(command: str) -> list[str]:
    words = shlex.split(command)
    (at,) = [i for i, word in enumerate(words) if word.rsplit("/", 1)[-1] == "forebay" and i > 0]
    return words[at + 1 :]


@each
def test_lines_are_whole(file: Path) -> None:
    text = file.read_text()
    assert text.endswith("\n")
    # cron takes an unescaped one for a line's end.
    assert "%" not in "".join(line.command for line in _lines(file))
    for line in _lines(file):
        for field, (low, high) in zip(line.when.split(), _RANGES, strict=True):
            for number in re.findall(r"\d+", field):
                assert low <= int(number) <= high
        assert re.fullmatch(r"[a-z]+", line.user)


@each
def test_jobs_are_the_charts(file: Path) -> None:
    jobs: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())["jobs"]
    template = (CHART / "templates" / "cronjobs.yaml").read_text()
    assert '"invoice" "--all" "--month" "last" "--finalize"' in template
    assert [(line.when, _arguments(line.command)) for line in _lines(file)] == [
        (jobs["rollup"]["schedule"], ["rollup", "--since", jobs["rollup"]["since"]]),
        (
            jobs["invoices"]["schedule"],
            ["invoice", "--all", "--month", "last", "--finalize"],
        ),
    ]


def test_a_machines_jobs_get_what_the_unit_gets() -> None:
    unit = (DEPLOY / "systemd" / "forebay-rollup.service").read_text()
    for line in _lines(DEPLOY / "cron" / "forebay"):
        # The environment file is root's alone.
        assert line.user == "root"
        words = shlex.split(line.command)
        assert words[0] == "systemd-run"
        options = [w.removeprefix("--property=").removeprefix("--setenv=") for w in words]
        (file,) = [w for w in options if w.startswith("EnvironmentFile=")]
        assert f"\n{file}\n" in unit
        assert {"--uid=forebay", "--gid=forebay"} <= set(words)
        for variable in ("FOREBAY_CONFIG=", "XDG_STATE_HOME="):
            (setting,) = [w for w in options if w.startswith(variable)]
            assert setting in unit
