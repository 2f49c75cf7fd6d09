"""A gateway as its image starts it, for all tests of this folder."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from forebay.store import EmbeddedPostgres

from tests.deploy import dockerfile
from tests.deploy.chart import DEPLOY
from tests.support.databases import create_database
from tests.support.processes import Engine, Gateway
from tests.support.valkey import Valkey


@pytest.fixture(scope="session")
def container(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """With a database, a Valkey and an engine, and no file."""
    folder = tmp_path_factory.mktemp("container")
    final = dockerfile.read(DEPLOY / "Dockerfile")[1][-1]
    image = final.environment()
    assert dockerfile.words(final.last("CMD")) == ["serve"]
    with ExitStack() as stack:
        valkey = Valkey(folder / "valkey")
        stack.callback(valkey.stop)
        valkey.start()
        engine = Engine(folder / "engine", "--model", "tiny", "--decode-rate", "2000")
        stack.callback(engine.stop)
        engine.start()
        environment = {
            **{k: v for k, v in image.items() if k.startswith(("PYTHON", "FOREBAY", "XDG"))},
            "FOREBAY_GRPC": image["FOREBAY_GRPC"].replace("0.0.0.0:50051", "127.0.0.1:0"),
            "XDG_STATE_HOME": str(folder / "state"),
            "HOME": "/nonexistent",
            "REDIS_URL": valkey.url,
            "INFERENCE_URL": engine.url,
        }
        url = create_database(postgres, "container")
        gateway = Gateway(folder / "gateway", None, url, env=environment, workers=2)
        stack.callback(gateway.stop)
        gateway.start()
        yield gateway
