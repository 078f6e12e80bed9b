"""Every option that takes a number: what it cannot use is refused on one line that names it, and nothing is loaded."""

import importlib
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from command_line import Runner, refusal
from fastmem.cli import COMMANDS, command, error_text
from fastmem.cli.flags import ModelFlags
from fastmem.errors import InputError

# What each command needs besides the option; commands without numbers are absent.
GIVEN = {
    "demo": [],
    "ask": ["Who?", "--text", "Bo is the mayor."],
    "memorize": ["policy.txt", "--output", "out"],
    "export": ["memory.safetensors", "--output", "out"],
    "serve": [],
    "eval": ["--task", "world", "--output", "out"],
    "search": ["--task", "world_swap", "--sampler", "tpe", "--output", "out"],
    "paper": ["--output", "out"],
    "suite": ["--output", "out"],
    "bench": [],
    "check": ["--questions", "questions.csv"],
    "calibrate": [],
}
NOT_WHOLE = ["", "x", "10.7", "-1", str(2**64)]
NOT_A_NUMBER = ["", "x", "-1", "nan", "inf", "1e999"]
LISTS = {  # of `search`
    "--rates": ["", "x", "1e-3,", "-1", "20", "nan", "1e999", "1e-3,1e-3"],
    "--kls": ["", "x", "1,,2", "-1", "nan", "inf"],
    "--alphas": ["", "x", "0,x", "-1", "nan", "inf"],
    "--steps": ["", "x", "10.7", "10,20.5", "-1", "1e30", str(2**64)],
    "--layers": ["", "x", "-1/", "1.5", "1,a", str(2**64)],
}


def callbacks(name: str) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """(parsed command, its function) of a command, or of every command in a group."""
    module, _, attribute = COMMANDS[name].partition(":")
    target, parsed = getattr(importlib.import_module(module), attribute), command(name)
    if isinstance(target, typer.Typer):
        for child in target.registered_commands:
            yield getattr(parsed, "commands", {}).get(child.name, parsed), child.callback
    else:
        yield parsed, target


def number_options() -> Iterator[tuple[str, str, type]]:
    """(command, option, int or float) of every option that takes one number."""
    for name in COMMANDS:
        for parsed, function in callbacks(name):
            signature = inspect.signature(function, eval_str=True)
            for parameter in parsed.params:
                declared = signature.parameters[parameter.name].annotation.__origin__  # of Annotated
                kinds = {declared, *typing.get_args(declared)} & {int, float}  # `int`, or `int | None`
                if kinds:
                    yield name, parameter.opts[0], kinds.pop()


OPTIONS = list(number_options())
NEGATIVE = {"--seed", "--presence-penalty", "--frequency-penalty"}  # options that take -1


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path):
    """`refused("ask", "--steps", "x")`: the line that refuses the value."""
    monkeypatch.setattr(ModelFlags, "load", lambda *_: pytest.fail("a model was loaded before the value was checked"))
    monkeypatch.chdir(tmp_path)
    fastmem = Runner(capsys)
    return lambda name, option, value: refusal(fastmem(name, *GIVEN[name], f"{option}={value}"))


def test_every_command_with_numbers_is_covered() -> None:
    assert {name for name, _, _ in OPTIONS} == set(GIVEN)
    assert len(OPTIONS) > 100


@pytest.mark.parametrize(("name", "option", "kind"), OPTIONS, ids=[f"{name} {option}" for name, option, _ in OPTIONS])
def test_a_number_that_cannot_be_used(refused, name: str, option: str, kind: type) -> None:
    for value in NOT_WHOLE if kind is int else NOT_A_NUMBER:
        if not (option in NEGATIVE and value == "-1"):
            assert option in refused(name, option, value), value


@pytest.mark.parametrize(("option", "values"), LISTS.items())
def test_a_list_of_numbers_that_cannot_be_used(refused, option: str, values: list[str]) -> None:
    for value in values:
        assert option in refused("search", option, value), value


def test_no_part_of_a_number_is_dropped(refused) -> None:
    expected = "--steps is '10,20.7': give whole numbers separated by commas."
    assert refused("search", "--steps", "10,20.7") == expected


def test_a_seed_that_is_refused_names_its_own_option(refused) -> None:
    assert refused("ask", "--recipe-seed", -1).endswith("(option --recipe-seed).")
    assert refused("ask", "--seed", 2**64).endswith("(option --seed).")
    assert error_text(InputError("seed is -1: give a whole number.", field="seed"), "ask").endswith("(option --seed).")


def test_a_search_names_its_own_options(refused) -> None:
    assert refused("search", "--rates", 20) == "recipe learning_rate is 20.0: give a number, 0 to 10 (option --rates)."
