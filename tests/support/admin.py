"""The admin API of a running gateway, and waiting until all its workers agree."""

from collections.abc import Callable
from typing import Any

from tests.support.processes import Gateway, Key
from tests.support.wait import until
from tests.support.wire import CHAT, Answer, Headers, chat


def everywhere(what: str, probe: Callable[[], bool]) -> None:
    """Wait up to a second until `probe`, on connections of its own, holds in every worker."""
    # Each connection goes to a worker by chance: 16 that agree leave out one of two once in 32,768.
    until(lambda: all(probe() for _ in range(16)), what, timeout_s=1.0)


class Admin:
    """A client of the running gateway's admin API."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.key = gateway.new_key(kind="admin").secret
        everywhere("the admin key", lambda: self.call("GET", "/keys").status == 200)

    def call(self, method: str, path: str, body: Any = None, headers: Headers = ()) -> Answer:
        """One request to a path below ``/admin/v1``."""
        path = f"/admin/v1{path}"
        return self.gateway.call(path, body, key=self.key, method=method, headers=headers)

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """The content of a good answer."""
        answer = self.call(method, path, body)
        assert answer.status in (200, 201, 204), answer.body
        return answer.json() if answer.body else None

    def make(self, **settings: Any) -> Key:
        """A new key that the gateway knows."""
        made = self.send("POST", "/keys", {"name": "test", **settings})
        key = Key(made["id"], made["key"])
        everywhere("the key", lambda: self.call("GET", f"/keys/{key.id}/limits").status == 200)
        return key

    def entries(self, key: Key) -> list[dict[str, Any]]:
        """Every limit that applies to the key, as it stands."""
        found: list[dict[str, Any]] = self.send("GET", f"/keys/{key.id}/limits")["data"]
        return found

    def live(self, key: Key) -> dict[tuple[str, str], dict[str, Any]]:
        """What remains now, by scope and dimension."""
        return {(entry["scope"], entry["dimension"]): entry for entry in self.entries(key)}

    def limit(self, path: str, key: Key, **limits: Any) -> None:
        """Set the limits of the subject at `path`, and wait until they hold for the key."""
        before = len(self.entries(key))
        self.send("PUT", f"{path}/limits", limits)
        everywhere("the limits", lambda: len(self.entries(key)) > before)

    def ask(self, key: Key, model: str = "priced", **fields: Any) -> Answer:
        """One inference request."""
        body = chat(model, max_tokens=5, **fields)
        return self.gateway.call(CHAT, body, key=key.secret)
