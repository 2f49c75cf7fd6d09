"""Reading a configuration: what is accepted, and what each mistake is answered with."""

from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from forebay.config import (
    Adaptive,
    Config,
    ConfigError,
    Queue,
    Target,
    Timeouts,
    json_schema,
    load,
    parse_address,
    to_public,
)
from forebay.config.document import Document
from forebay.gateway import snapshot
from hypothesis import given
from hypothesis import strategies as st

FULL = """\
listen: {http: "127.0.0.1:0", grpc: "[::1]:50051"}
database_url: ${DATABASE_URL:-postgresql://app:s3cret@db/forebay}
upstreams:
  gpu-a: {kind: sglang, url: http://10.0.0.5:30000/v1/, max_concurrency: 256, http2: true}
  together:
    kind: openai_compatible
    url: https://api.together.xyz/v1
    api_key: ${TOGETHER_API_KEY}
models:
  llama-3-8b:
    aliases: [gpt-4o-mini]
    policy: round_robin
    targets:
      - {upstream: gpu-a, model: meta-llama/Llama-3-8B-Instruct}
      - {upstream: together}
    timeouts: {connect: 1.5, total: 300}
limits: {body_bytes: 2048}
drain_s: 5
log: {level: debug, format: console}
"""
ENV = {"TOGETHER_API_KEY": "tk-123456"}


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "forebay.yaml"
        path.write_text(text)
        return path

    return write


def test_a_full_file(write) -> None:
    config = load(write(FULL), ENV)
    assert config.listen.http == "127.0.0.1:0"
    assert config.database_url == "postgresql://app:s3cret@db/forebay"
    gpu, together = config.upstreams["gpu-a"], config.upstreams["together"]
    assert (gpu.url, gpu.max_concurrency, gpu.http2) == ("http://10.0.0.5:30000", 256, True)
    assert (together.url, together.api_key) == ("https://api.together.xyz", "tk-123456")
    model = config.models["llama-3-8b"]
    assert model.aliases == ("gpt-4o-mini",)
    assert model.targets == (
        Target(upstream="gpu-a", model="meta-llama/Llama-3-8B-Instruct"),
        Target(upstream="together"),
    )
    assert model.timeouts == Timeouts(connect=1.5, first_byte=120, idle=60, total=300)
    assert config.limits.body_bytes == 2048
    assert config.limits.event_bytes == 1024 * 1024
    assert config.drain_s == 5


def test_a_queue_and_an_adaptive_limit(write) -> None:
    gpu = load(write(FULL), ENV).upstreams["gpu-a"]
    assert (gpu.queue, gpu.adaptive) == (Queue(max_waiting=1000, timeout=30), None)
    text = FULL.replace("max_concurrency: 256", "adaptive: {max: 64}, queue: {max_waiting: 0}")
    gpu = load(write(text), ENV).upstreams["gpu-a"]
    assert gpu.adaptive == Adaptive(min=4, max=64)
    assert gpu.queue == Queue(max_waiting=0, timeout=30)


def test_the_configuration_is_frozen(write) -> None:
    config = load(write(FULL), ENV)
    with pytest.raises(AttributeError):
        config.drain_s = 1.0  # type: ignore[misc]


def test_inference_url_alone_makes_one_upstream_that_serves_what_it_lists() -> None:
    config = load(None, {"INFERENCE_URL": "http://engine:30000/v1", "INFERENCE_API_KEY": "k"})
    engine = config.upstreams["engine"]
    assert (engine.kind, engine.url, engine.api_key) == ("sglang", "http://engine:30000", "k")
    assert engine.discover
    assert config.models == {}
    assert config.listen.http == "0.0.0.0:8080"
    assert config.database_url is None


def test_upstreams_of_the_file_win_over_inference_url(write) -> None:
    config = load(write(FULL), {**ENV, "INFERENCE_URL": "http://other:1"})
    assert set(config.upstreams) == {"gpu-a", "together"}


def test_environment_overrides(write) -> None:
    env = {
        **ENV,
        "FOREBAY_CONFIG": str(write(FULL)),
        "FOREBAY_HTTP": "0.0.0.0:9",
        "FOREBAY_GRPC": ":10",
        "FOREBAY_LOG_LEVEL": "error",
        "FOREBAY_LOG_FORMAT": "json",
        "FOREBAY_SERVICE_HOST": "10.1.2.3",  # what Kubernetes injects is ignored
        "DATABASE_URL": "postgres://x/y",
    }
    config = load(None, env)
    assert (config.listen.http, config.listen.grpc) == ("0.0.0.0:9", ":10")
    assert (config.log.level, config.log.format) == ("error", "json")
    assert config.database_url == "postgres://x/y"


def test_interpolation(write) -> None:
    text = FULL.replace("max_concurrency: 256", 'max_concurrency: "${N:-7}"').replace(
        "${TOGETHER_API_KEY}", "a$$b${X}${UNSET:-}${EMPTY:-e}"
    )
    config = load(write(text), {"X": "x", "EMPTY": ""})
    assert config.upstreams["gpu-a"].max_concurrency == 7
    assert config.upstreams["together"].api_key == "a$bxe"
    assert load(write(text), {"X": "x", "N": "9"}).upstreams["gpu-a"].max_concurrency == 9


def test_an_empty_variable_leaves_an_optional_field_out(write) -> None:
    text = FULL.replace("${TOGETHER_API_KEY}", "${KEY:-}").replace(
        "${DATABASE_URL:-postgresql://app:s3cret@db/forebay}", "${DATABASE_URL:-}"
    )
    config = load(write(text), {})
    assert config.upstreams["together"].api_key is None
    assert config.database_url is None


MISTAKES = [
    # replaced, by, line, field, part of the reason
    ("policy:", "polcy:", 12, "models.llama-3-8b.polcy", "did you mean policy"),
    ("log: {", "lgo: {", 19, "lgo", "unknown field; did you mean log"),
    ("connect:", "conect:", 16, "models.llama-3-8b.timeouts.conect", "did you mean connect"),
    ("{upstream: together}", "{upsteam: x}", 15, "models.llama-3-8b.targets[1].", ""),
    ("{upstream: together}", "{model: m}", 15, "models.llama-3-8b.targets[1].upstream", "required"),
    ("    url: https", "    # url: https", 5, "upstreams.together.url", "required"),
    ("256", "many", 4, "upstreams.gpu-a.max_concurrency", "expected `int | null`"),
    ("256", "0", 4, "upstreams.gpu-a.max_concurrency", ">= 1"),
    ("256", "256, adaptive: {max: 9}", 4, "upstreams.gpu-a.adaptive", "not beside max_concurrency"),
    ("max_concurrency: 256", "adaptive: {min: 9, max: 8}", 4, "upstreams.gpu-a.adaptive", "8"),
    ("max_concurrency: 256", "adaptive: {min: 9}", 4, "upstreams.gpu-a.adaptive.max", "required"),
    ("max_concurrency: 256", "queue: {timeout: 1}", 4, "upstreams.gpu-a.queue", "without a bound"),
    ("256", "256, queue: {max_waiting: -1}", 4, "upstreams.gpu-a.queue.max_waiting", ">= 0"),
    ("256", "256, queue: {timeout: 0}", 4, "upstreams.gpu-a.queue.timeout", "> 0"),
    ("256", "1.5", 4, "upstreams.gpu-a.max_concurrency", "expected `int | null`"),
    ("connect: 1.5", "connect: -1", 16, "models.llama-3-8b.timeouts.connect", "> 0"),
    ("connect: 1.5", "connect: .nan", 16, "models.llama-3-8b.timeouts.connect", ""),
    ("connect: 1.5", "connect: .inf", 16, "models.llama-3-8b.timeouts.connect", ""),
    ("body_bytes: 2048", "body_bytes: 1", 17, "limits.body_bytes", ">= 1024"),
    ("drain_s: 5", "drain_s: [5]", 18, "drain_s", "expected `float`, got `array`"),
    ("kind: sglang", "kind: sg", 4, "upstreams.gpu-a.kind", "choose from sglang, vllm"),
    ("round_robin", "fastest", 12, "models.llama-3-8b.policy", "choose from round_robin"),
    ("level: debug", "level: loud", 19, "log.level", "debug, info, warning, error"),
    ("${TOGETHER_API_KEY}", "${MISSING}", 8, "upstreams.together.api_key", "MISSING is not set"),
    ("${TOGETHER_API_KEY}", "${1BAD}", 8, "upstreams.together.api_key", "bad variable"),
    ("${TOGETHER_API_KEY}", "${OPEN", 8, "upstreams.together.api_key", "bad variable"),
    ("${TOGETHER_API_KEY}", "a b", 8, "upstreams.together.api_key", "printable ASCII"),
    ("upstream: gpu-a", "upstream: gpu-b", 14, "models.llama-3-8b.targets[0].upstream", "gpu-b"),
    ("[gpt-4o-mini]", "[a, llama-3-8b]", 11, "models.llama-3-8b.aliases[1]", "already a model"),
    ("[gpt-4o-mini]", "[a, a]", 11, "models.llama-3-8b.aliases[1]", "an alias of llama-3-8b"),
    ('"127.0.0.1:0"', '"127.0.0.1"', 1, "listen.http", "HOST:PORT"),
    ('"127.0.0.1:0"', '"127.0.0.1:70000"', 1, "listen.http", "0 to 65535"),
    ('"[::1]:50051"', '"::1:50051"', 1, "listen.grpc", "brackets"),
    ("http://10.0.0.5:30000", "ftp://10.0.0.5", 4, "upstreams.gpu-a.url", "http://"),
    ("http://10.0.0.5:30000", "http://u:p@h", 4, "upstreams.gpu-a.url", "credentials"),
    ("http://10.0.0.5:30000", "http://h:99999", 4, "upstreams.gpu-a.url", "bad URL"),
    ("http://10.0.0.5:30000/v1/", "'http://'", 4, "upstreams.gpu-a.url", "no valid host"),
    ("http://10.0.0.5:30000/v1/", "http://h/?a=b", 4, "upstreams.gpu-a.url", "query"),
    ("${DATABASE_URL:-postgresql", "${DATABASE_URL:-mysql", 2, "database_url", "postgresql://"),
    ("database_url:", "redis_url: http://x\ndatabase_url:", 2, "redis_url", "redis://"),
    ("database_url:", "redis_url: redis://\ndatabase_url:", 2, "redis_url", "no valid host"),
    ("database_url:", "expected_nodes: 0\ndatabase_url:", 2, "expected_nodes", ">= 1"),
    ("database_url:", "cache_url: redis://x\ndatabase_url:", 2, "cache_url", "unknown field"),
    (
        "    policy:",
        "    policy: round_robin\n    policy:",
        13,
        "models.llama-3-8b.policy",
        "twice",
    ),
    ("connect: 1.5", "1: 2", 16, "models.llama-3-8b.timeouts.1", "must be a string"),
    ("llama-3-8b:", "llama 3:", 10, "models.llama 3", "no spaces"),
    ("listen: {", "listen: {x: &a [*a], ", 1, "listen.x[0]", "too deeply"),
]


@pytest.mark.parametrize(("old", "new", "line", "field", "reason"), MISTAKES)
def test_a_mistake_names_file_line_and_field(
    write, old: str, new: str, line: int, field: str, reason: str
) -> None:
    assert old in FULL
    path = write(FULL.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load(path, ENV)
    error = caught.value
    assert error.source == str(path)
    assert (error.line, error.field[: len(field)]) == (line, field)
    assert reason in error.reason
    assert str(error).startswith(f"{path}:{line}: {field}")
    assert "s3cret" not in str(error)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("listen: [", "not valid YAML"),
        ("- a", "must hold a mapping"),
        ("models: {m: {targets: [{upstream: u}]}}", "no upstream named"),
        ("upstreams: [a]", "expected a mapping"),
        ("upstreams: {u: {kind: sglang, url: 'http://h'}}", "no model"),
        ("", "no upstream"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("models: {m: {targets: []}}", "length >= 1"),
    ],
)
def test_files_that_cannot_serve(write, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(text), {})
    assert reason in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml", {})
    (tmp_path / "latin1.yaml").write_bytes(b"a: b\nc: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin1\.yaml:2: not UTF-8"):
        load(tmp_path / "latin1.yaml", {})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FOREBAY_HTTP", "nowhere"),
        ("FOREBAY_LOG_LEVEL", "loud"),
        ("DATABASE_URL", "sqlite:///x"),
        ("INFERENCE_URL", "engine:30000"),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {"INFERENCE_URL": "http://engine:30000", variable: value})
    assert (caught.value.source, caught.value.field) == ("environment", variable)


def test_the_public_form_hides_secrets(write) -> None:
    text = repr(to_public(load(write(FULL), ENV)))
    assert "tk-123456" not in text
    assert "s3cret" not in text
    assert "postgresql://app:***@db/forebay" in text
    env = {**ENV, "DATABASE_URL": "postgresql://h/x?user=u&password=s3cret&sslmode=require"}
    public = to_public(load(write(FULL), env))
    assert public["database_url"] == "postgresql://h/x?user=u&password=***&sslmode=require"


def test_the_json_schema_describes_the_file() -> None:
    schema = json_schema()
    definitions = schema["$defs"]
    assert set(definitions["Config"]["properties"]) == set(Config.__struct_fields__)
    assert definitions["Upstream"]["required"] == ["kind"]
    assert definitions["Upstream"]["additionalProperties"] is False
    msgspec.json.encode(schema)


@given(st.text(max_size=200))
def test_any_text_gives_a_configuration_or_a_config_error(tmp_path_factory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    with pytest.raises(ConfigError):
        load(path, {})


@given(st.text(max_size=60))
def test_an_address_is_read_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address


PRICED = """\
upstreams: {e: {kind: sglang, url: "http://127.0.0.1:1"}}
models:
  a:
    targets: [{upstream: e}]
    timeouts: {connect: 1.5}
    price: {input: %s, output: "0.60"}
"""


@pytest.mark.parametrize(
    ("text", "micro"),
    [
        ("0.15", 150_000),
        ('"0.15"', 150_000),
        ('"${PRICE}"', 75_000),
        ("2", 2_000_000),
        ("0", 0),
        ("0.000001", 1),
        ("0.1500000", 150_000),
        ("999999.999999", 999_999_999_999),
        ("1000000", 1_000_000_000_000),
    ],
)
def test_prices_are_exact(write, text: str, micro: int) -> None:
    config = load(write(PRICED % text), {"PRICE": "0.075"})
    assert config.models["a"].timeouts.connect == 1.5
    price = config.models["a"].price
    assert price is not None
    assert (price.input.scaleb(6), price.output.scaleb(6)) == (micro, 600_000)
    assert price.cached is None


@given(st.integers(0, 10**12))
def test_every_price_is_exact(micro: int) -> None:
    text = f"{micro // 10**6}.{micro % 10**6:06d}"
    document = Document(f"p: {text}", source="x", env={}, exact=lambda _: True)
    assert msgspec.convert(document.data["p"], Decimal) * 10**6 == micro
    assert Document(f"p: {text}", source="x", env={}).data["p"] == float(text)


def test_cached_input_has_its_own_price(write) -> None:
    config = load(write(PRICED % "2, cached: 0.5"), {})
    assert to_public(config)["models"]["a"]["price"] == {
        "input": "2",
        "output": "0.60",
        "cached": "0.5",
    }


def test_a_model_without_a_price(write) -> None:
    config = load(write(PRICED.replace("price:", "# price:")), {})
    assert config.models["a"].price is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.1234567", "6 decimal places"),
        ("0.15000000000000001", "6 decimal places"),
        ('"1e-7"', "6 decimal places"),
        ('"1e-999999999"', "6 decimal places"),
        ("-1", "0 to 1000000"),
        ("1000000.1", "0 to 1000000"),
        ('"1e999999999"', "0 to 1000000"),
        ("nan", "0 to 1000000"),
        (".inf", "decimal"),
        ("free", "decimal"),
        ("[1]", "expected"),
    ],
)
def test_prices_that_are_refused(write, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(PRICED % text), {})
    assert (caught.value.field, caught.value.line) == ("models.a.price.input", 6)
    assert reason in caught.value.reason


def test_the_schema_takes_prices_as_text_and_as_numbers() -> None:
    price = json_schema()["$defs"]["Price"]["properties"]
    assert price["input"]["type"] == price["cached"]["anyOf"][0]["type"] == ["string", "number"]


def test_the_store_of_shared_limits(write) -> None:
    assert load(write(FULL), ENV).redis_url is None
    env = {**ENV, "REDIS_URL": "rediss+cluster://u:s3cret@cache:6380/0"}
    config = load(write(FULL), env)
    assert config.redis_url == env["REDIS_URL"]
    assert to_public(config)["redis_url"] == "rediss+cluster://u:***@cache:6380/0"
    of_file = load(write(FULL + "redis_url: redis://:s3cret@one\nexpected_nodes: 4\n"), env)
    assert (of_file.redis_url, of_file.expected_nodes) == ("redis://:s3cret@one", 4)
    assert "s3cret" not in str(to_public(of_file))
    with pytest.raises(ConfigError, match="REDIS_URL"):
        load(write(FULL), {**ENV, "REDIS_URL": "memcached://x"})


@pytest.mark.parametrize(
    ("settings", "drain"),
    [
        ("", None),
        (", on_disconnect: abort, drain_s: 5", None),
        (", on_disconnect: drain", {"seconds": 120.0, "bytes": 1048576}),
        (
            ", on_disconnect: drain, drain_s: 5, drain_bytes: 2048",
            {"seconds": 5.0, "bytes": 2048},
        ),
    ],
)
def test_what_becomes_of_clients_that_leave(
    tmp_path: Path, settings: str, drain: dict[str, float] | None
) -> None:
    file = tmp_path / "forebay.yaml"
    file.write_text(
        f"upstreams: {{a: {{kind: sglang, url: 'http://x', discover: true{settings}}}}}"
    )
    (upstream,) = msgspec.json.decode(snapshot.build(load(file, {}), {}))["upstreams"]
    assert upstream["drain"] == drain


def test_no_other_word_for_it(tmp_path: Path) -> None:
    file = tmp_path / "forebay.yaml"
    file.write_text(
        "upstreams: {a: {kind: sglang, url: 'http://x', discover: true, on_disconnect: stop}}"
    )
    with pytest.raises(ConfigError, match="on_disconnect"):
        load(file, {})
