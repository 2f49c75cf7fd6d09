"""What simulated engines have beside text, each by itself."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from forebay_engine.sim import form_data
from forebay_engine.sim.others import sound

from tests.support.simulated import SimThread, Simulated
from tests.support.wire import Answer, call, request

RANK = {"model": "tiny", "query": "a b", "documents": ["b", "a b", "c"]}
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="f.wav"\r\n\r\n'
    b"12\r\n34\r\n--x--\r\n"
)


@pytest.fixture(scope="module")
def sims() -> Iterator[dict[str, Simulated]]:
    with SimThread() as thread:
        kinds = ("openai", "vllm", "sglang", "together", "openai_compatible", "tgi", "azure")
        yield {kind: thread.bind(kind=kind, models=("tiny",)).start() for kind in kinds}


def ask(sim: Simulated, path: str, body: Any = None, **options: Any) -> Answer:
    return call(sim.port, request(path, body, **options))


def test_rankings_have_their_kinds_shapes(sims: dict[str, Simulated]) -> None:
    bare = ask(sims["sglang"], "/v1/rerank", RANK).json()
    assert [item["index"] for item in bare] == [1, 0, 2]
    for kind in ("vllm", "together", "openai_compatible"):
        ranking = ask(sims[kind], "/v1/rerank", RANK).json()
        assert [item["index"] for item in ranking["results"]] == [1, 0, 2]
        assert ranking["usage"]["total_tokens"] > 0
    assert ask(sims["openai"], "/v1/rerank", RANK).status == 404
    assert ask(sims["tgi"], "/v1/rerank", RANK).status == 404


def test_requests_are_checked(sims: dict[str, Simulated]) -> None:
    assert ask(sims["vllm"], "/v1/rerank", {**RANK, "model": "nope"}).status == 404
    assert ask(sims["vllm"], "/v1/rerank", {"model": "tiny"}).status == 400
    assert ask(sims["vllm"], "/v1/rerank").status == 405
    with sims["vllm"].faults("status:503"):
        assert ask(sims["vllm"], "/v1/rerank", RANK).status == 503


def test_sound_and_forms(sims: dict[str, Simulated]) -> None:
    body = {"model": "tiny", "voice": "x", "input": "hi"}
    assert ask(sims["openai"], "/v1/audio/speech", body).body == b"".join(sound("hi"))
    kind = "multipart/form-data; boundary=x"
    heard = ask(sims["azure"], "/openai/v1/audio/transcriptions", FORM, content_type=kind)
    assert heard.json()["text"].startswith("6 bytes")
    refused = ask(sims["openai"], "/v1/audio/transcriptions", FORM)
    assert refused.status == 400


def test_a_file_and_its_batch(sims: dict[str, Simulated]) -> None:
    form = FORM.replace(b'name="model"', b'name="purpose"')
    kind = "multipart/form-data; boundary=x"
    made = ask(sims["openai"], "/v1/files", form, content_type=kind).json()
    assert (made["bytes"], made["purpose"]) == (6, "tiny")
    assert ask(sims["openai"], f"/v1/files/{made['id']}/content").body == b"12\r\n34"
    assert ask(sims["openai"], "/v1/batches", {"input_file_id": "file-0"}).status == 404
    assert ask(sims["openai"], f"/v1/files/{made['id']}", method="DELETE").json()["deleted"]


def test_a_batch_of_what_are_no_requests(sims: dict[str, Simulated]) -> None:
    kind = "multipart/form-data; boundary=x"
    sim = sims["openai"]
    lines = b'{"custom_id": "c"}\n12\nno\n' + b"1" * 5000
    form = FORM.replace(b'name="model"', b'name="purpose"').replace(b"12\r\n34", lines)
    made = ask(sim, "/v1/files", form, content_type=kind).json()
    batch = ask(sim, "/v1/batches", {"input_file_id": made["id"]}).json()
    ask(sim, f"/v1/batches/{batch['id']}")
    ask(sim, f"/v1/batches/{batch['id']}")
    done = ask(sim, f"/v1/batches/{batch['id']}").json()
    told = ask(sim, f"/v1/files/{done['output_file_id']}/content").body
    assert [json.loads(line)["custom_id"] for line in told.splitlines()] == ["c", None, None, None]


@pytest.mark.parametrize("body", [b"no", b"[]", b"[" * 100_000, b'{"x": ' + b"1" * 5000 + b"}"])
def test_a_body_that_is_no_object_is_refused(sims: dict[str, Simulated], body: bytes) -> None:
    assert ask(sims["openai"], "/v1/batches", body).status == 400
    assert ask(sims["openai"], "/v1/chat/completions", body).status == 400
    assert ask(sims["sglang"], "/v1/chat/completions", body).status == 400


@pytest.mark.parametrize("cut", range(0, len(FORM), 7))
def test_half_a_form_is_none(cut: int) -> None:
    assert form_data.read(b"multipart/form-data; boundary=x", FORM[:cut]) is None
    whole = form_data.read(b"multipart/form-data; boundary=x", FORM)
    assert whole is not None
    assert [field.name for field in whole] == ["model", "file"]
