"""Read rows from data files and from the hub. Error messages name the file and the line."""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmem.errors import TaskError
from fastmem.extras import require

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".pqt")
SPREADSHEETS = (".xlsx", ".xls", ".ods")
# Of a .csv file, the likeliest first: spreadsheets write semicolons where the comma is the decimal mark.
_DELIMITERS = ",;\t"
_LONGEST_CSV_FIELD = 2**31 - 1  # bytes; some WikiHow articles are longer than Python's default of 131,072


@dataclass(frozen=True)
class Row:
    """values: column -> value. where: such as "FILE, line 12". number: from 1 in its source. path: its file."""

    values: dict[str, Any]
    where: str
    number: int
    path: Path | None = None


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub. revision: a commit; a comment gives the reason for a branch."""

    id: str
    split: str
    revision: str
    config: str | None = None


def files_of(data: Path) -> tuple[Path, ...]:
    """The files that `data` names: a file, the data files of a folder, or those of a pattern such as `memotrap/*.csv`.

    Errors: `TaskError` if there is none, or if a folder mixes formats (it probably has the same rows twice).
    """
    if data.is_file():
        files = [data]
    elif data.is_dir():
        files = sorted(file for file in data.iterdir() if file.suffix in SUFFIXES)
        kinds = sorted({file.suffix for file in files})
        if len(kinds) > 1:
            raise TaskError(
                f"{data} mixes {' and '.join(kinds)} files: name one file, or a pattern such as {data}/*{kinds[0]}."
            )
    else:
        files = sorted(data.parent.glob(data.name)) if "*" in data.name and data.parent.is_dir() else []
    if not files:
        raise TaskError(
            f"no data file at {data}: check the path, or leave it out to load from the hub. "
            f"Accepted: {', '.join(SUFFIXES)}."
        )
    for file in files:
        if file.suffix not in SUFFIXES:
            remedy = " Save the spreadsheet as CSV in UTF-8." if file.suffix.lower() in SPREADSHEETS else ""
            raise TaskError(f"cannot read {file.name}: accepted are {', '.join(SUFFIXES)}.{remedy}")
    return tuple(files)


def file_rows(files: Iterable[Path]) -> Iterator[Row]:
    """The rows of all files, numbered across them; NaN, which stands for no value, becomes None.

    Errors: `TaskError`, with the line if there is one.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".pqt": _parquet}
    number = 0
    for path in files:
        try:
            if path.suffix not in (".parquet", ".pqt"):
                _require_no_zero_bytes(path)
            for where, values in readers[path.suffix](path):
                number += 1
                if not isinstance(values, dict):
                    raise TaskError(
                        f"{path.name}, {where}: expected an object with columns; found {str(values)[:60]!r}."
                    )
                values = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
                yield Row(values, f"{path.name}, {where}", number, path)
        except UnicodeDecodeError as error:
            raise TaskError(f"{path.name} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
        except OSError as error:
            raise TaskError(f"cannot read {path}: {error.strerror or error}.") from error


def _require_no_zero_bytes(path: Path) -> None:
    """Errors: `TaskError` for a file that starts like a binary one, or like text in UTF-16."""
    with path.open("rb") as stream:
        position = stream.read(2**16).find(b"\0")
    if position >= 0:
        raise TaskError(f"{path.name} is not UTF-8 text (byte {position} is zero): save it as UTF-8.")


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number}", _parsed(line, path, number)


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    loaded = _parsed(path.read_text(encoding="utf-8-sig"), path, 1)
    if isinstance(loaded, dict) and isinstance(loaded.get("data"), list):
        loaded = _squad_rows(loaded["data"], path)
    if not isinstance(loaded, list):
        raise TaskError(
            f"{path.name}: expected a list of rows; found {type(loaded).__name__}. One row per line is .jsonl."
        )
    for number, values in enumerate(loaded, 1):
        yield f"item {number}", values


def _squad_rows(articles: list[Any], path: Path) -> list[dict[str, Any]]:
    """The rows of SQuAD's nested form, articles of paragraphs of a context and questions. Errors: `TaskError`."""
    try:
        return [
            question | {"context": paragraph["context"]}
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise TaskError(
            f"{path.name}: 'data' must hold SQuAD's articles, each with paragraphs of a context and 'qas'; "
            f"{type(error).__name__}: {error}."
        ) from error


def _parsed(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise TaskError(
            f"{path.name}, line {line}: not JSON ({error.msg}, column {error.colno}). Is the file truncated?"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of nested lists
        raise TaskError(f"{path.name}, line {first_line}: JSON that cannot be read ({error}).") from error


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(_LONGEST_CSV_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True, delimiter=_delimiter(path))
        first = 2
        try:
            named = [name for name in reader.fieldnames or () if name]
            if twice := next((name for name in named if named.count(name) > 1), None):
                raise TaskError(f"{path.name}, line 1: the column {twice!r} is named twice; give each its own name.")
            for values in reader:
                if None in values or None in values.values():
                    raise TaskError(
                        f"{path.name}, line {first}: {len(reader.fieldnames or ())} columns are named in line 1, this "
                        f"row has {'more' if None in values else 'fewer'}. Is the file truncated?"
                    )
                yield f"line {first}", values
                first = reader.line_num + 1
        except csv.Error as error:
            form = path.suffix[1:].upper()
            raise TaskError(
                f"{path.name}, line {first}: not {form} ({error}). Is the file truncated, or a quote not doubled?"
            ) from error


def _delimiter(path: Path) -> str:
    """What separates columns: of `_DELIMITERS` the one that splits the first line into most; in .tsv files a tab."""
    if path.suffix == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig", newline="") as lines:
        header = lines.readline()
    return max(_DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    require("pyarrow", extra="eval", purpose="reading parquet files")
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        rows = (values for batch in file.iter_batches(batch_size=512) for values in batch.to_pylist())
        for number, values in enumerate(rows, 1):
            yield f"row {number}", values
    except pyarrow.ArrowException as error:
        raise TaskError(f"{path.name} is not a complete parquet file ({str(error).splitlines()[0]}).") from error


def digest(files: Iterable[Path]) -> str:
    """`sha256:` and the first 16 hex digits of the digest of the files' bytes, in order."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(2**20):
                whole.update(chunk)
    return f"sha256:{whole.hexdigest()[:16]}"


def hub_rows(hub: Hub) -> tuple[Iterator[Row], str]:
    """The rows of a hub data set and their commit; without network, from the cache of an earlier load.

    Errors: `TaskError` if it is neither reachable nor cached, the split is absent, or the cache has another commit
    than the pinned one; `MissingPackageError`.
    """
    require_datasets()
    import datasets

    wanted = f"{hub.id} ({', '.join(filter(None, (hub.config, hub.split, f'revision {hub.revision}')))})"
    try:
        loaded = datasets.load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    except Exception as error:  # the hub client, the builder and the file system raise many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TaskError(
            f"cannot load {wanted}: {reason}. Without network it must be in the cache; or give a local copy as the "
            "data file."
        ) from error
    commit = _commit(loaded.info.download_checksums) or hub.revision
    if _is_commit(hub.revision) and _is_commit(commit) and commit != hub.revision:
        raise TaskError(
            f"{hub.id}: the cache holds commit {commit}, pinned is {hub.revision}. Load it once with network."
        )
    rows = (Row(dict(values), f"{hub.id} row {number}", number) for number, values in enumerate(loaded, 1))
    return rows, commit


def dataset(rows: Sequence[Mapping[str, Any]]) -> "Dataset":
    """The rows as a `datasets.Dataset`, the type that lm-evaluation-harness takes."""
    require_datasets()
    from datasets import Dataset

    return Dataset.from_list([dict(row) for row in rows])


def require_datasets() -> None:
    """What reading from the hub needs. Errors: `MissingPackageError`."""
    require("datasets", extra="eval", purpose="loading a data set from the hub", options=("data",))


def _commit(checksums: dict[str, Any] | None) -> str | None:
    """The commit in `hf://datasets/NAMESPACE/NAME@COMMIT/FILE`, the form in which `datasets` records downloads."""
    for url in checksums or ():
        if url.startswith("hf://") and "@" in url:
            return url.split("@", 1)[1].split("/", 1)[0]
    return None


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)
