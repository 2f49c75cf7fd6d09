"""Makes Python's code from the protos: `make protos`.

It lies in `python/forebay/grpc/v1` and is checked in, so that nobody needs a compiler to run the
gateway. With `--release` also `protos/released.binpb`, which later protos are compared with.
"""

import argparse
import re
import tempfile
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

PROTOS = Path(__file__).parent
FILES = ("forebay/v1/inference.proto", "forebay/v1/admin.proto")
CODE = PROTOS.parent / "python" / "forebay" / "grpc" / "v1"
RELEASED = PROTOS / "released.binpb"
PACKAGE = "forebay.grpc.v1"
"""Where the code is imported from: `forebay.v1` is not ours alone to have."""


def compile_protos(*arguments: str) -> None:
    """Run protoc on our files. Raises: RuntimeError where it refuses them."""
    known = Path(grpc_tools.__file__).parent / "_proto"
    if protoc.main(["protoc", f"-I{PROTOS}", f"-I{known}", *arguments, *FILES]) != 0:
        raise RuntimeError("protoc refused the protos")


def generate(folder: Path) -> None:
    """Write `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` into `folder`."""
    with tempfile.TemporaryDirectory() as made:
        compile_protos(f"--python_out={made}", f"--pyi_out={made}", f"--grpc_python_out={made}")
        for path in sorted(Path(made, "forebay", "v1").iterdir()):
            text = path.read_text()
            text = re.sub(r"^from forebay\.v1 import", f"from {PACKAGE} import", text, flags=re.M)
            (folder / path.name).write_text(text)


def descriptors() -> FileDescriptorSet:
    """Our files as protoc reads them, comments included, without those they import."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made, "set.binpb")
        compile_protos(f"--descriptor_set_out={path}", "--include_source_info")
        return FileDescriptorSet.FromString(path.read_bytes())


def released() -> FileDescriptorSet:
    """Our files at the last release."""
    return FileDescriptorSet.FromString(RELEASED.read_bytes())


def release() -> None:
    """Write the set that later protos are compared with; without comments."""
    files = descriptors()
    for file in files.file:
        file.ClearField("source_code_info")
    RELEASED.write_bytes(files.SerializeToString(deterministic=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--release", action="store_true", help="these protos are released")
    if parser.parse_args().release:
        release()
    generate(CODE)
