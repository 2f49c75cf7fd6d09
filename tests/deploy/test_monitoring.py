"""Dashboard and alerts: they parse, and every metric in them is one that a gateway has."""

import importlib.util
import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

import jsonschema_rs
import pytest
import yaml

from tests.deploy.chart import CHART, DATA, DEPLOY
from tests.support.processes import Gateway

ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "forebay.json"
_NAME = re.compile(r"\bforebay_[a-z_]+")


def _dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _queries() -> Iterator[str]:
    for panel in _dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
    for rule in _rules():
        yield rule["expr"]


QUERIES = list(_queries())


class Exposed(NamedTuple):
    """What a gateway tells Prometheus: types of families, and labels of those with samples.

    states: the values of `state` in forebay_upstream_state, each of which is there from the start.
    """

    types: dict[str, str]
    labels: dict[str, set[str]]
    states: set[str]

    def family(self, name: str) -> str:
        """The family that a sample's name is of."""
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        return base if self.types.get(base) == "histogram" else name


@pytest.fixture(scope="module")
def exposed(container: Gateway) -> Exposed:
    """After a request that streamed."""
    key = container.key()
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    assert container.call("/v1/chat/completions", body, key=key.secret).status == 200
    text = container.call("/metrics").body.decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    states = re.findall(r'^forebay_upstream_state\{.*state="(\w+)"', text, re.MULTILINE)
    found = Exposed(types, {}, set(states))
    for name, labels in re.findall(r"^(forebay_\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        names = set(re.findall(r'(\w+)="', labels))
        found.labels.setdefault(found.family(name), set()).update(names)
    return found


@pytest.mark.parametrize("query", QUERIES)
def test_promql_parses(query: str) -> None:
    promql = pytest.importorskip(
        "promql_parser", reason="needs the extra `deploy` (make test installs it)"
    )
    assert promql.parse(query)


def test_every_metric_exists(exposed: Exposed) -> None:
    named = {name for query in QUERIES for name in _NAME.findall(query)}
    named |= set(_NAME.findall(json.dumps(_dashboard()["templating"])))
    assert len(named) > 25
    assert {name for name in named if exposed.family(name) not in exposed.types} == set()


def test_functions_fit_the_types(exposed: Exposed) -> None:
    for query in QUERIES:
        for name in re.findall(r"(?:rate|increase)\((forebay_\w+)", query):
            assert exposed.types[exposed.family(name)] in ("counter", "histogram"), query
        for name in _NAME.findall(query):
            if exposed.types[exposed.family(name)] == "counter":
                assert re.search(rf"(?:rate|increase)\({name}\b", query), query
        if "histogram_quantile" in query:
            assert re.search(r"by \([^)]*\ble\b[^)]*\)", query), query
            assert all(name.endswith("_bucket") for name in _NAME.findall(query)), query


def test_every_label_exists(exposed: Exposed) -> None:
    checked = 0
    for query in QUERIES:
        families = {exposed.family(name) for name in _NAME.findall(query)}
        if not families or not families <= exposed.labels.keys():
            continue  # it has no samples yet
        known = set.union(*(exposed.labels[family] for family in families))
        used = {w.strip() for by in re.findall(r"by \(([^)]*)\)", query) for w in by.split(",")}
        used |= set(re.findall(r'(\w+)\s*=~?"', query))
        assert used - {"instance", "job", "le"} <= known, query
        checked += 1
    assert checked > 15


def test_every_state_exists(exposed: Exposed) -> None:
    asked = {
        state
        for query in QUERIES
        for states in re.findall(r'forebay_upstream_state\{[^}]*state=~?"([^"]*)"', query)
        for state in states.split("|")
    }
    assert "open" in asked
    assert asked <= exposed.states


def test_alerts_hold_to_the_rules_of_rules() -> None:
    schemas = yaml.safe_load((DATA / "custom-resources.yaml").read_text())
    groups = schemas["$defs"]["monitoring.coreos.com/v1/PrometheusRule"]["properties"]["spec"]
    validator = jsonschema_rs.validator_for({**schemas, **groups})
    errors = validator.iter_errors(yaml.safe_load(ALERTS.read_text()))
    assert [f"{e.instance_path}: {e.message}" for e in errors] == []
    names = [rule["alert"] for rule in _rules()]
    assert len(set(names)) == len(names)


def test_a_models_first_unpriced_request_is_noticed() -> None:
    (rule,) = [rule for rule in _rules() if rule["alert"] == "ForebayUnpriced"]
    name = "forebay_unpriced_requests_total"
    assert f"{name} unless {name} offset 1h" in rule["expr"]


def test_summaries_name_labels_that_the_query_keeps() -> None:
    for rule in _rules():
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            kept = re.findall(r"by \(([^)]*)\)", rule["expr"])
            assert not kept or any(label in by for by in kept), rule["alert"]


def test_the_dashboard_is_what_its_program_makes() -> None:
    path = DEPLOY / "grafana" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate_dashboard", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert DASHBOARD.read_text() == module.text()


def test_the_chart_has_the_same() -> None:
    assert (CHART / "files" / "dashboard.json").read_bytes() == DASHBOARD.read_bytes()
    assert (CHART / "files" / "alerts.yaml").read_bytes() == ALERTS.read_bytes()


def test_the_dashboard_is_sound() -> None:
    dashboard = _dashboard()
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)

    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        return {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }

    for one, other in combinations(panels, 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])
    for panel in panels:
        if panel["type"] == "row":
            continue
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        for target in panel["targets"]:
            # What a legend names has to be left by the query.
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert label in target["expr"], panel["title"]
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(panels))) - {"__rate_interval"}
    assert used <= names


def test_grafana_is_provisioned_with_it() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((folder / "dashboards" / "forebay.yaml").read_text())["providers"]
    compose = (DEPLOY / "compose.yaml").read_text()
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose
