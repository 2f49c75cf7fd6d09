"""What the chart gives the gateway, the jobs and the engine is taken by them."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml
from forebay.cli import main
from forebay.config import Config, load

pytest.importorskip("helm_python", reason="needs the extra `deploy` (make test installs it)")

from tests.deploy import dockerfile
from tests.deploy.chart import CHART, DEPLOY, MINIMAL, Manifest, merged, one, pods, render
from tests.deploy.permutations import EVERYTHING, PERMUTATIONS

ENVIRONMENT = {
    "DATABASE_URL": "postgresql://u:p@db:5432/forebay",
    "REDIS_URL": "redis://valkey:6379/0",
    "INFERENCE_URL": "http://sglang:30000",
    "TOGETHER_API_KEY": "k",
    "FOREBAY_ENGINE_KEY": "k",
}
each = pytest.mark.parametrize("values", PERMUTATIONS.values(), ids=list(PERMUTATIONS))


def _config(manifests: list[Manifest], folder: Path) -> Config:
    file = folder / "forebay.yaml"
    file.write_text(one(manifests, "ConfigMap", "rel-forebay")["data"]["forebay.yaml"])
    image = dockerfile.read(DEPLOY / "Dockerfile")[1][-1].environment()
    kinds = ("Deployment", "StatefulSet")
    (gateway,) = [
        m for m in manifests if m["kind"] in kinds and m["metadata"]["name"] == "rel-forebay"
    ]
    (container,) = gateway["spec"]["template"]["spec"]["containers"]
    pods_own = {v["name"]: v["value"] for v in container["env"] if "value" in v}
    return load(file, {**image, **pods_own, **ENVIRONMENT})


@each
def test_the_gateway_takes_its_configuration(values: dict[str, Any], tmp_path: Path) -> None:
    manifests = render(values)
    config = _config(manifests, tmp_path)
    kind = values.get("gateway", {}).get("kind", "Deployment")
    spec = one(manifests, kind, "rel-forebay")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert config.listen.http == f"0.0.0.0:{ports['http']}"
    assert config.listen.grpc == (f"0.0.0.0:{ports['grpc']}" if "grpc" in ports else None)
    mounts = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
    assert any(str(config.spool.dir).startswith(f"{mount}/") for mount in mounts)
    assert spec["terminationGracePeriodSeconds"] >= config.drain_s + 25


def test_the_ports_are_those_that_the_configuration_says(tmp_path: Path) -> None:
    listen = {"http": "0.0.0.0:9090", "grpc": "[::]:9091"}
    values = merged(MINIMAL, {"config": {"listen": listen}, "networkPolicy": {"enabled": True}})
    manifests = render(values)
    assert _config(manifests, tmp_path).listen.http == listen["http"]
    (container,) = one(manifests, "Deployment", "rel-forebay")["spec"]["template"]["spec"][
        "containers"
    ]
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert ports == {"http": 9090, "grpc": 9091}
    policy = one(manifests, "NetworkPolicy", "rel-forebay")["spec"]["ingress"][0]["ports"]
    assert [p["port"] for p in policy] == [9090, 9091]


@each
def test_each_engine_is_an_upstream(values: dict[str, Any], tmp_path: Path) -> None:
    manifests = render(values)
    config = _config(manifests, tmp_path)
    engine = {**yaml.safe_load((CHART / "values.yaml").read_text())["engine"]}
    engine = merged(engine, values.get("engine", {}))
    ours = {name: u for name, u in config.upstreams.items() if name.startswith("engine")}
    if not engine["enabled"]:
        # INFERENCE_URL's is named so, too.
        assert all(u.url == "http://sglang:30000" for u in ours.values())
        return
    hosts = {str(u.url).removeprefix("http://").removesuffix(":30000") for u in ours.values()}
    if engine["kind"] == "Deployment":
        assert hosts == {"rel-forebay-engine.serving.svc"}
    else:
        scaling = engine["autoscaling"]
        most = scaling["maxReplicas"] if scaling["enabled"] else engine["replicas"]
        name = one(manifests, "StatefulSet", "rel-forebay-engine")["spec"]["serviceName"]
        assert hosts == {f"rel-forebay-engine-{i}.{name}.serving.svc" for i in range(most)}
        for upstream in ours.values():
            assert upstream.agent is not None
            assert upstream.agent.url == str(upstream.url).replace(":30000", ":30080")
            known = engine["agentKey"] or engine["existingSecret"]
            assert upstream.agent.key == (ENVIRONMENT["FOREBAY_ENGINE_KEY"] if known else None)


def test_the_users_configuration_goes_before_the_charts(tmp_path: Path) -> None:
    config = {"drain_s": 7, "spool": {"durability": "machine"}, "listen": {"http": "0.0.0.0:9000"}}
    loaded = _config(render(merged(EVERYTHING, {"config": config})), tmp_path)
    assert (loaded.drain_s, loaded.spool.durability) == (7, "machine")
    assert str(loaded.spool.dir) == "/var/lib/forebay/spool"
    assert loaded.listen.http == "0.0.0.0:9000"
    assert set(loaded.upstreams) == {"engine-0", "engine-1", "engine-2", "engine-3", "together"}


def test_grpc_is_where_the_values_say(tmp_path: Path) -> None:
    off = merged(MINIMAL, {"gateway": {"grpc": False}})
    assert _config(render(off), tmp_path).listen.grpc is None
    moved = merged(MINIMAL, {"config": {"listen": {"grpc": "0.0.0.0:6000"}}})
    assert _config(render(moved), tmp_path).listen.grpc == "0.0.0.0:6000"


def test_the_jobs_commands_run(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = render(EVERYTHING)
    _config(manifests, tmp_path)
    monkeypatch.setenv("FOREBAY_CONFIG", str(tmp_path / "forebay.yaml"))
    for name, value in {**ENVIRONMENT, "DATABASE_URL": database_url}.items():
        monkeypatch.setenv(name, value)
    jobs = [m for m in manifests if m["kind"] in ("Job", "CronJob")]
    assert len(jobs) == 3
    for job in jobs:
        for pod in pods(job):
            (container,) = pod["spec"]["containers"]
            assert main(container["args"]) == 0, container["args"]


@each
def test_the_engine_takes_its_profile(values: dict[str, Any], tmp_path: Path) -> None:
    profiles = pytest.importorskip("forebay_engine.serve.profile")
    command = pytest.importorskip("forebay_engine.serve.command")
    manifests = render(values)
    if not any(m["metadata"]["name"] == "rel-forebay-engine" for m in manifests):
        return
    file = tmp_path / "profile.yaml"
    file.write_text(one(manifests, "ConfigMap", "rel-forebay-engine")["data"]["profile.yaml"])
    profile = profiles.load(file)
    kind = values["engine"].get("kind", "StatefulSet")
    spec = one(manifests, kind, "rel-forebay-engine")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert (profile.host, profile.port) == ("0.0.0.0", ports["http"])
    assert profile.drain.grace_s + profile.drain.kill_s < spec["terminationGracePeriodSeconds"]
    assert profile.cache_dir in {m["mountPath"] for m in container["volumeMounts"]}
    parser = argparse.ArgumentParser()
    command.add(parser)
    args = parser.parse_args(container["args"][1:])
    assert args.agent == f"0.0.0.0:{ports['agent']}"
    assert args.profile == "/etc/forebay-engine/profile.yaml"


def test_the_autoscaler_takes_its_file_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pytest.importorskip("forebay_engine.autoscale.config")
    command = pytest.importorskip("forebay_engine.autoscale.command")
    manifests = render(PERMUTATIONS["scaled engines"])
    file = tmp_path / "autoscale.yaml"
    name = "rel-forebay-autoscaler"
    file.write_text(one(manifests, "ConfigMap", name)["data"]["autoscale.yaml"])
    config = settings.load(file, {"FOREBAY_ENGINE_KEY": "agent-secret"})
    pods_of = one(manifests, "StatefulSet", "rel-forebay")["spec"]["serviceName"]
    assert list(config.gateways) == [
        f"http://rel-forebay-{i}.{pods_of}.serving.svc:8080" for i in range(3)
    ]
    ((model, scaled),) = config.models.items()
    (trigger,) = one(manifests, "ScaledObject", "rel-forebay-engine")["spec"]["triggers"]
    assert trigger["metadata"]["model"] == model
    assert scaled.upstreams == ["engine-0", "engine-1"]
    assert set(scaled.upstreams) == set(_config(manifests, tmp_path).upstreams)
    assert [engine.key for engine in scaled.engines] == ["agent-secret"] * 2
    spec = one(manifests, "Deployment", name)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    parser = argparse.ArgumentParser()
    command.add(parser)
    args = parser.parse_args(container["args"][1:])
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert args.keda == f"0.0.0.0:{ports['keda']}"
    assert args.metrics == f"0.0.0.0:{ports['metrics']}"
    assert trigger["metadata"]["scalerAddress"] == f"{name}.serving.svc:{ports['keda']}"


def _leaves(node: dict[str, Any], path: str = "") -> list[str]:
    out = []
    for key, value in node.items():
        if isinstance(value, dict) and value and key not in ("resources", "profile"):
            out += _leaves(value, f"{path}{key}.")
        else:
            out.append(f"{path}{key}")
    return out


def test_every_value_is_described() -> None:
    text = (CHART / "README.md").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert [leaf for leaf in _leaves(values) if f"`{leaf}`" not in text] == []


def test_the_version_is_the_projects() -> None:
    import tomllib

    project = tomllib.loads((CHART.parents[2] / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == project["version"]


def test_minimal_needs_a_database_only(tmp_path: Path) -> None:
    assert _config(render(MINIMAL), tmp_path).database_url == ENVIRONMENT["DATABASE_URL"]
