"""What is told of a start by the lines of real engines, and when crashes are a loop."""

from __future__ import annotations

import json

import pytest
from forebay_engine.serve.crashes import Crashes
from forebay_engine.serve.engines import Load, make
from forebay_engine.serve.http import has_text
from forebay_engine.serve.phases import Timeline
from forebay_engine.serve.profile import Restart
from hypothesis import example, given, settings
from hypothesis import strategies as st

LINES = {
    "sglang": (
        (3.0, "[2026-11-24 04:10:01] server_args=ServerArgs(model_path='m', ...)"),
        (6.0, "[2026-11-24 04:10:04 TP0] Load weight begin. avail mem=78.50 GB"),
        (6.1, "[2026-11-24 04:10:04 TP1] Load weight begin. avail mem=78.50 GB"),
        (16.0, "[2026-11-24 04:10:14 TP1] Load weight end. elapsed=9.9 s, type=LlamaForCausalLM"),
        (18.0, "[2026-11-24 04:10:16 TP0] Load weight end. elapsed=11.9 s"),
        (20.0, "Capture target prefill CUDA graph begin. backend=breakable, num_tokens=[4]"),
        (22.0, "Capture target prefill CUDA graph end. elapsed=2.00 s, mem usage=0.30 GB"),
        (22.5, "Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1"),
        (27.0, "Capture target decode CUDA graph end. bs=[1, 2], elapsed=4.50 s"),
    ),
    "vllm": (
        (3.0, "(APIServer pid=1) INFO 06-02 00:51:01 [startup.py:96] non-default args: {}"),
        (6.0, "(EngineCore pid=2) INFO [gpu_model_runner.py:4979] Starting to load model m..."),
        (15.0, "INFO [default_loader.py:507] Loading weights took 8.93 seconds"),
        (18.0, "INFO [gpu_model_runner.py:5089] Model loading took 14.99 GiB memory and 12.0 s"),
        (20.0, "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):   0%| | 0/67"),
        (27.0, "INFO [gpu_model_runner.py:6517] Graph capturing finished in 7 secs, took 0.6 GiB"),
    ),
    "tgi": (
        (3.0, "INFO text_generation_launcher: Starting shard rank=0"),
        (15.0, "INFO text_generation_launcher: Shard ready in 12.004s rank=0"),
        (20.0, "INFO text_generation_router_v3: backends/v3/src/lib.rs:125: Warming up model"),
        (27.0, "INFO text_generation_router_v3: Setting max batch total tokens to 71312"),
    ),
    "trtllm": (
        (3.0, "[TensorRT-LLM] TensorRT-LLM version: 1.3.0"),
        (6.0, "[12/20/2025-04:20:21] [TRT-LLM] [I] Use 63.32 GB for model weights."),
        (18.0, "Model init total -- 12.00s"),
        (20.0, "[TRT-LLM] [I] Creating CUDA graph instances for 2 batch sizes."),
        (27.0, "INFO:     Application startup complete."),
    ),
}


@pytest.mark.parametrize("kind", LINES)
def test_the_lines_of_each_engine_tell_its_stages(kind: str) -> None:
    timeline = Timeline(make(kind).marks, 0.0)
    timeline.spawned(1.0)
    for now, line in LINES[kind]:
        timeline.line(line, now)
    timeline.ready(30.0)
    timeline.first_token(31.0)
    timeline.first_token(99.0)
    found = timeline.phases
    assert (found.process, found.import_, found.weights, found.graphs) == (1.0, 2.0, 12.0, 7.0)
    assert (found.ready, found.first_token, found.prepare) == (30.0, 31.0, None)


def test_a_sync_is_not_part_of_the_process() -> None:
    timeline = Timeline((), 10.0)
    timeline.prepared(15.0)
    timeline.spawned(15.5)
    assert (timeline.phases.prepare, timeline.phases.process) == (5.0, 0.5)


def test_ready_counts_from_when_it_was_wanted() -> None:
    timeline = Timeline(make("sglang").marks, 0.0)
    timeline.spawned(0.1)
    assert timeline.line("Gated launch waiting for activation. rank=0", 5.0) == ("gated",)
    timeline.woken(100.0)
    timeline.ready(107.0)
    assert timeline.phases.ready == 7.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("loads", "num_running_reqs", "token_usage", "numActiveRequests", "kvCacheStats")
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
"""Values of any form, under the names that are read."""

LOADS = {
    "sglang": (
        b'{"loads":[{"num_running_reqs":2,"num_waiting_reqs":1,"token_usage":0.25},'
        b'{"num_running_reqs":1,"num_waiting_reqs":0,"token_usage":0.5}]}',
        Load(3, 1, 0.5),
    ),
    "vllm": (
        b"# TYPE vllm:num_requests_running gauge\n"
        b'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
        b'vllm:num_requests_waiting{engine="0",model_name="m"} 1.0\n'
        b'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5\n',
        Load(3, 1, 0.5),
    ),
    "tgi": (b"tgi_batch_current_size 3\ntgi_queue_size 1\n", Load(3, 1)),
    "trtllm": (
        b'[{"numActiveRequests": 9}, {"numActiveRequests": 3, "numQueuedRequests": 1,'
        b' "kvCacheStats": {"usedNumBlocks": 5, "maxNumBlocks": 10}}]',
        Load(3, 1, 0.5),
    ),
}


@pytest.mark.parametrize(
    ("last", "load"),
    [
        (b'{"numActiveRequests": 3}', Load(3, 0)),
        (b'{"numActiveRequests": 3, "numQueuedRequests": null}', Load(3, 0)),
        (b'{"numActiveRequests": 3, "kvCacheStats": null}', Load(3, 0)),
        (b'{"numActiveRequests": 3, "kvCacheStats": {"maxNumBlocks": 10}}', Load(3, 0)),
        (b'{"numQueuedRequests": 3}', None),
    ],
)
def test_what_trtllm_leaves_out_is_not_made_up(last: bytes, load: Load | None) -> None:
    assert make("trtllm").load(b'[{"iter": 1}, ' + last + b"]") == load


@pytest.mark.parametrize("kind", LOADS)
def test_each_engines_load_is_read(kind: str) -> None:
    body, load = LOADS[kind]
    assert make(kind).load(body) == load


@pytest.mark.parametrize("kind", LOADS)
@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b'" "')
@example(b"[" * 100_000)
@example(b'{"loads":[{"num_running_reqs":1e999,"num_waiting_reqs":0,"token_usage":0}]}')
@example(b'[{"numActiveRequests":1e999}]')
@example(b"vllm:num_requests_running +Inf\ntgi_queue_size NaN\n")
@example(b"vllm:num_requests_running 1e308\nvllm:num_requests_running 1e308\n")
def test_any_body_is_read_or_says_nothing(kind: str, body: bytes) -> None:
    found = make(kind).load(body)
    assert found is None or isinstance(found, Load)
    if not body.strip(b"[]{} "):
        assert found is None


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('data: {"choices":[{"delta":{"content":"a"}}]}', True),
        ('data: {"choices":[{"delta":{"reasoning_content":"a"}}]}', True),
        ('data: {"choices":[{"delta":{"content":"","reasoning":"a"}}]}', True),
        ('data: {"choices":[{"delta":{"role":"assistant","content":""}}]}', False),
        ('data: {"choices":[{"delta":null}],"usage":null}', False),
        ('data: {"choices":[]}', False),
        ('data: {"choices":7}', False),
        ('data: {"choices":[{"delta":"a"}]}', False),
        ("data: [DONE]", False),
        (": still there", False),
    ],
)
def test_only_text_is_a_first_token(line: str, text: bool) -> None:
    assert has_text(line) is text


def test_pauses_grow_to_their_bound_and_then_it_is_a_loop() -> None:
    crashes = Crashes(Restart(backoff_s=1, backoff_max_s=5, max_crashes=4, within_s=100))
    assert [crashes.crashed(now) for now in (0, 1, 2, 3, 4)] == [1, 2, 4, 5, None]


def test_crashes_of_long_ago_do_not_count() -> None:
    crashes = Crashes(Restart(backoff_s=1, max_crashes=1, within_s=10))
    assert [crashes.crashed(now) for now in (0, 10, 20)] == [1, 1, 1]
    assert crashes.total == 3


def test_who_wants_it_again_starts_from_nothing() -> None:
    crashes = Crashes(Restart(backoff_s=1, max_crashes=0))
    assert crashes.crashed(0) is None
    crashes.forget()
    assert Crashes(Restart(max_crashes=1, backoff_s=2)).crashed(0) == 2


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=60),
    st.floats(0.01, 10),
    st.floats(0.01, 100),
    st.integers(0, 70),
)
def test_no_pause_is_beyond_the_bound(
    gaps: list[float], backoff: float, most: float, crashes: int
) -> None:
    policy = Restart(backoff_s=backoff, backoff_max_s=most, max_crashes=crashes, within_s=50)
    counted = Crashes(policy)
    now = 0.0
    for gap in gaps:
        now += gap
        pause = counted.crashed(now)
        assert pause is None or 0 < pause <= most
