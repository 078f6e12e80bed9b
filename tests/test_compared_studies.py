"""studies/which_layer.py and alternatives.py: their tuning against FastMem's own, their decoding against the plain
model's, frozen keys, the choice of rates, Holm's correction, resuming."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from studies import alternatives, compared_ways, which_layer
from studies.tuned_parameters import greedy, logits_of, tune, untouched_logits

from fastmem.lab.tasks import Example
from fastmem.learn.memorize import drain
from fastmem.prompts import question_prompt

DOCUMENT = "Clara plays the horn in Oakmere. The river of Oakmere is the Alder."
PROMPT = question_prompt(DOCUMENT, "What does Clara play?")


@pytest.fixture(scope="module")
def llm():
    return compared_ways.load(None)


@pytest.fixture(autouse=True)
def _untouched(llm):
    before = {name: weight.clone() for name, weight in llm.model.named_parameters()}
    yield
    after = dict(llm.model.named_parameters())
    assert all(torch.equal(before[name], weight) and weight.grad is None for name, weight in after.items())


@pytest.mark.parametrize("layers", [(-1,), (0,), (-2, -1)])
def test_tuning_ffns_by_plain_autograd_is_fastmems_memorizing(llm, layers):
    recipe = replace(llm.recipe, learning_rate=1e-3, steps=4, layers=layers)
    tokens = llm.memory_tokens(DOCUMENT)
    (memory,) = drain(llm.memorizing(tokens, recipe))
    start = llm.split_model.parameters(layers)
    tuned, trace = tune(logits_of(llm.model), start, tokens, untouched_logits(llm.model, tokens), recipe)
    for ours, theirs in zip(trace, memory.trace, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.kl == pytest.approx(theirs.kl, rel=1e-3, abs=1e-6)
    assert trace[-1].loss < trace[0].loss - 0.1
    weights = memory.weights(start)
    # A step of AdamW moves a weight by about the rate; where its gradient is nearly 0, rounding decides which way.
    moved = torch.cat([(tuned[name] - weights[name]).abs().flatten() for name in start])
    assert moved.mean() < 0.01 * recipe.learning_rate


def test_drafted_decoding_gives_the_tokens_of_plain_greedy_decoding(llm):
    def logits(ids, last):
        return llm.model(input_ids=ids, logits_to_keep=last).logits

    answer = llm.generate(PROMPT, max_new_tokens=12)
    prompt, stop, expected = llm.ids(PROMPT).tolist(), llm.preparer.stop_ids, [*answer.token_ids]
    wrong = [*expected[:2], 7, 8, 9]
    for guesses in ([], [expected], [wrong], [wrong, expected, [5]], [[*expected, 11, 12]]):
        found = greedy(logits, prompt, guesses, stop, 12)
        assert found == [token for token in expected if token not in stop]
    assert greedy(logits, prompt, [expected], stop, 2) == expected[:2]


def test_an_answer_that_repeats_itself_is_read_in_few_passes():
    passes = []

    def logits(ids, last):  # after 5 comes 6, then 7, then 5 again; after anything else 5
        passes.append(ids.shape)
        following = torch.where((ids == 5) | (ids == 6), ids + 1, 5)
        return torch.nn.functional.one_hot(following[:, -last:], 9).float()

    assert greedy(logits, [1, 2], [], frozenset(), 30) == [5, 6, 7] * 10
    assert len(passes) < 10
    assert greedy(logits, [1, 2], [], frozenset({7}), 30) == [5, 6]


def test_the_head_is_tuned_without_the_input_embedding_it_is_tied_to(llm):
    (name,) = which_layer.head(llm)
    assert name == "lm_head.weight"
    doubled = {name: 2 * llm.model.lm_head.weight.detach()}
    ids = llm.ids(PROMPT)[None]
    with torch.no_grad():
        expected = 2 * llm.model(input_ids=ids).logits
        found = logits_of(llm.model)(doubled, ids, ids.shape[1])
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_sets_of_weights_are_what_they_are_called(llm):
    names = [name for name, _ in llm.model.named_parameters()]
    assert sorted(which_layer.attention(llm)) == sorted(name for name in names if "self_attn" in name)
    assert sorted(which_layer.norms(llm)) == sorted(name for name in names if "norm" in name)
    assert len(which_layer.attention(llm, slice(-1, None))) == 4
    assert llm.split_model.depth == which_layer.DEPTH


def test_keys_and_values_are_those_of_the_untouched_model_whatever_the_queries(llm):
    frozen, ids = alternatives.FrozenKeys(llm.model), llm.ids(PROMPT)[None]
    with torch.no_grad():
        assert torch.equal(frozen(frozen.start, ids, 3), llm.model(input_ids=ids, logits_to_keep=3).logits)
        kept = dict(frozen.recorded)
        moved = {name: weight + 0.05 for name, weight in frozen.start.items()}
        changed = frozen(moved, ids, 3)
        assert not torch.equal(changed, frozen(frozen.start, ids, 3))
        # The plain model with the same queries has other keys in the layers above the first.
        assert not torch.allclose(changed, logits_of(llm.model)(moved, ids, 3), atol=1e-3)
    assert len(kept) == 12
    assert all(torch.equal(kept[name], frozen.recorded[name]) for name in kept)


@pytest.mark.parametrize("name", ["LoRA, attention", "LoRA, everywhere", "p-tuning", "prompt tuning", "prefix tuning"])
def test_a_way_of_peft_learns_the_document_and_starts_anew_for_the_next(llm, name, monkeypatch):
    pytest.importorskip("peft")
    (way,) = [way for way in alternatives.ways() if way.name == name]
    ids = llm.ids(PROMPT)[None]
    monkeypatch.setattr(alternatives, "STEPS", 1)
    first = way.make(llm, DOCUMENT, way.rates[1])
    monkeypatch.setattr(alternatives, "STEPS", 4)
    made = way.make(llm, DOCUMENT, way.rates[1])
    assert made.loss < first.loss
    assert made.logits(ids, 2).shape == (1, 2, llm.split_model.vocabulary_size)
    again = way.make(llm, DOCUMENT, way.rates[1])
    assert torch.equal(made.logits(ids, 1), again.logits(ids, 1))
    assert made.bytes == again.bytes > 0


def test_prompts_that_cost_nothing_hold_document_and_question():
    example = Example("1", "question", "A b.", "Who is it?", ("A",))
    assert alternatives.twice(example).count("A b.") == 2
    assert alternatives.opinion(example).endswith('Context: Bob said, "A b."\nQuestion: Who is it in Bob\'s opinion?')
    assert alternatives.stronger(example) == alternatives.STRONGER + example.prompt
    asked = replace(example, question="Sum it up.", template="Context: {context}\n\n{question}")
    assert alternatives.twice(asked) == "Context: A b. A b.\n\nSum it up."
    assert alternatives.opinion(asked).endswith("Sum it up in Bob's opinion.")


def test_holm_multiplies_the_smallest_by_the_number_and_never_decreases():
    assert compared_ways.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert compared_ways.holm([0.9, 0.6]) == [1.0, 1.0]


def test_the_rate_with_most_right_over_the_kinds_is_chosen():
    way = compared_ways.Way("w", (1.0, 2.0, 3.0), lambda *_: None)
    right = {1.0: (0, 1), 2.0: (1, 1), 3.0: (1, 0)}
    rows = [
        {f"w {rate:g}": {"right": {kind: bool(pair[i])}} for rate, pair in right.items()}
        for i, kind in enumerate(("contradicts", "agrees"))
    ]
    assert compared_ways.chosen_rates(rows, [way]) == {"w": 2.0}
    assert compared_ways.chosen_rates(rows[:1], [way]) == {"w": 3.0}  # two equal: the middle one, rounded up


@pytest.mark.parametrize(
    ("right", "tried", "best"),
    [
        (lambda rate: 3 * (rate == 2), [1, 2, 4], 2.0),
        (lambda rate: 8 - abs(rate - 8), [1, 2, 4, 8, 16], 8.0),
        (lambda rate: 2 - abs(rate - 0.5), [0.25, 0.5, 1, 2, 4], 0.5),
        (lambda rate: 3 * (rate in (4, 8)), [1, 2, 4, 8, 16], 8.0),  # of two equal rates the higher one
        (lambda rate: rate, [1, 2, 4, 8, 16, 32], 32.0),  # not more than six
    ],
)
def test_rates_beyond_the_best_are_tried_until_it_has_neighbours(tmp_path, monkeypatch, right, tried, best):
    way, calls = compared_ways.Way("w", (1.0, 2.0, 4.0), lambda *_: None), []

    def answered(llm, row, wanted):
        calls.extend((rate, row.id) for _, rate in wanted)
        return {f"w {rate:g}": {"right": {"contradicts": row.number < 2 * right(rate)}} for _, rate in wanted}

    monkeypatch.setattr(compared_ways, "answered", answered)
    path, dev = tmp_path / "dev.jsonl", [SimpleNamespace(id=str(number), number=number) for number in range(64)]
    compared_ways.try_rates(None, dev, [way], path)
    rows = compared_ways.read(path)
    assert (compared_ways.tried_rates(rows, way), compared_ways.best_rate(rows, way)) == (tried, best)
    assert compared_ways.chosen_rates(rows, [way]) == {"w": best}
    assert sorted(calls) == sorted((rate, row.id) for rate in tried for row in dev)  # each once
    header, line, cells = compared_ways.development_table(tmp_path, [way])
    assert header.count("|") == line.count("|") == cells.count("|")
    assert f"{best:g} (chosen): " in cells
    compared_ways.try_rates(None, dev, [way], path)
    assert len(calls) == len(tried) * len(dev)  # nothing is answered again


def kinds_of(row):
    return {kind for cell in row.values() for kind in cell["right"]}


def answers_of(row):
    return json.dumps({name: row[name]["right"] for name in sorted(row)})


def test_an_interrupted_study_continues_and_prints_its_table(tmp_path, monkeypatch, capsys):
    ways = [way for way in which_layer.ways() if way.name in ("base", "FFN, last", "norms")]
    monkeypatch.setattr(which_layer, "ways", lambda: ways)
    monkeypatch.setattr(which_layer, "STEPS", 1)
    call = ["--output", str(tmp_path / "tiny"), "--dev-rows", "1", "--test-rows", "1"]
    which_layer.main([*call, "--ways", "base", "FFN, last"])
    which_layer.main(call)
    path = tmp_path / "tiny" / "test.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:2]))
    which_layer.main(call)
    continued = compared_ways.read(path)
    path.write_text(whole)
    at_once = compared_ways.read(path)
    assert len(continued) == len(at_once) == len(compared_ways.KINDS)
    assert {kind for row in compared_ways.read(tmp_path / "tiny" / "dev.jsonl") for kind in kinds_of(row)} == {
        "contradicts",
        "agrees",
        "irrelevant",
    }
    assert all(len(row) == 3 for row in at_once)
    assert sorted(map(answers_of, continued)) == sorted(map(answers_of, at_once))
    files = ["--figure", str(tmp_path / "figure.svg"), "--json", str(tmp_path / "numbers.json")]
    which_layer.main(["--output", str(tmp_path), "--table", *files])
    printed = capsys.readouterr().out
    assert "| way | rate | rows | contradicts | agrees | irrelevant | s | kB |" in printed
    assert "| way | rows | turned | hop | list | json | summary |" in printed
    numbers = json.loads((tmp_path / "numbers.json").read_text())["models"]["tiny"]
    assert numbers["norms"]["kinds"].keys() == set(compared_ways.KINDS)
    assert numbers["base"]["kinds"]["hop"]["rows"] == 1
    assert "| FFN, last |" in printed
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")
