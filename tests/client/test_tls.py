"""The Python client over TLS, and with a certificate of its own."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from forebay.client import AsyncClient, Client, Tls, Unavailable

from tests.support.certificates import Authority
from tests.support.processes import Engine, Gateway

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates: of the gateway, of a client, of who signed both, and of somebody else."""
    place = tmp_path_factory.mktemp("tls")
    authority = Authority()
    for name in ("server", "client"):
        authority.write(place, name)
    (place / "ca.pem").write_bytes(authority.pem)
    (place / "other.pem").write_bytes(Authority("another").pem)
    return place


@pytest.fixture(scope="module")
def secured(
    folder: Path, sim: Engine, session_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway that asks clients for a certificate."""
    files = {"cert": "server.pem", "key": "server.key", "client_ca": "ca.pem"}
    config = {
        "listen": {
            "grpc": "127.0.0.1:0",
            "grpc_tls": {name: str(folder / file) for name, file in files.items()},
        },
        "upstreams": {"sim": {"kind": "sglang", "url": sim.url}},
        "models": {"sim": {"targets": [{"upstream": "sim"}]}},
    }
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), config, session_database_url)
    gateway.start()
    yield gateway
    gateway.stop()


def tls(folder: Path, ca: str = "ca.pem") -> Tls:
    """A client's files."""
    return Tls(ca=folder / ca, cert=folder / "client.pem", key=folder / "client.key")


def test_a_client_with_a_certificate(secured: Gateway, folder: Path) -> None:
    address = f"grpcs://{secured.grpc}"
    with Client(address, api_key=secured.key().secret, tls=tls(folder)) as client:
        assert client.chat(model="sim", messages=HI, max_tokens=3).usage.completion_tokens == 3
        with client.stream_chat(model="sim", messages=HI, max_tokens=3) as stream:
            assert list(stream)[-1].usage.completion_tokens == 3


async def test_with_asyncio(secured: Gateway, folder: Path) -> None:
    key = secured.key().secret
    async with AsyncClient(secured.grpc, api_key=key, tls=tls(folder)) as client:
        found = await client.chat(model="sim", messages=HI, max_tokens=3)
    assert found.usage.completion_tokens == 3


@pytest.mark.parametrize("case", ["no certificate", "another authority", "in the clear"])
def test_who_is_not_let_in(secured: Gateway, folder: Path, case: str) -> None:
    used = {
        "no certificate": Tls(ca=folder / "ca.pem"),
        "another authority": tls(folder, "other.pem"),
        "in the clear": None,
    }[case]
    key = secured.key().secret
    with Client(secured.grpc, api_key=key, tls=used, retries=False, timeout=3) as client:
        with pytest.raises(Unavailable) as caught:
            client.models()
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none\.pem"):
        Client("grpcs://127.0.0.1:1", api_key="k", tls=Tls(ca=tmp_path / "none.pem"))
