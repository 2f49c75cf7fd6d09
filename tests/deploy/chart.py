"""The chart, rendered by Helm's own library, and what its manifests are checked with."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "forebay"
DATA = ROOT / "tests" / "data" / "deploy"
OLDEST, NEWEST = "1.27", "1.37"
"""Of Kubernetes, that the manifests are checked against."""

Manifest = dict[str, Any]

_DEFINITIONS = {
    ("apps/v1", "Deployment"): "io.k8s.api.apps.v1.Deployment",
    ("apps/v1", "StatefulSet"): "io.k8s.api.apps.v1.StatefulSet",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): (
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler"
    ),
    ("batch/v1", "CronJob"): "io.k8s.api.batch.v1.CronJob",
    ("batch/v1", "Job"): "io.k8s.api.batch.v1.Job",
    ("v1", "ConfigMap"): "io.k8s.api.core.v1.ConfigMap",
    ("v1", "PersistentVolumeClaim"): "io.k8s.api.core.v1.PersistentVolumeClaim",
    ("v1", "Secret"): "io.k8s.api.core.v1.Secret",
    ("v1", "Service"): "io.k8s.api.core.v1.Service",
    ("v1", "ServiceAccount"): "io.k8s.api.core.v1.ServiceAccount",
    ("networking.k8s.io/v1", "Ingress"): "io.k8s.api.networking.v1.Ingress",
    ("networking.k8s.io/v1", "NetworkPolicy"): "io.k8s.api.networking.v1.NetworkPolicy",
    ("policy/v1", "PodDisruptionBudget"): "io.k8s.api.policy.v1.PodDisruptionBudget",
    ("rbac.authorization.k8s.io/v1", "Role"): "io.k8s.api.rbac.v1.Role",
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): "io.k8s.api.rbac.v1.RoleBinding",
}

MINIMAL: dict[str, Any] = {"secrets": {"databaseUrl": "postgresql://u:p@db:5432/forebay"}}


class _UniqueKeys(yaml.CSafeLoader):
    """Refuses a key that stands twice in a mapping, as the API server does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        doubled = {str(key) for key in keys if keys.count(key) > 1}
        assert not doubled, f"twice in a mapping: {doubled} at {node.start_mark}"
        return super().construct_mapping(node, deep)


def load_all(text: str) -> list[Any]:
    """Every document of a YAML text; no key may stand twice."""
    return [entry for entry in yaml.load_all(text, _UniqueKeys) if entry is not None]


def merged(*values: dict[str, Any]) -> dict[str, Any]:
    """Values over values, as several -f do."""
    out: dict[str, Any] = {}
    for entry in values:
        _merge(out, copy.deepcopy(entry))
    return out


def _merge(under: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            _merge(under[key], value)
        else:
            under[key] = value


def render_files(values: dict[str, Any], name: str = "rel") -> dict[str, str]:
    """What Helm makes of each template."""
    from helm_python import Chart

    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        return chart.render(values, name=name, namespace="serving")


def render(values: dict[str, Any], name: str = "rel") -> list[Manifest]:
    """The manifests of a release in the namespace `serving`."""
    files = render_files(values, name)
    return [m for path, text in files.items() if path.endswith(".yaml") for m in load_all(text)]


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The only manifest of a kind and name."""
    (found,) = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def pods(manifest: Manifest) -> Iterator[Manifest]:
    """The pod template of a manifest, where it has one."""
    spec = manifest.get("spec", {})
    if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
        yield spec["template"]
    elif manifest["kind"] == "CronJob":
        yield spec["jobTemplate"]["spec"]["template"]


@cache
def _schemas(version: str) -> dict[str, Any]:
    return dict(msgspec.json.decode((DATA / f"kubernetes-{version}.json").read_bytes()))


@cache
def _own() -> dict[str, Any]:
    return dict(yaml.safe_load((DATA / "custom-resources.yaml").read_text()))


@cache
def _validator(api: str, kind: str, version: str) -> jsonschema_rs.Validator:
    name = _DEFINITIONS.get((api, kind))
    schemas = _own() if name is None else _schemas(version)
    name = name or f"{api}/{kind}"
    assert name in schemas["$defs"], f"no schema for {name}"
    pointer = name.replace("~", "~0").replace("/", "~1")
    return jsonschema_rs.validator_for({**schemas, "$ref": f"#/$defs/{pointer}"})


def problems(manifest: Manifest, version: str) -> list[str]:
    """What a version of Kubernetes would have against a manifest."""
    validator = _validator(manifest["apiVersion"], manifest["kind"], version)
    where = f"{manifest['kind']} {manifest['metadata']['name']}"
    return [
        f"{where}: {'/'.join(map(str, error.instance_path))}: {error.message}"
        for error in validator.iter_errors(manifest)
    ]
