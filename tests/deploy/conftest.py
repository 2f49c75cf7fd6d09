"""A gateway as its image starts it, for all tests of this folder."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from forebay.store import EmbeddedPostgres

from tests.deploy import dockerfile
from tests.deploy.chart import DEPLOY
from tests.support.databases import create_database
from tests.support.processes import Engine, Gateway
from tests.support.valkey import Valkey

# Everything is read-only but the folder $0, and root is nobody, as compose.yaml has it; but for one
# capability, as the socket of the tests' database is another user's.
_SEALED = """
mount --bind / / && mount --bind "$0" "$0" && mount -o remount,ro,bind / && cd "$0" &&
exec setpriv --no-new-privs --bounding-set=-all,+dac_override --inh-caps=-all "$@"
"""


def seal(folder: Path) -> list[str]:
    """What goes before a command so that it can write to a folder and /dev alone."""
    return ["unshare", "--mount", "sh", "-c", _SEALED, str(folder)]


@pytest.fixture(scope="session")
def sealable(tmp_path_factory: pytest.TempPathFactory) -> bool:
    """Whether this machine lets us: it takes root, or what a container is made with."""
    try:
        command = [*seal(tmp_path_factory.mktemp("sealed")), "sh", "-c", "! touch /sealed"]
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="session")
def container(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory, sealable: bool
) -> Iterator[Gateway]:
    """With a database, a Valkey and an engine, and no file; sealed where that can be."""
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
            "XDG_STATE_HOME": str(folder / "gateway" / "state"),
            "TMPDIR": str(folder / "gateway" / "tmp"),
            "HOME": "/nonexistent",
            "REDIS_URL": valkey.url,
            "INFERENCE_URL": engine.url,
        }
        url = create_database(postgres, "container")
        gateway = Gateway(folder / "gateway", None, url, env=environment, workers=2)
        if sealable:
            gateway.arguments = [*seal(folder / "gateway"), *gateway.arguments]
        (folder / "gateway" / "tmp").mkdir()
        stack.callback(gateway.stop)
        gateway.start()
        yield gateway
