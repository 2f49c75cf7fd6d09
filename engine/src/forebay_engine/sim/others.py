"""What is asked of engines beside text: rankings, scores, moderations, images, speech, transcripts.

Every answer depends on its request alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from forebay_engine.sim.errors import dump
from forebay_engine.sim.form_data import Field

Body = dict[str, Any]
Style = Literal["openai", "vllm", "sglang"]

PATHS = {
    "/rerank": "rerank",
    "/score": "score",
    "/moderations": "moderations",
    "/images/generations": "images",
    "/images/edits": "image_edits",
    "/images/variations": "image_variations",
    "/audio/speech": "speech",
    "/audio/transcriptions": "transcriptions",
    "/audio/translations": "translations",
}
"""What each path below ``/v1`` is."""
FORMS = frozenset({"image_edits", "image_variations", "transcriptions", "translations"})
"""Those that take a form."""
CREATED = 1_700_000_000
SECOND = 16_000
"""Bytes of a second of sound."""


class Wrong(Exception):
    """A request that is none. param: the field."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Answer:
    """An answer: a body, or its pieces where it is streamed."""

    media: bytes
    pieces: tuple[bytes, ...]
    streamed: bool = False


def tokens(*texts: str) -> int:
    """About four bytes each."""
    return sum(len(text.encode()) // 4 + 1 for text in texts)


def answer_json(api: str, body: Body, style: Style) -> Answer:
    """The answer to a JSON request. Raises Wrong."""
    if api == "rerank":
        return _json(_rerank(body, style))
    if api == "score":
        return _json(_score(body, style))
    if api == "moderations":
        return _json(_moderate(body))
    if api == "images":
        return _images(_text(body, "prompt"), body.get("n"), stream=body.get("stream") is True)
    return _speech(body)


def answer_form(api: str, fields: list[Field]) -> Answer:
    """The answer to a form. Raises Wrong."""
    texts = {field.name: field.text for field in fields if not field.is_file}
    files = [field for field in fields if field.is_file]
    if not files:
        raise Wrong("a file is missing", "image" if api.startswith("image") else "file")
    if api.startswith("image"):
        prompt = texts.get("prompt", "")
        return _images(prompt, texts.get("n"), stream=texts.get("stream") == "true")
    return _transcript(api, texts, len(files[0].content))


def _json(value: Any) -> Answer:
    return Answer(b"application/json", (dump(value),))


def _event(value: Body) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (str(value["type"]).encode(), dump(value))


def _text(body: Body, field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str):
        raise Wrong(f"'{field}' must be a string", field)
    return value


def _texts(body: Body, field: str) -> list[str]:
    value = body.get(field)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise Wrong(f"'{field}' must be a string or a list", field)
    return [item if isinstance(item, str) else json.dumps(item) for item in value]


def relevance(left: str, right: str) -> float:
    """Shared words, and a little by chance: from 0 to 1."""
    ours, theirs = set(left.lower().split()), set(right.lower().split())
    shared = len(ours & theirs) / max(len(ours), 1)
    digest = hashlib.sha256(f"{left}\0{right}".encode()).digest()
    return round(0.9 * shared + digest[0] / 2560, 6)


def _rerank(body: Body, style: Style) -> Any:
    query, documents = _text(body, "query"), _texts(body, "documents")
    scored = [(relevance(query, text), index) for index, text in enumerate(documents)]
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    top = body.get("top_n")
    scored = scored[: top if isinstance(top, int) and top > 0 else len(scored)]
    if style == "sglang":
        return [
            {
                "score": score,
                "document": documents[index],
                "index": index,
                "meta_info": {"prompt_tokens": tokens(query, documents[index])},
            }
            for score, index in scored
        ]
    total = sum(tokens(query, text) for text in documents)
    results = [
        {"index": index, "document": {"text": documents[index]}, "relevance_score": score}
        for score, index in scored
    ]
    usage = {"prompt_tokens": total, "total_tokens": total}
    return {"id": "rerank-1", "model": body.get("model"), "usage": usage, "results": results}


def _score(body: Body, style: Style) -> Any:
    if style == "sglang":
        query, items = _text(body, "query"), _texts(body, "items")
        labels = body.get("label_token_ids") or [0]
        scores = [[relevance(query, item)] * len(labels) for item in items]
        total = sum(tokens(query, item) for item in items)
        usage = {"prompt_tokens": total, "total_tokens": total, "completion_tokens": 0}
        return {"scores": scores, "model": body.get("model"), "usage": usage, "object": "scoring"}
    left, right = _texts(body, "text_1"), _texts(body, "text_2")
    if len(left) == 1:
        left = left * len(right)
    pairs = list(zip(left, right, strict=False))
    total = sum(tokens(*pair) for pair in pairs)
    return {
        "id": "score-1",
        "object": "list",
        "created": CREATED,
        "model": body.get("model"),
        "data": [
            {"index": index, "object": "score", "score": relevance(*pair)}
            for index, pair in enumerate(pairs)
        ],
        "usage": {"prompt_tokens": total, "total_tokens": total},
    }


def _moderate(body: Body) -> Any:
    results = []
    for text in _texts(body, "input"):
        flagged = "/flag" in text
        results.append(
            {
                "flagged": flagged,
                "categories": {"harassment": flagged, "violence": False},
                "category_scores": {"harassment": 0.9 if flagged else 0.1, "violence": 0.0},
                "category_applied_input_types": {"harassment": ["text"], "violence": ["text"]},
            }
        )
    return {"id": "modr-1", "model": body.get("model"), "results": results}


def _images(prompt: str, count: object, *, stream: bool) -> Answer:
    number = int(count) if isinstance(count, int | str) and str(count).isdigit() else 1
    pictures = [
        base64.b64encode(hashlib.sha256(f"{prompt}{index}".encode()).digest()).decode()
        for index in range(number)
    ]
    usage = {
        "input_tokens": tokens(prompt),
        "output_tokens": 16 * number,
        "total_tokens": tokens(prompt) + 16 * number,
        "input_tokens_details": {"text_tokens": tokens(prompt), "image_tokens": 0},
    }
    if not stream:
        data = [{"b64_json": picture} for picture in pictures]
        return _json({"created": CREATED, "data": data, "usage": usage})
    common = {"created_at": CREATED, "size": "1024x1024", "quality": "high"}
    common |= {"background": "opaque", "output_format": "png"}
    kind = "image_generation"
    partial = {"type": f"{kind}.partial_image", "b64_json": pictures[0], "partial_image_index": 0}
    last = {"type": f"{kind}.completed", "b64_json": pictures[0], "usage": usage}
    events = (_event({**partial, **common}), _event({**last, **common}))
    return Answer(b"text/event-stream", events, streamed=True)


def sound(text: str) -> Iterator[bytes]:
    """Noise for a text: a thousand bytes for each of its bytes."""
    seed = hashlib.sha256(text.encode()).digest()
    for _ in range(max(len(text.encode()), 1)):
        seed = hashlib.sha256(seed).digest()
        yield (seed * 32)[:1000]


def _speech(body: Body) -> Answer:
    text = _text(body, "input")
    if not isinstance(body.get("voice"), str | dict):
        raise Wrong("'voice' is missing", "voice")
    if body.get("stream_format") == "sse":
        usage = {"input_tokens": tokens(text), "output_tokens": len(text)}
        usage["total_tokens"] = sum(usage.values())
        events = [
            _event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
            for piece in sound(text)
        ]
        events.append(_event({"type": "speech.audio.done", "usage": usage}))
        return Answer(b"text/event-stream", tuple(events), streamed=True)
    formats = {"wav": b"audio/wav", "opus": b"audio/opus", "pcm": b"audio/pcm"}
    media = formats.get(str(body.get("response_format")), b"audio/mpeg")
    return Answer(media, tuple(sound(text)), streamed=True)


def _transcript(api: str, texts: dict[str, str], size: int) -> Answer:
    language = "English" if api == "translations" else texts.get("language", "some language")
    text = f"{size} bytes of sound in {language}."
    form = texts.get("response_format", "json")
    if form in ("text", "srt", "vtt"):
        return Answer(b"text/plain; charset=utf-8", (text.encode() + b"\n",))
    seconds = size / SECOND
    usage: Body = {"type": "duration", "seconds": round(seconds, 2)}
    if "whisper" not in texts.get("model", ""):
        heard = int(seconds * 10) + 1
        usage = {
            "type": "tokens",
            "input_tokens": heard,
            "output_tokens": tokens(text),
            "total_tokens": heard + tokens(text),
            "input_token_details": {"audio_tokens": heard, "text_tokens": 0},
        }
    if texts.get("stream") == "true":
        events = [_event({"type": "transcript.text.delta", "delta": word}) for word in text.split()]
        events.append(_event({"type": "transcript.text.done", "text": text, "usage": usage}))
        return Answer(b"text/event-stream", tuple(events), streamed=True)
    return _json({"text": text, "usage": usage})
