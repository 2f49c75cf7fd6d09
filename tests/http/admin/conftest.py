"""The application in this process, on a core and a database of its own."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
from forebay.config import Config, Limits, Model, Target, Upstream
from forebay.gateway import Gateway
from forebay.http.app import create_app
from forebay.store import Database, KeyStore, encode_records
from starlette.applications import Starlette

from tests.support.prompt_logs import BOTH


class Admin:
    """A client of the admin API with an admin key."""

    def __init__(
        self, gateway: Gateway, app: Starlette, client: httpx.AsyncClient, key: str
    ) -> None:
        self.gateway = gateway
        self.app = app
        self.client = client
        self.key = key

    async def call(
        self, method: str, path: str, body: Any = None, **options: Any
    ) -> httpx.Response:
        """One request to a path below ``/admin/v1``."""
        options.setdefault("headers", {})
        options["headers"] = {"authorization": f"Bearer {self.key}", **options["headers"]}
        if body is not None:
            options["json"] = body
        return await self.client.request(method, f"/admin/v1{path}", **options)

    async def get(self, path: str, status: int = 200, **options: Any) -> Any:
        """The answer to a GET."""
        return self._read(await self.call("GET", path, **options), status)

    async def send(
        self, method: str, path: str, body: Any = None, status: int = 200, **options: Any
    ) -> Any:
        """The answer to anything else."""
        return self._read(await self.call(method, path, body, **options), status)

    async def refused(
        self, method: str, path: str, body: Any = None, **options: Any
    ) -> tuple[int, str | None, str | None]:
        """Status, code and parameter of an error in OpenAI's shape."""
        answer = await self.call(method, path, body, **options)
        error = answer.json()["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert error["message"].endswith(".")
        return answer.status_code, error["code"], error["param"]

    @staticmethod
    def _read(answer: httpx.Response, status: int) -> Any:
        assert answer.status_code == status, answer.text
        if status == 204:
            assert answer.content == b""
            return None
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        return answer.json()


CONFIG = Config(
    upstreams={"none": Upstream(kind="sglang", url="http://127.0.0.1:1")},
    models={"known/model": Model(targets=(Target(upstream="none"),), aliases=("nick",))},
    limits=Limits(body_bytes=4096),
    prompt_logs=BOTH,
)

MakeAdmin = Callable[[Database | None], Awaitable[Admin]]


@pytest_asyncio.fixture
async def make_admin(database: Database) -> AsyncIterator[MakeAdmin]:
    """Makes a client of an application on this database, or on one that was never reached."""
    gateway = Gateway(CONFIG)
    opened: list[httpx.AsyncClient] = []
    record, secret = await KeyStore(database).create(name="root", account="ops", kind="admin")
    gateway.core.load_keys(encode_records([record]), False)

    async def make(administered: Database | None) -> Admin:
        app = create_app(gateway, lambda: administered)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://gateway.test")
        opened.append(client)
        return Admin(gateway, app, client, secret)

    yield make
    for client in opened:
        await client.aclose()
    gateway.core.close()


@pytest_asyncio.fixture
async def admin(make_admin: MakeAdmin, database: Database) -> Admin:
    """A client of an application on the database."""
    return await make_admin(database)


@pytest.fixture
def nobody() -> str:
    """An id that no key has."""
    return "nosuchkey000"
