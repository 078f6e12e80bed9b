"""Text from HTML, PDF and Word files, read in a process of its own, with limits on time and memory."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

SECONDS_PER_FILE = 60.0

# -I: neither the current folder nor the environment decides what is imported; the search path is this process' own.
CODE = """
import sys, json
sys.path[:] = json.loads(sys.argv[1])
from fastmem.documents.extract_text import main
main()
"""


class TextProcess:
    """Started when first needed, and again after a file that ended it. Use it in a `with` block, from one thread."""

    def __init__(self, seconds: float = SECONDS_PER_FILE):
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def text(self, path: Path) -> tuple[str, tuple[str, ...]]:
        """The text, and notes about parts that are not in it. Errors: `ValueError` that says why there is none."""
        process = self._process = self._process or _started()
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._seconds, stop)
        timer.start()
        try:
            answer = _answer(process, path)
        finally:
            timer.cancel()
        if answer is None:
            self.close()
            raise ValueError(
                f"reading it takes more than {self._seconds:g} seconds" if late.is_set() else "reading it crashes"
            )
        if "reason" in answer:
            raise ValueError(answer["reason"])
        return answer["text"], tuple(answer["notes"])

    def close(self) -> None:
        """End the process, also in the middle of a file."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def __enter__(self) -> "TextProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _started() -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-c", CODE, json.dumps([entry for entry in sys.path if entry])]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="ascii"
    )


def _answer(process: subprocess.Popen[str], path: Path) -> dict[str, Any] | None:
    """The process' answer; None if it ends before it has answered."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(str(path.absolute())) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except OSError:
        return None
    return json.loads(line) if line.endswith("\n") else None
