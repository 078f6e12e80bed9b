"""A folder that one running server has for itself."""

from pathlib import Path

from filelock import FileLock, Timeout

from fastmem.atomic_write import replacing
from fastmem.errors import StorageError


def lock_folder(folder: Path, what: str, field: str) -> FileLock:
    """The lock of a folder, which exists now and can be written.

    what: the folder's purpose, for errors. field: the argument that names it. Errors: `StorageError`, also where
    another server has the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "writable"):
            pass
        (folder / "writable").unlink()
        # Not of a thread: the server is closed in another one than it was made in.
        lock = FileLock(folder / ".lock", timeout=0, thread_local=False)
        lock.acquire()
    except Timeout:
        text = f"{what} {folder} is in use by another running server: stop that server, or give another folder."
        raise StorageError(text, field=field) from None
    except OSError as error:
        text = f"{what} {folder} cannot be written ({error.strerror}): give a folder that can be."
        raise StorageError(text, field=field) from error
    return lock
