"""The rate that is found without labels: the drift against whole forward passes, the search, and bad files."""

import json
import math
from dataclasses import replace

import pytest
import torch

from command_line import Runner, refusal, save
from families import build
from fastmem import FastMem, Recipe
from fastmem.calibrate import (
    ANSWER_TOKENS,
    LOWEST_RATE,
    RATES,
    Calibration,
    Limits,
    Neutral,
    OtherDocuments,
    Point,
    calibrate,
    own_answers,
    read_neutral,
)
from fastmem.cli.calibration_chart import draw, require_drawable
from fastmem.cli.calibration_documents import calibration_pieces, cut
from fastmem.cli.calibration_view import progress_line
from fastmem.prompts import question_prompt

NEUTRAL = Neutral(("The ferry leaves at nine.", "Bo Lind is the mayor."), ("Who?", "What is it?"))


@pytest.fixture(scope="module")
def llm(request):
    from tiny_tokenizer import build_tokenizer

    return FastMem(build("llama"), build_tokenizer(), recipe=Recipe(learning_rate=1e-2, steps=3))


@pytest.mark.parametrize("layers", [(-1,), (-2,)])
def test_drift_is_the_divergence_of_two_whole_passes(llm, layers):
    memory = llm.memorize(NEUTRAL.documents[0], Recipe(learning_rate=1e-2, steps=3, layers=layers))
    found = own_answers(llm, NEUTRAL.questions, layers).losses(llm.ffn(memory))[1]
    divergences = []
    for question in NEUTRAL.questions:
        prompt, answer = llm.ids(question), llm.generate(question, max_new_tokens=ANSWER_TOKENS).token_ids
        ids = [*prompt.tolist(), *answer]
        p, q = (llm.logits(ids, one).double().log_softmax(-1) for one in (None, memory))
        every = (p.exp() * (p - q)).sum(-1)
        divergences += every[len(prompt) - 1 : -1].tolist()
    assert found == pytest.approx(sum(divergences) / len(divergences), rel=1e-3)
    assert found > 1e-6
    assert own_answers(llm, NEUTRAL.questions, layers).losses({})[1] == 0.0


ONLY_DRIFT = Limits(drift=1e-3, learnt=0.0, drift_until_learnt=1e-3)
"""Every rate that lowers a loss counts as learnt."""


def test_the_rate_is_where_the_drift_reaches_the_limit(llm):
    found = calibrate(llm, NEUTRAL, limits=ONLY_DRIFT)
    assert found.bounded
    assert len(found.points) <= 5
    rates = [point.learning_rate for point in found.points]
    assert rates == sorted(rates)
    below = max(point.learning_rate for point in found.points if point.drift <= 1e-3)
    above = min(point.learning_rate for point in found.points if point.drift > 1e-3)
    assert above == 2 * below
    assert below <= found.recipe.learning_rate <= above
    others = OtherDocuments.of(llm, NEUTRAL, (-1,))
    memories = [llm.memorize(text, found.recipe) for text in NEUTRAL.documents]
    drifts = [others.drift(number, llm.ffn(memory)) for number, memory in enumerate(memories)]
    assert sum(drifts) / len(drifts) == pytest.approx(1e-3, rel=0.3)
    assert calibrate(llm, NEUTRAL, limits=ONLY_DRIFT) == found


def test_a_document_that_is_not_learnt_gets_a_larger_rate(llm):
    small = calibrate(llm, NEUTRAL, limits=Limits(1e-6, 0.0, 1e-6)).recipe.learning_rate
    learnt = calibrate(llm, NEUTRAL, limits=Limits(1e-6, 0.1, math.inf))
    assert learnt.recipe.learning_rate > 2 * small
    falls = []
    for text in NEUTRAL.documents:
        tokens = llm.memory_tokens(text)
        memory = llm.memorize(tokens, learnt.recipe)
        before, after = (
            torch.nn.functional.cross_entropy(
                llm.logits(tokens.ids, one)[:-1][tokens.scored[1:]].double(), tokens.ids[1:][tokens.scored[1:]]
            ).item()
            for one in (None, memory)
        )
        falls.append(1 - after / before)
    assert sum(falls) / len(falls) == pytest.approx(0.1, rel=0.1)
    wider = calibrate(llm, NEUTRAL, limits=Limits(1e-6, 0.1, 1e-5)).recipe.learning_rate
    assert small < wider < learnt.recipe.learning_rate


def test_drift_is_that_of_answers_about_the_other_documents(llm):
    ffn = llm.ffn(llm.memorize(NEUTRAL.documents[0], Recipe(learning_rate=1e-2, steps=3)))
    others = OtherDocuments.of(llm, NEUTRAL, (-1,))
    for own, other, question in ((0, 1, "What is it?"), (1, 0, "Who?")):
        prompt = question_prompt(NEUTRAL.documents[other], question)
        assert others.drift(own, ffn) == own_answers(llm, [prompt]).losses(ffn)[1]
    single = OtherDocuments.of(llm, Neutral(NEUTRAL.documents[:1], ("Who?",)), (-1,))
    assert single.about == (None,) * len(read_neutral().documents)  # those of the set that comes with FastMem
    assert single.drift(0, ffn) == single.answers.losses(ffn)[1] > 0


def test_limits_that_no_rate_reaches_are_said(llm):
    low = calibrate(llm, NEUTRAL, limits=Limits(-1.0, -math.inf))
    assert (low.bounded, low.recipe.learning_rate) == (False, LOWEST_RATE)
    high = calibrate(llm, NEUTRAL, limits=Limits(math.inf, -math.inf))
    assert not high.bounded
    assert high.recipe.learning_rate == pytest.approx(LOWEST_RATE * 2 ** (RATES - 1), rel=0.05)


def point(rate, drift, fall):
    return Point(rate, drift, fall, 1.0, 1.0 - fall)


@pytest.mark.parametrize(
    ("limits", "factor"),
    [
        (Limits(2e-4, 0.0, 2e-4), 2**0.5),  # the drift is a power of the rate: here its square
        (Limits(1e-5, 0.5, 1.0), 2**0.25),  # the fall is linear in the logarithm of the rate
        (Limits(1e-5, 0.5, 1.1e-4), (1.1) ** 0.5),  # not learnt, but at the wider limit
        (Limits(2e-4, 0.5, 1.0), 2**0.5),  # the larger of the two
        (Limits(1e-5, 0.9, 3e-4), 3**0.5),  # never learnt
        (Limits(1e-5, 0.3, 3e-4), 1.0),  # learnt already
    ],
)
def test_between_two_rates_a_limit_is_reached(limits, factor):
    low, high = point(1e-3, 1e-4, 0.4), point(2e-3, 4e-4, 0.8)
    assert limits.between(low, high) == pytest.approx(1e-3 * factor)


def test_next_to_a_rate_that_diverged_the_last_one_that_did_not_is_taken():
    diverged = Point(2e-3, math.inf, -math.inf, 1.0, math.inf)
    assert Limits().between(point(1e-3, 1e-4, 0.4), diverged) == 1e-3
    assert not Limits().allow(diverged)


def test_the_model_is_untouched(llm):
    before = {name: tensor.clone() for name, tensor in llm.model.state_dict().items()}
    calibrate(llm, NEUTRAL)
    assert all(torch.equal(before[name], tensor) for name, tensor in llm.model.state_dict().items())


def test_the_neutral_set_has_no_document_that_answers_a_question():
    neutral = read_neutral()
    assert len(neutral.documents) == 8
    assert len(neutral.questions) == 20
    assert all(40 <= len(text.split()) <= 100 for text in neutral.documents)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "needs documents and questions"),
        ('{"question": "Who?"}', "needs documents and questions"),
        ("{", "line 1"),
        ('{"document": "a"}\n{"title": "b"}', "line 2"),
        ('{"document": "a"}\n\n[]', "line 3"),
        ('{"document": " "}', "line 1"),
        (b"\xff", "cannot be read"),
    ],
)
def test_neutral_files_that_cannot_be_used(tmp_path, capsys, content, text):
    file = tmp_path / "neutral.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert text in refusal(Runner(capsys)("calibrate", "--neutral", file))


def test_neutral_files_with_a_mark_and_with_separators_in_a_text(tmp_path):
    file = tmp_path / "neutral.jsonl"
    lines = ['{"document": "One.\u2028Two.\x85Three."}', '{"question": "Who?"}']
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert read_neutral(file) == Neutral(("One.\u2028Two.\x85Three.",), ("Who?",))


def test_the_command_writes_a_recipe_that_others_read(tmp_path, capsys):
    model, file, neutral = save(build("llama"), tmp_path / "model"), tmp_path / "recipe.json", tmp_path / "n.jsonl"
    lines = [{"document": text} for text in NEUTRAL.documents] + [{"question": text} for text in NEUTRAL.questions]
    neutral.write_text("\n".join(map(json.dumps, lines)))
    fastmem = Runner(capsys)
    found = fastmem("calibrate", "--model", model, "--neutral", neutral, "--output", file, "--json")
    assert found.code == 0, found.err
    assert found.json["recipe"] == json.loads(file.read_text())
    assert found.json["recipe"]["steps"] == 3
    asked = fastmem("ask", "Who?", "--text", "Bo.", "--model", model, "--recipe", file, "--max-new-tokens", "2")
    assert asked.code == 0, asked.err
    assert "leave it out" in refusal(fastmem("calibrate", "--learning-rate", "1e-3"))


def test_progress_ends_at_its_total(llm):
    seen = []
    found = calibrate(llm, NEUTRAL, limits=ONLY_DRIFT, on_progress=seen.append)
    done = [progress.done for progress in seen]
    assert done == [*range(2 * len(found.points) + 1), 10]  # two documents, at most five rates
    assert {progress.total for progress in seen} == {10}
    assert seen[0].point is None
    assert seen[-1].point in found.points
    line = progress_line(replace(seen[5], done=5), seconds=10.0)
    assert f"{'█' * 10}{'░' * 10} 5 of 10 documents, at most 10 s left" in line
    assert f"at rate {seen[5].point.learning_rate:.2g}" in line


def test_documents_that_exceed_the_positions_are_cut(llm):
    long = Neutral(("The ferry leaves at nine. " * 100,), ("Who?",))
    assert calibrate(llm, long, Recipe(steps=1)).points


def test_a_recipe_in_the_prompt_is_calibrated_with_turns(llm):
    assert calibrate(llm, NEUTRAL, Recipe(steps=1, placement="prompt")).recipe.placement == "prompt"


@pytest.fixture
def folder(tmp_path):
    for i in range(20):
        (tmp_path / "pages" / f"{i:02}").mkdir(parents=True)
        (tmp_path / "pages" / f"{i:02}" / "page.txt").write_text(f"Page {i}. " + "Rain fell on the town. " * 200)
    (tmp_path / "pages" / "05" / "page.txt").write_text("")
    (tmp_path / "pages" / "notes.rtf").write_text("x")
    return tmp_path / "pages"


def test_pieces_come_from_files_spread_over_a_folder(folder):
    read = []
    pieces, skipped = calibration_pieces(folder, read.append)
    assert [name.partition("/")[0] for name in read] == ["00", "02", "05", "07", "10", "12", "15", "17", "01"]
    assert [piece.partition(".")[0] for piece in pieces] == [f"Page {i}" for i in (0, 2, 7, 10, 12, 15, 17, 1)]
    assert all(len(piece) <= 3000 for piece in pieces)
    assert [one.name for one in skipped] == ["05/page.txt", "notes.rtf"]


def test_one_long_file_gives_several_pieces(tmp_path):
    words = [f"w{i}" for i in range(20_000)]
    (tmp_path / "book.md").write_text(" ".join(words))
    pieces, skipped = calibration_pieces(tmp_path / "book.md")
    assert (len(pieces), skipped) == (8, [])
    starts = [words.index(piece.split()[0]) for piece in pieces]  # whole words
    assert starts == sorted(set(starts))
    assert starts[-1] > 16_000
    (tmp_path / "short.md").write_text("Bo.")
    assert calibration_pieces(tmp_path / "short.md") == (["Bo."], [])


def test_pieces_are_cut_to_tokens():
    from tiny_tokenizer import build_tokenizer

    assert cut("ab" * 100, build_tokenizer()) == "ab" * 75
    assert cut("a" * 149 + "é", build_tokenizer()) == "a" * 149  # not half of a character
    assert cut("Bo.", build_tokenizer()) == "Bo."


def test_documents_of_ones_own(tmp_path, folder, fastmem, monkeypatch):
    model = save(build("llama"), tmp_path / "model")
    seen = []
    found = Calibration(Recipe(learning_rate=1e-4, steps=3), (point(1e-4, 1e-3, 0.5),), True)
    monkeypatch.setattr(
        "fastmem.auto_recipe.calibrate", lambda _, neutral, recipe, **__: seen.append(neutral) or found
    )
    monkeypatch.setenv("FASTMEM_CACHE", str(tmp_path / "cache"))
    command = ("calibrate", "--model", model, "--documents", folder)
    done = fastmem(*command)
    assert done.code == 0, done.err
    assert "skipped: 05/page.txt: it is empty." in done.err
    assert "skipped: notes.rtf:" in done.err
    assert "--output FILE" in done.out
    assert fastmem(*command, "--json").json["found_before"] is True
    (neutral,) = seen
    assert neutral.questions == read_neutral().questions
    assert len(neutral.documents) == 8
    assert all(text.startswith("Page ") and len(text) == 150 for text in neutral.documents)  # a token is a byte
    assert "contains no document" in refusal(fastmem("calibrate", "--documents", folder / "05"))
    assert "does not exist" in refusal(fastmem("calibrate", "--documents", tmp_path / "nowhere"))


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_curve_is_drawn(tmp_path, ending):
    pytest.importorskip("matplotlib")
    points = (point(1e-4, 1e-3, 0.5), point(2e-4, 5e-3, 0.7), Point(8e-4, math.inf, math.nan, 1.0, math.nan))
    file = tmp_path / f"rates.{ending}"
    require_drawable(file)
    draw(Calibration(Recipe(learning_rate=1.4e-4, steps=3), points, True), file, "a model")
    content = file.read_bytes()
    if ending == "png":
        assert content.startswith(b"\x89PNG")
    else:
        shown = content.decode()
        for text in (
            "a model, 3 steps",
            "limit, 0.002",
            "limit for documents not yet learnt, 0.012",
            "learnt: 60% lower",
            "chosen, 0.00014",
            "0.0008 diverged",
            "learning rate",
        ):
            assert f"<!-- {text} -->" in shown, text


def test_what_the_command_refuses(fastmem, tmp_path):
    assert "leave it out" in refusal(fastmem("calibrate", "--recipe", "auto"))
    assert ".svg nor .png" in refusal(fastmem("calibrate", "--plot", "rates.pdf"))
    assert "does not exist" in refusal(fastmem("calibrate", "--plot", tmp_path / "nowhere" / "rates.svg"))
