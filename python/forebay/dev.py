"""`forebay dev`: gateway, database and simulated engine with one command."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import orjson

from forebay.cli.common import DEV_STATE, bad_pattern
from forebay.config import Address, load
from forebay.http.address import AddressInUse, reserve
from forebay.serve import run_on_loop, serve
from forebay.store import Database, EmbeddedPostgres, KeyStore
from forebay.store.errors import KeyNotFound, StoreError
from forebay.store.key_format import KeyKind, parse
from forebay.telemetry.logs import setup_logging

STATE = DEV_STATE.parent
MODEL = "tiny"
ENGINE_START_S = 30.0
GRPC_PORT = 50051
_GENEROUS_RPM = 6_000_000
_GENEROUS_TPM = 6_000_000_000
"""Limits that nothing in development reaches, so that the headers can be seen all the same."""


class DevError(OSError):
    """Something that `forebay dev` needs does not start."""


def run(*, http: str | None, grpc: str | None, ready_file: Path | None) -> None:
    """Run until SIGTERM or SIGINT. `INFERENCE_URL` takes the simulated engine's place.

    Raises: ConfigError, DevError, OSError.
    """
    environment = dict(os.environ)
    environment.setdefault("FOREBAY_LOG_FORMAT", "console")
    environment.setdefault("FOREBAY_LOG_LEVEL", "warning")
    # Others may pass through, not look: as root the database runs as nobody.
    STATE.mkdir(mode=0o711, exist_ok=True)
    with _database(environment), _engine(environment) as engine:
        config = load(None, environment, bad_pattern=bad_pattern)
        listen = msgspec.structs.replace(
            config.listen,
            http=http or "127.0.0.1:8080",
            grpc=grpc or config.listen.grpc or _grpc_address(),
        )
        spool = msgspec.structs.replace(
            config.spool, dir=config.spool.dir or str((STATE / "spool").absolute())
        )
        config = msgspec.structs.replace(config, listen=listen, spool=spool)
        setup_logging(config.log.level, config.log.format)
        assert config.database_url is not None
        keys = asyncio.run(_keys(config.database_url))
        run_on_loop(
            config,
            serve(
                config,
                ready_file=ready_file,
                ready={"engine": engine, **keys},
                on_ready=lambda facts: _announce(facts, environment["DATABASE_URL"]),
            ),
        )
    DEV_STATE.unlink(missing_ok=True)


def _grpc_address() -> str:
    """gRPC's usual port, or any free one where somebody has it."""
    usual = Address("127.0.0.1", GRPC_PORT)
    try:
        reserve(usual).close()
    except AddressInUse:
        return str(Address(usual.host, 0))
    return str(usual)


@contextmanager
def _database(environment: dict[str, str]) -> Iterator[None]:
    """`DATABASE_URL`, of an embedded PostgreSQL unless one is given."""
    if environment.get("DATABASE_URL"):
        yield
        return
    with EmbeddedPostgres(STATE / "postgres") as postgres:
        environment["DATABASE_URL"] = postgres.url
        yield


@contextmanager
def _engine(environment: dict[str, str]) -> Iterator[str]:
    """The engine's address, of a simulated one unless `INFERENCE_URL` is given."""
    if given := environment.get("INFERENCE_URL"):
        yield given
        return
    command = Path(sys.executable).with_name("forebay-engine")
    found = str(command) if command.exists() else shutil.which("forebay-engine")
    if found is None:
        raise DevError("forebay-engine is not installed (make setup), and INFERENCE_URL is not set")
    ready = STATE / f"engine-{os.getpid()}.json"
    ready.unlink(missing_ok=True)
    engine = subprocess.Popen(
        [
            *(found, "sim", "--port", "0", "--model", MODEL, "--embed-any"),
            # A killed gateway leaves no engine behind.
            *("--exit-with-parent", "--ready-file", str(ready)),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + ENGINE_START_S
        while not ready.exists():
            if engine.poll() is not None:
                raise DevError(f"the simulated engine ended with status {engine.returncode}")
            if time.monotonic() > deadline:
                raise DevError(f"the simulated engine did not start in {ENGINE_START_S:.0f} s")
            time.sleep(0.02)
        environment["INFERENCE_URL"] = orjson.loads(ready.read_bytes())["url"]
        yield environment["INFERENCE_URL"]
    finally:
        engine.terminate()
        try:
            engine.wait(5)
        except subprocess.TimeoutExpired:
            engine.kill()
        ready.unlink(missing_ok=True)


async def _keys(database_url: str) -> dict[str, str]:
    """The development keys, the same at every start of one folder."""
    async with await Database.connect(database_url) as database:
        await database.migrate()
        store = KeyStore(database)
        return {
            "key": await _key(store, "inference", STATE / "key"),
            "admin_key": await _key(store, "admin", STATE / "admin-key"),
        }


async def _key(store: KeyStore, kind: KeyKind, path: Path) -> str:
    try:
        secret = _kept(path)
        record = await store.get(parse(secret).id)
        if not record.revoked:
            return secret
    except (OSError, ValueError, KeyNotFound, StoreError):
        pass  # No file yet, or the key of another database.
    inference = kind == "inference"
    _, secret = await store.create(
        name=f"dev {kind}",
        kind=kind,
        rpm=_GENEROUS_RPM if inference else None,
        tpm=_GENEROUS_TPM if inference else None,
    )
    _keep(path, secret)
    return secret


def _kept(path: Path) -> str:
    return path.read_text().strip()


def _keep(path: Path, secret: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(secret)


def _announce(facts: dict[str, Any], database_url: str) -> None:
    DEV_STATE.write_bytes(
        orjson.dumps({"database_url": database_url, "http": facts["http"], "pid": facts["pid"]})
    )
    model = facts["models"][0] if facts["models"] else MODEL
    message = {"role": "user", "content": "hi"}
    body = json.dumps({"model": model, "stream": True, "messages": [message]})
    print(
        f"\nForebay is ready.\n"
        f"  HTTP    {facts['http']}\n"
        f"  gRPC    {facts['grpc']}\n" + f"  engine  {facts['engine']}\n"
        f"  key     {facts['key']}\n"
        f"  admin   {facts['admin_key']}\n\n"
        f"Try it:\n"
        f"  curl -N {facts['http']}/v1/chat/completions \\\n"
        f"    -H 'Authorization: Bearer {facts['key']}' \\\n"
        f"    -H 'Content-Type: application/json' \\\n"
        f"    -d '{body}'\n\n"
        f"Ctrl-C ends everything.",
        flush=True,
    )
