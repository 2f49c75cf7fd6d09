"""A running gateway takes over another configuration, whole or not at all."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forebay.config import Config, Model, Target, Upstream
from forebay.gateway import Gateway as InProcess

from tests.gateway.test_credentials import PATH, cloud, grant, sent
from tests.support.processes import Gateway
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish
from tests.support.wait import until
from tests.support.wire import CHAT, Client, chat, request
from tests.support.workers import is_alive
from tests.upstreams.test_credentials import service_account
from tests.upstreams.token_server import TokenServer

__all__ = ["cloud"]  # a fixture


@pytest.fixture
def pair() -> Iterator[tuple[ScriptedUpstream, ScriptedUpstream]]:
    """Two engines."""
    engines = ScriptedUpstream(), ScriptedUpstream()
    for engine in engines:
        engine.start()
    yield engines
    for engine in engines:
        engine.stop()
        assert not engine.failures, engine.failures


@pytest.fixture
def launch(tmp_path: Path, session_database_url: str) -> Iterator[Callable[..., Gateway]]:
    """Starts one gateway; at the end it must stop cleanly and have logged no traceback."""
    started: list[Gateway] = []

    def start(config: dict[str, Any], **options: Any) -> Gateway:
        gateway = Gateway(tmp_path / "gateway", config, session_database_url, **options)
        started.append(gateway)
        gateway.start()
        return gateway

    yield start
    for gateway in started:
        assert gateway.stop() == 0, gateway.log()
        assert "Traceback (most recent" not in gateway.log(), gateway.log()


def save(gateway: Gateway, text: str) -> None:
    """Put another file in the place of the configuration, as editors do."""
    new = gateway.folder / "gateway.yaml.new"
    new.write_text(text)
    new.rename(gateway.folder / "gateway.yaml")


def logged(gateway: Gateway, event: str) -> list[dict[str, Any]]:
    """The log lines of one event."""
    lines = [json.loads(line) for line in gateway.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def reload(
    gateway: Gateway, config: Any, event: str = "configuration reloaded", *, by_signal: bool = True
) -> dict[str, Any]:
    """Save a configuration, as text or data, and have it read. Returns the log line `event`."""
    before = len(logged(gateway, event))
    save(gateway, config if isinstance(config, str) else json.dumps(config))
    if by_signal:
        assert gateway.popen is not None
        gateway.popen.send_signal(signal.SIGHUP)
    return until(lambda: logged(gateway, event)[before:], event, every_s=0.02)[-1]


def of(*engines: ScriptedUpstream, **models: Any) -> dict[str, Any]:
    """A configuration: upstreams a, b, …, and by default one model on all of them."""
    names = [chr(ord("a") + at) for at in range(len(engines))]
    upstreams = {
        name: {"kind": "sglang", "url": engine.url}
        for name, engine in zip(names, engines, strict=True)
    }
    default = {"tiny": {"targets": [{"upstream": name} for name in names]}}
    return {"upstreams": upstreams, "models": models or default}


def listed(gateway: Gateway, key: str) -> list[str]:
    """The models that a key sees."""
    answer = gateway.call("/v1/models", key=key).json()
    return [entry["id"] for entry in answer["data"]]


class Load:
    """Chats one after another on some connections, until `stop`."""

    def __init__(self, gateway: Gateway, key: str, clients: int = 4) -> None:
        self.statuses: list[int] = []
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(gateway.port, key)) for _ in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, port: int, key: str) -> None:
        with Client(port) as client:
            while not self._ended.wait(0.002):
                answer = client.send(request(CHAT, chat(), key=key)).answer()
                self.statuses.append(answer.status)

    def more(self, count: int = 60) -> None:
        """Wait until so many more have been answered."""
        enough = len(self.statuses) + count
        until(lambda: len(self.statuses) >= enough, "chats")

    def stop(self) -> None:
        """End it; none has failed."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        assert set(self.statuses) == {200}


def test_an_upstream_is_drained_and_removed_under_load(
    launch: Callable[..., Gateway], pair: tuple[ScriptedUpstream, ScriptedUpstream]
) -> None:
    a, b = pair
    release = threading.Event()

    def script(connection: Connection, received: Received) -> None:
        if not received.json().get("stream"):
            connection.json({"choices": [], "usage": None})
            return
        connection.begin()
        connection.event(delta("one"))
        assert release.wait(20)
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    gateway = launch(of(a, b))
    key = gateway.key().secret
    a.script = b.script = script
    with Client(gateway.port) as one, Client(gateway.port) as two:
        for client in (one, two):
            client.send(request(CHAT, chat(stream=True), key=key))
        answers = [one.head(), two.head()]
        until(lambda: a.active and b.active, "a stream at each")
        load = Load(gateway, key)
        load.more()
        assert len(a.requests) > 10
        drained = of(a, b)
        drained["upstreams"]["a"]["draining"] = True
        assert reload(gateway, drained)["upstreams_changed"] == ["a"]
        load.more(8)  # what was on its way
        before = len(a.requests)
        load.more()
        assert len(a.requests) == before
        removed = of(a, b)
        del removed["upstreams"]["a"]
        removed["models"]["tiny"]["targets"] = [{"upstream": "b"}]
        assert reload(gateway, removed, by_signal=False)["upstreams_removed"] == ["a"]
        load.more()
        assert len(a.requests) == before
        assert a.active == 1
        assert "upstream:a" not in gateway.health()["checks"]
        release.set()
        for client, answer in zip((one, two), answers, strict=True):
            body = b"".join(data for _, data in client.body(answer))
            assert answer.complete
            assert body.endswith(b"data: [DONE]\n\n"), "a running stream ends as it began"
        # It comes back as one that is new.
        assert reload(gateway, of(a, b))["upstreams_added"] == ["a"]
        until(lambda: len(a.requests) > before, "requests at a again")
        load.more()
        load.stop()


def test_models_aliases_and_discovered_ones_come_and_go(
    launch: Callable[..., Gateway], pair: tuple[ScriptedUpstream, ScriptedUpstream]
) -> None:
    a, b = pair
    b.models = ["found"]
    gateway = launch(of(a))
    key = gateway.key().secret
    assert listed(gateway, key) == ["tiny"]
    more = of(a, b, tiny={"targets": [{"upstream": "a"}], "aliases": ["small"]})
    more["upstreams"]["b"]["discover"] = True
    more["models"]["other"] = {"targets": [{"upstream": "b", "model": "found"}]}
    told = reload(gateway, more, by_signal=False)
    assert (told["upstreams_added"], told["models_added"]) == (["b"], ["other"])
    assert told["models_changed"] == ["tiny"]
    until(lambda: listed(gateway, key) == ["found", "other", "small", "tiny"], "the models")
    for model in ("found", "other", "small", "tiny"):
        assert gateway.call(CHAT, chat(model), key=key).status == 200
    assert len(b.requests) == 2
    # What `b` lists stays while it is looked at in another way, and goes with it.
    more["upstreams"]["b"]["probe"] = {"interval": 1}
    reload(gateway, more)
    assert listed(gateway, key) == ["found", "other", "small", "tiny"]
    assert gateway.health()["checks"]["upstream:b"] == "ok"
    reload(gateway, of(a))
    assert listed(gateway, key) == ["tiny"]
    for model in ("found", "other", "small"):
        assert gateway.call(CHAT, chat(model), key=key).status == 404


def test_a_bad_file_changes_nothing_and_says_why(
    launch: Callable[..., Gateway], pair: tuple[ScriptedUpstream, ScriptedUpstream]
) -> None:
    a, _ = pair
    gateway = launch(of(a))
    key = gateway.key().secret
    text = (
        "upstreams:\n"
        f"  b: {{kind: sglang, url: '{a.url}'}}\n"
        "models:\n"
        "  new:\n"
        "    targets: [{upstream: nowhere}]\n"
    )
    why = reload(gateway, text, "configuration refused; nothing changes")
    assert (why["line"], why["field"]) == (5, "models.new.targets[0].upstream")
    assert "nowhere" in why["reason"]
    assert why["file"].endswith("gateway.yaml")
    health = gateway.health()
    assert health["status"] == "degraded"
    assert "refused" in health["checks"]["configuration"]
    assert gateway.metric("forebay_config_refused") == 1
    assert gateway.metric("forebay_config_reloads_total", outcome="refused") == 1
    assert listed(gateway, key) == ["tiny"]
    assert gateway.call(CHAT, chat(), key=key).status == 200
    for broken in ("upstreams: [", "", "upstreams: {}\nworkers: many\n"):
        reload(gateway, broken, "configuration refused; nothing changes", by_signal=False)
        assert gateway.call(CHAT, chat(), key=key).status == 200
    reload(gateway, of(a), "configuration is unchanged")
    assert gateway.health()["checks"]["configuration"] == "ok"
    assert gateway.metric("forebay_config_refused") == 0


def test_what_needs_a_restart_is_named_and_the_rest_taken(
    launch: Callable[..., Gateway], pair: tuple[ScriptedUpstream, ScriptedUpstream]
) -> None:
    a, _ = pair
    gateway = launch(of(a))
    key = gateway.key().secret
    assert gateway.popen is not None
    gateway.popen.send_signal(signal.SIGHUP)
    until(lambda: logged(gateway, "configuration is unchanged"), "a SIGHUP for nothing")
    config = of(a, more={"targets": [{"upstream": "a"}]}) | {
        "workers": 3,
        "spool": {"max_bytes": 4_194_304},
        "limits": {"body_bytes": 2048, "event_bytes": 2048},
        "log": {"level": "debug"},
    }
    told = reload(gateway, config)
    assert told["changed"] == ["limits", "log"]
    [left] = logged(gateway, "settings need a restart")
    assert left["fields"] == ["spool.max_bytes", "workers", "limits.body_bytes"]
    assert listed(gateway, key) == ["more"]
    body = chat("more", "x" * 4000)
    assert gateway.call(CHAT, body, key=key).status == 200, "the limit on bodies is the old one"


def test_new_credentials_are_used(
    launch: Callable[..., Gateway],
    tmp_path: Path,
    cloud: TokenServer,
    pair: tuple[ScriptedUpstream, ScriptedUpstream],
) -> None:
    a, _ = pair
    grant(cloud, "t-1")
    vertex: dict[str, Any] = {
        "kind": "vertex",
        "url": cloud.url,
        "project": "p",
        "location": "global",
        "credentials": {"file": str(service_account(tmp_path, f"{cloud.url}/token"))},
    }
    config = of(a)
    config["upstreams"] |= {"v": vertex}
    config["upstreams"]["a"]["api_key"] = "first"
    config["models"]["m"] = {"targets": [{"upstream": "v", "model": "google/m"}]}
    gateway = launch(config)
    key = gateway.key().secret
    until(lambda: gateway.health()["checks"]["credentials:v"] == "ok", "the first token")
    for model in ("tiny", "m"):
        assert gateway.call(CHAT, chat(model), key=key).status == 200
    asked = sum(path == "/token" for path, _, _ in cloud.asked)
    # Another pace is no reason to ask for a token.
    vertex["max_concurrency"] = 5
    config["upstreams"]["a"]["api_key"] = "second"
    reload(gateway, config)
    assert gateway.call(CHAT, chat(), key=key).status == 200
    assert gateway.call(CHAT, chat("m"), key=key).status == 200
    assert [r.header("authorization") for r in a.requests] == ["Bearer first", "Bearer second"]
    assert sum(path == "/token" for path, _, _ in cloud.asked) == asked
    grant(cloud, "t-2")
    (tmp_path / "other").mkdir()
    vertex["credentials"]["file"] = str(service_account(tmp_path / "other", f"{cloud.url}/token"))
    reload(gateway, config)

    def renewed() -> bool:
        assert gateway.call(CHAT, chat("m"), key=key).status == 200, "the old ones hold until then"
        return sent(cloud)[-1] == "Bearer t-2"

    until(renewed, "the new file's token")
    assert "credentials:v" in gateway.health()["checks"]
    reload(gateway, of(a))
    assert "credentials:v" not in gateway.health()["checks"]
    assert any(path == PATH for path, _, _ in cloud.asked)


def test_prices_of_the_file_begin_the_book(
    launch: Callable[..., Gateway], pair: tuple[ScriptedUpstream, ScriptedUpstream]
) -> None:
    a, _ = pair
    gateway = launch(of(a))
    key = gateway.key().secret
    price = {"input": "1.5", "output": 2}
    reload(gateway, of(a, priced={"targets": [{"upstream": "a"}], "price": price}))

    def cost() -> Any:
        answer = gateway.call(CHAT, chat("priced"), key=key)
        return gateway.usage_of(answer)["cost"]

    until(cost, "a price")


def test_all_workers_follow_one_reading(
    launch: Callable[..., Gateway], pair: tuple[ScriptedUpstream, ScriptedUpstream]
) -> None:
    a, b = pair
    gateway = launch(of(a), workers=2)
    key = gateway.key().secret

    def everywhere(path: str, check: Callable[[Any], bool]) -> bool:
        # Each on a connection of its own: one of two workers gets none of 24 once in 8 million.
        return all(check(gateway.call(path, key=key).json()) for _ in range(24))

    def models(*names: str) -> bool:
        wanted = list(names)
        return everywhere("/v1/models", lambda got: [m["id"] for m in got["data"]] == wanted)

    new = of(a, b, tiny={"targets": [{"upstream": "a"}]}, new={"targets": [{"upstream": "b"}]})
    reload(gateway, new)
    until(lambda: models("new", "tiny"), "the models at both")
    assert gateway.metric("forebay_config_reloads_total", outcome="applied") == 1
    # Workers leave the signal to the supervisor.
    for pid in gateway.workers:
        os.kill(pid, signal.SIGHUP)
    why = reload(
        gateway, "upstreams: {a: {kind: sglang}}\n", "configuration refused; nothing changes"
    )
    assert why["field"] == "upstreams.a.url"
    until(
        lambda: everywhere("/readyz", lambda got: "refused" in got["checks"]["configuration"]),
        "both say so",
    )
    assert gateway.metric("forebay_config_refused") == 1
    # One that starts anew has the last good one.
    victim, other = gateway.workers
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in gateway.workers, "it is gone")
    until(lambda: len(gateway.workers) == 2, "another in its place", timeout_s=20)
    assert is_alive(other)
    assert models("new", "tiny")
    assert everywhere("/readyz", lambda got: "refused" in got["checks"]["configuration"])
    reload(gateway, of(b), by_signal=False)
    until(lambda: models("tiny"), "the models at both")


def test_what_the_core_refuses_changes_nothing() -> None:
    def config(upstream: str, target: str) -> Config:
        settings = Upstream(kind="sglang", url="http://127.0.0.1:1")
        model = Model(targets=(Target(upstream=target),))
        return Config(upstreams={upstream: settings}, models={f"on-{upstream}": model})

    gateway = InProcess(config("a", "a"))
    with pytest.raises(ValueError, match="nowhere"):
        gateway.reload(config("b", "nowhere"))
    assert gateway.models == ["on-a"]
    assert [entry["name"] for entry in json.loads(gateway.core.upstreams())] == ["a"]
    assert list(gateway.health().checks) == ["upstream:a"]
    gateway.reload(config("b", "b"))
    assert gateway.models == ["on-b"]
    assert [entry["name"] for entry in json.loads(gateway.core.upstreams())] == ["b"]
    assert list(gateway.health().checks) == ["upstream:b"]
    gateway.core.close()
