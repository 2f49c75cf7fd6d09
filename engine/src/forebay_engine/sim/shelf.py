"""Files and batches of a provider, in memory. A batch is done once it has been asked for twice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from forebay_engine.sim.form_data import Field

CREATED = 1_700_000_000
MOST = 1000
"""Files that are kept; the oldest go."""


class Missing(Exception):
    """There is none of that id."""


class Wrong(Exception):
    """A request that is none. param: the field."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass
class Shelf:
    """The files and batches of one provider's account."""

    files: dict[str, tuple[dict[str, Any], bytes]] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: int = 0

    def add_file(self, fields: list[Field]) -> dict[str, Any]:
        """Keep a file that a form has. Raises Wrong."""
        sent = next((one for one in fields if one.name == "file" and one.is_file), None)
        purpose = next((one.text for one in fields if one.name == "purpose"), None)
        if sent is None:
            raise Wrong("'file' is a required property", "file")
        if purpose is None:
            raise Wrong("'purpose' is a required property", "purpose")
        return self._keep(sent.filename, purpose, sent.content)

    def _keep(self, name: str, purpose: str, content: bytes) -> dict[str, Any]:
        self.made += 1
        made = {
            "id": f"file-{self.made:06d}",
            "object": "file",
            "bytes": len(content),
            "created_at": CREATED + self.made,
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self.files[str(made["id"])] = (made, content)
        while len(self.files) > MOST:
            del self.files[next(iter(self.files))]
        return made

    def page(self, query: str) -> dict[str, Any]:
        """All files: a provider has no idea of its customer's customers."""
        limit = int(parse_qs(query).get("limit", ["10000"])[0])
        data = [made for made, _ in self.files.values()][::-1][:limit]
        return {"object": "list", "data": data, "has_more": len(data) < len(self.files)}

    def file(self, name: str) -> tuple[dict[str, Any], bytes]:
        """A file and what is in it. Raises Missing."""
        if name not in self.files:
            raise Missing(name)
        return self.files[name]

    def delete(self, name: str) -> dict[str, Any]:
        """Raises Missing."""
        self.file(name)
        del self.files[name]
        return {"id": name, "object": "file", "deleted": True}

    def add_batch(self, body: dict[str, Any]) -> dict[str, Any]:
        """Begin a batch. Raises Missing, Wrong."""
        source = body.get("input_file_id")
        if not isinstance(source, str):
            raise Wrong("'input_file_id' is a required property", "input_file_id")
        self.file(source)
        self.made += 1
        batch = {
            "id": f"batch_{self.made:06d}",
            "object": "batch",
            "endpoint": body.get("endpoint"),
            "errors": None,
            "input_file_id": source,
            "completion_window": body.get("completion_window"),
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": CREATED + self.made,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": body.get("metadata"),
        }
        self.batches[str(batch["id"])] = batch
        return batch

    def batch(self, name: str) -> dict[str, Any]:
        """A batch, which goes on each time. Raises Missing."""
        if name not in self.batches:
            raise Missing(name)
        batch = self.batches[name]
        if batch["status"] == "validating":
            batch["status"] = "in_progress"
        elif batch["status"] == "in_progress":
            self._complete(batch)
        return batch

    def _complete(self, batch: dict[str, Any]) -> None:
        _, content = self.files.get(str(batch["input_file_id"]), ({}, b""))
        lines = []
        for number, line in enumerate(content.splitlines()):
            answer = {"status_code": 200, "request_id": f"req_{number}", "body": {"id": "x"}}
            lines.append({"id": f"br_{number}", "custom_id": _custom_id(line)})
            lines[-1] |= {"response": answer, "error": None}
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        made = self._keep(f"{batch['id']}_output.jsonl", "batch_output", text)
        count = len(lines)
        batch["request_counts"] = {"total": count, "completed": count, "failed": 0}
        batch |= {"status": "completed", "output_file_id": made["id"]}

    def cancel(self, name: str) -> dict[str, Any]:
        """Raises Missing."""
        if name not in self.batches:
            raise Missing(name)
        batch = self.batches[name]
        if batch["status"] != "completed":
            batch["status"] = "cancelled"
        return batch


def _custom_id(line: bytes) -> Any:
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return asked.get("custom_id") if isinstance(asked, dict) else None
