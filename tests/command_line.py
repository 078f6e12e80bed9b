"""Running the command line inside the test process, on tiny models saved to a folder."""

import json
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
class Said:
    """What one command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output."""
        return json.loads(self.out.splitlines()[-1])


class Runner:
    """`fastmem("ask", "Who?", "--text", "...")` -> `Said`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Said:
        self._capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Said(code, *self._capsys.readouterr())


def save(model: PreTrainedModel, folder: Path, *, chat_template: str | None = LLAMA3_TEMPLATE) -> Path:
    """`model` and the byte-level tokenizer as an ordinary model folder."""
    model.save_pretrained(folder)
    build_tokenizer(chat_template=chat_template).save_pretrained(folder)
    return folder


def refusal(said: Said) -> str:
    """The one line of a refusal: exit code 2, nothing on standard output, no traceback."""
    assert said.code == 2, said
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")
