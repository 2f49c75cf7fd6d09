"""Watching upstreams: what is asked when, and what the core is told. In virtual time."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from forebay.config import Cold, Config, Model, ProbeSettings, Target, Upstream
from forebay.gateway.answer import Answer
from forebay.gateway.watcher import Watcher
from structlog.testing import capture_logs

from tests.support.virtual_time import run

MODELS = b'{"data":[{"id":"m"}]}'
BUSY = b'{"loads":[{"num_running_reqs":2,"num_waiting_reqs":1,"num_used_tokens":9}]}'
GENERATES = b'{"is_generation":true}'


class Engine:
    """What the watcher asks, and what it tells. `answers` has status and body by path; a path that
    is missing is not there, None cannot be reached, a number of seconds answers too late."""

    def __init__(self, answers: dict[str, Any] | None = None, *, down: bool = False) -> None:
        self.answers: dict[str, Any] = {
            "/ready": (200, b""),
            "/v1/models": (200, MODELS),
            "/v1/loads?include=core": (200, BUSY),
            "/model_info": (200, GENERATES),
            "/v1/chat/completions": (200, b"{}"),
            **(answers or {}),
        }
        self.down = down
        self.asked: list[tuple[float, str, str, bytes | None]] = []
        self.told: list[tuple[float, str, bytes | None]] = []
        self.described: list[Any] = []
        self.wanted: list[str] = []
        self.used = 0
        self.was_asked = asyncio.Event()
        self.agent: tuple[int, bytes] | None = None
        """What its agent answers; None: it is away."""
        self.agent_asked: list[tuple[float, str, str]] = []
        self.agent_answers: list[bool] = []

    async def fetch(
        self, upstream: str, path: str, limit_s: float, method: str, body: bytes | None
    ) -> Answer | None:
        assert upstream == "gpu"
        now = asyncio.get_running_loop().time()
        self.asked.append((now, method, path, body))
        self.was_asked.set()
        answer = None if self.down else self.answers.get(path, (404, b""))
        if isinstance(answer, (int, float)):
            await asyncio.sleep(min(answer, limit_s))
            late = answer > limit_s
            answer = (504, "upstream_timeout") if late else (200, b"")
        if answer is None:
            answer = (503, "unavailable")
        status, content = answer
        if isinstance(content, str):
            return status, [(b"x-forebay-error", content.encode())], b"{}", False
        return status, [], content, False

    async def ask_agent(
        self, upstream: str, path: str, limit_s: float, method: str, body: bytes | None
    ) -> Answer | None:
        assert upstream == "gpu"
        self.agent_asked.append((asyncio.get_running_loop().time(), method, path))
        if self.agent is None:
            return 503, [(b"x-forebay-error", b"unavailable")], b"{}", False
        status, content = self.agent
        return status, [], content, False

    def report_agent(self, name: str, answers: bool) -> bool:
        assert name == "gpu"
        if self.agent_answers[-1:] != [answers]:
            self.agent_answers.append(answers)
        return True

    def report_upstream(self, name: str, state: str, load: bytes | None) -> bool:
        assert name == "gpu"
        self.told.append((asyncio.get_running_loop().time(), state, load))
        return True

    def describe_upstream(self, name: str, said: bytes) -> None:
        assert name == "gpu"
        self.described.append(orjson.loads(said)["models"])

    def take_wanted(self) -> list[str]:
        wanted, self.wanted = self.wanted, []
        return wanted

    def upstreams(self) -> bytes:
        return orjson.dumps(
            [{"name": "gpu", "in_flight": 0, "successes": self.used, "failures": 0}]
        )

    @property
    def states(self) -> list[str]:
        """What was told, without repetitions."""
        found: list[str] = []
        for _, state, _ in self.told:
            if not found or found[-1] != state:
                found.append(state)
        return found

    def paths(self, since: float = 0.0) -> Counter[str]:
        """How often each path was asked for."""
        return Counter(path for at, _, path, _ in self.asked if at >= since)


Scene = Callable[[Engine, Watcher], Awaitable[None]]


def watch(engine: Engine, scene: Scene, *, policy: Any = "round_robin", **settings: Any) -> None:
    """Have the engine watched while the scene lasts."""
    settings = {"kind": "sglang", "url": "http://127.0.0.1:1", **settings}
    config = Config(
        upstreams={"gpu": Upstream(**settings)},
        models={
            "m": Model(targets=(Target(upstream="gpu", model="org/m"),), policy=policy),
        },
    )

    async def work() -> None:
        loop = asyncio.get_running_loop()
        watcher = Watcher(
            config,
            engine,
            engine.fetch,
            lambda: None,
            engine.ask_agent,
            clock=loop.time,
            jitter=random.Random(1),
        )
        watcher.start()
        try:
            await scene(engine, watcher)
        finally:
            await watcher.stop()

    run(work())


def test_what_an_engine_says_of_its_model_is_told_once() -> None:
    refusal = b'{"message":"logit_bias must has keys in [0, 127], got 2147483647."}'
    answers = {
        "/server_info": (200, b'{"version":"0.5.23"}'),
        "/v1/completions": (400, refusal),
    }

    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(60)
        facts = {"embedding": False, "vocab_size": 128}
        assert engine.described == [{"org/m": facts}]

    watch(Engine(answers), scene)


def test_an_engine_that_could_not_be_asked_about_its_model_is_asked_again() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(30)
        assert engine.described == []
        engine.answers["/model_info"] = (200, GENERATES)
        await asyncio.sleep(30)
        assert engine.described[0]["org/m"]["embedding"] is False
        asked = engine.paths()["/model_info"]
        await asyncio.sleep(30)
        assert engine.paths()["/model_info"] == asked

    watch(Engine({"/model_info": None}), scene, cold=Cold(warm_up=False))


class Faulty(Engine):
    """Of which nothing can be told at first."""

    faults = 3

    def describe_upstream(self, name: str, said: bytes) -> None:
        if self.faults > 0:
            self.faults -= 1
            raise ValueError("a fault of ours")
        super().describe_upstream(name, said)


def test_a_fault_does_not_end_the_upkeep() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(30)
        assert engine.states[-1] == "warm"
        assert watcher.checks == {"gpu": "ok"}
        since = asyncio.get_running_loop().time()
        engine.down = True
        await asyncio.sleep(30)
        assert engine.states[-1] == "down"
        assert engine.paths(since)["/ready"] < 40

    watch(Faulty(), scene)


def test_an_engine_that_might_die_of_the_question_is_not_asked() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(10)
        assert engine.paths()["/v1/completions"] == 0
        assert engine.described[0]["org/m"] == {
            "embedding": False,
            "vocab_size": None,
        }

    watch(Engine({"/server_info": (200, b'{"version":"0.4.9"}')}), scene)


def test_a_good_engine_is_warm_at_the_first_look_and_looked_at_every_two_seconds() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await watcher.looked()
        assert watcher.checks == {"gpu": "ok"}
        await asyncio.sleep(100)
        assert engine.states == ["warm"]
        assert 50 <= engine.paths()["/ready"] <= 65
        assert orjson.loads(engine.told[0][2] or b"") == {"running": 2, "waiting": 1, "tokens": 9}
        # Nothing was cold, so nothing has to be warmed up.
        asked = {"/ready", "/v1/loads?include=core", "/model_info", "/server_info"}
        assert set(engine.paths()) == asked

    watch(Engine(), scene)


def test_an_engine_whose_load_counts_is_looked_at_every_second() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(100)
        assert 100 <= engine.paths()["/v1/loads?include=core"] <= 130

    watch(Engine(), scene, policy="least_load")


def test_an_end_is_told_at_once_and_a_return_within_two_seconds_without_hammering() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        now = asyncio.get_running_loop().time
        await asyncio.sleep(60)
        engine.down, ended = True, now()
        await asyncio.sleep(3600)
        told = next(at for at, state, _ in engine.told if state == "down")
        assert told - ended <= 2.0
        assert watcher.checks == {"gpu": "down: not ready"}
        assert engine.paths(ended)["/ready"] <= 3600 / 1.6 + 10
        engine.down, back = False, now()
        await asyncio.sleep(10)
        told = next(at for at, state, _ in engine.told if state == "warm" and at >= back)
        assert told - back <= 2.0
        # It was started anew.
        assert engine.paths(back)["/v1/chat/completions"] == 1
        assert engine.states == ["warm", "down", "loading", "warm"]

    watch(Engine(), scene)


def test_a_start_is_waited_for_and_warmed_up_before_it_is_told() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        now = asyncio.get_running_loop().time
        await watcher.looked()
        assert watcher.checks == {"gpu": "down: not ready"}
        await asyncio.sleep(30)
        engine.down = False
        await asyncio.sleep(2)
        engine.answers["/ready"] = (200, b"")
        ready = now()
        await asyncio.sleep(10)
        assert engine.states == ["loading", "warm"]
        warm = next(at for at, state, _ in engine.told if state == "warm")
        assert 3.0 <= warm - ready <= 3.5, "the warm-up takes 3 s"
        ((at, method, _, body),) = [a for a in engine.asked if a[2] == "/v1/chat/completions"]
        asked = orjson.loads(body or b"")
        assert (method, asked["model"], asked["max_tokens"]) == ("POST", "org/m", 1)
        assert at >= ready

    answers = {"/ready": (503, b""), "/v1/chat/completions": 3.0}
    watch(Engine(answers, down=True), scene, cold=Cold())


@pytest.mark.parametrize(
    ("info", "settings"),
    [
        ((200, b'{"is_generation":false}'), {"cold": Cold()}),
        ((500, b""), {"cold": Cold()}),
        ((200, GENERATES), {"cold": Cold(warm_up=False)}),
    ],
    ids=["embeddings", "unknown", "off"],
)
def test_no_chat_to_what_would_die_of_it(info: Any, settings: dict[str, Any]) -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(5)
        engine.down = False
        await asyncio.sleep(5)
        assert engine.states == ["loading", "warm"]
        assert engine.paths()["/v1/chat/completions"] == 0

    watch(Engine({"/model_info": info}, down=True), scene, **settings)


def test_a_warm_up_that_fails_is_tried_again() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(5)
        engine.down = False
        await asyncio.sleep(10)
        assert engine.states == ["loading"]
        engine.answers["/v1/chat/completions"] = (400, b"{}")
        await asyncio.sleep(5)
        assert engine.states == ["loading", "warm"], "it answers, whatever it says"

    watch(Engine({"/v1/chat/completions": (500, b"")}, down=True), scene, cold=Cold())


def test_an_engine_that_is_about_to_end_is_down() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(5)
        engine.answers["/ready"] = (503, b"")
        await asyncio.sleep(5)
        assert engine.states == ["warm", "down"]

    watch(Engine(), scene)


def test_one_slow_answer_is_asked_again_at_once() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(5)
        engine.answers["/ready"] = 3600.0
        engine.was_asked.clear()
        await engine.was_asked.wait()
        engine.answers["/ready"] = (200, b"")
        await asyncio.sleep(10)
        assert engine.states == ["warm"]
        engine.answers["/ready"] = 3600.0
        await asyncio.sleep(7)
        assert engine.states == ["warm", "down"]

    watch(Engine(), scene)


def test_an_upstream_that_refuses_the_question_stays_in_but_is_not_ready() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await watcher.looked()
        assert engine.states == ["warm"]
        assert watcher.checks == {"gpu": "down: its probe was answered with 404"}

    watch(Engine({"/nowhere": (404, b"")}), scene, probe=ProbeSettings(path="/nowhere"))


def test_models_are_discovered_and_stay_while_the_list_is_away() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(5)
        assert watcher.checks == {"gpu": "down: not ready"}
        engine.answers["/v1/models"] = (200, MODELS)
        await asyncio.sleep(3)
        assert watcher.discovered == {"gpu": ["m"]}
        engine.answers["/v1/models"] = (200, b"?")
        await asyncio.sleep(10)
        assert watcher.discovered == {"gpu": ["m"]}
        assert watcher.checks == {"gpu": "ok"}

    watch(Engine({"/v1/models": (429, b"")}), scene, discover=True)


MODAL = {"kind": "modal", "url": "https://w--app-serve.modal.run"}


def test_what_looking_would_start_is_left_alone_until_it_is_wanted() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await watcher.looked()
        await asyncio.sleep(290)
        assert engine.asked == []
        assert watcher.checks == {"gpu": "ok"}
        await asyncio.sleep(60)
        # Nobody has used it for 5 minutes.
        assert engine.states == ["cold"]
        assert watcher.checks == {"gpu": "ok: cold"}
        assert engine.asked == []
        engine.answers["/v1/models"] = 20.0
        engine.wanted = ["gpu"]
        await asyncio.sleep(1)
        assert next(path for _, _, path, _ in engine.asked) == "/v1/models"
        await asyncio.sleep(40)
        assert engine.states[-1] == "warm"
        assert engine.paths()["/v1/chat/completions"] == 1
        before = len(engine.asked)
        for _ in range(100):
            engine.used += 1
            await asyncio.sleep(60)
        assert len(engine.asked) == before
        assert engine.states[-1] == "warm"

    watch(Engine(), scene, **MODAL)


def test_calls_to_wake_are_few_however_many_want_it() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        now = asyncio.get_running_loop().time
        await watcher.looked()
        await asyncio.sleep(310)
        assert engine.states == ["cold"]
        engine.down, began = True, now()
        for _ in range(200):
            engine.wanted = ["gpu"]
            await asyncio.sleep(0.3)
        assert engine.states[-1] == "loading"
        assert len(engine.asked) <= 2.5 * (now() - began) + 10
        await asyncio.sleep(120)
        before = len(engine.asked)
        assert engine.states[-1] == "cold", "nobody wants it any more"
        await asyncio.sleep(600)
        assert len(engine.asked) == before

    watch(Engine(), scene, **MODAL)


def reconfigured(watcher: Watcher, **settings: Any) -> None:
    """Other settings of the same upstream, or of none."""
    watcher.reload(
        Config(
            upstreams={"gpu": Upstream(**settings)} if settings else {},
            models={"m": Model(targets=(Target(upstream="gpu", model="org/m"),))},
        )
    )


GPU = {"kind": "sglang", "url": "http://127.0.0.1:1"}


def test_another_pace_is_no_reason_to_look_anew() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(10.1)
        before = len(engine.asked)
        reconfigured(watcher, **GPU, draining=True, max_concurrency=3)
        await asyncio.sleep(0.01)
        assert len(engine.asked) == before
        assert watcher.checks == {"gpu": "ok"}
        await asyncio.sleep(10)
        assert 5 <= engine.paths(since=1010.1)["/ready"] <= 7

    watch(Engine(), scene)


def test_one_that_is_gone_is_looked_at_no_more() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(5)
        assert watcher.discovered == {"gpu": ["m"]}
        reconfigured(watcher)
        assert (watcher.checks, watcher.discovered) == ({}, {})
        before = len(engine.asked)
        engine.wanted = ["gpu"]  # just before it went
        await asyncio.sleep(60)
        assert len(engine.asked) == before
        reconfigured(watcher, **GPU)
        await watcher.looked()
        assert watcher.checks == {"gpu": "ok"}

    watch(Engine(), scene, discover=True)


def test_what_is_known_stays_where_only_the_way_of_looking_changes() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(5)
        engine.down = True
        await asyncio.sleep(5)
        assert watcher.checks == {"gpu": "down: not ready"}
        engine.down = False
        engine.answers["/ready"] = 1.0
        reconfigured(watcher, **GPU, discover=True, probe=ProbeSettings(interval=7))
        assert watcher.checks == {"gpu": "down: not ready"}
        assert watcher.discovered == {"gpu": ["m"]}
        await asyncio.sleep(3)
        assert watcher.checks == {"gpu": "ok"}
        # It was away, so that it was warmed up.
        assert engine.paths()["/v1/chat/completions"] == 1
        reconfigured(watcher, **GPU)
        assert watcher.checks == {"gpu": "ok"}
        assert watcher.discovered == {}
        reconfigured(watcher, kind="sglang", url="http://127.0.0.1:2")
        assert watcher.checks == {"gpu": "down: not ready"}, "of another address nothing is known"

    watch(Engine(), scene, discover=True)


def test_a_cold_one_is_still_woken_after_a_reload() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        engine.down = True
        await asyncio.sleep(5)
        assert engine.states == ["cold"]
        cold = Cold(wake="/wake", hold=30)
        reconfigured(watcher, **GPU, cold=cold)
        assert watcher.checks == {"gpu": "ok: cold"}
        engine.wanted = ["gpu"]
        await asyncio.sleep(3)
        assert engine.paths()["/wake"] == 1

    watch(Engine(), scene, cold=Cold(wake="/wake"))


def test_one_that_is_asked_no_more_is_left_to_its_requests() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(5)
        assert engine.states == ["down"]
        reconfigured(watcher, kind="openai_compatible", url="http://127.0.0.1:1")
        await asyncio.sleep(5)
        assert engine.states == ["down", "warm"]
        assert watcher.checks == {"gpu": "ok"}

    probe = ProbeSettings(path="/nowhere")
    watch(Engine({"/nowhere": (500, b"")}), scene, kind="openai_compatible", probe=probe)


@pytest.mark.parametrize("body", [b'{"\xff": 1}', b"[" * 100_000 + b"]" * 100_000])
def test_what_cannot_be_read_of_an_engines_answers_stops_no_look(body: bytes) -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(20)
        engine.down = True
        await asyncio.sleep(20)
        assert engine.states[-1] == "down"
        assert watcher.checks == {"gpu": "down: not ready"}

    paths = ("/v1/models", "/v1/loads?include=core", "/model_info", "/server_info")
    with capture_logs() as logs:
        watch(Engine({path: (200, body) for path in paths}), scene, discover=True)
    assert "a look failed" not in str(logs)
