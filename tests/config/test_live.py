"""What a running process takes over of another configuration."""

import msgspec
from forebay.config import Config, Limits, Listen, Model, Target, Upstream
from forebay.config.live import FIXED, merged, same_place, same_watch

GPU = Upstream(kind="sglang", url="http://a")
MODELS = {"m": Model(targets=(Target(upstream="gpu"),))}


def test_what_a_process_is_started_with_stays_and_is_named() -> None:
    current = Config(database_url="postgresql://a/b", workers=2, drain_s=5)
    wanted = Config(
        database_url="postgresql://a/c",
        listen=Listen(http="0.0.0.0:1", grpc="0.0.0.0:2"),
        limits=Limits(body_bytes=2048, event_bytes=4096),
        upstreams={"gpu": GPU},
        models=MODELS,
        drain_s=7,
    )
    result, left = merged(current, wanted)
    assert left == ["listen.http", "listen.grpc", "database_url", "workers", "limits.body_bytes"]
    assert result == msgspec.structs.replace(
        current,
        upstreams={"gpu": GPU},
        models=MODELS,
        drain_s=7,
        limits=Limits(event_bytes=4096),
    )
    assert merged(result, result) == (result, [])


def test_every_fixed_field_is_there() -> None:
    for path in FIXED:
        section, _, field = path.partition(".")
        value = getattr(Config(), section)
        assert not field or field in value.__struct_fields__


def test_which_changes_concern_whom() -> None:
    def other(**changes: object) -> Upstream:
        return msgspec.structs.replace(GPU, **changes)

    paced = other(draining=True, max_concurrency=3, slow_start=1.0, outlier=None)
    assert same_watch(GPU, paced)
    assert same_place(GPU, paced)
    assert not same_watch(GPU, other(discover=True))
    assert same_place(GPU, other(discover=True))
    for moved in (other(url="http://b"), other(api_key="k"), other(headers={"x": "y"})):
        assert not same_watch(GPU, moved)
        assert not same_place(GPU, moved)
