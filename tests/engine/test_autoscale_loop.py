"""From gateways' and engines' figures to what KEDA, Prometheus and drivers are told."""

import asyncio
import math
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import grpc
import httpx
import pytest
from forebay_engine.autoscale.board import Board, Decision
from forebay_engine.autoscale.config import Config, load
from forebay_engine.autoscale.exporter import Exporter
from forebay_engine.autoscale.keda import METRIC, serve
from forebay_engine.autoscale.kedapb import externalscaler_pb2 as pb
from forebay_engine.autoscale.kedapb import externalscaler_pb2_grpc as pb_grpc
from forebay_engine.autoscale.loop import Loop, Teller
from forebay_engine.autoscale.metrics_text import read
from forebay_engine.autoscale.policy import Limits, Reason, Wanted
from forebay_engine.autoscale.readings import EngineReading, Reader, Snapshot, of_engine
from forebay_engine.autoscale.signals import Signals
from forebay_engine.autoscale.sources import Sources
from forebay_engine.cli import main
from forebay_engine.serve import agent
from forebay_engine.serve.supervisor import State
from prometheus_client import generate_latest

from tests.engine.serve_helpers import supervised

CONFIG = """
gateways: ["http://gw"]
models:
  llama:
    upstreams: [gpu-a, gpu-b]
    capacity:
      concurrency: 10
      ttft_target_s: 2.5
      work: {prefill_tokens_per_s: 10000, decode_tokens_per_s: 2000}
    limits: {max: 8, price_per_hour: 2.49, max_cost_per_hour: "10"}
    engines: [{agent: "http://agent", metrics: "http://engine/metrics"}]
    driver: {kind: runpod, endpoint: e1, key: "${RUNPOD_KEY}"}
"""


def config(tmp_path: Path, text: str = CONFIG) -> Config:
    path = tmp_path / "autoscale.yaml"
    path.write_text(text)
    return load(path, {"RUNPOD_KEY": "secret"})


def gateway(begun: int, there: int, *, late: int = 0, held: int = 0) -> str:
    ended = begun - there
    return f"""
forebay_model_requests_total{{model="llama"}} {begun}
forebay_model_requests_total{{model="other"}} 9999
forebay_model_requests_in_flight{{model="llama"}} {there}
forebay_model_requests_held{{model="llama"}} {held}
forebay_upstream_requests_in_flight{{upstream="gpu-a"}} {there}
forebay_upstream_requests_in_flight{{upstream="managed"}} 77
forebay_upstream_waiting{{upstream="gpu-b"}} 3
forebay_upstream_attempts_total{{upstream="gpu-a"}} {begun}
forebay_upstream_state{{upstream="gpu-a",state="open"}} 1
forebay_upstream_state{{upstream="gpu-b",state="loading"}} 1
forebay_tokens_total{{model="llama",direction="input"}} {ended * 1000}
forebay_tokens_total{{model="llama",direction="output"}} {ended * 200}
forebay_model_time_to_first_token_seconds_bucket{{model="llama",le="2.5"}} {ended - late}
forebay_model_time_to_first_token_seconds_bucket{{model="llama",le="+Inf"}} {ended}
forebay_model_time_to_first_token_seconds_count{{model="llama"}} {ended}
"""


def test_money_is_exact_and_secrets_come_from_the_environment(tmp_path: Path) -> None:
    model = config(tmp_path).models["llama"]
    assert model.limits.price_per_hour == Decimal("2.49")
    assert model.limits.settings().affordable == 4
    assert getattr(model.driver, "key", None) == "secret"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("concurrency: 10", "concurency: 10", "concurency"),
        ("concurrency: 10", "concurrency: 0", "concurrency"),
        ("kind: runpod", "kind: fax", "kind"),
        ("max: 8", "max: 8, min: 9", "least"),
        ("max: 8", "max: 8, min: 5", "max_cost_per_hour"),
        ("${RUNPOD_KEY}", "${NO_SUCH}", "NO_SUCH"),
        ("gateways:", "gateways: [", "line"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        config(tmp_path, CONFIG.replace(old, new))
    assert "autoscale.yaml" in str(error.value)


def test_signals_are_what_changed_between_two_readings(tmp_path: Path) -> None:
    reader = Reader("llama", config(tmp_path).models["llama"])
    first = reader.signals(Snapshot(0.0, read(gateway(100, 10))))
    assert (first.over_s, first.arrivals, first.running, first.waiting) == (0.0, 0.0, 10, 3)
    engines = [EngineReading("warm", 8, 2, 0.6), EngineReading("loading")]
    after = Snapshot(4.0, read(gateway(140, 20, late=6, held=5)), engines, 1.0)
    signals = reader.signals(after)
    assert (signals.over_s, signals.arrivals, signals.held) == (4.0, 40, 5)
    # Two of its twenty wait inside the engine.
    assert (signals.running, signals.waiting) == (18, 5)
    assert (signals.warm, signals.starting, signals.kv_used) == (1, 1, 0.6)
    assert (signals.first_tokens, signals.late) == (30, 6)
    # 1,000 tokens read and 200 made for each: 0.1 s and 0.1 s.
    assert signals.work_s == pytest.approx(0.2)
    # Little: 20 there, 10 a second.
    assert signals.service_s == pytest.approx(2.0)
    assert signals.age_s == 1.0


async def test_a_gateway_that_began_anew_counts_from_nothing(tmp_path: Path) -> None:
    texts = {"one": gateway(1_000_000, 10), "two": gateway(1_000_000, 20)}

    def answer(request: httpx.Request) -> httpx.Response:
        text = texts.get(request.url.host)
        return httpx.Response(503) if text is None else httpx.Response(200, text=text)

    several = CONFIG.replace('["http://gw"]', '["http://one", "http://two", "http://three"]')
    read_by = config(tmp_path, several)
    reader = Reader("llama", read_by.models["llama"])
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        sources = Sources(read_by, http, lambda: 0.0)

        async def signals() -> Signals:
            return reader.signals((await sources.read())["llama"])

        await signals()
        texts["one"] = gateway(8, 2)
        now = await signals()
        assert (now.arrivals, now.running, now.late) == (8, 22, 0)
        texts.update(one=gateway(10, 2), two=gateway(1_000_003, 20))
        assert (await signals()).arrivals == 5
        # What was counted before anybody listened has not just come.
        texts["three"] = gateway(500, 7)
        assert (await signals()).arrivals == 0
        texts["three"] = gateway(504, 7)
        assert (await signals()).arrivals == 4


def test_without_engines_states_are_as_the_gateway_sees_them(tmp_path: Path) -> None:
    reader = Reader("llama", config(tmp_path).models["llama"])
    signals = reader.signals(Snapshot(0.0, read(gateway(1, 0))))
    assert (signals.warm, signals.starting) == (1, 1)


def test_without_a_gateway_readings_are_old(tmp_path: Path) -> None:
    reader = Reader("llama", config(tmp_path).models["llama"])
    assert reader.signals(Snapshot(0.0, None)).age_s == math.inf


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        (
            'sglang:num_running_reqs{tp_rank="0"} 3\nsglang:num_queue_reqs 2\n'
            "sglang:token_usage 0.5\n",
            EngineReading("warm", 3, 2, 0.5),
        ),
        (
            "vllm:num_requests_running 3\nvllm:num_requests_waiting 2\n"
            "vllm:kv_cache_usage_perc 0.5\n",
            EngineReading("warm", 3, 2, 0.5),
        ),
        ("other 1\n", EngineReading("warm", 0, 0, None)),
    ],
)
def test_engines_are_read_by_their_own_names(text: str, reading: EngineReading) -> None:
    assert of_engine(read(text)) == reading


async def test_what_does_not_answer_is_left_out_and_ages(tmp_path: Path) -> None:
    away = {"gw": False, "agent": False}
    clock = [0.0]

    def answer(request: httpx.Request) -> httpx.Response:
        if away.get(request.url.host):
            raise httpx.ConnectError("refused")
        match request.url.host:
            case "gw":
                return httpx.Response(200, text=gateway(10, 1))
            case "agent":
                load = {"running": 4, "queued": 1, "kv_used": 0.25, "age_s": 0.1}
                return httpx.Response(200, json={"state": "warm", "since_s": 1, "load": load})
        return httpx.Response(500)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        sources = Sources(config(tmp_path), http, lambda: clock[0])
        first = (await sources.read())["llama"]
        assert first.engines == [EngineReading("warm", 4, 1, 0.25)]
        assert first.age_s == 0.0
        away.update(gw=True, agent=True)
        clock[0] = 7.0
        second = (await sources.read())["llama"]
    assert second.engines == []
    assert second.age_s == 7.0
    assert second.gateways is not None


@pytest.mark.parametrize("state", ["cold", "loading", "draining", "down"])
async def test_an_engine_without_a_load_counts_with_its_state(tmp_path: Path, state: State) -> None:
    async with supervised() as engine:
        engine.state = state
        said = agent.state(engine)
        engine.state = "cold"
    assert said["load"] is None

    def answer(request: httpx.Request) -> httpx.Response:
        of_agent = request.url.host == "agent"
        return httpx.Response(200, json=said) if of_agent else httpx.Response(503)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        read_ = await Sources(config(tmp_path), http, lambda: 0.0).read()
    assert read_["llama"].engines == [EngineReading(state)]


async def test_a_loop_survives_a_reading_and_a_driver_that_fail(tmp_path: Path) -> None:
    told: list[int] = []

    class Told:
        async def scale(self, model: str, desired: int, current: int | None) -> None:
            told.append(desired)
            raise RuntimeError("broken")

    reads = 0

    async def snapshots() -> dict[str, Snapshot]:
        nonlocal reads
        reads += 1
        if reads == 2:
            raise OSError("no network")
        # 20 a second, of which each is 0.2 s: four replicas, as many as the money is for.
        return {"llama": Snapshot(2.0 * reads, read(gateway(40 * reads, 0)))}

    board = Board()
    clock = [0.0]
    tellers = {"llama": Teller("llama", Told(), lambda: clock[0])}
    scaling = Loop(config(tmp_path), snapshots, board, tellers)
    for _ in range(8):
        await scaling.once()
        await scaling.settled()
        clock[0] += 2
    assert board.decisions["llama"].wanted == Wanted(4, "cost")
    assert len(told) >= 3


def decision(replicas: int, reason: Reason = "load") -> Decision:
    signals = Signals(at=1.0, over_s=2.0, arrivals=10, running=4, kv_used=0.5, warm=1)
    return Decision(Wanted(replicas, reason), signals, Limits(price=Decimal("2.5")))


async def test_decisions_are_metrics() -> None:
    board = Board()
    exporter = Exporter(board)
    await board.put("llama", decision(3))
    exporter.calls.labels("llama", "ok").inc()
    text = generate_latest(exporter.registry).decode()
    for line in (
        'forebay_autoscale_desired_replicas{model="llama"} 3.0',
        'forebay_autoscale_arrivals_per_second{model="llama"} 5.0',
        'forebay_autoscale_kv_cache_used_ratio{model="llama"} 0.5',
        'forebay_autoscale_cost_per_hour{model="llama"} 7.5',
        'forebay_autoscale_reason{model="llama",reason="load"} 1.0',
        'forebay_autoscale_driver_calls_total{model="llama",outcome="ok"} 1.0',
    ):
        assert line in text


@pytest.fixture
async def scaler() -> AsyncIterator[tuple[Board, pb_grpc.ExternalScalerStub]]:
    board, ports = Board(), list[int]()
    server = await serve(board, ["llama", "qwen"], "127.0.0.1:0", ports.append)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
        yield board, pb_grpc.ExternalScalerStub(channel)
    await server.stop(None)


def ref(model: str = "llama") -> pb.ScaledObjectRef:
    return pb.ScaledObjectRef(name="so", namespace="gpu", scalerMetadata={"model": model})


async def test_keda_pulls(scaler: tuple[Board, pb_grpc.ExternalScalerStub]) -> None:
    board, stub = scaler
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.IsActive(ref(), timeout=5)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    await board.put("llama", decision(7))
    assert (await stub.IsActive(ref(), timeout=5)).result
    spec = (await stub.GetMetricSpec(ref(), timeout=5)).metricSpecs[0]
    assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == (METRIC, 1, 1.0)
    asked = pb.GetMetricsRequest(scaledObjectRef=ref(), metricName=METRIC)
    value = (await stub.GetMetrics(asked, timeout=5)).metricValues[0]
    assert (value.metricName, value.metricValue, value.metricValueFloat) == (METRIC, 7, 7.0)
    await board.put("llama", decision(0, "idle"))
    assert not (await stub.IsActive(ref(), timeout=5)).result
    await board.put("llama", decision(3, "stale"))
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetMetrics(asked, timeout=5)


@pytest.mark.parametrize("metadata", [{}, {"model": "gpt"}])
async def test_keda_has_to_name_a_model(
    scaler: tuple[Board, pb_grpc.ExternalScalerStub], metadata: dict[str, str]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await scaler[1].IsActive(pb.ScaledObjectRef(name="so", scalerMetadata=metadata), timeout=5)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "llama, qwen" in (error.value.details() or "")


async def test_keda_is_pushed_to_with_each_change(
    scaler: tuple[Board, pb_grpc.ExternalScalerStub],
) -> None:
    board, stub = scaler
    await board.put("llama", decision(0, "idle"))
    stream = stub.StreamIsActive(ref(), timeout=10)
    assert (await stream.read()).result is False
    await board.put("llama", decision(0, "idle"))
    await board.put("llama", decision(1, "wake"))
    assert (await stream.read()).result is True
    # At once after each other, as while a message is on its way.
    await board.put("llama", decision(5))
    await board.put("llama", decision(0, "idle"))
    assert (await stream.read()).result is False
    stream.cancel()
    specs = stub.StreamMetricSpec(ref(), timeout=10)
    assert (await specs.read()).metricSpecs[0].metricName == METRIC
    specs.cancel()
    await asyncio.sleep(0)


async def test_keda_is_not_pushed_what_old_readings_say(
    scaler: tuple[Board, pb_grpc.ExternalScalerStub],
) -> None:
    board, stub = scaler
    await board.put("llama", decision(0, "stale"))
    stream = stub.StreamIsActive(ref(), timeout=10)
    first = asyncio.ensure_future(stream.read())
    await asyncio.sleep(0.3)
    await board.put("llama", decision(2))
    assert (await first).result is True
    then = asyncio.ensure_future(stream.read())
    await board.put("llama", decision(0, "stale"))
    await asyncio.sleep(0.3)
    assert not then.done()
    await board.put("llama", decision(0, "idle"))
    assert (await then).result is False
    stream.cancel()


def test_the_contract_is_keda_s_on_the_wire() -> None:
    service = pb.DESCRIPTOR.services_by_name["ExternalScaler"]
    assert service.full_name == "externalscaler.ExternalScaler"
    assert [method.name for method in service.methods] == [
        "IsActive", "StreamIsActive", "GetMetricSpec", "GetMetrics", "StreamMetricSpec",
    ]  # fmt: skip
    sent = pb.MetricValue(metricName="m", metricValue=3, metricValueFloat=3.0)
    assert sent.SerializeToString() == b"\x0a\x01m\x10\x03\x19" + b"\0\0\0\0\0\0\x08@"


def test_the_command_checks_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNPOD_KEY", "secret")
    path = tmp_path / "a.yaml"
    path.write_text(CONFIG)
    assert main(["autoscale", "--config", str(path), "--check"]) == 0
    path.write_text(CONFIG.replace("upstreams", "upstrems"))
    with pytest.raises(SystemExit):
        main(["autoscale", "--config", str(path), "--check"])
    assert "upstrems" in capsys.readouterr().err
