"""Values that the chart is rendered with."""

from typing import Any

from tests.deploy.chart import MINIMAL, merged

_ENGINE: dict[str, Any] = {
    "engine": {"enabled": True, "agentKey": "agent-secret", "huggingFaceToken": "hf-secret"}
}

EVERYTHING = merged(
    MINIMAL,
    _ENGINE,
    {
        "secrets": {
            "redisUrl": "redis://:redis-secret@valkey:6379/0",
            "inferenceUrl": "http://sglang:30000",
            "inferenceApiKey": "inference-secret",
            "extra": {"TOGETHER_API_KEY": "together-secret"},
        },
        "imagePullSecrets": [{"name": "registry"}],
        "config": {
            "limits": {"body_bytes": 1048576},
            "upstreams": {"together": {"kind": "together", "api_key": "${TOGETHER_API_KEY}"}},
            "models": {"m": {"targets": [{"upstream": "engine-0"}, {"upstream": "together"}]}},
        },
        "gateway": {
            "autoscaling": {"enabled": True},
            "env": {"OTEL_SERVICE_NAME": "forebay", "A_NUMBER": 1},
            "podAnnotations": {"a": "b"},
            "podLabels": {"team": "llm"},
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [{"key": "k", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "high",
        },
        "service": {"type": "LoadBalancer", "annotations": {"x": "y"}},
        "ingress": {
            "enabled": True,
            "tlsSecret": "tls",
            "annotations": {"cert-manager.io/cluster-issuer": "letsencrypt"},
            "grpc": {"enabled": True, "tlsSecret": "grpc-tls"},
        },
        "networkPolicy": {
            "ingressFrom": [{"namespaceSelector": {}}],
            "egress": {"enabled": True, "extra": [{"ports": [{"port": 4318}]}]},
        },
        "jobs": {"invoices": {"enabled": True}},
        "monitoring": {
            "serviceMonitor": True,
            "podMonitor": True,
            "prometheusRule": True,
            "dashboard": True,
            "labels": {"release": "prometheus"},
        },
        "engine": {
            "env": {"NCCL_DEBUG": "WARN"},
            "runtimeClassName": "nvidia",
            "nodeSelector": {"gpu": "h100"},
            "priorityClassName": "low",
            "autoscaling": {
                "enabled": True,
                "limits": {"price_per_hour": "2.5"},
                "config": {"gateways": ["http://gateways"]},
            },
        },
    },
)

PERMUTATIONS: dict[str, dict[str, Any]] = {
    "least": MINIMAL,
    "everything": EVERYTHING,
    "existing secrets": {
        "secrets": {"existingSecret": "mine"},
        "engine": {"enabled": True, "existingSecret": "mine-engine"},
        "jobs": {"invoices": {"enabled": True}},
    },
    "stateful gateway": merged(
        EVERYTHING, {"gateway": {"kind": "StatefulSet", "spool": {"storageClass": "fast"}}}
    ),
    "scaled engines": merged(
        MINIMAL,
        _ENGINE,
        {
            "gateway": {"kind": "StatefulSet", "replicas": 3},
            "engine": {"autoscaling": {"enabled": True, "maxReplicas": 2}},
        },
    ),
    "engine deployment": merged(
        MINIMAL, {"engine": {"enabled": True, "kind": "Deployment", "gpus": 8}}
    ),
    "kong": merged(EVERYTHING, {"ingress": {"controller": "kong", "className": "kong"}}),
    "other controller, no gRPC": merged(
        MINIMAL,
        {
            "ingress": {"enabled": True, "controller": "other", "grpc": {"enabled": True}},
            "gateway": {"grpc": False},
        },
    ),
    "little": merged(
        MINIMAL,
        {
            "gateway": {
                "replicas": 1,
                "workers": 1,
                "topologySpread": False,
                "podDisruptionBudget": {"enabled": False},
            },
            "networkPolicy": {"enabled": False},
            "migrations": {"enabled": False},
            "jobs": {"rollup": {"enabled": False}},
        },
    ),
}
