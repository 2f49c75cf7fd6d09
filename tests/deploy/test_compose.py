"""The compose files: valid, hardened, and fitting what they start."""

import argparse
import json
import re
import subprocess
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from forebay.config import load

from tests.deploy.chart import DATA, DEPLOY
from tests.deploy.compose import CPU, FILE, merged, read, variables
from tests.deploy.test_image import FILES

SCHEMA = json.loads((DATA / "compose-spec.json").read_text())
BOTH = {"GPU": read(FILE), "CPU": merged(read(FILE), read(CPU))}
each = pytest.mark.parametrize("project", BOTH.values(), ids=list(BOTH))
SERVICES = [
    pytest.param(service, id=f"{where} {name}")
    for where, project in BOTH.items()
    for name, service in project["services"].items()
]


@each
def test_it_holds_to_the_compose_specification(project: dict[str, Any]) -> None:
    errors = jsonschema_rs.validator_for(SCHEMA).iter_errors(project)
    assert [f"{e.instance_path}: {e.message}" for e in errors] == []


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_hardened(service: dict[str, Any]) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True or service["image"].startswith("forebay-engine:")
    assert "memory" in service["deploy"]["resources"]["limits"]
    assert re.search(r":v?\d[\w.-]*$", service["image"]), service["image"]
    assert service["restart"] == "unless-stopped"
    # Ours have theirs in the image.
    assert "healthcheck" in service or "build" in service
    for published in service.get("ports", []):
        assert published.startswith(("127.0.0.1:", "${FOREBAY_BIND:-127.0.0.1}:"))


@each
def test_what_it_names_is_there(project: dict[str, Any]) -> None:
    for service in project["services"].values():
        assert set(service["networks"]) <= set(project["networks"])
        assert set(service.get("depends_on", {})) <= set(project["services"])
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
                assert mount.endswith(":ro")
            else:
                assert source in project["volumes"]
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]) in [
                DEPLOY / ".." / "deploy" / file.name for file in FILES
            ]


def test_every_variable_is_in_the_example() -> None:
    example = dict(
        line.split("=", 1)
        for line in (DEPLOY / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert variables(FILE.read_text()) | variables(CPU.read_text()) == set(example)


def test_no_secret_is_written_down() -> None:
    secret = re.compile(r"PASSWORD|KEY|TOKEN")
    for service in BOTH["GPU"]["services"].values():
        for name, value in service.get("environment", {}).items():
            if secret.search(name):
                assert str(value).startswith("${"), name
    ignored = (DEPLOY.parent / ".gitignore").read_text().splitlines()
    assert "/deploy/.env" in ignored


def test_the_gateway_takes_its_configuration() -> None:
    service = BOTH["GPU"]["services"]["gateway"]
    environment = {name: "x" for name in service["environment"]}
    environment["DATABASE_URL"] = service["environment"]["DATABASE_URL"].replace(
        "${POSTGRES_PASSWORD:?set it in .env}", "p"
    )
    environment["REDIS_URL"] = service["environment"]["REDIS_URL"].replace(
        "${VALKEY_PASSWORD:?set it in .env}", "p"
    )
    config = load(DEPLOY / "compose" / "forebay.yaml", environment)
    published = {ports.rsplit(":", 1)[1] for ports in service["ports"]}
    assert config.listen.grpc is not None
    assert {address.rsplit(":")[1] for address in (config.listen.http, config.listen.grpc)} == (
        published
    )
    assert str(config.spool.dir).startswith("/var/lib/forebay/")
    assert int(service["stop_grace_period"].removesuffix("s")) > config.drain_s + 25


def test_the_engine_takes_its_profile() -> None:
    profiles = pytest.importorskip("forebay_engine.serve.profile")
    profile = profiles.load(DEPLOY / "compose" / "profile.yaml")
    service = BOTH["GPU"]["services"]["engine"]
    assert f"http://engine:{profile.port}" in (DEPLOY / "compose" / "forebay.yaml").read_text()
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace > profile.drain.grace_s + profile.drain.kill_s
    assert f"engine-cache:{profile.cache_dir}" in service["volumes"]


def test_without_a_gpu_there_is_a_simulator() -> None:
    from forebay_engine.sim import command

    service = BOTH["CPU"]["services"]["engine"]
    assert "reservations" not in service["deploy"]["resources"]
    name, *arguments = service["command"]
    assert name == "sim"
    parser = argparse.ArgumentParser()
    command.add(parser)
    args = parser.parse_args(arguments)
    assert (args.host, args.port) == ("0.0.0.0", 30000)


@each
def test_prometheus_asks_services_that_are_there(project: dict[str, Any]) -> None:
    mounts = {
        m.split(":")[1]: m.split(":")[0] for m in project["services"]["prometheus"]["volumes"]
    }
    settings = yaml.safe_load((DEPLOY / mounts["/etc/prometheus/prometheus.yml"]).read_text())
    targets = chain.from_iterable(
        config["targets"] for job in settings["scrape_configs"] for config in job["static_configs"]
    )
    known = {"gateway:8080", "engine:30000"}
    # The simulator has no agent.
    assert set(targets) == known | ({"engine:30080"} if project is BOTH["GPU"] else set())
    assert set(settings["rule_files"]) <= set(mounts)


def test_prometheus_shows_the_agents_key(tmp_path: Path) -> None:
    service = BOTH["GPU"]["services"]["prometheus"]
    settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = [j for j in settings["scrape_configs"] if j["job_name"] == "forebay-engine"]
    file = Path(job["authorization"]["credentials_file"])
    (tmpfs,) = service["tmpfs"]
    assert tmpfs.split(":")[0] == str(file.parent)
    shell, flag, script, name = service["entrypoint"]
    script = script.replace("$$", "$").replace(str(file.parent), str(tmp_path))
    done = subprocess.run(
        [shell, flag, script.replace("/bin/prometheus", "echo"), name, "--a", "b c"],
        env={"PATH": "/usr/bin:/bin", "FOREBAY_ENGINE_KEY": "p %s'\"$x"},
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert (done.stdout, done.stderr) == ("--a b c\n", "")
    assert (tmp_path / file.name).read_text() == "p %s'\"$x"
    assert (tmp_path / file.name).stat().st_mode & 0o777 == 0o600
