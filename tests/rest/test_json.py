"""Rerank, score, moderations and images: JSON in, JSON out."""

from typing import Any

import openai
import pytest
from forebay_engine.sim.others import relevance, tokens
from openai import OpenAI

from tests.support.processes import Gateway, Key
from tests.support.simulated import Simulated

QUERY = "What is a panda?"
DOCUMENTS = ["hi", "A panda is a bear.", "What is this?"]


def rank(rest: Gateway, key: Key, model: str, path: str = "/v1/rerank", **fields: Any) -> Any:
    body = {"model": model, "query": QUERY, "documents": DOCUMENTS, **fields}
    return rest.call(path, body, key=key.secret)


@pytest.mark.parametrize("model", ["rank-v", "rank-s", "rank-alias"])
def test_a_ranking_has_one_shape(rest: Gateway, rest_key: Key, model: str) -> None:
    got = rank(rest, rest_key, model)
    assert got.status == 200, got.body
    ranking = got.json()
    found = [(result["index"], result["relevance_score"]) for result in ranking["results"]]
    wanted = [(index, relevance(QUERY, text)) for index, text in enumerate(DOCUMENTS)]
    assert found == sorted(wanted, key=lambda pair: -pair[1])
    assert ranking["results"][0]["document"]["text"] == DOCUMENTS[found[0][0]]
    total = sum(tokens(QUERY, text) for text in DOCUMENTS)
    assert ranking["usage"]["total_tokens"] == total
    row = rest.usage_of(got)
    assert (row["endpoint"], row["prompt_tokens"], row["completion_tokens"]) == ("rerank", total, 0)
    assert (row["source"], row["outcome"], row["model_asked"]) == ("reported", "ok", model)


@pytest.mark.parametrize("path", ["/v2/rerank", "/rerank"])
def test_other_paths_lead_there_too(rest: Gateway, rest_key: Key, path: str) -> None:
    got = rank(rest, rest_key, "rank-v", path, top_n=1)
    assert (got.status, len(got.json()["results"])) == (200, 1)


def test_scores_keep_their_engines_shapes(rest: Gateway, rest_key: Key) -> None:
    body: dict[str, Any] = {"model": "rank-v", "text_1": QUERY, "text_2": DOCUMENTS}
    got = rest.call("/v1/score", body, key=rest_key.secret)
    wanted = [relevance(QUERY, text) for text in DOCUMENTS]
    assert [entry["score"] for entry in got.json()["data"]] == wanted
    assert rest.usage_of(got)["endpoint"] == "score"
    body = {"model": "rank-s", "query": QUERY, "items": DOCUMENTS, "label_token_ids": [1, 2]}
    got = rest.call("/v1/score", body, key=rest_key.secret)
    assert got.json()["scores"] == [[score, score] for score in wanted]
    assert rest.usage_of(got)["prompt_tokens"] == sum(tokens(QUERY, text) for text in DOCUMENTS)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a"}, "documents"),
        ("/v1/rerank", {"query": None, "documents": ["a"]}, "query"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"items": ["a"]}, "query"),
        ("/v1/score", {"query": "a"}, "items"),
        ("/v1/score", {}, "text_1"),
        ("/v1/moderations", {}, "input"),
        ("/v1/images/generations", {}, "prompt"),
        ("/v1/audio/speech", {"voice": "x"}, "input"),
    ],
)
def test_what_is_missing_is_named(
    rest: Gateway, rest_key: Key, path: str, body: dict[str, Any], param: str
) -> None:
    got = rest.call(path, {"model": "rank-v", **body}, key=rest_key.secret)
    assert got.brief() == (400, "invalid_request_error", "missing_required_parameter", param) or (
        got.status == 400 and got.error()["param"] == param
    )


def test_token_ids_that_would_end_an_engine_stop_here(rest: Gateway, rest_key: Key) -> None:
    base = {"model": "rank-s", "query": QUERY, "items": DOCUMENTS}
    for field, value in [
        ("label_token_ids", [1 << 40]),
        ("label_token_ids", ["1"]),
        ("query", [1, -2]),
        ("items", [[1 << 40]]),
    ]:
        got = rest.call("/v1/score", {**base, field: value}, key=rest_key.secret)
        assert got.status == 400, (field, got.body)
        assert got.error()["param"] == field


def test_a_model_without_the_api_says_so(rest: Gateway, rest_key: Key) -> None:
    got = rank(rest, rest_key, "mod")
    assert got.status == 400
    assert got.error()["code"] == "unsupported_endpoint"


def test_a_key_may_use_its_models_only(rest: Gateway) -> None:
    key = rest.key(models=("rank-s",))
    assert rank(rest, key, "rank-s").status == 200
    assert rank(rest, key, "rank-v").status == 403


def test_moderations(client: OpenAI, rest: Gateway, rest_key: Key) -> None:
    got = client.moderations.create(model="mod", input=["fine", "/flag this"])
    assert [result.flagged for result in got.results] == [False, True]
    raw = rest.call("/v1/moderations", {"model": "mod", "input": "hi"}, key=rest_key.secret)
    row = rest.usage_of(raw)
    # Its engine counts nothing.
    assert (row["source"], row["endpoint"]) == ("estimated", "moderations")
    assert row["prompt_tokens"] > 0
    assert row["completion_tokens"] == 0


def test_images(client: OpenAI, rest: Gateway, rest_key: Key) -> None:
    got = client.images.generate(model="image", prompt="a panda", n=2)
    assert got.data is not None
    assert len(got.data) == 2
    assert got.usage is not None
    assert got.usage.output_tokens == 32
    body = {"model": "image", "prompt": "a panda"}
    raw = rest.call("/v1/images/generations", body, key=rest_key.secret)
    row = rest.usage_of(raw)
    assert (row["endpoint"], row["completion_tokens"], row["source"]) == ("images", 16, "reported")


def test_images_as_they_become(client: OpenAI, rest: Gateway, rest_key: Key) -> None:
    events = list(client.images.generate(model="image", prompt="a panda", stream=True))
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    body = {"model": "image", "prompt": "a panda", "stream": True}
    row = rest.usage_of(rest.call("/v1/images/generations", body, key=rest_key.secret))
    assert (row["outcome"], row["source"], row["completion_tokens"]) == ("ok", "reported", 16)


def test_fallback_and_errors_are_those_of_all(
    rest: Gateway, rest_key: Key, sims: dict[str, Simulated], client: OpenAI
) -> None:
    got = rest.call("/v1/moderations", {"model": "fallen", "input": "a"}, key=rest_key.secret)
    assert (got.status, got.header("x-forebay-upstream")) == (200, "second")
    with sims["openai"].faults("status:500"):
        got = rest.call("/v1/moderations", {"model": "twice", "input": "a"}, key=rest_key.secret)
        assert (got.status, got.header("x-forebay-attempts")) == (200, "2")
        got = rest.call("/v1/moderations", {"model": "mod", "input": "a"}, key=rest_key.secret)
        assert (got.status, got.error()["code"]) == (502, "upstream_error")
    with pytest.raises(openai.NotFoundError):
        client.moderations.create(model="nope", input="a")


def test_limits_hold(rest: Gateway) -> None:
    key = rest.key(rpm=6, rpm_burst=2)
    assert [rank(rest, key, "rank-v").status for _ in range(3)] == [200, 200, 429]
    total = sum(tokens(QUERY, text) for text in DOCUMENTS)
    key = rest.key(tpm=1000, tpm_burst=1000)
    got = rank(rest, key, "rank-v")
    assert rest.usage_of(got)["prompt_tokens"] == total
    again = rank(rest, key, "rank-v")
    left = int(again.header("x-ratelimit-remaining-tokens") or "")
    assert 1000 - 4 * total - 40 <= left <= 1000 - total
