"""The chart: valid for every Kubernetes that it names, consistent in itself, and hardened."""

from itertools import product
from typing import Any

import pytest

pytest.importorskip("helm_python", reason="needs the extra `deploy` (make test installs it)")

from tests.deploy.chart import (
    CHART,
    MINIMAL,
    NEWEST,
    OLDEST,
    Manifest,
    load_all,
    merged,
    one,
    pods,
    problems,
    render,
    render_files,
)
from tests.deploy.permutations import EVERYTHING, PERMUTATIONS

BOTH = [OLDEST, NEWEST]
each = pytest.mark.parametrize("values", PERMUTATIONS.values(), ids=list(PERMUTATIONS))


@pytest.mark.parametrize(
    ("values", "version"),
    list(product(PERMUTATIONS.values(), BOTH)),
    ids=[f"{name}, {version}" for name, version in product(PERMUTATIONS, BOTH)],
)
def test_every_manifest_is_valid(values: dict[str, Any], version: str) -> None:
    found = [p for manifest in render(values) for p in problems(manifest, version)]
    assert found == []


@each
def test_lint_has_nothing_to_say(values: dict[str, Any]) -> None:
    from helm_python import lint

    report = lint(CHART, values, strict=True)
    told = [m for m in report["messages"] if "icon is recommended" not in m["error"]]
    assert told == []


def test_what_the_schemas_refuse() -> None:
    gateway = one(render(MINIMAL), "Deployment", "rel-forebay")
    gateway["spec"]["template"]["spec"]["containers"][0]["port"] = 1
    assert any("'port' was unexpected" in p for p in problems(gateway, NEWEST))


@each
def test_names_are_unique_and_everything_is_labelled(values: dict[str, Any]) -> None:
    manifests = render(values)
    names = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(set(names)) == len(names)
    for manifest in manifests:
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "rel"
        assert labels["app.kubernetes.io/name"] == "forebay"


def _refers(pod: Manifest) -> tuple[set[str], set[str]]:
    """Secrets that have to be there, and ConfigMaps."""
    secrets, maps = set(), set()
    for container in pod["spec"]["containers"]:
        for source in container.get("envFrom", []):
            if not source["secretRef"].get("optional"):
                secrets.add(source["secretRef"]["name"])
    for volume in pod["spec"].get("volumes", []):
        if "configMap" in volume:
            maps.add(volume["configMap"]["name"])
    return secrets, maps


@each
def test_what_pods_refer_to_is_there(values: dict[str, Any]) -> None:
    manifests = render(values)
    have = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    outside = {
        values.get("secrets", {}).get("existingSecret"),
        values.get("engine", {}).get("existingSecret"),
    }
    for manifest in manifests:
        for pod in pods(manifest):
            secrets, maps = _refers(pod)
            assert {s for s in secrets if ("Secret", s) not in have} <= outside
            assert {c for c in maps if ("ConfigMap", c) not in have} == set()
            spec = pod["spec"]
            volumes = {v["name"] for v in spec.get("volumes", [])} | {
                claim["metadata"]["name"]
                for claim in manifest["spec"].get("volumeClaimTemplates", [])
            }
            for container in spec["containers"]:
                assert {m["name"] for m in container["volumeMounts"]} <= volumes


def _selected(manifests: list[Manifest], wanted: dict[str, str], kinds: set[str]) -> list[Manifest]:
    """Workloads whose pods have the labels."""
    return [
        m
        for m in manifests
        if m["kind"] in kinds
        for pod in pods(m)
        if wanted.items() <= pod["metadata"]["labels"].items()
    ]


@each
def test_selectors_find_the_right_pods_and_no_others(values: dict[str, Any]) -> None:
    manifests = render(values)
    everything = {"Deployment", "StatefulSet", "Job", "CronJob"}
    for manifest in manifests:
        kind, spec = manifest["kind"], manifest.get("spec", {})
        if kind in ("Deployment", "StatefulSet"):
            found = _selected(manifests, spec["selector"]["matchLabels"], everything)
            assert found == [manifest]
        elif kind == "Service":
            (workload,) = _selected(manifests, spec["selector"], everything)
            (pod,) = pods(workload)
            ports = {p["name"] for c in pod["spec"]["containers"] for p in c["ports"]}
            assert {p["targetPort"] for p in spec["ports"]} <= ports
        elif kind in ("PodDisruptionBudget", "NetworkPolicy"):
            selector = spec.get("podSelector") or spec["selector"]
            assert len(_selected(manifests, selector["matchLabels"], everything)) == 1
        elif kind == "PodMonitor":
            assert len(_selected(manifests, spec["selector"]["matchLabels"], everything)) == 1


@each
def test_targets_are_there(values: dict[str, Any]) -> None:
    manifests = render(values)
    services = {m["metadata"]["name"]: m for m in manifests if m["kind"] == "Service"}
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = one(manifests, spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
            assert "replicas" not in target["spec"]
        elif manifest["kind"] == "StatefulSet":
            assert services[spec["serviceName"]]["spec"]["clusterIP"] == "None"
        elif manifest["kind"] == "Ingress":
            for path in spec["rules"][0]["http"]["paths"]:
                backend = path["backend"]["service"]
                ports = services[backend["name"]]["spec"]["ports"]
                assert backend["port"]["name"] in {p["name"] for p in ports}
                assert not path["path"].startswith(("/admin", "/metrics"))
                assert len(path["path"]) > 1
        elif manifest["kind"] == "ServiceMonitor":
            wanted = spec["selector"]["matchLabels"].items()
            (found,) = [s for s in services.values() if wanted <= s["metadata"]["labels"].items()]
            (endpoint,) = spec["endpoints"]
            assert endpoint["port"] in {p["name"] for p in found["spec"]["ports"]}


@each
def test_pods_are_hardened(values: dict[str, Any]) -> None:
    for manifest in render(values):
        for pod in pods(manifest):
            spec = pod["spec"]
            assert spec["automountServiceAccountToken"] is False
            assert spec["enableServiceLinks"] is False
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            (container,) = spec["containers"]
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert not container["image"].endswith((":", ":latest"))
            assert "memory" in container["resources"]["limits"]
            if container["name"] != "engine":
                assert spec["securityContext"]["runAsNonRoot"] is True
                assert own["readOnlyRootFilesystem"] is True


def test_secrets_stand_in_secrets_only() -> None:
    values = merged(EVERYTHING, {"secrets": {"databaseUrl": "postgresql://u:db-secret@h/d"}})
    for path, text in render_files(values).items():
        rest = [m for m in load_all(text) if m["kind"] != "Secret"] if path.endswith("l") else text
        for word in ("db", "redis", "inference", "together", "agent", "hf"):
            assert f"{word}-secret" not in str(rest), path


def test_the_schema_is_migrated_before_anything_else() -> None:
    manifests = render(MINIMAL)
    hooks = [m for m in manifests if "helm.sh/hook" in m["metadata"].get("annotations", {})]
    assert {m["metadata"]["annotations"]["helm.sh/hook"] for m in hooks} == {
        "pre-install,pre-upgrade"
    }
    hooks.sort(key=lambda m: int(m["metadata"]["annotations"]["helm.sh/hook-weight"]))
    assert [m["kind"] for m in hooks] == ["Secret", "Job"]
    secrets, maps = _refers(hooks[1]["spec"]["template"])
    # What is no hook is not there yet.
    assert secrets == {hooks[0]["metadata"]["name"]}
    assert maps == set()


def test_an_existing_secret_is_all_there_is() -> None:
    assert [m for m in render(PERMUTATIONS["existing secrets"]) if m["kind"] == "Secret"] == []


def _template(values: dict[str, Any]) -> Any:
    return one(render(values), "Deployment", "rel-forebay")["spec"]["template"]


def test_only_what_needs_a_restart_restarts() -> None:
    was = _template(MINIMAL)
    upstream = {"config": {"upstreams": {"x": {"kind": "together", "api_key": "k"}}}}
    assert _template(merged(MINIMAL, upstream)) == was
    for change in (
        {"gateway": {"workers": 3}},
        {"config": {"limits": {"body_bytes": 4096}}},
        {"secrets": {"databaseUrl": "postgresql://u:q@db/forebay"}},
    ):
        assert _template(merged(MINIMAL, change)) != was


def test_the_grace_covers_pause_drain_and_the_end_of_workers() -> None:
    spec = _template(merged(MINIMAL, {"gateway": {"drainSeconds": 100, "preStopSeconds": 7}}))
    assert spec["spec"]["terminationGracePeriodSeconds"] >= 100 + 7 + 25
    (container,) = spec["spec"]["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]


@pytest.mark.parametrize(
    ("drain", "grace"),
    [({}, 150), ({"grace_s": 300}, 330), ({"grace_s": 30.5, "kill_s": 59.5}, 111)],
)
def test_an_engines_grace_follows_its_profile(drain: dict[str, float], grace: int) -> None:
    profile = {"kind": "sglang", "model": "m", "drain": drain}
    manifests = render(merged(MINIMAL, {"engine": {"enabled": True, "profile": profile}}))
    engine = one(manifests, "StatefulSet", "rel-forebay-engine")
    assert engine["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == grace


def test_the_grace_follows_the_merged_configuration() -> None:
    values = merged(MINIMAL, {"config": {"drain_s": 300, "drain_notice_s": 20.5}})
    assert _template(values)["spec"]["terminationGracePeriodSeconds"] == 5 + 21 + 300 + 30


def _changed(change: dict[str, Any]) -> set[str]:
    """The workloads whose pods are replaced when a value of engines that scale changes."""
    was, now = (
        {m["metadata"]["name"]: m["spec"]["template"] for m in render(values) if m["kind"] in kinds}
        for kinds in [{"Deployment", "StatefulSet"}]
        for values in (
            PERMUTATIONS["scaled engines"],
            merged(PERMUTATIONS["scaled engines"], {"engine": change}),
        )
    )
    return {name for name in was if was[name] != now[name]}


def test_a_new_key_of_the_agents_restarts_all_who_know_it() -> None:
    everybody = {"rel-forebay", "rel-forebay-engine", "rel-forebay-autoscaler"}
    assert _changed({"agentKey": "another"}) == everybody
    assert _changed({"huggingFaceToken": "another"}) == {"rel-forebay-engine"}


def test_what_changes_the_profile_restarts_engines() -> None:
    assert _changed({"loadSeconds": 77}) == {"rel-forebay-engine"}
    assert _changed({"profile": {"served_name": "x"}}) >= {"rel-forebay-engine"}


def test_an_ingress_without_a_class_has_none() -> None:
    values = merged(EVERYTHING, {"ingress": {"className": ""}})
    found = [m for m in render(values) if m["kind"] == "Ingress"]
    assert len(found) == 2
    assert all("ingressClassName" not in m["spec"] for m in found)


def test_the_probes_ask_the_gateway_where_it_listens() -> None:
    (container,) = _template(MINIMAL)["spec"]["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert {"name": "http", "containerPort": 8080} in container["ports"]


@pytest.mark.parametrize("controller", ["nginx", "kong"])
def test_ingresses_do_not_buffer(controller: str) -> None:
    values = merged(EVERYTHING, {"ingress": {"controller": controller}})
    manifests = render(values)
    annotations = one(manifests, "Ingress", "rel-forebay")["metadata"]["annotations"]
    if controller == "nginx":
        assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
        # What was sent is not sent again, and what could not be sent goes to another gateway.
        assert annotations["nginx.ingress.kubernetes.io/proxy-request-buffering"] == "on"
        tries = annotations["nginx.ingress.kubernetes.io/proxy-next-upstream"].split()
        assert "non_idempotent" not in tries
        assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "3600"
    else:
        assert annotations["konghq.com/response-buffering"] == "false"
        service = one(manifests, "Service", "rel-forebay")["metadata"]["annotations"]
        assert service["konghq.com/read-timeout"] == "3600000"
        grpc = one(manifests, "Service", "rel-forebay-grpc")["metadata"]["annotations"]
        assert grpc["konghq.com/protocol"] == "grpc"
    assert annotations["cert-manager.io/cluster-issuer"] == "letsencrypt"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "secrets.databaseUrl or secrets.existingSecret"),
    (merged(MINIMAL, {"gatway": {}}), "gatway"),
    (merged(MINIMAL, {"gateway": {"replica": 3}}), "replica"),
    (merged(MINIMAL, {"gateway": {"kind": "DaemonSet"}}), "kind"),
    (merged(MINIMAL, {"gateway": {"replicas": "two"}}), "replicas"),
    ({"secrets": {"databaseUrl": "mysql://x"}}, "databaseUrl"),
    (merged(MINIMAL, {"jobs": {"rollup": {"schedule": "daily"}}}), "schedule"),
    (merged(MINIMAL, {"ingress": {"controller": "traefik"}}), "controller"),
    (
        merged(MINIMAL, {"engine": {"enabled": True, "autoscaling": {"enabled": True}}}),
        "gateway.kind=StatefulSet",
    ),
    (merged(MINIMAL, {"engine": {"profile": {"kind": "sglang", "port": 1}}}), "profile"),
]


@pytest.mark.parametrize(("values", "reason"), REFUSED)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], reason: str) -> None:
    from helm_python import HelmError

    with pytest.raises(HelmError, match=reason):
        render(values)


def test_a_long_name_still_fits() -> None:
    manifests = render(EVERYTHING, "a-release-whose-name-is-as-long-as-helm-allows-it-to")
    assert max(len(m["metadata"]["name"]) for m in manifests) <= 63
    cron = [m["metadata"]["name"] for m in manifests if m["kind"] == "CronJob"]
    assert max(map(len, cron)) <= 52


def test_the_notes_say_what_to_mind() -> None:
    def notes(values: dict[str, Any]) -> str:
        (text,) = [t for path, t in render_files(values).items() if path.endswith("NOTES.txt")]
        return " ".join(text.split())

    least = notes(MINIMAL)
    assert "There is no engine" in least
    assert "a key gets up to 2 times its limits" in least
    everything = notes(EVERYTHING)
    assert "There is no engine" not in everything
    assert "https://llm.example.com" in everything
