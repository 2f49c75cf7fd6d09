"""What `forebay-engine warm --measure` finds, with a simulated engine that is really started."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import msgspec
import pytest
from forebay_engine.cli import main
from forebay_engine.serve.engines import Call, ParkCalls, make
from forebay_engine.serve.profile import Profile
from forebay_engine.warm import measure
from forebay_engine.warm.measure import Measured, lines, report, rows
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.test_warm_runner import simulated


def test_what_is_in_no_stage_is_told() -> None:
    phases = {"process": 0.5, "import": 4.0, "weights": None, "ready": 6.0, "first_token": 6.5}
    assert rows(phases) == {
        "process": 0.5,
        "import": 4.0,
        "ready": 6.0,
        "first_token": 6.5,
        "other": 1.5,
    }
    assert rows({"ready": None}) == {}


def test_savings_are_against_a_cold_start() -> None:
    runs = {
        "cold": [{"import": 20.0, "first_token": 30.0}, {"import": 22.0, "first_token": 34.0}],
        "caches": [{"import": 5.0, "first_token": 10.0}],
        "resume": [{"ready": 0.5}],
    }
    told = report(Measured(runs, {}))
    assert told["ways"]["caches"]["saved_s"] == 22.0
    assert told["ways"]["resume"]["saved_s"] == 31.5
    assert lines(told) == [
        ["seconds", "cold", "caches", "resume"],
        ["import", "21.00 (20.00..22.00)", "5.00 (5.00..5.00)", "-"],
        ["ready", "-", "-", "0.50 (0.50..0.50)"],
        ["first_token", "32.00 (30.00..34.00)", "10.00 (10.00..10.00)", "-"],
        ["total", "32.00 (30.00..34.00)", "10.00 (10.00..10.00)", "0.50 (0.50..0.50)"],
        ["saved", "0.00", "22.00", "31.50"],
    ]


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_median_lies_between_the_least_and_the_greatest(values: list[float]) -> None:
    found = measure.spread(values)
    assert found["min"] <= found["median"] <= found["max"]


def test_files_are_read_and_forgotten_and_stay(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    file = tmp_path / "below" / "weights.safetensors"
    file.write_bytes(b"x" * 10_000)
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    measure.keep([tmp_path])
    measure.evict([tmp_path])
    assert file.read_bytes() == b"x" * 10_000


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not this environment, which other tests run in, is forgotten, but a folder of one file."""
    folder = tmp_path / "environment"
    folder.mkdir()
    (folder / "module.py").write_text("pass")
    monkeypatch.setattr(measure, "read_by", lambda *_: [folder])


def test_a_start_reads_its_model_and_its_environment(tmp_path: Path) -> None:
    of = msgspec.structs.replace(simulated(1), model=str(tmp_path))
    environment = tmp_path / "venv"
    for name in ("bin", "lib"):
        (environment / name).mkdir(parents=True)
    (environment / "pyvenv.cfg").touch()
    argv = [str(environment / "bin" / "python")]
    assert measure.read_by(of, argv) == [tmp_path, environment / "lib"]
    assert measure.read_by(msgspec.structs.replace(of, model="org/m"), ["/bin/true"]) == []


@pytest.mark.usefixtures("small")
def test_it_starts_an_engine_in_each_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    of = simulated(1, "--enable-memory-saver")
    document = {
        "kind": "sglang",
        "model": "tiny",
        "port": of.port,
        "command": list(of.command),
        "park": "memory",
        "drain": {"settle_s": 0.0, "kill_s": 5},
    }
    file = tmp_path / "profile.yaml"
    file.write_text(json.dumps(document))
    assert main(["warm", "--profile", str(file), "--measure", "1", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert list(told["ways"]) == ["cold", "page cache", "caches", "resume"]
    for name in ("cold", "page cache", "caches"):
        stages = told["ways"][name]["stages"]
        assert 0.3 <= stages["ready"]["median"] <= stages["first_token"]["median"]
    assert told["ways"]["resume"]["total"]["median"] < told["ways"]["caches"]["total"]["median"]


@pytest.mark.usefixtures("small")
def test_an_engine_that_does_not_start_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "profile.yaml"
    of = {"kind": "sglang", "model": "m", "command": ["false"], "restart": {"max_crashes": 0}}
    file.write_text(json.dumps(of))
    assert main(["warm", "--profile", str(file), "--measure", "1"]) == 1
    assert "the engine did not start" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--measure", "0"], "--measure: must be at least 1"),
        (["--json"], "--json: goes with --measure"),
        (["--warm", "-1"], "--warm: must not be negative"),
        (["--max-parallel-starts", "0"], "--max-parallel-starts: must be at least 1"),
        (["--warm", "2", "--size", "1"], "more than the pool's 1 members"),
        (["--parked", "1"], "the profile's park is stop, which parks nothing"),
        (["--agent", "0.0.0.0:30080"], "--agent-key is needed"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], why: str
) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text('{"kind": "sglang", "model": "m", "command": ["false"]}')
    with pytest.raises(SystemExit) as ended:
        main(["warm", "--profile", str(file), *options])
    assert ended.value.code == 2
    assert why in " ".join(capfd.readouterr().err.split())


def test_what_the_machine_refuses_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text('{"kind": "sglang", "model": "m", "command": ["false"]}')
    keep = ["warm", "--profile", str(file), "--warm", "0"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main([*keep, "--agent", address]) == 1
    assert f"forebay-engine warm: {address}: " in capfd.readouterr().err
    nowhere = str(tmp_path / "no-folder" / "ready")
    assert main([*keep, "--agent", "off", "--ready-file", nowhere]) == 1
    assert nowhere in capfd.readouterr().err


def test_a_ready_file_of_one_that_was_killed_is_removed(tmp_path: Path) -> None:
    ready, file = tmp_path / "ready", tmp_path / "profile.yaml"
    ready.write_text('{"pid": 1}')
    file.write_text('{"kind": "sglang", "model": "m", "command": ["false"]}')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        agent = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ["--profile", str(file), "--agent", agent, "--ready-file", str(ready)]
        assert main(["warm", *words]) == 1, "it ends before any engine is up"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.usefixtures("small")
def test_what_was_measured_is_printed_though_parking_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of = simulated(1, "--enable-memory-saver")
    document = {
        "kind": "sglang",
        "model": "tiny",
        "port": of.port,
        "command": list(of.command),
        "park": "memory",
        "drain": {"settle_s": 0.0, "grace_s": 0.0, "kill_s": 5},
    }
    file = tmp_path / "profile.yaml"
    file.write_text(json.dumps(document))
    words = ["warm", "--profile", str(file), "--measure", "1", "--json"]

    def refused(self: object, profile: Profile) -> ParkCalls:
        return ParkCalls(Call("/no-such-path"), Call("/no-such-path"))

    monkeypatch.setattr(type(make("sglang")), "park", refused)
    assert main(words) == 1
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert list(told["ways"]) == ["cold", "page cache", "caches"]
    why = "the engine did not release its memory, and was stopped"
    assert told["skipped"] == {"resume": why}
    assert f"forebay-engine warm: resume: {why}" in err


async def test_one_that_is_too_late_is_said_with_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    of = msgspec.structs.replace(simulated(1, "--load-delay", "60"), load_timeout_s=20.0)
    monkeypatch.setattr(measure, "PARK_S", -19.5)
    with pytest.raises(measure.Unmeasured, match=r"did not start within 0\.5 s"):
        await measure._start(of, ())
