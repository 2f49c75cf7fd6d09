"""Cuts Kubernetes' JSON schemas down to the kinds that the chart makes.

python trim.py FOLDER VERSION… writes kubernetes-VERSION.json beside this file, from FOLDER, the
`kubernetes-json-schema` of the package kubernetes-validate. What only explains is left out.
"""

import json
import sys
from pathlib import Path
from typing import Any

KINDS = [
    "io.k8s.api.apps.v1.Deployment",
    "io.k8s.api.apps.v1.StatefulSet",
    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    "io.k8s.api.batch.v1.CronJob",
    "io.k8s.api.batch.v1.Job",
    "io.k8s.api.core.v1.ConfigMap",
    "io.k8s.api.core.v1.PersistentVolumeClaim",
    "io.k8s.api.core.v1.Secret",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.networking.v1.Ingress",
    "io.k8s.api.networking.v1.NetworkPolicy",
    "io.k8s.api.policy.v1.PodDisruptionBudget",
    "io.k8s.api.rbac.v1.Role",
    "io.k8s.api.rbac.v1.RoleBinding",
]


def slim(node: Any, found: set[str], named: bool = False) -> Any:
    """A schema without prose; the definitions that it names are added to `found`.

    named: the keys are names of properties, not words of the schema's.
    """
    if isinstance(node, list):
        return [slim(entry, found) for entry in node]
    if not isinstance(node, dict):
        return node
    out = {}
    for key, value in node.items():
        if not named and (key == "description" or key.startswith("x-")):
            continue
        if not named and key == "$ref":
            name = str(value).rpartition("#/$defs/")[2]
            found.add(name)
            out[key] = f"#/$defs/{name}"
        else:
            out[key] = slim(value, found, named=not named and key in ("properties", "$defs"))
    return out


def trim(definitions: dict[str, Any]) -> dict[str, Any]:
    """The kinds, and all that they are made of."""
    kept: dict[str, Any] = {}
    open_ = set(KINDS)
    while open_:
        name = open_.pop()
        found: set[str] = set()
        kept[name] = slim(definitions[name], found)
        open_ |= found - kept.keys()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$defs": dict(sorted(kept.items())),
    }


def main(folder: str, *versions: str) -> None:
    """Write the files."""
    for version in versions:
        source = Path(folder) / f"v{version}.0-local-strict" / "_definitions.json"
        schemas = trim(json.loads(source.read_text())["$defs"])
        target = Path(__file__).with_name(f"kubernetes-{version}.json")
        target.write_text(json.dumps(schemas, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
