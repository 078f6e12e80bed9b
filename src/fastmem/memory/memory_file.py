"""A memory as one file, in the safetensors layout that every tool of the field can open:

    8 bytes: length of the header | header, JSON: tensors and metadata | the tensors' bytes

The metadata hold `format`, `format_version`, `memory` (recipe, trace, base, details, as JSON) and `sha256`, over that
JSON and over every tensor. The digest tells an altered file from the one that was written; it is no signature.

Writing is all or nothing: to a temporary file in the same folder, flushed to the disk, renamed, the folder flushed. A
process killed at any instant leaves the old file or the new one, and perhaps a `.NAME.*.tmp` that nothing reads.

Reading trusts nothing: lengths, types, shapes and offsets are checked against the size of the file before anything of
that size is allocated, and no tensor is handed out before the digest was right.
"""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from io import BufferedReader
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from fastmem.core.compression import STORED_AS, quantized, rounded, unquantized
from fastmem.core.memory import Base, Memory, Recipe, Step
from fastmem.errors import InputError, MemoryFileError, one_of

FORMAT, FORMAT_VERSION = "fastmem-memory", 1
MAX_HEADER_BYTES = 16 * 2**20  # a trace of 50 steps is 3 kB, a document of 8,192 tokens some 40 kB

_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def save(memory: Memory, path: str | Path, *, dtype: str | None = None, text: bool = False) -> None:
    """Write `memory` to `path`, replacing what is there.

    dtype: one of `STORED_AS`; None keeps the tensors as they are, to the bit. What rounding lost is stated in the file
    (`details["stored"]`). text: keep the document's text in it. Errors: `InputError` for options that cannot be met,
    `MemoryFileError` where the file cannot be written.
    """
    if text and "text" not in memory.details:
        raise InputError("this memory was made from token ids, so there is no text to keep: leave out text=True.")
    tensors: Mapping[str, Tensor] = memory.tensors
    details = {k: v for k, v in memory.details.items() if k != "text" or text}
    if dtype is not None:
        one_of(dtype, STORED_AS, "stored type")
        kept, error = rounded(memory, dtype)
        tensors = quantized(memory.tensors) if dtype == "int8" else kept.tensors
        details["stored"] = {"dtype": dtype, "relative_error": error}
    try:
        record = json.dumps(_record(memory, details), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the details of a memory must be JSON to be saved: {error}.") from error
    if len(record) > MAX_HEADER_BYTES // 2:
        raise InputError(f"the details of this memory are {len(record)} bytes of JSON: save it without its text.")
    written = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    digests = {
        name: _described(name, t.dtype, t.shape, hashlib.sha256(_bytes(t)).digest()) for name, t in written.items()
    }
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "memory": record,
        "sha256": _content_digest(record, digests),
    }
    with replacing(Path(path)) as file:
        write(file, written, metadata)


def load(path: str | Path, model: Any = None) -> Memory:
    """The memory in `path`.

    model: a `FastMem` that is going to use it; one that cannot is refused before a tensor is read
    (`MemoryMismatchError`). Errors: `MemoryFileError` for a file that is absent, no memory, damaged or newer.
    """
    with _opened(path) as file:
        layout = _layout(file, str(path))
        if model is not None:
            model.require(layout.memory)
        tensors, digests = {}, {}
        for entry in layout.entries:
            tensor = torch.empty(entry.shape, dtype=entry.dtype)
            raw = _bytes(tensor)
            if file.readinto(raw) != raw.nbytes:
                raise _refusal(path, "it became shorter while it was read", "try again when its writer is done")
            tensors[entry.name] = tensor
            digests[entry.name] = _described(entry.name, entry.dtype, entry.shape, hashlib.sha256(raw).digest())
    if _content_digest(layout.record, digests) != layout.sha256:
        raise _refusal(path, "its contents are not those that were written (SHA-256 differs)", "memorize again")
    if not all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()):
        raise _refusal(path, "it holds values that are not finite", "memorize again")
    return replace(layout.memory, tensors=unquantized(tensors))


def peek(path: str | Path) -> Memory:
    """All of a memory but its numbers, read from the header alone: its tensors are on the `meta` device, and nothing
    says that they are undamaged. Errors: `MemoryFileError`."""
    with _opened(path) as file:
        return _layout(file, str(path)).memory


def write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Tensors and metadata in the safetensors layout, to the same bytes every time.

    By hand, since safetensors itself writes metadata in an order of its own each time and holds all tensors once more.
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


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to; what it holds when the block ends takes the place of `path`, all at once.

    Errors: `MemoryFileError` where that is not possible; `path` is then as it was.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MemoryFileError(
            f"memory file {str(path)!r} cannot be written ({reason}): give a path in a folder with room."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Entry:
    """One tensor of the file. begin, end: in bytes from the end of the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class _Layout:
    """A checked header. entries: in the order of the file. memory: with tensors on the meta device."""

    entries: tuple[_Entry, ...]
    record: str
    sha256: str
    memory: Memory


@contextmanager
def _opened(path: str | Path) -> Iterator[BufferedReader]:
    try:
        with open(path, "rb") as file:
            yield file
    except MemoryFileError:
        raise
    except OSError as error:
        raise _refusal(
            path, f"it cannot be read ({error.strerror})", "give the path of a file made by save"
        ) from error


def _layout(file: BufferedReader, path: str) -> _Layout:
    """The header, with every claim in it checked. Errors: `MemoryFileError`."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise _refusal(path, f"{size} bytes and a header of {length} are no safetensors file, or a cut one", _REMEDY)
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        metadata = header.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise ValueError("another format")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refusal(path, "it is no FastMem memory, or its header is damaged", _REMEDY) from error
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        found = version if isinstance(version, str) and version.isdecimal() and len(version) < 9 else "unreadable"
        raise _refusal(path, f"its format version is {found}, this FastMem reads {FORMAT_VERSION}", "upgrade fastmem")
    try:
        entries = _entries(header, size - 8 - length)
        record, sha256 = metadata["memory"], metadata["sha256"]
        memory = _memory(json.loads(record, object_pairs_hook=_unique, parse_constant=_no_constant), entries)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refusal(path, f"its header is damaged ({_one_line(error)})", "memorize again") from error
    return _Layout(entries, record, str(sha256), memory)


_REMEDY = "give a file made by `fastmem memorize` or Memory.save"


def _refusal(path: str | Path, reason: str, remedy: str) -> MemoryFileError:
    return MemoryFileError(f"memory file {str(path)!r} is refused: {reason}; {remedy}.")


def _entries(header: Mapping[str, Any], room: int) -> tuple[_Entry, ...]:
    """The tensors, which must fill the `room` bytes without gap or overlap. Errors: `ValueError` and its like."""
    entries = []
    for name, claim in header.items():
        shape, (begin, end) = claim["shape"], claim["data_offsets"]
        if not all(type(n) is int and 0 <= n <= room for n in (*shape, begin, end)):
            raise ValueError(f"{name[:80]}: sizes beyond the file")
        dtype = _TYPES[claim["dtype"]]
        if len(shape) > 4 or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name[:80]}: shape and bytes disagree")
        entries.append(_Entry(name, dtype, tuple(shape), begin, end))
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    ends = [0, *(entry.end for entry in entries)]
    if [entry.begin for entry in entries] != ends[:-1] or ends[-1] != room:
        raise ValueError("its tensors do not fill the file")
    return tuple(entries)


def _record(memory: Memory, details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "recipe": asdict(memory.recipe),
        "base": asdict(memory.base),
        "trace": [[step.loss, step.cross_entropy, step.kl] for step in memory.trace],
        "stopped": memory.stopped,
        "details": dict(details),
    }


def _memory(record: dict[str, Any], entries: tuple[_Entry, ...]) -> Memory:
    """Errors: `ValueError` and its like for anything that is not as `_record` makes it."""
    stopped, details = record["stopped"], record["details"]
    base = Base(**record["base"])
    if not all(isinstance(text, str) for text in (base.name, base.family, base.digest)):
        raise ValueError("base")
    if not isinstance(details, dict) or not (stopped is None or isinstance(stopped, str)):
        raise ValueError("details")
    return Memory(
        tensors=unquantized({e.name: torch.empty(e.shape, dtype=e.dtype, device="meta") for e in entries}),
        recipe=Recipe(**record["recipe"]),
        base=base,
        trace=tuple(Step(i, *map(float, losses)) for i, losses in enumerate(record["trace"])),
        stopped=stopped,
        details=details,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _bytes(tensor: Tensor) -> memoryview:
    """The storage of a contiguous tensor on the host."""
    return cast(memoryview, tensor.view(-1).view(torch.uint8).numpy().data)


def _described(name: str, dtype: torch.dtype, shape: tuple[int, ...], data: bytes) -> bytes:
    return f"{name} {dtype} {list(shape)} ".encode() + data


def _content_digest(record: str, tensors: Mapping[str, bytes]) -> str:
    """SHA-256 over the record and, in the order of the names, what each tensor is called and holds."""
    sha = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        sha.update(tensors[name])
    return sha.hexdigest()
