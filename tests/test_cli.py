"""The command line: its output streams, agreement with the library's results, and fast help."""

import dataclasses
import functools
import io
import itertools
import json
import math
import re
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from rich.console import Console
from tools import command_reference
from tools.demo_picture import drawn

from command_line import DOCUMENT, QUESTION, CommandResult, Runner, in_a_process, refusal, save
from families import build
from fastmem import METHODS, FastMem, Recipe, cli
from fastmem.answer.batch import Batch
from fastmem.answer.request import Decoding
from fastmem.cli import demo_view, flags, memorization_view, output
from fastmem.lab.tasks import Example, embedded_world
from fastmem.surprisal_report import TokenSurprisal
from fastmem.tiny.world import mentions

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "numpy", "rich", "safetensors", "datasets", "optuna", "fastapi")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> FastMem:
    return FastMem.from_pretrained(folder)


def ask(fastmem: Runner, folder: Path, *more: object):
    return fastmem("ask", QUESTION, "--text", DOCUMENT, "-m", folder, "--max-new-tokens", 6, *more)


# Help, commands, exit codes.


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from fastmem import cli; codes = [cli.run(['--help'])]\n"
        "codes += [cli.run([name, '--help']) for name in cli.COMMANDS]\n"
        f"print(set(codes), sorted(set({HEAVY!r}) & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "{0} []\n"


def test_help_describes_every_command(fastmem: Runner) -> None:
    said = fastmem("--help")
    rows = dict(line.split(maxsplit=1) for line in said.out.split("Commands:\n")[1].splitlines())
    assert list(rows) == list(cli.COMMANDS)
    assert all(len(text) > 10 and not text.endswith("...") for text in rows.values())
    assert "Examples:\n    fastmem demo\n" in said.out
    assert all(len(line) <= 80 for line in said.out.splitlines() if not line.startswith("    "))
    assert fastmem().out == said.out


@pytest.mark.parametrize("words", [[], ["ask"], ["memories"], ["memories", "list"]])
def test_the_short_option_of_help(fastmem: Runner, words: list[str]) -> None:
    said = fastmem(*words, "-h")
    assert (said.code, said.err) == (0, "")
    assert said.out == fastmem(*words, "--help").out


def test_an_option_of_no_command_is_refused(fastmem: Runner) -> None:
    assert refusal(fastmem("--nothing")).startswith("No such option: --nothing")


def test_a_group_names_its_commands(fastmem: Runner) -> None:
    help_line = "See 'fastmem memories --help'."
    assert refusal(fastmem("memories")) == f"Missing command. Accepted: list, show, verify. {help_line}"
    assert refusal(fastmem("memories", "lst")) == f"No such command 'lst'. Did you mean 'list'? {help_line}"


def test_a_file_without_its_option(fastmem: Runner) -> None:
    line = refusal(fastmem("ask", QUESTION, "policy.txt"))
    assert "(policy.txt). Files and folders are given as --context FILE, --documents DIR, " in line
    assert refusal(fastmem("demo", "policy.txt")).endswith("(policy.txt). See 'fastmem demo --help'.")
    assert refusal(fastmem("memories", "show", "a", "b")).endswith("(b). See 'fastmem memories show --help'.")


def test_a_guessed_name_of_the_option_for_a_file(fastmem: Runner) -> None:
    line = refusal(fastmem("ask", QUESTION, "--file", "policy.txt"))
    assert line.startswith("No such option: --file. Files and folders are given as --context FILE, --documents DIR, ")
    line = refusal(fastmem("memorize", "--file", "policy.txt"))
    assert line.startswith("No such option: --file. Files and folders are given as FILE..., --output DIR, ")
    assert refusal(fastmem("report", "--folder", "x")).startswith(
        "No such option: --folder. Files and folders are given as DIR..."
    )
    assert refusal(fastmem("version", "--file", "x")) == "No such option: --file. See 'fastmem version --help'."


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ask", QUESTION, "--documents", ""], "--documents is an empty text: give a folder."),
        (["ask", QUESTION, "--context="], "--context is an empty text: give a file."),
        (["memorize", "a.txt", "", "-o", "x"], "FILE is an empty text: give a file."),
        (["memorize", "a.txt", "-o", ""], "--output is an empty text: give a folder."),
        (["memories", "list", ""], "DIR is an empty text: give a folder."),
        (["report", ""], "DIR is an empty text: give a folder."),
        (["compare", "", "b"], "RUN_A is an empty text: give a folder."),
        (["export", "m.safetensors", "--output", ""], "--output is an empty text: give a folder."),
    ],
)
def test_an_empty_text_is_no_path(fastmem: Runner, words: list[str], text: str) -> None:
    assert refusal(fastmem(*words)) == text


def test_a_missing_option_says_what_it_takes(fastmem: Runner) -> None:
    line = refusal(fastmem("check", "questions.csv"))
    wanted = "--questions FILE (questions with answers: csv, tsv, json, jsonl, parquet)"
    assert line == f"Missing option {wanted}. See 'fastmem check --help'."


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in ("memories", "lm-eval")])
def test_help_names_values_and_no_python_types(fastmem: Runner, name: str) -> None:
    said = fastmem(name, "--help").out
    assert "Usage: fastmem" in said
    assert not re.search(r"<(int|str|float|path|list)", said)


def test_unknown_command_suggests_the_nearest(fastmem: Runner) -> None:
    assert refusal(fastmem("aks")).startswith("unknown command 'aks'. Did you mean 'ask'? Accepted: demo, ask, ")


def test_unknown_option_names_the_help(fastmem: Runner) -> None:
    line = refusal(fastmem("ask", QUESTION, "--contxt", "x"))
    assert "--contxt" in line
    assert line.endswith("See 'fastmem ask --help'.")


def test_a_bug_is_one_line_too_and_a_traceback_on_request(fastmem: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise KeyError("of our own")

    monkeypatch.setattr(flags.ModelFlags, "load", load)
    said = fastmem("ask", QUESTION, "--text", DOCUMENT)
    assert said.code == 1
    assert said.err == "error: KeyError: 'of our own' (this is a bug: --debug shows the traceback)\n"
    with pytest.raises(KeyError):
        fastmem("ask", QUESTION, "--text", DOCUMENT, "--debug")


def test_a_closed_pipe_ends_a_command_quietly(folder: Path) -> None:
    for words in (["--help"], ["version"], ["ask", QUESTION, "--text", DOCUMENT, "-m", folder, "-q"]):
        assert in_a_process(*words, closed=True) == CommandResult(141, "", "")
        assert in_a_process(*words, closed=True, PYTHONUNBUFFERED="") == CommandResult(141, "", "")
    refused = in_a_process("ask", QUESTION, closed=True)
    assert (refused.code, refused.err[:6]) == (2, "error:")


# ask.


def test_ask_prints_the_answer_and_its_cost(fastmem: Runner, folder: Path, llm: FastMem) -> None:
    given, recipe = ("--steps", 3, "--learning-rate", 0.01), Recipe(steps=3, learning_rate=0.01)
    said = ask(fastmem, folder, *given)
    assert said.code == 0
    assert said.out == llm.answer(QUESTION, DOCUMENT, recipe=recipe, max_new_tokens=6).text + "\n"
    assert said.err.startswith("fastmem: 3 steps in ")
    assert said.err.endswith("; cut off at --max-new-tokens\n")
    assert re.search(r"; prompt in \d+\.\d+ s; 6 tokens, 0\.\d{4} s for each after the first; cut off", said.err)
    assert ask(fastmem, folder, *given, "--quiet").err == ""


@pytest.mark.parametrize("method", METHODS)
def test_every_method_as_json(fastmem: Runner, folder: Path, llm: FastMem, method: str) -> None:
    said = ask(fastmem, folder, "--method", method, "--learning-rate", 0.01, "--json")
    recipe = Recipe(learning_rate=0.01)
    expected = llm.answer(QUESTION, DOCUMENT, method, recipe, max_new_tokens=6)
    found = said.json
    assert (found["method"], found["text"]) == (method, expected.text)
    assert found["new_tokens"] == len(expected.token_ids)
    assert ("trace" in found) == METHODS[method].memorized
    if METHODS[method].memorized:
        assert Recipe(**found["recipe"]) == recipe
        assert [step["index"] for step in found["trace"]] == list(range(10))


def test_ask_streams(fastmem: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    stdout = SimpleNamespace(write=written.append, flush=lambda: written.append("<flush>"))
    monkeypatch.setattr(sys, "stdout", stdout)
    cli.run(["ask", QUESTION, "--text", DOCUMENT, "-m", str(folder), "--max-new-tokens", "60", "-q"])
    assert written.count("<flush>") > 3
    assert written[-3:] == ["\n", "<flush>", "<flush>"]  # with the answer, and when the command ends


def test_ask_reads_a_file_and_standard_input(
    fastmem: Runner, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "document.txt"
    path.write_text(DOCUMENT, encoding="utf-8-sig")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(DOCUMENT.encode())))
    flags_given = ("-m", folder, "--max-new-tokens", 6, "--steps", 2, "--json")
    said = [fastmem("ask", QUESTION, "--context", source, *flags_given).json for source in (path, "-")]
    said.append(ask(fastmem, folder, "--steps", 2, "--json").json)
    assert len({one["text"] for one in said}) == 1
    assert len({json.dumps(one["trace"]) for one in said}) == 1


def test_compare_asks_every_method_and_memorizes_once(
    fastmem: Runner, folder: Path, llm: FastMem, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, original = [], FastMem.memorizing
    monkeypatch.setattr(FastMem, "memorizing", lambda *a, **k: made.append(k["text"]) or original(*a, **k))
    said = ask(fastmem, folder, "--compare", "--learning-rate", 0.01, "--json")
    assert made.count(DOCUMENT) == 1
    answers = said.json["answers"]
    assert [one["method"] for one in answers] == list(METHODS)
    for one in answers:
        recipe = Recipe(learning_rate=0.01)
        assert one["text"] == llm.answer(QUESTION, DOCUMENT, one["method"], recipe, max_new_tokens=6).text
        assert (one["memorize_seconds"] > 0) == METHODS[one["method"]].memorized


class Clock:
    """Time that passes in steps of the batch only: 1 s for a token, 100 s to read prompts, 1000 s more the first time
    that a method runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now, self.warm = 0.0, set()
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        step, add = Batch.step, FastMem.memorizing

        def timed_step(batch: Batch) -> list:
            methods = {row.request.method for row in batch.rows}
            self.now += 100 if any(not row.token_ids for row in batch.rows) else 1
            self.now += 0 if methods <= self.warm else 1000
            self.warm |= methods
            return step(batch)

        def timed_memorizing(llm: FastMem, *arguments: object, **options: object):
            self.now += 7 if "memorizing" in self.warm else 5000
            self.warm.add("memorizing")
            return (yield from add(llm, *arguments, **options))

        monkeypatch.setattr(Batch, "step", timed_step)
        monkeypatch.setattr(FastMem, "memorizing", timed_memorizing)


def test_compare_times_prompt_tokens_and_memorizing_apart(
    fastmem: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    answers = ask(fastmem, folder, "--compare", "--steps", 2, "--json").json["answers"]
    assert {one["method"]: one["seconds_per_token"] for one in answers} == dict.fromkeys(METHODS, 1.0)
    assert {one["method"]: one["prompt_seconds"] for one in answers} == dict.fromkeys(METHODS, 100.0)
    assert {one["memorize_seconds"] for one in answers if METHODS[one["method"]].memorized} == {7.0}
    table, _, caption = ask(fastmem, folder, "--compare", "--steps", 1, "--max-new-tokens", 1).out.partition("\n\n")
    assert {line.split()[-1] for line in table.splitlines()[2:]} == {"-"}, "there is no token after the first"
    assert caption.startswith("Times after a warm-up on a short text: memorizing,")


def test_compare_takes_no_method(fastmem: Runner, folder: Path) -> None:
    line = refusal(ask(fastmem, folder, "--compare", "--method", "fastmem"))
    assert line == "--compare answers with all methods: leave out --method, or --compare."


def test_compare_is_a_table_that_fits(fastmem: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = ask(fastmem, folder, "--compare", "--steps", 2)
    lines = said.out.partition("\n\n")[0].splitlines()
    assert lines[0].split() == ["memorize", "prompt", "seconds"]
    assert lines[1].split() == ["method", "answer", "seconds", "seconds", "per", "token"]
    assert [line.split()[0] for line in lines[2:] if not line.startswith(" ")] == list(METHODS)
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in said.out


def test_ask_with_a_memory_file(fastmem: Runner, folder: Path, llm: FastMem, tmp_path: Path) -> None:
    recipe, path = Recipe(learning_rate=0.01, steps=4), tmp_path / "document.safetensors"
    memory = llm.memorize(DOCUMENT, recipe)
    memory.save(path)
    found = ask(fastmem, folder, "--memory", path, "--json").json
    assert found["text"] == llm.answer(QUESTION, DOCUMENT, memory=memory, max_new_tokens=6).text
    assert (found["memorize_seconds"] < 0.01, len(found["trace"])) == (True, 4)
    assert ask(fastmem, folder, "--memory", path).err.startswith("fastmem: memory from file; ")
    line = refusal(ask(fastmem, folder, "--memory", path, "--steps", 3, "--kl-weight", 1))
    assert line == "a memory is used as it was made: leave out --steps, --kl-weight, or --memory."
    line = refusal(ask(fastmem, folder, "--memory", tmp_path))
    assert line.endswith("is refused: it is a folder; give the path of a saved memory.")


def test_ask_with_the_folder_of_its_memory(fastmem: Runner, folder: Path, tmp_path: Path) -> None:
    document, memories = tmp_path / "policy.txt", tmp_path / "memories"
    document.write_text(DOCUMENT)
    assert fastmem("memorize", document, "--output", memories, "-m", folder, "--steps", 2).code == 0
    command = ("ask", QUESTION, "--context", document, "-m", folder, "--memory", memories, "--max-new-tokens", 2)
    said = fastmem(*command, "--steps", 3)
    assert f"note: {memories / 'policy.safetensors'} is used as it was made, without --steps.\n" in said.err
    assert "fastmem: memory from file; " in said.err
    (memories / "policy.safetensors").unlink()
    said = fastmem(*command, "--steps", 3)
    assert "has no memory of policy: it is memorized now.\n" in said.err
    assert "fastmem: 3 steps in " in said.err


# Classes of flags and the library's dataclasses.


def test_the_recipe_flags_are_the_recipe() -> None:
    named = {"seed" if f.name == "recipe_seed" else f.name for f in dataclasses.fields(flags.RecipeFlags)}
    assert named - {"recipe"} == {f.name for f in dataclasses.fields(Recipe)}


def test_the_decoding_flags_are_decoding() -> None:
    # Not needed for one question, or with token ids, which nobody types.
    own = {"without_context", "top_logprobs", "batch_size", "prefix", "logit_bias", "stop_token_ids"}
    assert {f.name for f in dataclasses.fields(flags.DecodingFlags)} == {
        f.name for f in dataclasses.fields(Decoding)
    } - own


def test_flags_override_the_file_and_the_file_the_default(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"steps": 20, "kl_weight": 0.3, "layers": [-2, -1]}')
    made = flags.RecipeFlags(recipe=str(path), steps=5).make(Recipe(learning_rate=1e-3))
    assert made == Recipe(learning_rate=1e-3, steps=5, kl_weight=0.3, layers=(-2, -1))
    assert flags.RecipeFlags(layers="0,-1", recipe_seed=3).make(Recipe()) == Recipe(layers=(0, -1), seed=3)


# The effect of memorizing.


def test_the_mean_surprisal_is_the_cross_entropy(fastmem: Runner, folder: Path, llm: FastMem) -> None:
    found = ask(fastmem, folder, "--learning-rate", 0.01, "--show-memorization", "--json").json
    before, after = ([token[when] for token in found["tokens"]] for when in ("before", "after"))
    assert math.isclose(sum(before) / len(before), found["trace"][0]["cross_entropy"], rel_tol=1e-4)
    assert sum(after) < sum(before)
    assert "".join(token["text"] for token in found["tokens"]) == DOCUMENT
    recipe = Recipe(learning_rate=0.01, steps=11)  # its last step sees the weights after ten
    last = llm.memorize(DOCUMENT, recipe).trace[-1].cross_entropy
    assert math.isclose(sum(after) / len(after), last, rel_tol=1e-4)


@pytest.mark.parametrize("placement", ["user", "text", "prompt"])
def test_surprisals_are_those_of_the_placement(fastmem: Runner, folder: Path, placement: str) -> None:
    found = ask(fastmem, folder, "--placement", placement, "--show-memorization", "--json").json
    before = [token["before"] for token in found["tokens"]]
    assert math.isclose(sum(before) / len(before), found["trace"][0]["cross_entropy"], rel_tol=1e-4)


def test_show_memorization_without_colour(fastmem: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = ask(fastmem, folder, "--show-memorization", "--steps", 2)
    lines = said.out.splitlines()
    assert lines[0].split()[:5] == ["step", "loss", "cross", "entropy", "KL"]
    assert [line.split()[0] for line in lines[1:3]] == ["0", "1"]
    texts = [above[8:] for above, below in itertools.pairwise(lines) if below.startswith("before  ")]
    assert " ".join(texts) == DOCUMENT
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in said.out


def rendered(monkeypatch: pytest.MonkeyPatch, tokens: list[TokenSurprisal]) -> str:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    page = output.console()
    with page.capture() as capture:
        memorization_view.print_tokens(page, tokens)
    return capture.get()


def test_show_memorization_in_colour_and_not_under_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [TokenSurprisal("The mayor is", 0.1, 0.0), TokenSurprisal(" Bo", 9.0, 0.2)]
    coloured = rendered(monkeypatch, tokens)
    assert "\x1b[1;37;41m Bo\x1b[0m" in coloured
    assert coloured.count("The mayor is") == 2
    monkeypatch.setenv("NO_COLOR", "1")
    plain = rendered(monkeypatch, tokens)
    assert "\x1b" not in plain
    assert "        The mayor is Bo\nbefore              ███\nafter   " in plain


def test_bars_for_a_terminal_that_has_only_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    page = Console(file=stream, color_system=None, width=80)
    memorization_view.print_tokens(page, [TokenSurprisal("Bo", 9.0, 4.0)])
    stream.flush()
    assert "before  @@\nafter   ==\n" in stream.buffer.getvalue().decode("ascii")


# demo and the quick start.


@functools.cache
def swapped_rows() -> list[Example]:
    return [row for part in ("dev", "test") for row in embedded_world.examples("world_swap", part)]


class Parrot:
    """A double of the embedded model: alone it answers every second example from training, with a memory from it."""

    def __init__(self) -> None:
        self.rows = {row.prompt: (number, row) for number, row in enumerate(swapped_rows())}
        self.name, self.recipe = "parrot", Recipe()

    def memorize(self, contexts: list[str]) -> list[str]:
        assert (self.recipe.steps, self.recipe.learning_rate) == (3, 6e-3)
        return contexts

    def generate(self, prompts: list[str], memories: list[str] | None, method: str, **_: object):
        assert (memories is None) == (method == "base")
        found = [self.rows[prompt] for prompt in prompts]
        assert memories in (None, [row.context for _, row in found])
        said = [row.answers if memories or number % 2 else row.original_answers for number, row in found]
        return [SimpleNamespace(text=f"The answer is: {answers[0]}") for answers in said]


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags.ModelFlags, "load", lambda *_: Parrot())
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("parrot")
def test_demo_as_json(fastmem: Runner) -> None:
    said = fastmem("demo", "--json", "--rows", 30, "--conflicts", 3)
    assert (said.code, said.err, said.out.count("\n")) == (0, "", 1)
    found = said.json
    assert found["accuracy"] == {"base": 0.5, "fastmem": 1.0}
    assert (found["rows"], len(found["conflicts"])) == (30, 3)
    for one in found["conflicts"]:
        assert one["alone"] == one["known"] != one["gold"] == one["fastmem"]
        assert one["gold"] in one["stated"]
        assert one["stated"] in one["document"]
        assert (one["alone_right"], one["fastmem_right"]) == (False, True)


@pytest.mark.usefixtures("parrot")
def test_demo_fits_80_columns_without_colour(fastmem: Runner) -> None:
    said = fastmem("demo", "--rows", 20)
    assert (said.code, said.err) == (0, "")
    assert "\x1b" not in said.out
    page, command = said.out.split("Try one yourself:\n\n")
    lines = page.splitlines()
    assert max(map(len, lines)) <= 80
    first = lines.index(next(line for line in lines if line.startswith("1. ")))
    assert lines[first].endswith("?")
    assert lines[first + 1].startswith("   The document: ")
    assert page.count("**") == 10, "the answer is marked in each document"
    assert page.count("✗") == page.count("✓") == 5
    assert "20 more examples, not selected" in page
    bars = [line for line in lines if "█" in line]
    assert [line.split()[-1] for line in bars] == ["0.50", "1.00"]
    assert [line.count("█") for line in bars] == [20, 40]
    assert shlex.split(command)[:2] == ["fastmem", "ask"]


@pytest.mark.usefixtures("parrot")
def test_the_demo_picks_other_conflicts_by_seed(fastmem: Runner) -> None:
    def questions(*options: object) -> list[str]:
        return [one["question"] for one in fastmem("demo", "--json", "--rows", 1, *options).json["conflicts"]]

    assert questions("--pick", 7) == questions("--pick", 7) != questions("--pick", 8)
    assert questions("--pick", 7) != questions()


def test_the_document_is_shown_around_its_answer() -> None:
    sentences = [f"Sentence {number} has some words to fill a line of it." for number in range(9)]
    text = " ".join(sentences)
    shown = demo_view.excerpt(text, demo_view.stated_in(text, "Sentence 4"))
    assert shown == " ".join(["...", *sentences[2:6], "..."])
    assert demo_view.excerpt(text, sentences[0]) == " ".join([*sentences[:4], "..."])
    assert demo_view.excerpt(text, sentences[8]) == " ".join(["...", *sentences[5:]])
    assert demo_view.excerpt("Short. Oak.", "Oak.") == "Short. Oak."
    assert demo_view.stated_in("No such words.", "oak") == "No such words."
    split = "The dean is Dr. Ada Quill. She is new."  # no sentence mentions all of the name
    assert demo_view.excerpt(split, demo_view.stated_in(split, "Dr. Ada Quill")) == split


@pytest.mark.usefixtures("parrot")
def test_the_picture_of_the_demo_shows_its_words_and_loads_nothing(fastmem: Runner) -> None:
    found = fastmem("demo", "--json", "--rows", 20).json
    picture = ElementTree.fromstring(drawn(found))
    words = " ".join("".join(picture.itertext()).replace("\xa0", " ").split())
    for one in found["conflicts"]:
        assert one["question"] in words
        assert one["gold"] in words
        assert one["known"] in words
    assert "0.50" in words
    assert "url(" not in ElementTree.tostring(picture, "unicode").replace("url(#", "")


def test_ask_alone_shows_a_document_and_the_command_that_asks(fastmem: Runner) -> None:
    found = fastmem("ask")
    assert (found.code, found.err) == (0, "")
    command = next(line for line in found.out.splitlines() if line.startswith("fastmem ask"))
    _, _, question, *options, document = shlex.split(command)
    assert options == ["--compare", "--text"]
    assert document in " ".join(found.out.split())
    assert (question, document) in {(row.question, row.context) for row in swapped_rows()}
    options = (
        "--text Oak.",
        "--model x",
        "--context -",
        "--steps 3",
        "--alpha 0",
        "--method cad",
        "--compare",
        "--json",
    )
    for given in options:
        assert refusal(fastmem("ask", *given.split())).startswith("the question is missing: fastmem ask")


def test_the_demo_of_the_embedded_model(fastmem: Runner) -> None:
    found = fastmem("demo", "--json", "--rows", 20).json
    assert found["accuracy"]["fastmem"] > found["accuracy"]["base"]
    assert len(found["conflicts"]) == 5


def test_the_quick_start(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    printed = capsys.readouterr().out
    said = dict(line.split(": ", 1) for line in printed.splitlines() if ": " in line)
    answer = said["with FastMem"].removeprefix("The answer is: ").rstrip(".")
    assert mentions(printed.partition("question:")[0], answer)
    assert said["alone"].strip() != said["with FastMem"].strip()


# env, version, docs.


def test_env(fastmem: Runner) -> None:
    found = fastmem("env", "--json").json
    import torch

    assert found["torch"] == torch.__version__
    assert found["cpu_threads"] == torch.get_num_threads()
    assert {"python", "transformers", "device", "peft", "optuna"} <= found.keys()
    assert f"torch             {torch.__version__}\n" in fastmem("env").out


def test_version(fastmem: Runner) -> None:
    import fastmem as package

    assert fastmem("version").out == fastmem("--version").out == f"{package.__version__}\n"


def test_docs_cli_md_is_up_to_date() -> None:
    written = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert written == command_reference.page(), "run `make docs`"
