"""Run the command line inside the test process, on tiny models saved to a folder."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from fastmem.cli import run
from tiny_tokenizer import LLAMA3_TEMPLATE, build_tokenizer

DOCUMENT = "Rotterdam was rebuilt by Ana Silva. The harbour opened in 1962, and its mayor is Bo Lind."
QUESTION = "Who is the mayor?"


@dataclass(frozen=True)
class CommandResult:
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output, parsed."""
        return json.loads(self.out.splitlines()[-1])


class Runner:
    """`fastmem("ask", "Who?", "--text", "...")` -> `CommandResult`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self._capsys = capsys

    def __call__(self, *arguments: object) -> CommandResult:
        self._capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return CommandResult(code, *self._capsys.readouterr())


def in_a_process(*arguments: object, closed: bool = False, **environment: str) -> CommandResult:
    """Run a command line as users do. closed: nobody reads its standard output. environment: variables to set."""
    command = [sys.executable, "-m", "fastmem.cli", *map(str, arguments)]
    reading, writing = os.pipe()
    if closed:
        os.close(reading)
    with subprocess.Popen(
        command, stdout=writing, stderr=subprocess.PIPE, env=os.environ | environment, text=True
    ) as process:
        os.close(writing)
        out = "" if closed else Path(f"/dev/fd/{reading}").read_text(encoding="utf-8")
        err = process.communicate()[1]
    if not closed:
        os.close(reading)
    return CommandResult(process.returncode, out, err)


def save(model: PreTrainedModel, folder: Path, *, chat_template: str | None = LLAMA3_TEMPLATE) -> Path:
    """Save `model` and the byte-level tokenizer as an ordinary model folder."""
    model.save_pretrained(folder)
    build_tokenizer(chat_template=chat_template).save_pretrained(folder)
    return folder


def refusal(result: CommandResult) -> str:
    """The error message of a command: exit code 2, nothing on standard output, one line and no traceback."""
    assert result.code == 2, result
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")
