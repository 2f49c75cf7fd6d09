"""The units: what systemd itself says of them, and what the gateway tells the service manager."""

import configparser
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from forebay.config import Config
from forebay.notify import notify
from forebay.workers.supervisor import MARGIN_S

from tests.support.processes import Gateway
from tests.support.upstream import ScriptedUpstream

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
NAMES = sorted(path.name for path in UNITS.iterdir())
ANALYZE = shutil.which("systemd-analyze")

needs_systemd = pytest.mark.skipif(
    ANALYZE is None, reason="systemd-analyze is not installed (Debian: apt-get install systemd)"
)


def unit(name: str) -> configparser.RawConfigParser:
    """A unit's sections; of a setting that stands there twice, the last."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser


def analyze(*arguments: str) -> str:
    """What systemd-analyze prints. Raises: AssertionError where it finds something wrong."""
    assert ANALYZE is not None
    done = subprocess.run(
        [ANALYZE, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_systemd
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    # It looks for the programs too, and forebay is not installed here.
    for name in NAMES:
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/forebay/bin/forebay", "/bin/true"))
    said = analyze("verify", "--man=no", *(str(tmp_path / name) for name in NAMES))
    assert str(tmp_path) not in said, said


@needs_systemd
@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".service")])
def test_the_units_are_hardened(name: str) -> None:
    """Exposure, of 10.0; 20 is 2.0."""
    analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(UNITS / name))


@needs_systemd
def test_the_timers_times() -> None:
    for name in NAMES:
        if name.endswith(".timer"):
            analyze("calendar", unit(name)["Timer"]["OnCalendar"])


def test_there_is_time_to_drain() -> None:
    defaults = Config()
    stop_s = float(unit("forebay.service")["Service"]["TimeoutStopSec"])
    assert stop_s >= defaults.drain_notice_s + defaults.drain_s + MARGIN_S


def test_each_timer_has_its_service() -> None:
    for name in NAMES:
        if name.endswith(".timer"):
            assert name.replace(".timer", ".service") in NAMES


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


@pytest.mark.parametrize("workers", [1, 2])
def test_the_service_manager_is_told(
    tmp_path: Path,
    database_url: str,
    upstream: ScriptedUpstream,
    manager: socket.socket,
    workers: int,
) -> None:
    config = {
        "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
    }
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    process = Gateway(tmp_path / "gateway", config, database_url, env=env, workers=workers)
    process.launch()
    try:
        told = manager.recv(4096).decode().splitlines()
        assert told[0] == "READY=1"
        process.wait_ready()
        assert told[1] == f"STATUS=serving on {process.url}"
        assert process.call("/readyz").status == 200
        assert process.stop() == 0
        assert manager.recv(4096).decode().splitlines()[0] == "STOPPING=1"
        manager.settimeout(0.2)
        with pytest.raises(TimeoutError):
            manager.recv(4096)
    finally:
        process.stop()


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0forebay-test-notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "@forebay-test-notify")
        assert notify("READY=1", "two\nlines")
        assert listening.recv(4096) == b"READY=1\nSTATUS=two lines\n"


@pytest.mark.parametrize("address", ["", "vsock:2:1", "/nobody/there"])
def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1", "serving")
