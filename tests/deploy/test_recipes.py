"""The recipes: what of them can be checked without an account."""

import json
import py_compile
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from forebay.config import load

from tests.deploy import dockerfile
from tests.deploy.chart import DATA, DEPLOY, NEWEST, load_all, problems

RECIPES = DEPLOY / "recipes"
FOLDERS = sorted(path.name for path in RECIPES.iterdir() if path.is_dir())


class _AnyName(dict[str, str]):
    """An environment in which every variable is set."""

    def get(self, key: str, default: Any = None) -> Any:
        if not key.isupper() or key.startswith("FOREBAY_"):
            return default
        if key.endswith("DATABASE_URL"):
            return "postgresql://u:p@db/forebay"
        return {"REDIS_URL": "redis://h:1", "INFERENCE_URL": "http://h:1"}.get(key, "value")

    def __getitem__(self, key: str) -> str:
        return str(self.get(key))

    def __contains__(self, key: object) -> bool:
        return self.get(str(key)) is not None


def test_every_platform_has_its_recipe() -> None:
    assert FOLDERS == ["aws", "azure", "baseten", "gcp", "modal", "pandastack", "runpod"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_recipe_says_that_it_was_not_run(folder: str) -> None:
    text = (RECIPES / folder / "README.md").read_text()
    assert "Not run here" in text
    for name in [p.name for p in (RECIPES / folder).iterdir() if p.name != "README.md"]:
        assert f"`{name}`" in text or f"/{name}" in text or name == "gateway.yaml", name


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_gateway_takes_its_part(folder: str) -> None:
    config = load(RECIPES / folder / "gateway.yaml", _AnyName())
    used = {t.upstream for model in config.models.values() for t in model.targets}
    assert used == set(config.upstreams)
    for model in config.models.values():
        assert [t.tier for t in model.targets] == [0, 1]


@pytest.mark.parametrize("file", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: p.parent.name)
def test_yaml_parses(file: Path) -> None:
    assert load_all(file.read_text())


@pytest.mark.parametrize("file", sorted(RECIPES.rglob("*.json")), ids=lambda p: p.stem)
def test_json_parses(file: Path) -> None:
    assert json.loads(file.read_text())


@pytest.mark.parametrize("file", sorted(RECIPES.rglob("*.sh")), ids=lambda p: p.parent.name)
def test_shell_parses(file: Path) -> None:
    subprocess.run(["sh", "-n", str(file)], check=True, timeout=10)


def test_modals_app_compiles(tmp_path: Path) -> None:
    py_compile.compile(
        str(RECIPES / "modal" / "modal_app.py"), str(tmp_path / "app.pyc"), doraise=True
    )


def test_baseten_takes_its_configuration() -> None:
    schema = json.loads((DATA / "truss-config.json").read_text())
    config = yaml.safe_load((RECIPES / "baseten" / "config.yaml").read_text())
    errors = jsonschema_rs.validator_for(schema).iter_errors(config)
    assert [f"{e.instance_path}: {e.message}" for e in errors] == []
    # Baseten's own proxy is there.
    assert config["docker_server"]["server_port"] != 8080


@pytest.mark.parametrize("folder", ["aws", "azure", "gcp"])
def test_helms_values_render(folder: str) -> None:
    pytest.importorskip("helm_python", reason="needs the extra `deploy` (make test installs it)")
    from tests.deploy.chart import render

    manifests = render(yaml.safe_load((RECIPES / folder / "values.yaml").read_text()))
    assert [p for m in manifests for p in problems(m, NEWEST)] == []
    assert {"Ingress", "StatefulSet"} <= {m["kind"] for m in manifests}


@pytest.mark.parametrize("folder", ["aws", "gcp"])
def test_pods_stand_until_a_cloud_balancer_has_turned_away(folder: str) -> None:
    values = yaml.safe_load((RECIPES / folder / "values.yaml").read_text())
    assert values["gateway"]["preStopSeconds"] >= 20


def test_an_ingress_has_a_class_or_the_old_annotation_not_both() -> None:
    pytest.importorskip("helm_python", reason="needs the extra `deploy` (make test installs it)")
    from tests.deploy.chart import render

    for folder in ("aws", "azure", "gcp"):
        manifests = render(yaml.safe_load((RECIPES / folder / "values.yaml").read_text()))
        (ingress,) = [m for m in manifests if m["kind"] == "Ingress"]
        annotations = ingress["metadata"].get("annotations", {})
        old = "kubernetes.io/ingress.class" in annotations
        assert old != ("ingressClassName" in ingress["spec"]), folder


def test_storage_classes_of_aws_are_made() -> None:
    values = yaml.safe_load((RECIPES / "aws" / "values.yaml").read_text())
    (made,) = load_all((RECIPES / "aws" / "storage.yaml").read_text())
    named = {values["gateway"]["spool"]["storageClass"], values["engine"]["cache"]["storageClass"]}
    assert named == {made["metadata"]["name"]}
    assert "aws/storage.yaml" in (RECIPES / "aws" / "README.md").read_text()


def test_container_apps_limits_are_held() -> None:
    app = yaml.safe_load((RECIPES / "azure" / "container-app.yaml").read_text())["properties"]
    (container,) = app["template"]["containers"]
    for probe in container["probes"]:
        assert 1 <= probe["periodSeconds"] <= 240
        assert 1 <= probe.get("failureThreshold", 3) <= 10
    # The gateway is not in the environment.
    assert app["configuration"]["ingress"]["external"] is True
    assert ".internal." not in (RECIPES / "azure" / "gateway.yaml").read_text()


@pytest.mark.parametrize("name", ["ecs-gateway", "ecs-engine"])
def test_service_connect_bounds_no_answer(name: str) -> None:
    task = json.loads((RECIPES / "aws" / f"{name}.json").read_text())
    (container,) = task["containerDefinitions"]
    assert all("appProtocol" not in port for port in container["portMappings"])


def test_what_fargate_mounts_is_a_volume_of_the_image() -> None:
    task = json.loads((RECIPES / "aws" / "ecs-gateway.json").read_text())
    (container,) = task["containerDefinitions"]
    volume = dockerfile.read(DEPLOY / "Dockerfile")[1][-1].last("VOLUME")
    assert {mount["containerPath"] for mount in container["mountPoints"]} == {volume}
    environment = {entry["name"]: entry["value"] for entry in container["environment"]}
    assert environment["TMPDIR"] == volume


def test_kong_asks_for_a_length_where_there_is_one() -> None:
    kong = yaml.safe_load((DEPLOY / "kong" / "kong.yaml").read_text())
    limited = "request-size-limiting"
    assert limited not in {plugin["name"] for plugin in kong["plugins"]}
    having = [
        s["name"] for s in kong["services"] if limited in [p["name"] for p in s.get("plugins", [])]
    ]
    assert having == ["forebay"]


@pytest.mark.parametrize("name", ["ecs-gateway", "ecs-engine"])
def test_ecs_task_definitions_are_whole(name: str) -> None:
    task = json.loads((RECIPES / "aws" / f"{name}.json").read_text())
    (container,) = task["containerDefinitions"]
    volumes = {volume["name"] for volume in task["volumes"]}
    assert {mount["sourceVolume"] for mount in container["mountPoints"]} == volumes
    # ECS on Fargate waits no longer.
    assert container["stopTimeout"] <= 120


def test_the_gateway_drains_before_ecs_stops_it() -> None:
    task = json.loads((RECIPES / "aws" / "ecs-gateway.json").read_text())
    config = load(RECIPES / "aws" / "gateway.yaml", _AnyName())
    (container,) = task["containerDefinitions"]
    assert config.drain_s + 25 < container["stopTimeout"]


def test_runpods_ports_agree() -> None:
    template = json.loads((RECIPES / "runpod" / "template.json").read_text())
    env = {entry["key"]: entry["value"] for entry in template["env"]}
    assert f"--port {env['PORT']}" in template["dockerArgs"]
    assert env["PORT"] == env["PORT_HEALTH"]
    endpoint = json.loads((RECIPES / "runpod" / "endpoint.json").read_text())
    assert endpoint["type"] == "LB"
