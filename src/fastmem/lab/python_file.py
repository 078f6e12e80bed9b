"""A Python file that was handed over by path: a task, a metric or a method of one's own.

The file is executed as a module. What goes wrong in it is an `InputError` that names the file, the line and the error.
"""

import functools
import hashlib
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from fastmem.errors import InputError
from fastmem.home_path import expanded

_MOST_BYTES = 2**20  # a program that somebody wrote is shorter


def is_python_file(name: str) -> bool:
    """Whether a name on the command line is a path to a Python file and not one of our own names."""
    return name.endswith(".py") or "/" in name


@dataclass(frozen=True)
class PythonFile:
    """An executed file. what: "task", "metric" or "method", for errors. digest: SHA-256 of its bytes, 16 digits."""

    path: Path
    what: str
    digest: str
    module: ModuleType

    def __reduce__(self) -> tuple[Callable[..., "PythonFile"], tuple[str, str, str]]:
        """Another process executes the file itself."""
        return same_file, (str(self.path.resolve()), self.what, self.digest)

    @property
    def label(self) -> str:
        """Its name without folders, which differ between machines."""
        return self.path.name

    def value(self, name: str, default: object = None) -> object:
        """What the file defines by this name."""
        return getattr(self.module, name, default)

    def function(self, name: str, use: str) -> Callable[..., object]:
        """The function of this name. use: an example of it. Errors: `InputError` if the file defines none."""
        found = self.value(name)
        if not callable(found):
            defined = sorted(k for k, v in vars(self.module).items() if not k.startswith("_") and callable(v))
            raise self.error(
                f"it defines no function {name!r}: a {self.what} needs `{use}`"
                + (f"; it defines {', '.join(defined)}" if defined else "")
            )
        return found

    def error(self, text: str) -> InputError:
        """An error about the file."""
        return InputError(f"{self.label}: {text}.", field=self.what)

    def failure(self, error: BaseException) -> InputError:
        """What an exception in the file's code is reported as."""
        return InputError(f"{self.label}{_place(self.path, error)}: {_reason(error)}", field=self.what)


def load_file(name: str | Path, what: str) -> PythonFile:
    """The file, executed once for the same content. Errors: `InputError`."""
    path = expanded(name)
    try:
        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes: give a Python file.", field=what)
        source = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"there is no {what} file {str(name)!r}: give the path of a Python file.", field=what
        ) from error
    except OSError as error:
        raise InputError(f"the {what} file {str(name)!r} cannot be read: {error.strerror}.", field=what) from error
    digest = hashlib.sha256(source).hexdigest()[:16]
    return PythonFile(path, what, digest, _executed(path.resolve(), what, source))


def same_file(name: str, what: str, digest: str) -> PythonFile:
    """`load_file` of a file that has to be the same. Errors: `InputError`."""
    file = load_file(name, what)
    if file.digest != digest:
        raise file.error("it was changed since the command began")
    return file


@functools.cache
def _executed(path: Path, what: str, source: bytes) -> ModuleType:
    name = f"fastmem_{what}_{hashlib.sha256(source + str(path).encode()).hexdigest()[:16]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look for their module there
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{path.name}{_place(path, error)}: {_reason(error)}", field=what) from error
    return module


def _place(path: Path, error: BaseException) -> str:
    """`, line 12`: the last line of the file that led to the error; empty if none did."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename in (str(path), str(path.resolve()))
    ]
    return f", line {lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero.`"""
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    text = " ".join(f"{type(error).__name__}: {said:.300}".split()).removesuffix(":")
    return text if text.endswith(".") else f"{text}."
