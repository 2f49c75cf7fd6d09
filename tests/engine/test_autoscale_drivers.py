"""Drivers against servers that speak their platform's API, on the loopback."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from forebay_engine.autoscale import config as settings
from forebay_engine.autoscale.drivers import Driver, DriverError, make
from forebay_engine.autoscale.drivers.k8s import K8sDriver
from forebay_engine.autoscale.drivers.modal import ModalDriver
from forebay_engine.autoscale.loop import LONGEST_PAUSE_S, REPEAT_S, Teller


class Api:
    """Notes what it is sent, and answers `status`."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.status = 200
        self.pool: object = {"size": 5, "warm": 1}
        """What there is of it."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                api.seen.append((self.command, self.path, headers, json.loads(body)))
                self.send_response(api.status)
                self.end_headers()
                self.wfile.write(b"{}")

            do_PATCH = do_PUT = answer

            def do_GET(self) -> None:
                self.send_response(api.status)
                self.end_headers()
                self.wfile.write(json.dumps(api.pool).encode())

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    api.server.shutdown()
    api.server.server_close()


CASES: dict[str, tuple[Any, str, str, dict[str, str], Any]] = {
    "runpod": (
        lambda url: settings.RunPod(endpoint="ep1", key="k", url=f"{url}/v1", spare=1),
        "PATCH",
        "/v1/endpoints/ep1",
        {"authorization": "Bearer k"},
        {"workersMin": 3, "workersMax": 4},
    ),
    "baseten": (
        lambda url: settings.Baseten(model="m1", key="k", url=url),
        "PATCH",
        "/v1/models/m1/deployments/production/autoscaling_settings",
        {"authorization": "Api-Key k"},
        {"min_replica": 3, "max_replica": 3},
    ),
    "k8s": (
        lambda url: settings.K8s(name="llama", namespace="gpu", url=url, token="t"),
        "PATCH",
        "/apis/apps/v1/namespaces/gpu/deployments/llama/scale",
        {"authorization": "Bearer t", "content-type": "application/merge-patch+json"},
        {"spec": {"replicas": 3}},
    ),
    "pool": (
        lambda url: settings.Pool(url=url, key="k", parked=4),
        "PUT",
        "/pool",
        {"authorization": "Bearer k"},
        {"warm": 3, "parked": 2},
    ),
}


@pytest.mark.parametrize("kind", CASES)
async def test_a_platform_is_told_in_its_own_words(kind: str, api: Api) -> None:
    of, method, path, headers, body = CASES[kind]
    async with httpx.AsyncClient() as http:
        await make(of(api.url), 5, http).scale("llama", 3, 1)
    (seen,) = api.seen
    assert seen[:2] == (method, path)
    assert headers.items() <= seen[2].items()
    assert seen[3] == body


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize(("status", "transient"), [(500, True), (429, True), (403, False)])
async def test_a_refusal_is_told_without_the_key(
    kind: str, status: int, transient: bool, api: Api
) -> None:
    api.status = status
    async with httpx.AsyncClient() as http:
        with pytest.raises(DriverError, match=str(status)) as error:
            await make(CASES[kind][0](api.url), 5, http).scale("llama", 3, 1)
    assert error.value.transient is transient
    assert "Bearer" not in str(error.value)


async def test_a_platform_that_is_away_is_an_error_like_others(api: Api) -> None:
    api.server.shutdown()
    api.server.server_close()
    async with httpx.AsyncClient() as http:
        with pytest.raises(DriverError, match="ConnectError"):
            await make(CASES["pool"][0](api.url), 5, http).scale("llama", 3, 1)


@pytest.mark.parametrize(
    ("there", "desired", "told"),
    [
        ({"size": 2}, 3, {"warm": 2, "parked": 0}),
        ({"size": 4}, 3, {"warm": 3, "parked": 1}),
        ({"size": 4, "places": 2}, 3, {"warm": 2, "parked": 2}),
        ({"size": 9, "places": 9}, 3, {"warm": 3, "parked": 2}),
        ({"size": 1, "places": 1}, 0, {"warm": 0, "parked": 1}),
    ],
)
async def test_a_pool_is_asked_for_no_more_than_it_has(
    there: dict[str, int], desired: int, told: dict[str, int], api: Api
) -> None:
    api.pool = there
    async with httpx.AsyncClient() as http:
        await make(settings.Pool(url=api.url, parked=4), 5, http).scale("llama", desired, 1)
    assert [seen[3] for seen in api.seen] == [told]


@pytest.mark.parametrize("there", [{}, [], {"size": "many"}])
async def test_a_pool_that_does_not_say_what_it_has_is_an_error(there: object, api: Api) -> None:
    api.pool = there
    async with httpx.AsyncClient() as http:
        with pytest.raises(DriverError, match=r"GET .*/pool: "):
            await make(settings.Pool(url=api.url), 5, http).scale("llama", 3, 1)
    assert api.seen == []


async def test_zero_leaves_a_platform_the_right_to_start_one(api: Api) -> None:
    async with httpx.AsyncClient() as http:
        await make(settings.RunPod(endpoint="e", key="k", url=api.url), 5, http).scale("m", 0, 1)
    assert api.seen[0][3] == {"workersMin": 0, "workersMax": 1}


async def test_a_pod_s_account_is_read_for_each_call(api: Api, tmp_path: Path) -> None:
    (tmp_path / "namespace").write_text("gpu\n")
    (tmp_path / "token").write_text("old")
    async with httpx.AsyncClient() as http:
        driver = K8sDriver(settings.K8s(name="llama", url=api.url), http, tmp_path)
        await driver.scale("llama", 1, None)
        (tmp_path / "token").write_text("new")
        await driver.scale("llama", 2, 1)
    assert [seen[2]["authorization"] for seen in api.seen] == ["Bearer old", "Bearer new"]
    assert "/namespaces/gpu/" in api.seen[0][1]


async def test_a_command_has_what_it_needs_in_its_environment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["sh", "-c", f'echo "$MODEL $DESIRED [$CURRENT]" >> {out}']
    async with httpx.AsyncClient() as http:
        driver = make(settings.Exec(command=command), 5, http)
        await driver.scale("llama", 3, None)
        await driver.scale("llama", 4, 3)
    assert out.read_text() == "llama 3 []\nllama 4 [3]\n"


@pytest.mark.parametrize(
    ("command", "match"),
    [
        (["sh", "-c", "echo no such group >&2; exit 3"], "exit 3 no such group"),
        (["/no/such/command"], "No such file"),
        (["sleep", "30"], "time-out"),
    ],
)
async def test_a_command_that_fails_is_told(command: list[str], match: str) -> None:
    async with httpx.AsyncClient() as http:
        driver = make(settings.Exec(command=command, timeout_s=0.2), 5, http)
        with pytest.raises(DriverError, match=match):
            await driver.scale("llama", 3, None)


async def test_modal_is_told_through_its_package() -> None:
    calls: list[tuple[object, ...]] = []
    scaled = SimpleNamespace(update_autoscaler=lambda **words: calls.append(("scale", words)))
    package = SimpleNamespace(
        Function=SimpleNamespace(
            from_name=lambda *words, **more: calls.append((*words, more)) or scaled
        ),
        Cls=SimpleNamespace(
            from_name=lambda *words, **more: calls.append((*words, more)) or (lambda: scaled)
        ),
    )
    function = settings.Modal(app="a", function="f", environment="main", spare=2)
    await ModalDriver(function, lambda: package).scale("m", 2, None)
    await ModalDriver(settings.Modal(app="a", function="C.run"), lambda: package).scale("m", 0, 2)
    assert calls == [
        ("a", "f", {"environment_name": "main"}),
        ("scale", {"min_containers": 2, "max_containers": 4}),
        ("a", "C", {}),
        ("scale", {"min_containers": 0, "max_containers": 1}),
    ]


async def test_without_modal_s_package_it_says_so() -> None:
    with pytest.raises(DriverError, match="pip install modal"):
        await ModalDriver(settings.Modal(app="a", function="f")).scale("m", 1, None)


class Flaky:
    """A driver that fails so many times first."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error = failures, error
        self.calls: list[tuple[int, int | None]] = []

    async def scale(self, model: str, desired: int, current: int | None) -> None:
        self.calls.append((desired, current))
        if len(self.calls) <= self.failures:
            raise self.error


def teller(driver: Driver, clock: list[float], outcomes: list[str]) -> Teller:
    return Teller(
        "m", driver, lambda: clock[0], lambda model, outcome: outcomes.append(outcome), lambda: 0.0
    )


@pytest.mark.parametrize("error", [DriverError("away"), RuntimeError("a mistake")])
async def test_what_fails_is_tried_again_ever_less_often(error: Exception) -> None:
    driver, clock, outcomes = Flaky(8, error), [0.0], list[str]()
    tells = teller(driver, clock, outcomes)
    times: list[float] = []
    while len(driver.calls) < 9:
        before = len(driver.calls)
        await tells.tell(3)
        if len(driver.calls) > before:
            times.append(clock[0])
        clock[0] += 0.5
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert outcomes == ["failed"] * 8 + ["ok"]


async def test_what_holds_is_told_once_and_again_from_time_to_time() -> None:
    driver, clock, outcomes = Flaky(0, DriverError("")), [0.0], list[str]()
    tells = teller(driver, clock, outcomes)
    for at in (0, 2, 4, REPEAT_S + 1):
        clock[0] = float(at)
        await tells.tell(2)
    await tells.tell(5)
    assert driver.calls == [(2, None), (2, 2), (5, 2)]


async def test_a_slow_command_is_ended_with_its_caller() -> None:
    async with httpx.AsyncClient() as http:
        driver = make(settings.Exec(command=["sleep", "30"]), 5, http)
        task = asyncio.create_task(driver.scale("llama", 3, None))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
