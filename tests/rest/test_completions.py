"""Legacy completions: several prompts in every form, and several answers to each."""

from typing import Any

import pytest
from openai import OpenAI

from tests.support.processes import Gateway, Key

PROMPTS: list[tuple[Any, int]] = [
    ("one", 1),
    (["one", "two", "three"], 3),
    ([1, 2, 3], 1),
    ([[1, 2, 3], [4, 5]], 2),
]
MODELS = ["text", "rank-v", "rank-s"]
"""At OpenAI, vLLM and SGLang."""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("prompt", "prompts"), PROMPTS)
@pytest.mark.parametrize("n", [1, 3])
def test_whole(
    client: OpenAI, rest: Gateway, model: str, prompt: Any, prompts: int, n: int
) -> None:
    got = client.completions.with_raw_response.create(model=model, prompt=prompt, n=n, max_tokens=4)
    answer = got.parse()
    assert [choice.index for choice in answer.choices] == list(range(n * prompts))
    assert all(choice.text for choice in answer.choices)
    assert answer.usage is not None
    row = rest.usage(1, request_id=got.headers["x-request-id"])[0]
    assert row["completion_tokens"] == answer.usage.completion_tokens
    assert row["prompt_tokens"] == answer.usage.prompt_tokens
    assert row["source"] == "reported"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("prompt", "prompts"), PROMPTS)
@pytest.mark.parametrize("n", [1, 3])
def test_streamed(
    client: OpenAI, rest: Gateway, model: str, prompt: Any, prompts: int, n: int
) -> None:
    got = client.completions.with_raw_response.create(
        model=model,
        prompt=prompt,
        n=n,
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts: dict[int, str] = {}
    ended: dict[int, str] = {}
    usage = None
    for chunk in got.parse():
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason is not None:
                ended[choice.index] = choice.finish_reason
        usage = chunk.usage or usage
    assert sorted(ended) == sorted(texts) == list(range(n * prompts))
    assert usage is not None
    row = rest.usage(1, request_id=got.headers["x-request-id"])[0]
    assert (row["completion_tokens"], row["prompt_tokens"]) == (
        usage.completion_tokens,
        usage.prompt_tokens,
    )
    assert (row["outcome"], row["source"]) == ("ok", "reported")


def test_echo_and_best_of(client: OpenAI) -> None:
    got = client.completions.create(model="rank-s", prompt=["ab", "cd"], echo=True, max_tokens=4)
    assert [choice.text[:2] for choice in got.choices] == ["ab", "cd"]
    got = client.completions.create(model="rank-s", prompt="ab", best_of=2, max_tokens=4)
    assert len(got.choices) == 1


def test_the_tokens_of_all_answers_are_reserved(rest: Gateway) -> None:
    key: Key = rest.key(tpm=1000, tpm_burst=1000)
    body = {"model": "text", "prompt": [[1, 2], [3, 4]], "n": 5, "max_tokens": 90}
    got = rest.call("/v1/completions", body, key=key.secret)
    assert got.status == 200, got.body
    assert len(got.json()["choices"]) == 10
    # Two prompts of two tokens, ten answers of ninety at most.
    assert int(got.header("x-ratelimit-remaining-tokens") or "") in range(90, 110)
