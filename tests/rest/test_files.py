"""Files and batches: kept at one upstream, each its account's."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.support.processes import Gateway, Key
from tests.support.simulated import Simulated
from tests.support.wire import Answer

LINES = b"".join(
    json.dumps(
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "text", "messages": []},
        }
    ).encode()
    + b"\n"
    for number in range(3)
)


def connect(rest: Gateway, key: Key) -> OpenAI:
    return OpenAI(base_url=rest.url + "/v1", api_key=key.secret, max_retries=0)


@pytest.fixture
def mine(rest: Gateway) -> Iterator[OpenAI]:
    """An account of its own for each test."""
    with connect(rest, rest.key(account=f"files-{next(NUMBERS)}")) as opened:
        yield opened


NUMBERS = iter(range(1000))


def send(client: OpenAI, content: bytes = LINES) -> Any:
    return client.files.create(file=("in.jsonl", content), purpose="batch")


def test_the_life_of_a_file(mine: OpenAI, rest: Gateway, rest_key: Key) -> None:
    made = send(mine)
    assert (made.bytes, made.filename, made.purpose) == (len(LINES), "in.jsonl", "batch")
    assert mine.files.retrieve(made.id) == made
    assert mine.files.content(made.id).read() == LINES
    assert [one.id for one in mine.files.list()] == [made.id]
    assert mine.files.delete(made.id).deleted
    assert list(mine.files.list()) == []
    with pytest.raises(openai.NotFoundError):
        mine.files.retrieve(made.id)
    row = rest.usage_of(rest.call("/v1/files", key=rest_key.secret))
    assert (row["endpoint"], row["model_asked"], row["upstream"]) == ("files", "files", "openai")
    assert (row["prompt_tokens"], row["completion_tokens"], row["outcome"]) == (0, 0, "ok")


def test_pages_have_what_is_ones_own(mine: OpenAI, client: OpenAI) -> None:
    ids = []
    for number in range(5):
        ids.append(send(mine, b"%d\n" % number).id)
        send(client)
    assert [one.id for one in mine.files.list(limit=2)] == ids[::-1]
    page = mine.files.list(limit=2, after=ids[3])
    assert [one.id for one in page.data] == [ids[2], ids[1]]
    assert page.has_more
    assert [one.id for one in mine.files.list(order="asc")] == ids
    assert list(mine.files.list(purpose="vision")) == []


def test_nobody_reaches_anothers(mine: OpenAI, client: OpenAI) -> None:
    theirs = send(client)
    batch = client.batches.create(
        input_file_id=theirs.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    attempts: list[Callable[[], object]] = [
        lambda: mine.files.retrieve(theirs.id),
        lambda: mine.files.content(theirs.id),
        lambda: mine.files.delete(theirs.id),
        lambda: mine.batches.retrieve(batch.id),
        lambda: mine.batches.cancel(batch.id),
        lambda: mine.batches.create(
            input_file_id=theirs.id, endpoint="/v1/chat/completions", completion_window="24h"
        ),
    ]
    for attempt in attempts:
        with pytest.raises(openai.NotFoundError) as refused:
            attempt()
        assert refused.value.code == "object_not_found"
    assert list(mine.files.list()) == []
    assert list(mine.batches.list()) == []
    assert client.files.retrieve(theirs.id).id == theirs.id
    # What it never had looks the same.
    with pytest.raises(openai.NotFoundError) as unknown:
        mine.files.retrieve("file-999999")
    assert unknown.value.code == "object_not_found"


def test_the_life_of_a_batch(mine: OpenAI, sims: dict[str, Simulated]) -> None:
    source = send(mine)
    batch = mine.batches.create(
        input_file_id=source.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"a": "b"},
    )
    assert batch.status == "validating"
    assert mine.batches.retrieve(batch.id).status == "in_progress"
    # A list has them as they are now.
    listed = list(mine.batches.list())
    assert [(one.id, one.status) for one in listed] == [(batch.id, "completed")]
    done = mine.batches.retrieve(batch.id)
    assert done.output_file_id is not None
    # What it has written is the account's too.
    lines = mine.files.content(done.output_file_id).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["r0", "r1", "r2"]
    other = mine.batches.create(
        input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert mine.batches.cancel(other.id).status == "cancelled"


def test_a_key_of_some_models_makes_no_batches(rest: Gateway) -> None:
    key = rest.key(account="files-some", models=("text",))
    with connect(rest, key) as client:
        made = send(client)
        with pytest.raises(openai.PermissionDeniedError) as refused:
            client.batches.create(
                input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
    assert refused.value.code == "batches_not_allowed"


def test_errors_and_paths(rest: Gateway, rest_key: Key) -> None:
    def ask(path: str, body: Any = None, **options: Any) -> Answer:
        return rest.call(path, body, key=rest_key.secret, **options)

    got = ask("/v1/batches", {"endpoint": "/v1/chat/completions"})
    assert (got.status, got.error()["param"]) == (400, "input_file_id")
    got = ask("/v1/batches", b"[]")
    assert got.status == 400
    got = ask("/v1/files", {"purpose": "batch"})
    assert (got.status, got.error()["code"]) == (400, "unsupported_content_type")
    got = ask("/v1/files?limit=0")
    assert (got.status, got.error()["param"]) == (400, "limit")
    got = ask("/v1/files/file-1", {}, method="PUT")
    assert (got.status, got.header("allow")) == (405, "GET, DELETE")
    for path in ["/v1/files/../models", "/v1/files/a%2F..", "/v1/files/a/b", "/v1/filesystem"]:
        assert ask(path).status == 404, path
    assert rest.call("/v1/files").status == 401


def test_an_upstreams_error_is_told(
    rest: Gateway, mine: OpenAI, sims: dict[str, Simulated]
) -> None:
    made = send(mine)
    with sims["openai"].faults("status:500"), pytest.raises(openai.InternalServerError):
        mine.files.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as refused:
        mine.post("/files", cast_to=object, body={}, files={"file": ("a", b"x")})
    assert refused.value.status_code == 400


def test_requests_are_limited(rest: Gateway) -> None:
    key = rest.key(account="files-slow", rpm=6, rpm_burst=2)
    statuses = [rest.call("/v1/files", key=key.secret).status for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_a_budget_needs_a_price(rest: Gateway) -> None:
    key = rest.key(account="files-money", budget="25.00", budget_period="month")
    got = rest.call("/v1/files", key=key.secret)
    assert (got.status, got.error()["code"]) == (403, "model_has_no_price")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
def test_no_request_names_a_file_at_the_upstream_that_has_all(
    rest: Gateway, rest_key: Key, path: str
) -> None:
    part = {"type": "input_file", "file_id": "file-1"}
    content = {"role": "user", "content": [part]}
    body = {"model": "text", "input" if path == "/v1/responses" else "messages": [content]}
    refused = rest.call(path, body, key=rest_key.secret)
    assert refused.status == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("id_not_checked", "file_id")
