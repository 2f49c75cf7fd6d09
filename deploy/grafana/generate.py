"""Writes the dashboard, here and in the chart. The tests run it and compare."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WIDTH, HEIGHT = 8, 7
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
ON = '{instance=~"$instance"}'


def sum_rate(metric: str, by: str, matches: str = "") -> str:
    """The sum of a counter's rates."""
    labels = ", ".join(filter(None, ['instance=~"$instance"', matches]))
    over = f" by ({by})" if by else ""
    return f"sum{over} (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(metric: str, share: float, by: str = "") -> str:
    """A quantile of a histogram."""
    rates = sum_rate(f"{metric}_bucket", ", ".join(filter(None, ["le", by])))
    return f"histogram_quantile({share}, {rates})"


PANELS: list[tuple[str, list[tuple[str, str, list[tuple[str, str]]]]]] = [
    (
        "Requests",
        [
            ("Requests", "reqps", [(sum_rate("forebay_requests_total", "outcome"), "{{outcome}}")]),
            ("By API", "reqps", [(sum_rate("forebay_requests_total", "endpoint"), "{{endpoint}}")]),
            (
                "In flight",
                "short",
                [(f"sum by (instance) (forebay_requests_in_flight{ON})", "{{instance}}")],
            ),
            (
                "Time to first token",
                "s",
                [
                    (quantile("forebay_time_to_first_token_seconds", share), f"p{share * 100:g}")
                    for share in (0.5, 0.95, 0.99)
                ],
            ),
            (
                "Duration",
                "s",
                [
                    (quantile("forebay_request_duration_seconds", share), f"p{share * 100:g}")
                    for share in (0.5, 0.95, 0.99)
                ],
            ),
            ("Decision of admission", "s", [(quantile("forebay_admission_seconds", 0.99), "p99")]),
            ("Errors", "reqps", [(sum_rate("forebay_errors_total", "kind"), "{{kind}}")]),
            (
                "Refused by limits",
                "reqps",
                [
                    (
                        sum_rate("forebay_limit_refusals_total", "scope, dimension"),
                        "{{scope}} {{dimension}}",
                    )
                ],
            ),
            (
                "Clients that left",
                "reqps",
                [(sum_rate("forebay_client_hangups_total", "then"), "{{then}}")],
            ),
        ],
    ),
    (
        "Tokens",
        [
            ("Tokens", "short", [(sum_rate("forebay_tokens_total", "direction"), "{{direction}}")]),
            ("By model", "short", [(sum_rate("forebay_tokens_total", "model"), "{{model}}")]),
            (
                "Without a price",
                "reqps",
                [(sum_rate("forebay_unpriced_requests_total", "model"), "{{model}}")],
            ),
        ],
    ),
    (
        "Upstreams",
        [
            (
                "State",
                "short",
                [
                    (
                        f"sum by (upstream, state) (forebay_upstream_state{ON}) > 0",
                        "{{upstream}} {{state}}",
                    )
                ],
            ),
            (
                "Attempts",
                "reqps",
                [(sum_rate("forebay_upstream_attempts_total", "upstream"), "{{upstream}}")],
            ),
            (
                "Outcomes",
                "reqps",
                [
                    (
                        sum_rate("forebay_upstream_outcomes_total", "upstream, outcome"),
                        "{{upstream}} {{outcome}}",
                    )
                ],
            ),
            (
                "First token, moving average",
                "ms",
                [
                    (
                        f"max by (upstream) (forebay_upstream_first_token_milliseconds{ON})",
                        "{{upstream}}",
                    )
                ],
            ),
            (
                "Waiting",
                "short",
                [(f"sum by (upstream) (forebay_upstream_waiting{ON})", "{{upstream}}")],
            ),
            (
                "Wait",
                "s",
                [(quantile("forebay_queue_wait_seconds", 0.95, "upstream"), "p95 {{upstream}}")],
            ),
            (
                "Shed by queues",
                "reqps",
                [
                    (
                        sum_rate("forebay_queue_shed_total", "upstream, reason"),
                        "{{upstream}} {{reason}}",
                    )
                ],
            ),
            (
                "Ejections",
                "short",
                [
                    (
                        sum_rate("forebay_upstream_ejections_total", "upstream, reason"),
                        "{{upstream}} {{reason}}",
                    )
                ],
            ),
            (
                "Places",
                "short",
                [(f"sum by (upstream) (forebay_upstream_concurrency_limit{ON})", "{{upstream}}")],
            ),
        ],
    ),
    (
        "Books",
        [
            (
                "Usage that waits for the database",
                "short",
                [(f"sum by (instance) (forebay_usage_backlog_events{ON})", "{{instance}}")],
            ),
            (
                "Its age",
                "s",
                [(f"max by (instance) (forebay_usage_lag_seconds{ON})", "{{instance}}")],
            ),
            (
                "Spool",
                "percentunit",
                [(f"forebay_spool_bytes{ON} / forebay_spool_max_bytes{ON}", "{{instance}}")],
            ),
            (
                "Not recorded",
                "short",
                [
                    (sum_rate(f"forebay_spool_{what}_total", ""), what)
                    for what in ("refused", "unmetered", "lost", "failures", "damaged")
                ],
            ),
            (
                "Shared limits",
                "short",
                [
                    (f"min by (instance) (forebay_lease_store_up{ON})", "store {{instance}}"),
                    (f"max (forebay_lease_participants{ON})", "participants"),
                ],
            ),
            (
                "Processes",
                "short",
                [
                    (f"forebay_workers{ON}", "workers {{instance}}"),
                    (f"forebay_config_refused{ON}", "configuration refused {{instance}}"),
                ],
            ),
        ],
    ),
]


def panel(
    number: int, title: str, unit: str, queries: list[tuple[str, str]], at: tuple[int, int]
) -> dict[str, Any]:
    """A graph."""
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"x": at[0], "y": at[1], "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "custom": {"fillOpacity": 10, "showPoints": "never"},
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
            for i, (expr, legend) in enumerate(queries)
        ],
    }


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in PANELS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
            }
        )
        y += 1
        for i, (name, unit, queries) in enumerate(row):
            at = (i % 3 * WIDTH, y + i // 3 * HEIGHT)
            panels.append(panel(len(panels) + 1, name, unit, queries, at))
        y += (len(row) + 2) // 3 * HEIGHT
    return {
        "uid": "forebay",
        "title": "Forebay",
        "tags": ["forebay"],
        "schemaVersion": 41,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "type": "datasource",
                    "query": "prometheus",
                    "label": "Data source",
                },
                {
                    "name": "instance",
                    "type": "query",
                    "label": "Gateway",
                    "datasource": SOURCE,
                    "query": {
                        "query": "label_values(forebay_workers, instance)",
                        "refId": "instance",
                    },
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def text() -> str:
    """As it is stored."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    for path in (
        HERE / "dashboards" / "forebay.json",
        HERE.parent / "helm" / "forebay" / "files" / "dashboard.json",
    ):
        path.write_text(text())
