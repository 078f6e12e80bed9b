"""When memorizing had almost no effect, or went too far, Python, the command line and the server say what to do."""

import io
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from command_line import Runner
from fastmem import FastMem, Memory, Recipe, tiny
from fastmem.cli.output import Status, log_messages
from fastmem.memory.effect import KNOWN, notice_of
from fastmem.serve.app import create_app
from fastmem.tiny.world import examples
from serving import ask, web

PAPER = Recipe()
HARDLY = "memorizing had almost no effect (cross entropy {:.2f} to {:.2f} nats per token): memorize again with "


@pytest.fixture(scope="module")
def llm() -> FastMem:
    return FastMem.from_pretrained()


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return [example.context for example in examples("world_swap", "dev", 4)]


@pytest.fixture(scope="module")
def weak(llm: FastMem, documents: list[str]) -> Memory:
    """At the paper's rate, which is for a model a thousand times as large."""
    return llm.memorize(documents[0], PAPER)


def hardly(memory: Memory) -> str:
    first, last = memory.trace[0].cross_entropy, memory.trace[-1].cross_entropy
    assert 0.95 * first < last < first
    return HARDLY.format(first, last)


# The judgement.


@pytest.mark.parametrize(
    ("losses", "stopped", "direction"),
    [
        ([9.03, 8.98, 8.93], None, "above"),
        ([9.03, 8.0, 7.0], None, None),
        ([2.0, 1.9], None, None),  # a twentieth is enough
        ([2.0, 1.91], None, "above"),
        ([2.0, 2.01], None, "above"),  # rounding
        ([KNOWN, KNOWN], None, None),  # nothing left to learn
        ([0.01, 0.09], None, None),
        ([1.0, 8.7, 0.3], None, "below"),  # learnt by heart by a model that is lost
        ([1.0, 1.05, 0.3], None, None),
        ([9.0, 9.8, 3.0], None, None),
        ([9.0, 10.0, 3.0], None, "below"),
        ([1.0], "the weights were no longer finite after 2 steps; kept step 1", "below"),
        ([], "the loss was no longer finite after 0 steps; kept step 0", "below"),
        ([1.0, 0.5], "loss 0.4 reached the target 0.45 after 2 steps", None),
        ([1.0], None, None),  # one update, which nothing measures
        ([], None, None),
    ],
)
def test_what_losses_say(losses, stopped, direction):
    found = notice_of(losses, stopped, 1e-5)
    assert (found and found.direction) == direction
    if found:
        assert "\n" not in str(found)
        assert f"learning_rate {direction} 1e-05" in str(found)


def test_the_embedded_model(llm: FastMem, documents: list[str], weak: Memory) -> None:
    def directions(recipe: Recipe, texts: list[str]) -> set[str | None]:
        return {memory.notice and memory.notice.direction for memory in llm.memorize(texts, recipe)}

    assert weak.notice
    assert str(weak.notice).startswith(hardly(weak))
    assert directions(PAPER, documents) == {"above"}
    assert directions(Recipe(**tiny.RECIPE), documents) == {None}
    assert directions(Recipe(learning_rate=0.1), documents) == {"below"}
    assert directions(Recipe(steps=0), documents) == directions(Recipe(steps=1), documents) == {None}
    # A token or two are learnt, or not, like a longer text.
    assert directions(Recipe(**tiny.RECIPE), ["a", "Hi", "noon"]) == {None}
    assert directions(PAPER, ["a", "Hi", "noon"]) == {"above"}


@pytest.mark.parametrize(("rate", "direction"), [(1e-5, "above"), (5e-4, None), (1e-1, "below")])
def test_nq_mini(shared: Path, rate: float, direction: str | None) -> None:
    folder = shared / "models" / "nq-mini"
    rows = json.loads((folder / "nq_swap_dev_333.json").read_text())[:3]
    memories = FastMem.from_pretrained(folder).memorize([r["sub_context"] for r in rows], Recipe(learning_rate=rate))
    assert {memory.notice and memory.notice.direction for memory in memories} == {direction}


# Python.


def test_a_warning_when_a_memory_is_made_and_none_when_it_is_used(llm, documents, caplog):
    memories = llm.memorize(documents, PAPER)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(hardly(memories[0]))
    assert warning.endswith('memorize again with recipe="auto", or with a learning_rate above 1e-05')
    caplog.clear()
    llm.answer("Who?", documents[0], memory=memories[0], max_new_tokens=1)
    assert caplog.records == []
    llm.answer("Who?", documents[0], recipe=PAPER, max_new_tokens=1)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()
    llm.memorize(documents)  # with its own recipe
    assert caplog.records == []


def test_a_run_that_a_rule_stops_is_named_and_no_more(llm, documents, caplog):
    losses = [step.loss for step in llm.memorize(documents[0]).trace]
    memory = llm.memorize(documents[0], replace(llm.recipe, target_loss=(losses[0] + losses[-1]) / 2))
    assert [record.getMessage() for record in caplog.records] == [f"memorizing stopped early: {memory.stopped}."]


# The command line.


OPTIONS = "memorize again with --recipe auto, or with a --learning-rate above 1e-05."


def test_ask_and_memorize_say_it_once(fastmem: Runner, documents: list[str], weak: Memory, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.txt" for number in range(3)]
    for file, text in zip(files, documents, strict=False):
        file.write_text(text)
    line = f"note: {hardly(weak)}--recipe auto, or with a --learning-rate above 1e-05."
    made = [fastmem("memorize", *files, "-o", tmp_path / "memories", "--learning-rate", "1e-5", *more)
            for more in ([], ["--json"])]  # fmt: skip
    for said in made:  # the second keeps what the first has made
        assert said.err.splitlines() == [line]
    assert all(row["kept"] and row["notice"].endswith(OPTIONS) for row in made[1].json["memories"])

    file = tmp_path / "memories" / "0.safetensors"
    question = ["ask", "Who?", "--context", files[0], "--max-new-tokens", 1]
    for how in (["--learning-rate", "1e-5"], ["--memory", file], ["--learning-rate", "1e-5", "--compare"]):
        assert fastmem(*question, *how).err.splitlines().count(line) == 1
    assert fastmem(*question, "--memory", file, "--quiet").err == ""
    assert f"notice: {line.removeprefix('note: ')}\n" in fastmem("memories", "show", file).out
    found = fastmem(*question, "--learning-rate", "1e-5", "--json").json
    assert f"note: {found['notice']}" == line
    fine = fastmem(*question, "--json")
    assert fine.json["notice"] is None
    assert "memorized" not in fine.err


def test_on_a_terminal_it_does_not_stand_behind_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with log_messages(quiet=False, debug=False):
        Status()("memorizing: step 10 of 10")
        logging.getLogger("fastmem").warning(notice_of([2.0, 1.95], None, 1e-5))
    screen = terminal.getvalue().rpartition("\x1b[K")[2]  # what was not erased
    assert screen.startswith("note: memorizing had almost no effect (cross entropy 2.00 to 1.95 ")


def test_a_rate_that_is_too_high(fastmem: Runner, documents: list[str]) -> None:
    said = fastmem("ask", "Who?", "--text", documents[0], "--max-new-tokens", 1, "--learning-rate", "0.1")
    (line,) = [line for line in said.err.splitlines() if "memorizing went too far (cross entropy " in line]
    assert line.endswith("memorize again with --recipe auto, or with a --learning-rate below 0.1.")


# The server.


@pytest.fixture
def server(llm: FastMem, tmp_path: Path):
    """start(): a server with the store in `tmp_path`, which ends when the next one begins."""
    running = []

    def start():
        stop()
        running.append(create_app(llm, folder=tmp_path / "store"))
        return running[-1]

    def stop():
        for app in running:
            app.state.service.engine.close(timeout_seconds=60)
        running.clear()

    yield start
    stop()


def test_replies_and_memories_carry_it(llm: FastMem, documents: list[str], server) -> None:
    app = server()
    given = [{"text": documents[0]}]
    notice = hardly(llm.memorize(documents[0], PAPER)) + "a learning_rate above 1e-05 in fastmem.recipe."
    body = {"model": llm.name, "documents": given, "max_tokens": 2, "fastmem": {"recipe": {"learning_rate": 1e-5}}}
    assert ask(app, body).json()["fastmem"]["notice"] == notice
    streamed = [json.loads(line[6:]) for line in ask(app, body | {"stream": True}).text.splitlines() if "{" in line]
    assert [one["fastmem"]["notice"] for one in streamed if "fastmem" in one] == [notice]
    asked = {key: body[key] for key in ("model", "documents", "fastmem")} | {"input": "Who?", "max_output_tokens": 2}
    assert web(app).post("/v1/responses", json=asked).json()["fastmem"]["notice"] == notice
    made = web(app).post("/v1/memories", json={"documents": given, "fastmem": body["fastmem"], "name": "weak"}).json()
    assert made["notice"] == notice

    fine = {key: value for key, value in body.items() if key != "fastmem"}
    assert ask(app, fine).json()["fastmem"]["notice"] is None
    assert ask(app, fine | {"fastmem": {"method": "base"}}).json()["fastmem"]["notice"] is None

    again = server()  # from its file
    assert web(again).get("/v1/memories/weak").json()["notice"] == notice
    assert ask(again, {"model": "weak", "max_tokens": 2}).json()["fastmem"]["notice"] == notice
    assert sorted(one["notice"] is None for one in web(again).get("/v1/memories").json()["data"]) == [False, True]


def test_a_memory_of_no_step_has_none(llm: FastMem, documents: list[str], server) -> None:
    body = {"documents": [{"text": documents[0]}], "fastmem": {"recipe": {"steps": 0}}}
    made = web(server()).post("/v1/memories", json=body).json()
    assert (made["trace"], made["notice"]) == ([], None)
