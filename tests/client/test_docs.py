"""The examples in docs/grpc-client.md run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import Gateway, Key

PAGE = Path(__file__).parents[2] / "docs" / "grpc-client.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(gateway: Gateway, key: Key, number: int) -> None:
    code = EXAMPLES[number].replace("127.0.0.1:50051", gateway.grpc).replace('"tiny"', '"sim"')
    code = code.replace("Client()", f'Client("{gateway.grpc}")')
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"FOREBAY_API_KEY": key.secret, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
