"""Where a model comes from: a folder or a `config.json`, and the sizes of the files beside it."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import msgspec

from forebay_engine.size.fields import Fields

INDEX = "model.safetensors.index.json"
JSON_BYTES = 64 << 20  # an index of a large model has some 10 MB
HEADER_BYTES = 100 << 20  # what the safetensors library accepts at most


def folder_of(path: Path) -> Path | None:
    """The folder that a path means: itself, or that of its `config.json`; None for other files."""
    if path.is_dir():
        return path
    return path.parent if path.name == "config.json" else None


def config(path: Path) -> Fields:
    """The `config.json` of a folder, or a file.

    Older quantised checkpoints say what was done in a file beside it, which then counts as its
    `quantization_config`. Raises ValueError: not there, or no JSON object.
    """
    folder = folder_of(path)
    file = path / "config.json" if path.is_dir() else path
    if path.is_dir() and not file.exists() and (path / "params.json").exists():
        raise ValueError(
            f"{path}: params.json is not read, config.json is; or give numbers by flags"
        )
    values = dict(_object(file))
    if folder is not None and "quantization_config" not in values:
        values |= _beside(folder)
    return Fields(values, str(file))


def _beside(folder: Path) -> dict[str, object]:
    """NVIDIA's ModelOpt and AutoGPTQ wrote files of their own."""
    modelopt, gptq = folder / "hf_quant_config.json", folder / "quantize_config.json"
    if modelopt.exists():
        inner = Fields(_object(modelopt), str(modelopt)).inner("quantization")
        if inner is None:
            raise ValueError(f"{modelopt}: quantization: missing")
        return {"quantization_config": {"quant_method": "modelopt", **inner.values}}
    if gptq.exists():
        return {"quantization_config": {"quant_method": "gptq", **_object(gptq)}}
    return {}


def _object(file: Path) -> Mapping[str, object]:
    try:
        with file.open("rb") as stream:
            text = stream.read(JSON_BYTES + 1)
        if len(text) > JSON_BYTES:
            raise ValueError(f"{file}: more than {JSON_BYTES} bytes")
        value = msgspec.json.decode(text.removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or error}") from None
    except RecursionError:
        raise ValueError(f"{file}: no JSON of a model: it is nested too deep") from None
    except msgspec.DecodeError as error:
        raise ValueError(f"{file}: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: a JSON object is needed")
    return cast("Mapping[str, object]", value)


def checkpoint_bytes(path: Path) -> int | None:
    """Bytes of all tensors: by the index of the shards, else by the headers of the files.

    None where the folder has no safetensors. Raises ValueError: a file that is damaged.
    """
    folder = folder_of(path)
    if folder is None:
        return None
    index = folder / INDEX
    if index.exists():
        metadata = Fields(_object(index), str(index)).inner("metadata")
        if metadata is not None and metadata.has("total_size"):
            size = metadata.get("total_size")
            if isinstance(size, float) and size.is_integer():  # as some tools write it
                metadata = Fields({"total_size": int(size)}, metadata.where)
            return metadata.count("total_size")
    # Some folders have the same weights in a second form (consolidated.safetensors).
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    return sum(_tensor_bytes(file) for file in files) or None


def _tensor_bytes(file: Path) -> int:
    """Bytes of tensors of one file: its length less that of its header."""
    try:
        with file.open("rb") as stream:
            head = stream.read(8)
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or error}") from None
    if len(head) < 8:
        raise ValueError(f"{file}: no safetensors file: it ends in its header")
    (length,) = struct.unpack("<Q", head)
    if length > HEADER_BYTES or 8 + length > size:
        raise ValueError(f"{file}: no safetensors file: a header of {length} bytes")
    return size - 8 - int(length)
