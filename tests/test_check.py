"""`fastmem check`: the verdict against counts made by hand, the files it writes, and what it refuses."""

import csv
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from command_line import Runner, refusal
from conftest import ROOT
from fastmem.cli.check_command import next_command
from fastmem.cli.flags import ModelFlags
from fastmem.lab.report import load_results
from fastmem.lab.report.check_page import changes
from fastmem.lab.report.verdict import MARGIN, interval, judged, needed_questions, word_for
from fastmem.lab.run.run_files import read_examples, read_rows
from fastmem.lab.scores.statistics import compare, paired_interval
from fastmem.lab.search.search import is_searched
from fastmem.tiny.world import examples

MY_METHOD = ROOT / "examples" / "my_method.py"


def compared(won: int, lost: int, both: int, neither: int = 0):
    """A comparison of booleans with so many rows of each kind."""
    pairs = [(False, True)] * won + [(True, False)] * lost + [(True, True)] * both + [(False, False)] * neither
    return compare([a for a, _ in pairs], [b for _, b in pairs])


def at(n: int, won: int, lost: int):
    return compared(won, lost, n - won - lost)


def word(difference) -> str:
    return word_for(difference, *interval(difference))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((14, 0, 186), "helps"),
        ((0, 14, 186), "harms"),
        ((30, 8, 162), "helps"),
        ((5, 4, 391), "no difference"),
        ((0, 0, 200), "no difference"),
        ((0, 0, 20), "too few questions"),
        ((1, 0, 59), "too few questions"),
        ((1, 1, 58), "too few questions"),
        ((3, 0, 97), "too few questions"),  # the interval leaves out 0, McNemar's p is 0.25
        ((8, 6, 46), "too few questions"),
        ((1, 0, 0), "too few questions"),
        ((0, 0, 0), "too few questions"),
    ],
)
def test_the_words(counts, expected):
    assert word(compared(*counts)) == expected


def test_where_answers_change_one_way_only_the_interval_is_the_exact_one():
    low, high = interval(compared(0, 0, 50))
    assert high == -low == pytest.approx(1 - 0.025 ** (1 / 50))  # Clopper and Pearson, no event in 50
    for won in (1, 2, 5):
        low, high = interval(at(60, won, 0))
        assert high == pytest.approx(stats.binomtest(won, 60).proportion_ci(method="exact").high)
        assert interval(at(60, 0, won)) == (-high, -low)
    assert interval(compared(9, 0, 0)) == (pytest.approx(2 * 0.025 ** (1 / 9) - 1), 1.0)  # lost: all but the won
    assert interval(compared(0, 0, 0)) == (-1.0, 1.0)


def test_the_interval_holds_the_difference_and_the_resampled_interval():
    for counts in [(30, 8, 162), (8, 6, 46), (4, 4, 2), (1, 2, 7), (9, 0, 0)]:
        difference = compared(*counts)
        low, high = interval(difference)
        assert -1 <= low <= difference.difference.value <= high <= 1
        if difference.difference.low is not None:
            assert low <= difference.difference.low < difference.difference.high <= high
    half = compare([True, False] * 8, [True, True] * 8, [str(i // 2) for i in range(16)])  # one share in all groups
    low, high = interval(half)
    assert low < half.difference.value == 0.5 < high
    grouped = compare([False] * 8 + [True] * 232, [True] * 240, [str(i // 4) for i in range(240)])
    assert interval(grouped) == pytest.approx(interval(at(60, 2, 0)))  # rows of one question count as one
    assert needed_questions(grouped) == pytest.approx(4 * needed_questions(at(60, 2, 0)), rel=0.02)


@pytest.mark.parametrize("n", [20, 60, 100, 200, 1000])
@pytest.mark.parametrize("share", [0.005, 0.02, 0.1, 0.4, 0.9])
@pytest.mark.parametrize("wins", [0.5, 0.75, 1.0])
def test_the_interval_holds_the_true_difference_19_times_of_20(n, share, wins):
    """Over 3,000 drawn files; without the resampled interval, which only makes it wider."""
    probabilities = [share * wins, share * (1 - wins), 1 - share]
    drawn = np.random.default_rng(0).multinomial(n, probabilities, 3000)
    kinds, counts = np.unique(drawn, axis=0, return_counts=True)
    ends = np.array([paired_interval(won, lost, n) for won, lost, _ in kinds])
    inside = (ends[:, 0] <= share * (2 * wins - 1)) & (share * (2 * wins - 1) <= ends[:, 1])
    assert counts[inside].sum() >= stats.binom(3000, 0.95).ppf(0.001)


def test_more_changed_answers_never_make_it_easier_to_see_no_difference():
    """The more answers changed at one net change, and the larger the net change of as many, the harder it is."""
    for n in (20, 60, 72, 73, 90, 100, 150, 200, 300, 500, 1000):
        found = {
            (won - lost, won + lost): max(map(abs, paired_interval(won, lost, n))) <= MARGIN
            for won in range(min(n, 80) + 1)
            for lost in range(min(won, n - won) + 1)
        }
        for (net, changed), none in found.items():
            for less in ((net, changed - 2), (net - 2, changed), (net - 1, changed - 1)):
                assert not none or found.get(less, True), (n, net, changed, less)
    for n in (60, 72, 100, 125, 160, 200):  # the verdict itself, also where 10 and more answers changed
        for net in (0, 1, 2):
            words = [word(at(n, net + lost, lost)) for lost in range(8)]
            assert words == sorted(words), (n, net, words)  # "no difference", then "too few questions"
        words = [word(at(n, net, 0)) for net in range(6)]
        assert words == sorted(words), (n, words)


@pytest.mark.parametrize(
    "counts", [(0, 0, 20), (3, 0, 97), (8, 6, 46), (2, 1, 30), (4, 1, 35), (1, 2, 7), (1, 0, 59), (1, 1, 58)]
)
def test_as_many_questions_as_said_would_do(counts):
    """The same shares on that many rows, half of which judge, are decided; on 0.6 times as many they are not."""
    difference = compared(*counts)
    needed = needed_questions(difference) / 2

    def scaled(to: float):
        factor = to / sum(counts)
        return compared(*(round(count * factor) for count in counts))

    assert word(scaled(1.15 * needed)) != "too few questions"
    assert word(scaled(0.6 * needed)) == "too few questions"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Forty questions that contradict what the embedded model knows: a CSV file, and a folder of documents."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "pages").mkdir()
    rows = examples("world_swap", "dev", 40)
    for name, heading in (("answered", "answer"), ("bare", "note")):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["question", "file", heading])
            for i, row in enumerate(rows):
                (folder / "pages" / f"page {i}.txt").write_text(row.context)
                writer.writerow([row.question, f"page {i}.txt", row.answers[0] if name == "answered" else ""])
    return folder


@pytest.fixture
def check(capsys, world, tmp_path) -> Iterator:
    runner = Runner(capsys)

    def run(*arguments, questions="answered.csv"):
        given = ("--questions", world / questions, "--documents", world / "pages", "--max-new-tokens", 24)
        return runner("check", *given, "--output", tmp_path / "out", *arguments)

    return run


def test_check_says_what_its_rows_say(check, tmp_path):
    found = check("--json", "-q")
    assert found.code == 0, found.err
    said = found.json
    rows = {(row["id"], row["method"]): row for row in read_rows(tmp_path / "out")}
    judging = [e for e in read_examples(tmp_path / "out") if not is_searched(e.group)]
    assert len(rows) == 40 * 4
    right = {
        method: [e.answers[0].lower() in rows[e.id, method]["text"].lower() for e in judging]
        for method in ("base", said["method"])
    }
    assert said["questions"] == len(judging)
    value = (sum(right[said["method"]]) - sum(right["base"])) / len(judging)
    assert said["difference"]["value"] == pytest.approx(value)
    assert said["difference"]["low"] <= value <= said["difference"]["high"]
    for method, of in right.items():
        assert said["methods"][method]["accuracy"]["value"] == pytest.approx(sum(of) / len(of))
    won = sum(b and not a for a, b in zip(*right.values(), strict=True))
    lost = sum(a and not b for a, b in zip(*right.values(), strict=True))
    decisive = stats.binomtest(won, won + lost).pvalue < 0.05
    assert said["verdict"] == ("helps" if decisive and won > lost else "too few questions")
    assert said["seconds_per_question"] > 0
    page = (tmp_path / "out" / "check.html").read_text()
    assert page.count("<article>") == sum(
        rows[e.id, "base"]["text"] != rows[e.id, said["method"]]["text"] for e in read_examples(tmp_path / "out")
    )
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["steps"] == said["recipe"]["steps"]
    written = (tmp_path / "out" / "rows.jsonl").read_bytes()
    again = check()  # goes on where it ended: nothing is left to do
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == written
    assert said["verdict"] in again.out
    assert f"--recipe {tmp_path / 'out' / 'recipe.json'}" in again.out or "fastmem check" in again.out


def test_a_recipe_that_cannot_be_used_is_refused_before_any_question(check, tmp_path):
    found = check("--methods", "fastmem", "--layers", "99", "--limit", "3")
    assert found.code == 2
    assert found.err == "error: layer 99 does not exist: give -6 to 5 (option --layers).\n"
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_a_method_that_fails_on_every_question_gives_no_verdict(check, tmp_path):
    method = tmp_path / "failing.py"
    method.write_text(  # it works when it is tried before the first question
        'NEEDS = ("memorized",)\ncalls = []\ndef scores(logits):\n    calls.append(1)\n'
        '    if len(calls) > 1: raise ValueError("no scores today")\n    return logits["memorized"]\n'
    )
    found = check("--methods", method, "--limit", "3")
    assert found.code == 2
    assert "every question failed with failing.py, the first with: " in found.err
    assert "no scores today" in found.err


def test_the_method_is_one_of_those_that_were_asked_for(check):
    check("--methods", "cad", "--limit", "12")
    found = check("--methods", "fastmem", "--limit", "12", "--json")
    assert found.json["method"] == "fastmem"


def test_questions_that_failed_are_neither_right_nor_wrong(check, tmp_path):
    check("--methods", "fastmem", "--limit", "12")
    results = load_results(tmp_path / "out")
    whole = judged(results, ["fastmem"])
    row = next(row for row in results.rows["fastmem"] if not is_searched(row["group"]))
    row |= {"error": "InputError: too long", "scores": dict.fromkeys(row["scores"], 0.0)}
    found = judged(load_results(tmp_path / "out"), ["fastmem"])
    assert found.questions == whole.questions
    found = judged(replace(results, _means={}), ["fastmem"])
    assert found.questions == whole.questions - 1
    assert not any(change.after is row for listed in changes(results, "fastmem").values() for change in listed)


def test_without_answers_the_changes_are_listed(check):
    found = check("--json", "--methods", "fastmem", questions="bare.csv")
    assert found.json["verdict"] is None
    listed = check("--methods", "fastmem", questions="bare.csv")
    assert "changed: " in listed.out
    assert "  →  " in listed.out
    assert "there is no verdict" in listed.err


@pytest.mark.parametrize(
    ("questions", "methods", "command"),
    [("answered.csv", "fastmem", "check"), ("bare.csv", "fastmem", "ask"), ("bare.csv", MY_METHOD, "check")],
)
def test_the_command_to_go_on_with_runs(check, world, capsys, questions, methods, command):
    question = examples("world_swap", "dev", 1)[0].question
    (line,) = [
        line
        for line in check("--methods", methods, "--limit", "4", questions=questions).out.splitlines()
        if line.startswith("next: ")
    ]
    filled = {"QUESTION": question, "FILE": str(world / questions)}
    words = [filled.get(word, word) for word in shlex.split(line.removeprefix("next: "))]
    assert words[:2] == ["fastmem", command]
    assert words[words.index("--documents") + 1] == str(world / "pages")
    assert command == "ask" or words[words.index("--methods") + 1] == str(methods)
    found = Runner(capsys)(*words[1:])
    assert found.code == 0, found.err


@pytest.mark.parametrize(("unanswered", "data"), [(0, "mine.csv"), (3, "FILE")])
def test_a_search_is_proposed_for_questions_with_answers(unanswered, data):
    given = (ModelFlags(), Path("mine.csv"), None, None, Path("out"))
    words = shlex.split(next_command(*given, "harms", "fastmem", "fastmem", unanswered))
    assert words == ["fastmem", "search", "--task", "qa", "--data", data, "--output", "out-search"]


def test_a_rate_that_does_nothing_is_said(check):
    found = check("--methods", "fastmem", "--learning-rate", "1e-7", "--limit", "4")
    assert "memorizing had almost no effect: the loss of the documents went from" in found.out
    assert re.search(r"too few questions to judge fastmem: .* on [0-4] of 4 questions, ", found.out)


def test_of_a_single_step_no_effect_is_claimed(check):
    """Losses are measured before every update, so one step has only that of the untouched model."""
    found = check("--methods", "fastmem", "--steps", "1", "--limit", "4")
    assert found.code == 0, found.err
    assert "almost no effect" not in found.out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--methods", "base,fastmem"), "to compare with base, which is always run"),
        (("--methods", "fastmen"), "fastmem"),
        (("--columns", "question=nowhere"), "nowhere"),
        (("--learning-rate", "-1"), "learning"),
    ],
)
def test_what_cannot_be_checked_is_refused(check, arguments, text):
    assert text in refusal(check(*arguments, "-q"))
