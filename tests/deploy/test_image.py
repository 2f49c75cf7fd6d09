"""The images: how they are made, and that three variables are all that a gateway needs."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from tests.deploy import dockerfile
from tests.deploy.chart import DEPLOY, ROOT
from tests.support.processes import Gateway

FILES = [DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.engine"]
each = pytest.mark.parametrize("file", FILES, ids=lambda p: p.name)


@each
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    scripts = sysconfig.get_path("scripts")
    hadolint = shutil.which("hadolint", path=scripts) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs the extra `deploy` (make test installs it)")
    done = subprocess.run([hadolint, str(file)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("", 0)


@each
def test_base_images_are_pinned_by_tag(file: Path) -> None:
    _, stages = dockerfile.read(file)
    names = {"base", "build"}
    for stage in stages:
        image = stage.image.split(" AS ")[0]
        sources = [m for line in stage.all("COPY") for m in re.findall(r"--from=(\S+)", line)]
        for used in {image, *sources} - names:
            assert re.fullmatch(r"[a-z0-9./-]+:v?\d+(\.\d+)+[a-z0-9.-]*", used), used


@each
def test_what_is_copied_is_in_the_context(file: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    sent = {line[1:] for line in ignored if line.startswith("!")}
    _, stages = dockerfile.read(file)
    for stage in stages:
        for line in stage.all("COPY"):
            if "--from=" not in line:
                for source in line.split()[:-1]:
                    assert source.strip("/").split("/")[0] in sent, source
                    assert (ROOT / source).exists(), source


def test_every_member_of_the_workspace_is_copied() -> None:
    _, stages = dockerfile.read(FILES[0])
    copied = {line.split()[0] for stage in stages for line in stage.all("COPY")}
    members = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["members"]
    assert {member.split("/")[0] for member in members} <= copied


def test_python_and_rust_are_new_enough() -> None:
    text = FILES[0].read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]

    def number(pattern: str, where: str) -> tuple[int, ...]:
        (found,) = set(re.findall(pattern, where))
        return tuple(map(int, found.split(".")))

    assert number(r"FROM python:(\d+\.\d+)", text) >= number(
        r">=(\d+\.\d+)", project["requires-python"]
    )
    assert number(r"rust:(\d+\.\d+)", text) >= tuple(map(int, cargo["rust-version"].split(".")))
    (extras,) = re.findall(r"ARG EXTRAS=(\S+)", text)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert f"ARG VERSION={project['version']}" in text


def test_it_runs_as_nobody_and_writes_to_its_volume_alone() -> None:
    _, stages = dockerfile.read(FILES[0])
    final = stages[-1]
    assert final.last("USER") == "10001:10001"
    assert final.environment()["XDG_STATE_HOME"] == final.last("VOLUME")
    assert dockerfile.words(final.last("ENTRYPOINT")) == ["forebay"]
    # Its owner is set in the image, so that a new volume takes it over.
    assert "install -d -o 10001 -g 10001" in " ".join(final.all("RUN"))


def test_three_variables_suffice(container: Gateway) -> None:
    key = container.key()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    answer = container.call("/v1/chat/completions", body, key=key.secret)
    assert answer.status == 200
    assert container.usage_of(answer)["outcome"] == "ok"
    assert container.grpc != "None"
    spool = container.folder / "state" / "forebay" / "spool"
    assert list(spool.iterdir())


def test_all_but_its_volume_and_tmp_may_be_read_only(container: Gateway, sealable: bool) -> None:
    if not sealable:
        pytest.skip("needs root, to mount and to drop capabilities")
    status = Path(f"/proc/{container.pid}/status").read_text()
    assert "CapEff:\t0000000000000002" in status  # DAC_OVERRIDE, for the tests' database
    assert "NoNewPrivs:\t1" in status
    # It serves (the tests before and after), and nothing in it minded.
    assert "Read-only file system" not in container.log()
    assert container.health()["status"] == "ready"


def test_the_health_check_is_the_programs_own(container: Gateway) -> None:
    _, stages = dockerfile.read(FILES[0])
    check = stages[-1].last("HEALTHCHECK")
    command = dockerfile.words(check[check.index("[") :])
    assert command[0] == "forebay"

    def run(*more: str, url: str) -> int:
        arguments = [sys.executable, "-m", "forebay.cli", *command[1:], *more]
        environment = {**container.environment, "FOREBAY_URL": url}
        return subprocess.run(
            arguments, env=environment, timeout=30, capture_output=True
        ).returncode

    assert run(url=container.url) == 0
    assert run("--ready", url=container.url) == 0
    assert run(url="http://127.0.0.1:1") == 1
