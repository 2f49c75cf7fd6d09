"""Makes Python's code from the engine's protos: `make protos`.

It lies in `engine/src/forebay_engine/autoscale/kedapb` and is checked in.
"""

import re
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
CODE = PROTOS.parent / "src" / "forebay_engine" / "autoscale" / "kedapb"
PACKAGE = "forebay_engine.autoscale.kedapb"


def generate(folder: Path) -> None:
    """Write `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` into `folder`. Raises: RuntimeError."""
    with tempfile.TemporaryDirectory() as made:
        words = [f"-I{PROTOS / 'keda'}", f"--python_out={made}", f"--pyi_out={made}"]
        words += [f"--grpc_python_out={made}", "externalscaler.proto"]
        if protoc.main(["protoc", *words]) != 0:
            raise RuntimeError("protoc refused the protos")
        for path in sorted(Path(made).iterdir()):
            text = path.read_text()
            text = re.sub(r"^import (\w+_pb2)", rf"from {PACKAGE} import \1", text, flags=re.M)
            (folder / path.name).write_text(text)


if __name__ == "__main__":
    generate(CODE)
