"""The commands that profiles come to: golden, for every kind on every GPU.

`FOREBAY_WRITE_GOLDEN=1` writes them anew; look at the difference.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from forebay_engine.serve import profile
from forebay_engine.serve.engines import KINDS, make
from forebay_engine.serve.gpu import Gpu, detect, parse, sizes, visible
from forebay_engine.serve.plan import MASK, Plan, plan, secret, shown

DATA = Path(__file__).parents[1] / "data" / "engine"
GPUS: dict[str, tuple[Gpu, ...]] = {
    "none": (),
    "t4": (Gpu(0, "Tesla T4", 15360, (7, 5)),),
    "l4": (Gpu(0, "NVIDIA L4", 23034, (8, 9)),),
    "a10": (Gpu(0, "NVIDIA A10", 23028, (8, 6)),),
    "l40s": (Gpu(0, "NVIDIA L40S", 46068, (8, 9)),),
    "a100-40": (Gpu(0, "NVIDIA A100-SXM4-40GB", 40960, (8, 0)),),
    "a100-80": (Gpu(0, "NVIDIA A100-SXM4-80GB", 81920, (8, 0)),),
    "h100": (Gpu(0, "NVIDIA H100 80GB HBM3", 81559, (9, 0)),),
    "h100-8": tuple(Gpu(i, "NVIDIA H100 80GB HBM3", 81559, (9, 0)) for i in range(8)),
    "h200": (Gpu(0, "NVIDIA H200", 143771, (9, 0)),),
    "b200": (Gpu(0, "NVIDIA B200", 183359, (10, 0)),),
}
FLAGS = {
    "sglang": "sglang-0.5.23",
    "vllm": "vllm-0.33.0",
    "tgi": "tgi-3.3",
    "trtllm": "trtllm-1.3",
}
"""What each project's own source has, in the version whose flags were read."""

PLAIN = "model: org/model\nname: chat\nkv_cache: fp8_where_supported\ncache_dir: /cache\n"
FULL = """
model: /models/m
name: chat
host: 0.0.0.0
port: 8100
tensor_parallel: 1
context_length: 8192
memory_fraction: 0.8
chunked_prefill: 1024
graph_batch: 12
max_running: 64
trust_remote_code: true
cache_dir: /cache
args: [--extra, value]
"""
MORE = {
    "sglang": "dtype: bfloat16\nquantization: fp8\napi_key: k\nmax_queued: 9\npark: gate\n",
    "vllm": "dtype: bfloat16\nquantization: fp8\napi_key: k\npark: memory\n",
    "tgi": "dtype: bfloat16\nquantization: fp8\napi_key: k\n",
    "trtllm": "kv_cache: fp8\n",
}


def written(planned: Plan) -> str:
    lines = [f"{name}={value}" for name, value in sorted(planned.env.items())]
    lines += [" ".join(planned.argv).replace(" -", "\n  -")]
    lines += [f"{path}:\n{text}" for path, text in planned.files.items()]
    return "\n".join(lines).rstrip() + "\n"


def check(name: str, text: str) -> None:
    path = DATA / "argv" / f"{name}.txt"
    if os.environ.get("FOREBAY_WRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_every_gpu(kind: str, gpu: str) -> None:
    given = profile.parse(f"kind: {kind}\n{PLAIN}")
    if kind == "trtllm" and gpu == "none":
        with pytest.raises(ValueError, match="needs a GPU"):
            plan(given, make(kind), ())
        return
    check(f"{kind}-{gpu}", written(plan(given, make(kind), GPUS[gpu])))


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_a_profile_can_say(kind: str) -> None:
    given = profile.parse(f"kind: {kind}\n{FULL}{MORE[kind]}")
    check(f"{kind}-full", written(plan(given, make(kind), GPUS["h100"])))


@pytest.mark.parametrize("kind", KINDS)
def test_every_flag_is_one_of_the_projects_own(kind: str) -> None:
    known = set((DATA / "flags" / f"{FLAGS[kind]}.txt").read_text().split())
    used = set()
    for path in (DATA / "argv").glob(f"{kind}-*.txt"):
        used |= {word.partition("=")[0] for word in path.read_text().split() if word[:2] == "--"}
    assert used - {"--extra"} <= known
    assert FLAGS[kind].startswith(kind)


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_a_store_is_streamed_by_the_engine(kind: str) -> None:
    from forebay_engine.serve.weights import locate

    text = "weights: {source: 's3://bucket/m', transfer: stream}\nmodel: org/m\n"
    given = locate(profile.parse(f"kind: {kind}\n{text}"), print).profile
    words = plan(given, make(kind), GPUS["h100"]).argv
    assert "s3://bucket/m" in words
    assert words[words.index("--load-format") + 1] == "runai_streamer"
    assert words[words.index("--served-model-name") + 1] == "org/m"


@pytest.mark.parametrize("kind", KINDS)
def test_fp8_is_refused_where_the_gpu_has_none(kind: str) -> None:
    given = profile.parse(f"kind: {kind}\nmodel: m\nkv_cache: fp8\ncache_dir: /c\n")
    with pytest.raises(ValueError, match=r"kv_cache: fp8 needs .* A100"):
        plan(given, make(kind), GPUS["a100-80"])
    assert any("fp8" in text for text in written(plan(given, make(kind), GPUS["l4"])).split())


def test_more_gpus_than_there_are_is_refused() -> None:
    given = profile.parse("{kind: sglang, model: m, tensor_parallel: 2}")
    with pytest.raises(ValueError, match="tensor_parallel: 2 are asked for, 1"):
        plan(given, make("sglang"), GPUS["h100"])


def test_a_command_is_told_its_gate_s_port() -> None:
    command = "[x, '--gate={gate}', '{port}']"
    given = profile.parse(f"{{kind: sglang, model: m, park: gate, command: {command}}}")
    assert plan(given, make("sglang"), ()).argv == ("x", "--gate=32000", "30000")
    assert plan(given.member(1), make("sglang"), ()).argv == ("x", "--gate=32001", "30001")


def test_a_command_has_its_places_filled() -> None:
    given = profile.parse("{kind: vllm, model: m, port: 9, command: [x, '{port}:{model}', '{}']}")
    assert plan(given, make("vllm"), ()).argv == ("x", "9:m", "{}")


@pytest.mark.parametrize(
    ("port", "gate"),
    [(30000, 32000), (30767, 32767), (30768, 28768), (40000, 42000), (65000, 63000)],
)
def test_a_gate_has_no_port_that_connections_get(port: int, gate: int) -> None:
    given = profile.parse(f"{{kind: sglang, model: m, port: {port}, park: gate}}")
    words = plan(given, make("sglang"), ()).argv
    assert words[words.index("--gated-launch-port") + 1] == str(gate)


def test_a_launcher_keeps_the_arguments() -> None:
    given = profile.parse("{kind: sglang, model: m, launcher: [python, my.py], args: [--x]}")
    words = plan(given, make("sglang"), ()).argv
    assert words[:4] == ("python", "my.py", "--model-path", "m")
    assert words[-1] == "--x"


def test_what_is_shown_has_no_secrets() -> None:
    given = profile.parse(
        "{kind: sglang, model: m, api_key: k3y, env: {HF_TOKEN: t0ken, PLAIN: a b},"
        " args: [--admin-api-key, adm1n, --other-secret=s3cret]}"
    )
    text = shown(plan(given, make("sglang"), ()), given)
    for word in ("k3y", "t0ken", "adm1n", "s3cret"):
        assert word not in text
    assert f"HF_TOKEN={MASK}" in text
    assert "PLAIN='a b'" in text
    assert shlex.split(text.replace("\\\n", ""))[-1] == f"--other-secret={MASK}"


def test_gpus_are_read_from_the_driver() -> None:
    asked: list[list[str]] = []

    def runner(command: object) -> str:
        asked.append(list(command))  # type: ignore[call-overload]
        return "0, NVIDIA H100 80GB HBM3, 81559, 9.0\n1, NVIDIA H100 80GB HBM3, 81559, 9.0\n"

    assert detect(runner) == GPUS["h100-8"][:2]
    assert asked[0][0] == "nvidia-smi"


def test_no_driver_is_no_gpu() -> None:
    def runner(command: object) -> str:
        raise FileNotFoundError(command)

    assert detect(runner) == ()


@pytest.mark.parametrize("text", ["", "No devices were found\n", "0, X, [N/A], 9.0\n", "a,b\n,,,"])
def test_lines_that_are_no_gpu_are_left_out(text: str) -> None:
    assert parse(text) == ()


@pytest.mark.parametrize(
    ("devices", "indices"),
    [(None, [0, 1, 2]), ("2,0", [2, 0]), ("", []), ("1,-1,2", [1]), ("GPU-ab,GPU-cd", [0, 1])],
)
def test_visible_devices_are_heeded(devices: str | None, indices: list[int]) -> None:
    found = visible(GPUS["h100-8"][:3], devices)
    assert [gpu.index for gpu in found] == indices


def test_the_smallest_gpu_decides() -> None:
    assert sizes([*GPUS["b200"], *GPUS["l4"]], 1) == sizes(GPUS["l4"], 1)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("HF_TOKEN", True),
        ("--api-key", True),
        ("--ssl-keyfile-password", True),
        ("MY_PWD", True),
        ("AWS_AUTH", True),
        ("hfToken", True),
        ("--max-num-batched-tokens", False),
        ("--tokenizer", False),
        ("--tokenizer-mode", False),
        ("TOKENIZERS_PARALLELISM", False),
    ],
)
def test_secrets_are_told_by_their_names(name: str, hidden: bool) -> None:
    assert secret(name) is hidden


def test_users_in_urls_are_not_shown() -> None:
    given = profile.from_values(
        {
            "kind": "vllm",
            "model": "m",
            "env": {"DATABASE_URL": "postgres://u:p@w0rd@host/db?a=b@c"},
            "args": ["--otlp=http://u:pw@host:1/"],
        }
    )
    text = shown(plan(given, make("vllm"), ()), given)
    assert "DATABASE_URL='postgres://********@host/db?a=b@c'" in text
    assert "--otlp=http://********@host:1/" in text
