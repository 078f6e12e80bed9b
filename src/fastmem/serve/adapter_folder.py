"""The folder of adapters that FastMem writes and vLLM reads. It holds copies of memories, which can be made again.

An adapter is named by the id of its memory, a hash of tenant, base, recipe and tokens, and appears in the folder whole
or not at all. What else lies in the folder is left alone.
"""

import re
import shutil
from pathlib import Path

from fastmem.errors import FastMemError, StorageError
from fastmem.export import export_peft
from fastmem.memory.memory import Memory
from fastmem.model import FastMem
from fastmem.serve.folder_lock import lock_folder

PREFIX = "fastmem-"
NAME = re.compile(PREFIX + r"[0-9a-f]{32}")
FILES = ("adapter_config.json", "adapter_model.safetensors")


def adapter_name(key: str) -> str:
    """The adapter of a memory, by the memory's id."""
    return PREFIX + key.removeprefix("mem-")


class AdapterFolder:
    """Errors: `StorageError` for a folder that cannot be written, or that another server uses."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self._lock = lock_folder(self.folder, "the folder of adapters", "adapters")
        for unfinished in self.folder.glob(f".{PREFIX}*"):  # of a process that was killed
            shutil.rmtree(unfinished, ignore_errors=True)

    def path(self, name: str) -> Path:
        """Where an adapter is or will be."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether both files of an adapter are there."""
        return all((self.path(name) / file).is_file() for file in FILES)

    def names(self) -> list[str]:
        """The adapters in the folder, the oldest first."""
        found = [path for path in self.folder.iterdir() if NAME.fullmatch(path.name) and self.has(path.name)]
        return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime)]

    def write(self, llm: FastMem, memory: Memory, name: str) -> None:
        """Write a low-rank memory, unless it is there. Errors: `StorageError` if the folder does not take it."""
        if self.has(name):
            return
        try:
            self.remove(name)  # what somebody left of it
            export_peft(llm, memory, self.path(name))
        except (FastMemError, OSError) as error:
            cause = error.__cause__ if isinstance(error, FastMemError) else error
            if not isinstance(cause, OSError):
                raise
            text = f"the memory could not be written to the folder of adapters ({cause.strerror}): try again later."
            raise StorageError(text) from error

    def remove(self, name: str) -> None:
        """Remove an adapter, if it is there."""
        shutil.rmtree(self.path(name), ignore_errors=True)

    def close(self) -> None:
        """Leave the folder to other servers."""
        self._lock.release()
