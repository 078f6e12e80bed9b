"""`fastmem compare`: two runs on the examples that both have, against figures counted by hand."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from command_line import refusal
from fastmem import FastMem
from fastmem.lab.report import load_results
from fastmem.lab.report.run_comparison import match_runs
from fastmem.lab.run import run_files
from fastmem.lab.run.runner import run
from lab_runs import experiment, questions

COUNT = 12
# One character per example: r right, w wrong, p right by the paper's rule alone.
FIRST = {"base": "wwwwwwrrrrrr", "fastmem": "rrrrrrrpwwww"}
SECOND = {"base": "wwwwwwrrrrrr", "fastmem": "rrrwrrrrrrwr"}

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def original(tokenizer, tmp_path_factory) -> Path:
    """A finished run of `base` and `fastmem` on 12 examples."""
    from families import build

    place = tmp_path_factory.mktemp("compare")
    run(FastMem(build("llama"), tokenizer), experiment(("base", "fastmem")), questions(place, COUNT), place / "run")
    return place / "run"


@pytest.fixture
def make(original, tmp_path) -> Make:
    """`make("name", {"base": "rw..."})`: a copy of the run with these answers; "-" leaves a row out.

    about: dotted name in run.json -> value. examples: what the copy keeps or changes.
    """

    def copy(
        name: str,
        answers: dict[str, str],
        about: dict[str, Any] | None = None,
        examples: Callable[[list[dict]], list[dict]] = lambda whole: whole,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        record = json.loads((original / run_files.RUN).read_text())
        for dotted, value in (about or {}).items():
            *path, last = dotted.split(".")
            place = record
            for part in path:
                place = place[part]
            place[last] = value
        (folder / run_files.RUN).write_text(json.dumps(record))
        (folder / run_files.SUMMARY).write_text((original / run_files.SUMMARY).read_text())
        whole = [json.loads(line) for line in (original / run_files.EXAMPLES).read_text().splitlines()]
        kept = examples(whole)
        write_lines(folder / run_files.EXAMPLES, kept)
        template = run_files.read_rows(original)[0]
        write_lines(
            folder / run_files.ROWS,
            [
                template
                | {"id": e["id"], "group": e["group"], "method": method, "text": text_of(mark, e["answers"][0])}
                for method, marks in answers.items()
                for e, mark in zip(kept, marks, strict=False)
                if mark != "-"
            ],
        )
        return folder

    return copy


def write_lines(path: Path, records: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def text_of(mark: str, gold: str) -> str:
    return {
        "r": f"The answer is: {gold}",
        "p": f"The answer is: {gold} and some others",
        "w": "The answer is: nobody",
    }[mark]


def bootstrap_interval(differences: Sequence[int]) -> tuple[float, float]:
    """The 2.5 and 97.5 % points of the mean of a resample of -1, 0 and 1: exact, by convolution, without sampling."""
    n = len(differences)
    one = np.array([differences.count(value) for value in (-1, 0, 1)]) / n
    total = np.array([1.0])
    for _ in range(n):
        total = np.convolve(total, one)
    cumulative = np.cumsum(total)
    low, high = (int(np.searchsorted(cumulative, q)) for q in (0.025, 0.975))
    for place, q in ((low, 0.025), (high, 0.975)):  # 5,000 resamples must not be in doubt about the point
        assert abs(cumulative[place] - q) > 0.006
        assert abs(cumulative[place - 1] - q) > 0.006
    return (low - n) / n, (high - n) / n


def test_the_figures_are_those_of_pairs_counted_by_hand(make, fastmem):
    a, b = make("a", FIRST), make("b", SECOND)
    done = fastmem("compare", a, b, "--json")
    (found,) = done.json["comparisons"]
    assert (found["task"], found["examples"], done.json["unpaired"]) == ("nq_swap", COUNT, [])
    base, memory = found["methods"]
    assert (base["method_a"], base["method_b"], base["same_text"]) == ("base", "base", COUNT)
    assert (base["scores"]["paper_correct"]["p"], base["scores"]["paper_correct"]["difference"]["value"]) == (1, 0)
    # By the paper's rule A is right on 8, B on 10: places 8, 9, 11 better, 3 worse. Strictly also 7 better.
    for score, right_a, better in (("paper_correct", 8, 3), ("exact_match", 7, 4)):
        one = memory["scores"][score]
        assert (one["a"]["value"], one["b"]["value"]) == pytest.approx((right_a / COUNT, 10 / COUNT))
        assert (one["higher"], one["lower"], one["test"]) == (better, 1, "mcnemar")
        assert one["p"] == pytest.approx(stats.binomtest(better, better + 1).pvalue)
        assert one["difference"]["value"] == pytest.approx((better - 1) / COUNT)
        expected = bootstrap_interval([1] * better + [-1] + [0] * (COUNT - better - 1))
        assert (one["difference"]["low"], one["difference"]["high"]) == pytest.approx(expected)
        for side in "ab":
            assert 0 <= one[side]["low"] < one[side]["value"] < one[side]["high"] <= 1


def test_the_table_shows_both_forms(make, fastmem):
    a, b = make("a", FIRST), make("b", SECOND)
    out = fastmem("compare", a, b).out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert [line[0] for line in lines if line[1] == "n"] == ["accuracy (paper)", "exact match (strict)"]
    paper, strict = (line for line in lines if line[0] == "fastmem")
    assert (paper[1], paper[5:]) == ("12", ["3", "1", "0.62", "mcnemar"])
    assert paper[2].startswith("0.667 [0.")
    assert paper[3].startswith("0.833 [0.")
    assert paper[4].startswith("+0.167 [-0.")
    assert (strict[5:], strict[4][:6]) == (["4", "1", "0.38", "mcnemar"], "+0.250")
    assert "Rows with the same text in A and B: base 12 of 12, fastmem 7 of 12." in out
    assert "All recorded settings are the same." in out


def test_settings_that_differ_are_one_line_each(make, fastmem):
    a = make("a", FIRST)
    b = make(
        "b",
        SECOND,
        {
            "identity.model.digest": "0123456789abcdef",
            "identity.recipe.steps": 7,
            "identity.recipe.layers": [2, 3],
            "identity.model.tuned_weights": "fedcba9876543210",  # of other layers, also of the same model
            "identity.decoding.repetition_penalty": 1.2,
            "identity.data.digest": "other",
        },
    )
    summary = json.loads((b / run_files.SUMMARY).read_text())
    (b / run_files.SUMMARY).write_text(json.dumps(summary | {"batch_size": 99}))
    digest = json.loads((a / run_files.RUN).read_text())["identity"]["model"]["digest"]
    expected = [
        f"- model.digest: {digest} in A, 0123456789abcdef in B",
        "- recipe.steps: 3 in A, 7 in B",
        "- recipe.layers: [-1] in A, [2, 3] in B",
        "- decoding.repetition_penalty: not set in A, 1.2 in B",
        "- batch_size: 2 in A, 99 in B",
    ]
    out = fastmem("compare", a, b).out
    assert sorted(line for line in out.splitlines() if line.startswith("- ")) == sorted(expected)
    (b / run_files.SUMMARY).unlink()  # a killed run has none
    out = fastmem("compare", a, b).out
    assert sorted(line for line in out.splitlines() if line.startswith("- ")) == sorted(expected[:-1])
    (found,) = fastmem("compare", a, b, "--json").json["comparisons"]
    assert {"setting": "recipe.steps", "a": 3, "b": 7} in found["differences"]


def test_other_weights_of_the_same_layers_are_a_difference(make, fastmem):
    a, b = make("a", FIRST), make("b", SECOND, {"identity.model.tuned_weights": "fedcba9876543210"})
    assert "- model.tuned_weights: " in fastmem("compare", a, b).out


def test_runs_that_share_some_examples_are_compared_on_those(make, fastmem):
    a = make("a", FIRST)
    b = make("b", {m: marks[4:] for m, marks in SECOND.items()}, examples=lambda whole: whole[:3:-1])
    done = fastmem("compare", a, b, "--json").json["comparisons"][0]
    assert (done["a"]["examples"], done["b"]["examples"], done["examples"]) == (12, 8, 8)
    # B is reversed: its marks "rrrrrrwr" belong to the places 11 to 4 of A, "wwwwprrr".
    one = next(m for m in done["methods"] if m["method_a"] == "fastmem")
    assert one["n"] == 8
    score = one["scores"]["paper_correct"]
    assert (score["a"]["value"], score["b"]["value"], score["higher"], score["lower"]) == (4 / 8, 7 / 8, 4, 1)
    assert f"A is {a} with 12 examples, B is {b} with 8; they share 8." in fastmem("compare", a, b).out


def test_a_run_of_other_data_is_refused(make, fastmem):
    a = make("a", FIRST)

    def other_answers(whole: list[dict]) -> list[dict]:
        return [e | {"answers": ["Somebody Else"]} if i in (2, 5) else e for i, e in enumerate(whole)]

    ids = [e.id for e in run_files.read_examples(a)]
    b = make("b", SECOND, {"identity.task": "nq"}, examples=other_answers)
    source = json.loads((a / run_files.RUN).read_text())["identity"]["data"]["source"]
    assert refusal(fastmem("compare", a, b)) == (
        f"{a} (nq_swap, {source}) and {b} (nq, {source}) are of different data: 2 of their 12 common ids have "
        f"different examples, the first is {ids[2]!r} (answers). Give two runs of the same data."
    )
    c = make("c", SECOND, examples=lambda whole: [e | {"id": f"new-{i}"} for i, e in enumerate(whole)])
    assert refusal(fastmem("compare", a, c)) == (
        f"{a} (nq_swap, {source}) and {c} (nq_swap, {source}) share no example: the first is {ids[0]!r} here and "
        "'new-0' there. Give two runs of the same data."
    )


def test_documents_cut_at_other_lengths_are_the_same_data(make, fastmem):
    def cut(whole: list[dict]) -> list[dict]:
        return [e | {"context": e["context"][:-3]} for e in whole]

    a, b = make("a", FIRST), make("b", SECOND, examples=cut)
    assert "(context)" in refusal(fastmem("compare", a, b))
    c = make("c", SECOND, {"identity.decoding.max_context_tokens": 5}, examples=cut)
    assert "- decoding.max_context_tokens: not set in A, 5 in B" in fastmem("compare", a, c).out


def test_methods_are_picked(make, fastmem):
    a, b = make("a", FIRST | {"cad": "r" * COUNT}), make("b", SECOND)
    assert "Methods of one run alone: cad in A." in fastmem("compare", a, b).out
    (found,) = fastmem("compare", a, b, "--methods", "fastmem,fastmem", "--json").json["comparisons"]
    assert [m["method_a"] for m in found["methods"]] == ["fastmem"]
    (found,) = fastmem("compare", a, b, "--method-a", "cad", "--method-b", "base", "--json").json["comparisons"]
    (one,) = found["methods"]
    assert (one["method_a"], one["method_b"], one["scores"]["paper_correct"]["lower"]) == ("cad", "base", 6)
    for options, expected in (
        (["--methods", "cad"], f"{b}: unknown method 'cad'. Accepted: base, fastmem (option --methods)."),
        (["--methods", ","], "--methods ',' names no method: give method names, or one method for each run."),
        (["--method-b", "cad"], "one method is given: a comparison of methods needs both. "
         "Options that help: --method-a, --method-b."),
        (["--method-a", "cad", "--method-b", "bas"],
         f"{b}: unknown method 'bas'. Did you mean 'base'? Accepted: base, fastmem (option --method-b)."),
        (["--methods", "base", "--method-a", "cad", "--method-b", "base"],
         "--methods 'base' cannot be given with --method-a and --method-b: give method names, or one method for each "
         "run."),
    ):  # fmt: skip
        assert refusal(fastmem("compare", a, b, *options)) == expected
    c, d = make("c", {"base": FIRST["base"]}), make("d", {"fastmem": FIRST["fastmem"]})
    assert refusal(fastmem("compare", c, d)) == (
        f"{c} has base, {d} has fastmem, no method in common: name one of each. "
        "Options that help: --method-a, --method-b."
    )


def test_two_methods_of_one_run(make, fastmem):
    a = make("a", FIRST)
    results = load_results(a)
    for folders in ([a], [a, a], [a, a.parent / "a" / ".." / "a"]):
        (found,) = fastmem("compare", *folders, "--method-a", "base", "--method-b", "fastmem", "--json").json[
            "comparisons"
        ]
        score = found["methods"][0]["scores"]["paper_correct"]
        assert (score["higher"], score["lower"]) == (6, 4)
        assert score["p"] == pytest.approx(stats.binomtest(6, 10).pvalue)
        reported = results.against_base("fastmem", "paper_correct")
        assert reported is not None
        assert (score["difference"]["low"], score["p"]) == (reported.difference.low, reported.p_value)
    out = fastmem("compare", a, "--method-a", "base", "--method-b", "fastmem").out
    assert f"A is base and B is fastmem of {a}, 12 examples." in out
    assert "settings" not in out.lower()
    for options in ([], ["--methods", "base"], ["--method-a", "base", "--method-b", "base"]):
        assert refusal(fastmem("compare", a, a, *options)).startswith(f"{a} is compared with itself: give another run")


def test_unfinished_runs_are_marked(make, fastmem):
    a, b = make("a", FIRST), make("b", {"base": SECOND["base"], "fastmem": SECOND["fastmem"][:9] + "---"})
    out = fastmem("compare", a, b).out
    assert out.count("| fastmem (B 9 of 12 rows) | 9 ") == 2
    assert "- B: Not finished: 3 rows are missing; run the same `fastmem eval` again to continue." in out
    (found,) = fastmem("compare", a, b, "--json").json["comparisons"]
    assert (found["a"]["complete"], found["b"]["complete"], found["b"]["rows"]["fastmem"]) == (True, False, 9)
    c = make("c", {"base": "r" + "-" * 11, "fastmem": "r" * COUNT})
    d = make("d", {"base": "-" + "r" * 11, "fastmem": "r" * COUNT})
    assert refusal(fastmem("compare", c, d)) == (
        f"no example has a row of 'base' in {c} and one of 'base' in {d} yet: run the same `fastmem eval` again."
    )


def test_the_rows_on_which_they_differ_are_listed(make, fastmem):
    a, b = make("a", FIRST), make("b", SECOND)
    examples = run_files.read_examples(a)
    out = fastmem("compare", a, b, "--list").out
    listed = out.partition("### base: 0 of 12 rows differ\n")[2].partition("### fastmem: 5 of 12 rows differ\n")[2]
    heads = [line for line in listed.splitlines() if line.startswith("- ")]
    both = "accuracy (paper) and exact match (strict)"
    assert heads == [
        f"- {examples[3].id}: {both} right in A, wrong in B",
        f"- {examples[7].id}: exact match (strict) wrong in A, right in B",
        *(f"- {examples[i].id}: {both} wrong in A, right in B" for i in (8, 9, 11)),
    ]
    gold = examples[7].answers[0]
    assert f"  - gold: {gold}\n  - A: The answer is: {gold} and some others\n  - B: The answer is: {gold}\n" in listed
    (found,) = fastmem("compare", a, b, "--list", "--json").json["comparisons"]
    rows = found["methods"][1]["differing"]
    assert [row["id"] for row in rows] == [examples[i].id for i in (3, 7, 8, 9, 11)]
    assert rows[1]["a"]["text"].endswith("and some others")
    (found,) = fastmem("compare", a, b, "--json").json["comparisons"]
    assert "differing" not in found["methods"][1]


def test_summaries_are_compared_by_their_means(make, fastmem):
    def summaries(whole: list[dict]) -> list[dict]:
        return [e | {"kind": "summary", "answers": ["the cat sat on the mat"]} for e in whole]

    about = {"kind": "summary", "identity.task": "xsum"}
    folders, values = [], []
    for name, texts in (("a", ["the cat sat", "a dog", "the mat"]), ("b", ["the cat sat on", "the cat", "the mat"])):
        folder = make(name, {"fastmem": "rrr"}, about, lambda whole: summaries(whole)[:3])
        rows = run_files.read_rows(folder)
        scored = [row | {"text": t, "scores": {"factkb": len(t) / 20}} for row, t in zip(rows, texts, strict=True)]
        write_lines(folder / run_files.ROWS, scored)
        folders.append(folder)
        values.append([len(t) / 20 for t in texts])
    (found,) = fastmem("compare", *folders, "--json").json["comparisons"]
    scores = found["methods"][0]["scores"]
    assert set(scores) == {"factkb", "rougeL", "rouge1", "rouge2"}
    factkb = scores["factkb"]
    difference = np.subtract(values[1], values[0])
    assert factkb["difference"]["value"] == pytest.approx(difference.mean())
    assert factkb["difference"]["low"] is None  # three rows
    assert (factkb["higher"], factkb["lower"], factkb["test"], factkb["p"]) == (2, 0, "sign flip", 0.5)
    # ROUGE-1 against six words: 2pr / (p + r) with 3, 0 and 2 words in common in A, 4, 2 and 2 in B.
    rouge = scores["rouge1"]
    assert rouge["a"]["value"] == pytest.approx((2 * 3 / 9 + 0 + 2 * 2 / 8) / 3, abs=1e-4)
    assert rouge["b"]["value"] == pytest.approx((2 * 4 / 10 + 2 * 2 / 8 + 2 * 2 / 8) / 3, abs=1e-4)
    out = fastmem("compare", *folders, "--list").out
    assert tables(out) == ["FactKB", "ROUGE-L", "ROUGE-1", "ROUGE-2"]
    assert "2 of 3 rows differ" in out
    assert "FactKB 0.550 in A, 0.700 in B" in out


def test_scores_of_ones_own(make, fastmem, tmp_path):
    a, b = make("a", FIRST), make("b", SECOND)
    (tmp_path / "length.py").write_text(
        "def score(text, example): return {'words': len(text.split()), 'odd': len(text) % 2 == 1}"
    )
    texts = [[row["text"] for row in run_files.read_rows(r) if row["method"] == "fastmem"] for r in (a, b)]
    words = [np.array([len(text.split()) for text in side]) for side in texts]
    odd = [np.array([len(text) % 2 == 1 for text in side]) for side in texts]
    given = ["--metric", tmp_path / "length.py", "--methods", "fastmem"]
    (found,) = fastmem("compare", a, b, *given, "--json").json["comparisons"]
    scores = found["methods"][0]["scores"]
    assert scores["words"]["difference"]["value"] == pytest.approx((words[1] - words[0]).mean())
    assert (scores["odd"]["higher"], scores["odd"]["lower"]) == ((odd[1] & ~odd[0]).sum(), (odd[0] & ~odd[1]).sum())
    assert list(scores)[:2] == ["paper_correct", "exact_match"]
    out = fastmem("compare", a, b, *given, "--list").out
    assert tables(out) == ["accuracy (paper)", "exact match (strict)", "words", "odd"]
    assert "8.000 in A, 5.000 in B" in out


def test_a_task_with_a_score_of_its_own(make, fastmem):
    folders = [make(name, {"base": "rrr"}, {"headline": "tone"}, lambda whole: whole[:3]) for name in ("a", "b")]
    for folder, values in zip(folders, ([0.5, 0.5, 1.0], [1.0, 0.5, 0.5]), strict=True):
        rows = run_files.read_rows(folder)
        write_lines(
            folder / run_files.ROWS,
            [row | {"scores": {"tone": value}} for row, value in zip(rows, values, strict=True)],
        )
    out = fastmem("compare", *folders, "--list").out
    assert tables(out) == ["tone"]
    assert "tone 0.500 in A, 1.000 in B" in out
    c = make("c", {"base": "rrr"}, examples=lambda whole: whole[:3])
    assert ", none in common: give two runs with the same scores" in refusal(fastmem("compare", folders[0], c))


def tables(out: str) -> list[str]:
    """The titles of the tables."""
    return [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|") and "| n " in line]


def test_folders_of_several_tasks(make, fastmem, tmp_path):
    for name, task in (("one/nq", "nq"), ("one/nq_swap", "nq_swap"), ("one/hotpotqa", "hotpotqa")):
        make(name, FIRST, {"identity.task": task})
    for name, task in (("two/nq", "nq"), ("two/renamed", "nq_swap"), ("two/memotrap", "memotrap")):
        make(name, SECOND, {"identity.task": task})
    (tmp_path / "two/search").mkdir()
    (tmp_path / "two/search" / run_files.SEARCH).write_text("{}")
    make("two/begun", {"base": "-" * COUNT})
    done = fastmem("compare", tmp_path / "one", tmp_path / "two", "--json")
    pairs = [(Path(c["a"]["run"]).name, Path(c["b"]["run"]).name) for c in done.json["comparisons"]]
    assert pairs == [("nq", "nq"), ("nq_swap", "renamed")]
    alone = [tmp_path / "one/hotpotqa", tmp_path / "two/memotrap"]
    assert done.json["unpaired"] == [str(folder) for folder in alone]
    assert done.err.splitlines() == [
        f"note: {tmp_path / 'two/begun'} has no finished rows yet and is left out.",
        *(f"note: {folder} has no partner in the other folder and is left out." for folder in alone),
    ]
    assert fastmem("compare", tmp_path / "one", tmp_path / "two", "--quiet").err == ""
    done = fastmem("compare", tmp_path / "one/nq", tmp_path / "two")
    assert done.out.startswith("## nq\n")
    assert refusal(fastmem("compare", tmp_path / "two/search", tmp_path / "one")) == (
        f"{tmp_path / 'two/search'} holds a search, which has no rows to compare: "
        "give a folder that `fastmem eval` wrote."
    )
    (tmp_path / "empty").mkdir()
    assert refusal(fastmem("compare", tmp_path / "one", tmp_path / "empty")) == (
        f"{tmp_path / 'empty' / 'run.json'} does not exist: give a folder that `fastmem eval` wrote."
    )


def test_runs_are_matched_by_name_and_then_by_task(make):
    paths = [make(name, FIRST) for name in ("one/low", "one/high", "two/high", "two/middle", "two/other")]
    assert match_runs(paths[:2], paths[2:4]) == ([(paths[0], paths[3]), (paths[1], paths[2])], [])
    # Which of the two others is the partner of `low` cannot be known.
    assert match_runs(paths[:2], paths[2:]) == ([(paths[1], paths[2])], [paths[0], paths[3], paths[4]])


def test_a_comparison_loads_no_torch(make):
    a, b = make("a", FIRST), make("b", SECOND)
    program = (
        f"import sys; from fastmem.cli import run; assert run(['compare', {str(a)!r}, {str(b)!r}, '--list']) == 0; "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
