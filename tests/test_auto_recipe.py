"""The automatic recipe: found once per model, kept in the cache folder, resolved before anything memorizes."""

import errno
import json
import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from command_line import Runner, refusal, save
from families import build
from fastmem import FastMem, InputError, Memory, Recipe, Tokens, auto_recipe, calibrate
from fastmem.calibrate import Calibration, Limits, Neutral, Point
from fastmem.memory.recipe import AutoRecipe, chosen_recipe
from tiny_tokenizer import build_tokenizer

NEUTRAL = Neutral(("The ferry leaves at nine.", "Bo Lind is the mayor."), ("Who?", "What is it?"))
RATES = calibrate.calibrate


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FASTMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(auto_recipe, "read_neutral", lambda: NEUTRAL)
    return tmp_path / "cache"


@pytest.fixture
def calls(monkeypatch) -> list[Recipe]:
    """The settings of every calibration that was run."""
    found: list[Recipe] = []

    def counted(llm, neutral, recipe, **options):
        found.append(recipe)
        return RATES(llm, neutral, recipe, **options)

    monkeypatch.setattr(auto_recipe, "calibrate", counted)
    return found


@pytest.fixture
def invented(monkeypatch) -> list[Recipe]:
    """As `calls`, but nothing is run: the first rate is 1e-4, the second 2e-4, one of the points diverged."""
    found: list[Recipe] = []

    def invent(llm, neutral, recipe, **_):
        found.append(recipe)
        points = (Point(1e-4, 1e-3, 0.5, 2.0, 1.0), Point(2e-4, math.inf, math.nan, 2.0, math.nan))
        return Calibration(replace(recipe, learning_rate=1e-4 * len(found)), points, True)

    monkeypatch.setattr(auto_recipe, "calibrate", invent)
    return found


def new(recipe="auto", seed: int = 0) -> FastMem:
    return FastMem(build("llama", seed=seed), build_tokenizer(), recipe=recipe)


def test_it_is_resolved_at_the_first_memorizing_and_memories_store_numbers(calls, tmp_path):
    llm = new()
    llm.generate("Who?", max_new_tokens=2)
    llm.answer("Who?", "Bo.", "base", max_new_tokens=2)
    assert calls == []
    llm.memorize("Bo is here.").save(tmp_path / "memory.safetensors")
    stored = Memory.load(tmp_path / "memory.safetensors").recipe
    expected = RATES(llm, NEUTRAL, Recipe(steps=3)).recipe
    assert stored == expected
    assert stored.learning_rate != Recipe().learning_rate
    assert llm.recipe == llm.resolved("auto") == llm.resolved(Recipe.auto()) == expected
    assert llm.answer("Who?", "Bo.", max_new_tokens=2).memory.recipe == expected
    assert calls == [Recipe(steps=3)]


def test_a_call_can_ask_for_it_and_nothing_said_is_the_papers(calls):
    llm = new(None)
    assert llm.recipe == Recipe() == llm.resolved("paper")
    found = llm.memorize("Bo is here.", "auto").recipe
    (by_list,) = llm.memorize(["Bo is here."], recipe="auto")
    assert found == by_list.recipe == llm.ask("Who?", "Bo.", recipe="auto").memory.recipe != Recipe()
    *_, memory = finished(llm.memorizing(Tokens([5, 6, 7]), "auto"))
    assert memory.recipe == found
    assert llm.memorize("Bo is here.", "paper").recipe == Recipe()
    assert llm.recipe == Recipe()
    llm.recipe = "auto"
    assert llm.memorize("Bo is here.").recipe == found
    assert len(calls) == 1


def finished(run):
    """What a generator returns."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value


def test_given_fields_stay(calls):
    llm = new(Recipe.auto(steps=5, layers=[-1], kl_weight=0.3))
    assert llm.recipe == Recipe(llm.recipe.learning_rate, 5, 0.3)
    assert calls == [Recipe(steps=5, kl_weight=0.3)]
    assert llm.recipe.learning_rate < llm.resolved("auto").learning_rate  # more steps drift more at the same rate
    assert Recipe.auto(steps=5, layers=[-1]) == Recipe.auto(layers=(-1,), steps=5)
    in_prompt = llm.answer("Who?", "Bo.", recipe=Recipe.auto(placement="prompt"), max_new_tokens=2)
    assert in_prompt.memory.recipe.placement == "prompt"


def test_what_is_no_recipe_is_refused():
    for given in ("fast", Path("auto"), 3, {}):
        with pytest.raises(InputError, match='give a Recipe, "auto" or "paper"'):
            chosen_recipe(given)
        with pytest.raises(InputError, match='give a Recipe, "auto" or "paper"'):
            new(given)
    with pytest.raises(InputError, match="finds the learning rate"):
        Recipe.auto(learning_rate=1e-3)
    with pytest.raises(InputError, match="steps is -1"):
        Recipe.auto(steps=-1)
    with pytest.raises(InputError, match="unknown recipe field 'stepz'"):
        Recipe.auto(stepz=1)


def test_another_process_reads_what_one_has_found(calls, tmp_path, own_cache):
    folder = save(build("llama"), tmp_path / "model")
    found = FastMem.from_pretrained(folder, recipe="auto").recipe
    code = (
        "import sys; from fastmem import FastMem, auto_recipe as a, calibrate as c\n"
        f"a.read_neutral = lambda: c.Neutral({NEUTRAL.documents!r}, {NEUTRAL.questions!r})\n"
        "a.calibrate = None\n"
        f"print(FastMem.from_pretrained({str(folder)!r}, recipe='auto').recipe.learning_rate)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == found.learning_rate
    assert [path.suffix for path in own_cache.iterdir()] == [".json"]
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.up_proj.weight"])
def test_other_weights_have_their_own(calls, own_cache, name):
    llm = new()
    before = llm.recipe
    weight = llm.model.get_parameter(name)
    old = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(3)
    assert llm.recipe == FastMem(llm.model, llm.tokenizer, recipe="auto").recipe
    assert len(calls) == 2
    with torch.no_grad():
        weight.copy_(old)
    assert llm.recipe == before
    assert len(calls) == 2
    assert len(list(own_cache.iterdir())) == 2


def test_texts_template_limit_and_rule_are_part_of_the_name(invented, monkeypatch):
    llm = new()
    assert llm.recipe == new().recipe
    assert len(invented) == 1
    plain = FastMem(llm.model, build_tokenizer(chat_template=None), recipe="auto")
    assert plain.recipe
    assert len(invented) == 2
    for number, (name, value) in enumerate(
        {"RULE": 0, "LIMITS": Limits(1e-4), "read_neutral": lambda: Neutral(("Rain.",), ("Who?",))}.items(), 3
    ):
        monkeypatch.setattr(auto_recipe, name, value)
        assert new().recipe
        assert len(invented) == number, name


def damaged(text: str) -> list[str | bytes]:
    """Contents of a file that are not what was written."""
    record = json.loads(text)
    return [
        "",
        text[:-20],
        "[]",
        "null",
        "[" * 100_000,
        b"\xff\xfe",
        json.dumps(record | {"learning_rate": 1e9}),
        json.dumps(record | {"learning_rate": "1e-3"}),
        json.dumps(record | {"bounded": 1}),
        json.dumps(record | {"points": [{"learning_rate": 1}]}),
        json.dumps(record | {"identity": record["identity"] | {"weights": "0" * 64}}),
        json.dumps({key: value for key, value in record.items() if key != "points"}),
    ]


def test_a_damaged_or_foreign_file_is_made_again(invented, own_cache):
    assert new().recipe == new().recipe == Recipe(1e-4, 3)
    (file,) = own_cache.iterdir()
    for number, content in enumerate(damaged(file.read_text()), 2):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        assert new().recipe.learning_rate == new().recipe.learning_rate == 1e-4 * number, content[:80]
        assert len(invented) == number
    file.unlink()
    file.mkdir()  # cannot be replaced either
    assert new().recipe.learning_rate == 1e-4 * (number + 1)


def test_the_points_are_kept(invented):
    made, kept = (auto_recipe.find_recipe(new(), NEUTRAL, Recipe(steps=3)) for _ in range(2))
    assert (made.made, kept.made) == (True, False)
    assert made.file == kept.file
    assert repr(made.calibration) == repr(kept.calibration)  # which has a NaN
    assert len(invented) == 1


def test_a_cache_that_cannot_be_written_to_is_no_failure(invented, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTMEM_CACHE", str(tmp_path / "file" / "cache"))
    llm = new()
    assert llm.memorize("Bo.").recipe == llm.recipe == Recipe(1e-4, 3)
    assert len(invented) == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len([text for text in warnings if "cannot be saved" in text and "FASTMEM_CACHE" in text]) == 1


def test_a_full_disk_is_no_failure(invented, monkeypatch, own_cache):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert new().recipe == Recipe(1e-4, 3)
    assert list(own_cache.iterdir()) == []


def test_the_folder_is_the_platforms_or_the_named_one(monkeypatch, tmp_path):
    asked = []
    module = SimpleNamespace(user_cache_dir=lambda *names, **options: asked.append((names, options)) or "/the/cache")
    monkeypatch.setitem(sys.modules, "platformdirs", module)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FASTMEM_CACHE", "~/here")
    assert auto_recipe.cache_folder() == tmp_path / "here"
    for unset in ("", None):
        monkeypatch.setenv("FASTMEM_CACHE", "") if unset == "" else monkeypatch.delenv("FASTMEM_CACHE")
        assert auto_recipe.cache_folder() == Path("/the/cache")
    assert asked == [(("fastmem",), {"appauthor": False})] * 2


def test_threads_that_memorize_at_once_calibrate_once(invented, monkeypatch):
    llm, waiting, begun = new(), 4, threading.Barrier(4)
    invent = auto_recipe.calibrate

    def slow(*arguments, **options):
        threading.Event().wait(0.2)  # the others arrive
        return invent(*arguments, **options)

    monkeypatch.setattr(auto_recipe, "calibrate", slow)

    def memorize(_) -> Recipe:
        begun.wait(60)
        return llm.memorize("Bo is here.").recipe

    with ThreadPoolExecutor(waiting) as pool:
        found = list(pool.map(memorize, range(waiting)))
    assert len(invented) == 1
    assert set(found) == {Recipe(1e-4, 3)}


def test_the_model_is_untouched_to_the_bit():
    llm = new()
    before = {name: tensor.clone() for name, tensor in llm.model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in llm.model.named_parameters()}
    assert llm.recipe != Recipe()
    after = llm.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert flags == {name: parameter.requires_grad for name, parameter in llm.model.named_parameters()}
    assert all(parameter.grad is None for parameter in llm.model.parameters())


def test_the_modes_of_torch_around_a_call_have_no_effect():
    plain, llm = new().recipe, new()
    auto_recipe.cache_folder().rename(auto_recipe.cache_folder().with_name("away"))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert llm.memorize("Bo.").recipe == plain


# On the command line.


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(build("llama"), tmp_path_factory.mktemp("model") / "model")


def test_recipes_by_name_and_files_of_that_name(fastmem: Runner, model, tmp_path, monkeypatch, calls):
    monkeypatch.chdir(tmp_path)
    for word in ("auto", "paper"):
        Path(word).write_text('{"learning_rate": 2e-3, "steps": 1}')
    ask = ("ask", "Who?", "--text", "Bo.", "--model", model, "--max-new-tokens", 2, "--json", "--recipe")

    def used(*arguments) -> tuple[float, int]:
        done = fastmem(*ask, *arguments)
        assert done.code == 0, done.err
        recipe = done.json["recipe"]
        return recipe["learning_rate"], recipe["steps"]

    assert used("./auto") == used("./paper") == (2e-3, 1)
    assert used("paper", "--steps", 2) == (1e-5, 2)
    assert calls == []
    rate, steps = used("auto")
    assert steps == 3
    assert rate == RATES(FastMem.from_pretrained(model), NEUTRAL).recipe.learning_rate
    assert used("auto", "--steps", 2)[1] == 2
    assert calls == [Recipe(steps=3), Recipe(steps=2)]
    assert "leave it out" in refusal(fastmem(*ask, "auto", "--learning-rate", 1e-3))
    missing = refusal(fastmem(*ask, "automatic"))
    assert "give a JSON file, auto or paper" in missing


def test_a_memory_file_is_kept_by_the_numbers(fastmem: Runner, model, tmp_path, calls):
    (tmp_path / "bo.txt").write_text("Bo is the mayor.")
    command = ("memorize", tmp_path / "bo.txt", "-o", tmp_path / "out", "--model", model, "--recipe", "auto", "--json")
    (first,), (second,) = (fastmem(*command).json["memories"] for _ in range(2))
    assert (first["kept"], second["kept"]) == (False, True)
    stored = Memory.load(tmp_path / "out" / "bo.safetensors").recipe
    assert stored == RATES(FastMem.from_pretrained(model), NEUTRAL).recipe
    assert len(calls) == 1


def test_a_run_stores_the_numbers_and_resumes_with_them(fastmem: Runner, model, tmp_path, own_cache, calls):
    rows = [{"question": "Who?", "answer": "Bo", "document": "Bo is the mayor."}] * 3
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row | {"question": f"Who is {i}?"}) for i, row in enumerate(rows)))
    command = ("eval", "--task", "qa", "--data", data, "--methods", "base,fastmem", "--model", model)
    command += ("--recipe", "auto", "--max-new-tokens", 2, "--output", tmp_path / "run", "--json")
    first = fastmem(*command)
    assert first.code == 0, first.err
    stored = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["recipe"]
    assert stored["learning_rate"] == RATES(FastMem.from_pretrained(model), NEUTRAL).recipe.learning_rate
    assert stored["steps"] == 3
    rows_before = (tmp_path / "run" / "rows.jsonl").read_bytes()
    for path in own_cache.iterdir():
        path.unlink()
    again = fastmem(*command)
    assert again.code == 0, again.err
    assert (tmp_path / "run" / "rows.jsonl").read_bytes() == rows_before
    assert len(calls) == 2


def test_check_uses_it_and_the_cache(fastmem: Runner, model, tmp_path, invented):
    data = tmp_path / "rows.csv"
    data.write_text("question,answer,document\n" + "".join(f"Who is {i}?,Bo,Bo is {i}.\n" for i in range(4)))
    command = ("check", "--questions", data, "--model", model, "--methods", "fastmem", "--max-new-tokens", 2, "--json")

    def recipe(*arguments) -> dict:
        done = fastmem(*command, "--output", tmp_path / f"out{len(list(tmp_path.iterdir()))}", *arguments)
        assert done.code == 0, done.err
        return done.json["recipe"]

    found = recipe()
    assert (found["learning_rate"], found["steps"]) == (1e-4, 3)
    assert recipe() == found == recipe("--recipe", "auto")
    assert invented == [Recipe(steps=3)]
    assert recipe("--learning-rate", "1e-3", "--steps", 1)["learning_rate"] == 1e-3
    assert recipe("--recipe", "paper")["steps"] == 10
    assert len(invented) == 1


def test_the_server_has_its_numbers_before_it_answers(fastmem: Runner, model, monkeypatch, invented):
    pytest.importorskip("fastapi")
    seen = []
    monkeypatch.setattr("fastmem.serve.app.create_app", lambda llm, **_: seen.append(llm))
    monkeypatch.setattr("fastmem.serve.uvicorn_server.run", lambda *_: None)
    monkeypatch.setattr("fastmem.serve.logs.start_logging", lambda *_: None)
    done = fastmem("serve", "--model", model, "--recipe", "auto", "--steps", 2)
    assert done.code == 0, done.err
    assert invented == [Recipe(steps=2)]
    assert isinstance(seen[0]._recipe, Recipe)
    assert seen[0].recipe.steps == 2
    assert "automatic recipe: learning rate" in done.err
    assert "saved in" in done.err


def test_the_marker_is_no_recipe():
    assert not isinstance(Recipe.auto(), Recipe)
    assert Recipe.auto() == AutoRecipe()
    assert hash(Recipe.auto(steps=2)) == hash(Recipe.auto(steps=2))
