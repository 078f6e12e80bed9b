"""The rate that is found without labels: the drift against whole forward passes, the search, and bad files."""

import json
import math

import pytest
import torch

from command_line import Runner, refusal, save
from families import build
from fastmem import FastMem, Recipe
from fastmem.calibrate import (
    ANSWER_TOKENS,
    LOWEST_RATE,
    RATES,
    Neutral,
    Point,
    UnrelatedAnswers,
    calibrate,
    crossing,
    read_neutral,
)

NEUTRAL = Neutral(("The ferry leaves at nine.", "Bo Lind is the mayor."), ("Who?", "What is it?"))


@pytest.fixture(scope="module")
def llm(request):
    from tiny_tokenizer import build_tokenizer

    return FastMem(build("llama"), build_tokenizer(), recipe=Recipe(learning_rate=1e-2, steps=3))


@pytest.mark.parametrize("layers", [(-1,), (-2,)])
def test_drift_is_the_divergence_of_two_whole_passes(llm, layers):
    memory = llm.memorize(NEUTRAL.documents[0], Recipe(learning_rate=1e-2, steps=3, layers=layers))
    found = UnrelatedAnswers(llm, NEUTRAL.questions, layers).drift(llm.ffn(memory))
    divergences = []
    for question in NEUTRAL.questions:
        prompt, answer = llm.ids(question), llm.generate(question, max_new_tokens=ANSWER_TOKENS).token_ids
        ids = [*prompt.tolist(), *answer]
        p, q = (llm.logits(ids, one).double().log_softmax(-1) for one in (None, memory))
        every = (p.exp() * (p - q)).sum(-1)
        divergences += every[len(prompt) - 1 : -1].tolist()
    assert found == pytest.approx(sum(divergences) / len(divergences), rel=1e-3)
    assert found > 1e-6
    assert UnrelatedAnswers(llm, NEUTRAL.questions, layers).drift({}) == 0.0


def test_the_rate_is_where_the_drift_reaches_the_limit(llm):
    limit = 1e-3
    found = calibrate(llm, NEUTRAL, most_drift=limit)
    assert found.bounded
    assert len(found.points) <= 5
    rates = [point.learning_rate for point in found.points]
    assert rates == sorted(rates)
    below = max(point.learning_rate for point in found.points if point.drift <= limit)
    above = min(point.learning_rate for point in found.points if point.drift > limit)
    assert above == 2 * below
    assert below <= found.recipe.learning_rate <= above
    unrelated = UnrelatedAnswers(llm, NEUTRAL.questions)
    memories = [llm.memorize(text, found.recipe) for text in NEUTRAL.documents]
    drifts = [unrelated.drift(llm.ffn(memory)) for memory in memories]
    assert sum(drifts) / len(drifts) == pytest.approx(limit, rel=0.3)
    assert calibrate(llm, NEUTRAL, most_drift=limit) == found


def test_limits_that_no_rate_reaches_are_said(llm):
    low = calibrate(llm, NEUTRAL, most_drift=-1.0)
    assert (low.bounded, low.recipe.learning_rate) == (False, LOWEST_RATE)
    high = calibrate(llm, NEUTRAL, most_drift=math.inf)
    assert not high.bounded
    assert high.recipe.learning_rate == pytest.approx(LOWEST_RATE * 2 ** (RATES - 1), rel=0.05)


def test_between_two_rates_the_drift_is_taken_as_a_power():
    below, above = Point(1e-3, 1e-4, 1.0, 1.0), Point(2e-3, 4e-4, 1.0, 1.0)
    assert crossing(below, above, 2e-4) == pytest.approx(1e-3 * math.sqrt(2))
    assert crossing(below, Point(2e-3, math.inf, 1.0, 1.0), 2e-4) == 1e-3


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
