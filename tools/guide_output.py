"""Run the commands of a guide, and write what they print below them: `python -m tools.guide_output docs/guides/*.md`.

In a block of the language `console`, a line that begins with `$ ` is a command, and what follows it up to the next
command is its output, errors included. A block with a title (```` ```csv title="questions.csv" ````) is written to a
file of that name. All commands of a page run in one shell, in an empty folder, with the packages of this Python.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

BLOCK = re.compile(
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
END = "--- end of command ---"


class Step(NamedTuple):
    """A command of a page, as it is written (several lines if they end with a backslash), and what it prints."""

    command: str
    output: str


def steps(body: str) -> list[Step]:
    """The commands of a block of the language `console`."""
    found = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", body, re.MULTILINE)
    return [Step(command, output) for command, output in found]


def steps_of_page(text: str) -> list[Step]:
    """All commands of a page."""
    return [step for block in BLOCK.finditer(text) if block["language"] == "console" for step in steps(block["body"])]


def _environment(folder: Path) -> dict[str, str]:
    """The shell's environment: `fastmem` and `python` are those of this Python; nothing is loaded from the hub."""
    programs = folder / "bin"
    programs.mkdir()
    for name, arguments in (("fastmem", "-m fastmem.cli"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        program.chmod(0o755)
    settings = {
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "100", "TQDM_DISABLE": "1",
        "FASTMEM_CACHE": "cache",
    }  # fmt: skip
    return os.environ | settings | {"PATH": f"{programs}:{os.environ['PATH']}"}


def run(text: str, seconds: float = 300) -> list[str]:
    """What the commands of a page print, run one after the other.

    Errors: `subprocess.TimeoutExpired` if they take longer than `seconds`.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        work = folder / "work"
        work.mkdir()
        for block in BLOCK.finditer(text):
            if block["title"]:
                (work / block["title"]).parent.mkdir(parents=True, exist_ok=True)
                (work / block["title"]).write_text(block["body"])
        program = "".join(f"{step.command}\necho '{END}'\n" for step in steps_of_page(text))
        shell = subprocess.Popen(
            ["bash"], cwd=work, env=_environment(folder), text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            # A command that goes on in the background holds the pipe, so it ends with the shell.
            printed, _ = shell.communicate(f"{program}kill 0\n", timeout=seconds)
        finally:
            if shell.poll() is None:
                os.killpg(shell.pid, signal.SIGKILL)
        return printed.split(f"{END}\n")[:-1]


def with_output(text: str) -> str:
    """The page with the output of its commands as it is today."""
    printed = iter(run(text))

    def renew(block: re.Match[str]) -> str:
        if block["language"] != "console":
            return block[0]
        outputs = [(step.command, next(printed)) for step in steps(block["body"])]
        parts = (f"$ {command}\n{output.rstrip()}\n" if output else f"$ {command}\n" for command, output in outputs)
        return "```console\n" + "".join(parts) + "```"

    return BLOCK.sub(renew, text)


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(with_output(page.read_text()))
        print(page)
