"""Tensors and a JSON record in one safetensors file whose content is verified by a digest.

The metadata of the file hold `format`, `format_version`, `memory` (the record, as JSON) and `sha256`, over the record
and every tensor. The digest detects a file that was altered after it was written; it is not a signature.

Nothing in a file is trusted: the safetensors library checks lengths, types, shapes and offsets against the size of the
file before anything is allocated, and no tensor is returned before the digest was verified.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastmem.atomic_write import replacing
from fastmem.errors import InputError, MemoryFileError

FORMAT, FORMAT_VERSION = "fastmem-memory", 1
MAX_RECORD_BYTES = 8 * 2**20  # a trace of 50 steps takes 3 kB, a document of 8,192 tokens about 40 kB

_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_REMEDY = "give a file made by `fastmem memorize` or Memory.save"


def write_memory_file(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write all or nothing. Errors: `InputError` for a record that is not JSON or too long, `MemoryFileError`."""
    try:
        text = json.dumps(record, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the details of a memory must be JSON to be saved: {error}.") from error
    if len(text) > MAX_RECORD_BYTES:
        raise InputError(f"the details of this memory are {len(text)} bytes of JSON: save it without its text.")
    written = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "memory": text,
        "sha256": _content_digest(text, written),
    }
    try:
        with replacing(path) as file:
            write_safetensors(file, written, metadata)
    except OSError as error:
        raise MemoryFileError(
            f"memory file {str(path)!r} cannot be written ({error.strerror or error}): give a path in a folder with "
            "free space."
        ) from error


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Contiguous tensors on the host, and metadata, in the safetensors layout; equal content gives equal bytes.

    The library's own writer puts several metadata in an arbitrary order and holds all tensors in memory once more.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all are aligned
    ends = list(accumulate((tensors[name].nbytes for name in order), initial=0))
    header = {"__metadata__": dict(metadata)} | {
        name: {"dtype": _NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
        for name, (begin, end) in zip(order, pairwise(ends), strict=True)
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(_bytes(tensors[name]))


@dataclass(frozen=True)
class MemoryFile:
    """An open file. record: not verified yet. shapes: tensor name -> a tensor of its shape on the `meta` device."""

    path: str
    record: dict[str, Any]
    shapes: dict[str, Tensor]
    _text: str
    _sha256: str
    _reader: Any

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, verified. Errors: `MemoryFileError`."""
        tensors = {name: self._reader.get_tensor(name) for name in self.shapes}
        if _content_digest(self._text, tensors) != self._sha256:
            raise refused(self.path, "its content is not what was written (SHA-256 differs)", "memorize again")
        if not all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()):
            raise refused(self.path, "it holds values that are not finite", "memorize again")
        return tensors


@contextmanager
def opened_memory_file(path: str | Path) -> Iterator[MemoryFile]:
    """The file's record and shapes; its tensors on demand. Errors: `MemoryFileError`."""
    try:
        with safe_open(path, "pt") as reader:
            metadata = reader.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise refused(path, "it is not a FastMem memory, or its header is damaged", _REMEDY)
            version = metadata.get("format_version", "")
            if version != str(FORMAT_VERSION):
                found = version if version.isdecimal() and len(version) < 9 else "unreadable"
                raise refused(
                    path, f"its format version is {found}, this FastMem reads {FORMAT_VERSION}", "upgrade fastmem"
                )
            yield MemoryFile(str(path), *_described(path, reader, metadata), reader)
    except SafetensorError as error:
        raise refused(path, f"it is not a safetensors file, or a damaged one ({error})", _REMEDY) from error
    except OSError as error:
        if isinstance(error, MemoryFileError):
            raise
        reason = "it is a folder" if Path(path).is_dir() else f"it cannot be read ({_reason(error)})"
        raise refused(path, reason, "give the path of a saved memory") from error


def refused(path: str | Path, reason: str, remedy: str) -> MemoryFileError:
    """The error for a file that cannot be used."""
    return MemoryFileError(f"memory file {str(path)!r} is refused: {reason}; {remedy}.")


def _described(
    path: str | Path, reader: Any, metadata: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Tensor], str, str]:
    """(record, shapes, the record's text, digest)."""
    try:
        record = json.loads(metadata["memory"], parse_constant=_no_constant)
        if not isinstance(record, dict):
            raise ValueError("the record is not an object")
        slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 - not a mapping
        shapes = {
            name: torch.empty(part.get_shape(), dtype=_TYPES[part.get_dtype()], device="meta")
            for name, part in slices.items()
        }
        return record, shapes, metadata["memory"], metadata["sha256"]
    except (ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        raise refused(path, f"its header is damaged ({one_line(error)})", "memorize again") from error


def _reason(error: OSError) -> str:
    """What the system says; the safetensors library raises errors without its number."""
    return error.strerror or str(error).split(":")[0]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def one_line(error: Exception) -> str:
    """The text of an error, short enough for a message."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _bytes(tensor: Tensor) -> memoryview:
    """The storage of a contiguous tensor on the host."""
    return cast(memoryview, tensor.view(-1).view(torch.uint8).numpy().data)


def _content_digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the record and, in the order of the names, the name, type, shape and digest of every tensor."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode() + hashlib.sha256(_bytes(tensor)).digest())
    return sha.hexdigest()
