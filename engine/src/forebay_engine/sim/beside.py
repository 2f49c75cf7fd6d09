"""Answers requests for what engines have beside text, over the wire."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Any, Literal

from forebay_engine.sim import form_data, others, shelf
from forebay_engine.sim.errors import dump
from forebay_engine.sim.faults import Fault
from forebay_engine.sim.history import Record
from forebay_engine.sim.others import Answer, Style
from forebay_engine.sim.wire import Exchange

PIECES = 16
"""Pieces of a stream that are sent at once."""
WAITING = 256 * 1024
"""Bytes that may wait to be sent before the next ones are made."""
PAUSE_S = 0.005
MOST_PAUSES = 60_000
"""Seconds between two looks at them, and how many there are for one reader."""

Trouble = Literal["invalid", "model", "path"]
Failed = Callable[[int, Trouble, str, str | None], None]
"""Answers with an error: status, why, message, field."""

_FILE = re.compile(r"/files/([^/]+)(/content)?")
_BATCH = re.compile(r"/batches/([^/]+)(/cancel)?")


class Beside:
    """One server's answers. Of a stream its record counts the pieces, as tokens.

    style: whose shapes they have. apis: which of them it has. models: that it serves; None: any.
    """

    def __init__(self, style: Style, apis: frozenset[str], models: tuple[str, ...] | None) -> None:
        self._style = style
        self._apis = apis
        self._models = models
        self._shelf = shelf.Shelf()

    def api(self, path: str) -> str | None:
        """What a path below ``/v1`` is here; None: nothing."""
        if path.startswith(("/files", "/batches")):
            found = path.split("/")[1]
        else:
            found = others.PATHS.get(path, "")
        return found if found in self._apis else None

    def answer(
        self, exchange: Exchange, path: str, record: Record, fault: Fault | None, failed: Failed
    ) -> None:
        """Answer a request for one of `api`. `path`: below ``/v1``."""

        def refuse(status: int, why: Trouble, message: str, param: str | None = None) -> None:
            _end(record, f"error:{status}")
            failed(status, why, message, param)

        api = self.api(path)
        try:
            if api in ("files", "batches"):
                self._answer_shelf(exchange, path, record)
                return
            if exchange.method != "POST":
                refuse(405, "path", path)
                return
            made = self._made(exchange, str(api), record)
        except (others.Wrong, shelf.Wrong) as wrong:
            refuse(400, "invalid", str(wrong), wrong.param)
        except shelf.Missing as missing:
            refuse(404, "invalid", f"No such object: {missing}", "id")
        except LookupError as unknown:
            refuse(404, "model", str(unknown.args[0]), "model")
        else:
            self._send(exchange, record, made, fault)

    def _made(self, exchange: Exchange, api: str, record: Record) -> Answer:
        if api in others.FORMS:
            kind = exchange.header(b"content-type") or b""
            fields = form_data.read(kind, exchange.body)
            if fields is None:
                raise others.Wrong("The form could not be read", "file")
            model = next((one.text for one in fields if one.name == "model"), None)
            self._check(model, record)
            return others.answer_form(api, fields)
        body = _object(exchange.body)
        self._check(body.get("model"), record)
        return others.answer_json(api, body, self._style)

    def _check(self, model: object, record: Record) -> None:
        if not isinstance(model, str):
            raise others.Wrong("you must provide a model parameter", "model")
        if self._models is not None and model not in self._models:
            raise LookupError(model)
        record.model = model

    def _answer_shelf(self, exchange: Exchange, path: str, record: Record) -> None:
        method, kept = exchange.method, self._shelf
        one, batch = _FILE.fullmatch(path), _BATCH.fullmatch(path)
        if path == "/files" and method == "POST":
            kind = exchange.header(b"content-type") or b""
            fields = form_data.read(kind, exchange.body)
            if fields is None:
                raise shelf.Wrong("The form could not be read", "file")
            answer = dump(kept.add_file(fields))
        elif path == "/files" and method == "GET":
            answer = dump(kept.page(exchange.query))
        elif path == "/batches" and method == "POST":
            answer = dump(kept.add_batch(_object(exchange.body)))
        elif one is not None and one.group(2) and method == "GET":
            _, content = kept.file(one.group(1))
            pieces = tuple(content[at : at + 1000] for at in range(0, len(content), 1000))
            self._send(exchange, record, Answer(b"application/octet-stream", pieces, True), None)
            return
        elif one is not None and method == "GET":
            answer = dump(kept.file(one.group(1))[0])
        elif one is not None and method == "DELETE":
            answer = dump(kept.delete(one.group(1)))
        elif batch is not None and batch.group(2) and method == "POST":
            answer = dump(kept.cancel(batch.group(1)))
        elif batch is not None and method == "GET":
            answer = dump(kept.batch(batch.group(1)))
        else:
            raise shelf.Missing(path)
        _end(record, "stop")
        exchange.respond(200, answer, vary=False)

    def _send(
        self, exchange: Exchange, record: Record, answer: Answer, fault: Fault | None
    ) -> None:
        if not answer.streamed:
            _end(record, "stop")
            exchange.respond(200, b"".join(answer.pieces), answer.media, vary=False)
            return
        record.stream = True
        task = asyncio.ensure_future(_stream(exchange, record, answer, fault))
        _RUNNING.add(task)
        task.add_done_callback(_RUNNING.discard)


def _object(data: bytes) -> dict[str, Any]:
    try:
        body: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise others.Wrong("The body is not JSON", "body") from None
    if not isinstance(body, dict):
        raise others.Wrong("The body must be a JSON object", "body")
    return body


_RUNNING: set[asyncio.Future[None]] = set()


async def _stream(exchange: Exchange, record: Record, answer: Answer, fault: Fault | None) -> None:
    strike = fault.after if fault is not None and fault.in_stream else None
    exchange.write(exchange.start_stream(answer.media, vary=False))
    for at in range(0, len(answer.pieces), PIECES):
        if exchange.disconnected:
            _end(record, "disconnected")
            return
        if strike is not None and at >= strike and fault is not None:
            _end(record, f"fault:{fault.kind}")
            exchange.close()
            return
        pieces = answer.pieces[at : at + PIECES]
        exchange.write(exchange.frame(b"".join(pieces)))
        record.delivered_tokens += len(pieces)
        # One turn of the loop, so that others get theirs, and a reader that has gone is seen.
        await asyncio.sleep(0)
        for _ in range(MOST_PAUSES):
            if exchange.waiting <= WAITING or exchange.disconnected:
                break
            await asyncio.sleep(PAUSE_S)
    exchange.write(exchange.last_chunk())
    _end(record, "stop")
    exchange.end()


def _end(record: Record, outcome: str) -> None:
    record.outcome = outcome
    record.finished_at = time.time()
