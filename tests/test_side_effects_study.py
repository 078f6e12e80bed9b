"""studies/side_effects.py: its measures against hand-computed examples and plain models, its memories of several
documents against weights that are written and read again, its decisions on made-up figures, resuming."""

import json
import math
from dataclasses import replace

import pytest
import torch
from studies import continuation_measures, several_memories, side_effects, side_effects_table

from fastmem import FastMem
from fastmem.tiny import MODEL_DIR, world

DOCUMENTS = ("Clara plays the horn in Oakmere.", "The river of Oakmere is the Alder.", "Tarn is a town of joiners.")


@pytest.fixture(scope="module")
def llm():
    found = FastMem.from_pretrained(dtype=torch.float32)
    found.recipe = replace(found.recipe, steps=2)
    return found


@pytest.fixture(scope="module")
def row():
    return side_effects.rows(side_effects.examples(None), 1, 3, 2)[0]


def plain_model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


def test_distinct_counts_different_ngrams():
    texts = [[1, 2, 1, 2], [1, 2, 3]]
    assert continuation_measures.distinct(texts, 1) == pytest.approx(3 / 7)
    assert continuation_measures.distinct(texts, 2) == pytest.approx(3 / 5)  # 12, 21, 12; 12, 23
    assert continuation_measures.distinct([[1]], 2) == 0.0


def test_bleu_is_the_one_computed_by_hand():
    # Matches of 1 to 4 tokens: 4 of 5, 2 of 4, 1 of 3, none of 2 (which counts as 0.1).
    expected = (4 / 5 * 2 / 4 * 1 / 3 * 0.1 / 2) ** 0.25
    assert continuation_measures.bleu([1, 2, 3, 4, 5], [[1, 2, 3, 9, 5]]) == pytest.approx(expected)
    # A text of four tokens against one of six, and a repeated token that counts once.
    assert continuation_measures.bleu([1, 2, 3, 4], [[1, 2, 3, 4, 5, 6]]) == pytest.approx(math.exp(1 - 6 / 4))
    assert continuation_measures.bleu([7, 7], [[7, 8]], longest=1) == pytest.approx(1 / 2)
    assert continuation_measures.bleu([1], [[2]]) == 0.0
    assert continuation_measures.self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1.0)
    pair = [[1, 2, 3, 4, 5], [1, 2, 3, 9, 5]]
    assert continuation_measures.self_bleu(pair) == pytest.approx(expected)


def test_bleu_is_nltks():
    scores = pytest.importorskip("nltk.translate.bleu_score")
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        text, *references = (torch.randint(0, 3, (n,), generator=random).tolist() for n in (12, 9, 14, 20))
        expected = scores.sentence_bleu(references, text, smoothing_function=scores.SmoothingFunction().method1)
        assert continuation_measures.bleu(text, references) == pytest.approx(expected)


def test_copies_are_found_in_any_document():
    documents = [[1, 2, 3, 4, 5], [9, 8, 7]]
    text = [0, 2, 3, 4, 0, 9, 8]
    assert continuation_measures.longest_copied_run(text, documents) == 3
    assert continuation_measures.longest_copied_run(text, documents[1:]) == 2
    assert continuation_measures.longest_copied_run(text, [[6]]) == 0
    assert continuation_measures.copied_share(text, documents, 2) == pytest.approx(3 / 6)  # 23, 34, 98
    assert continuation_measures.copied_share(text, documents, 8) == 0.0


def test_one_after_the_other_is_memorizing_with_a_model_that_was_written_and_loaded(llm, tmp_path):
    from transformers import AutoModelForCausalLM

    before = {name: weight.clone() for name, weight in llm.model.named_parameters()}
    found = several_memories.one_after_the_other(llm, DOCUMENTS, llm.recipe)
    plain_model().save_pretrained(tmp_path)
    for document in DOCUMENTS:
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        memory = FastMem(model, llm.tokenizer, recipe=llm.recipe).memorize(document)
        with memory.applied(model) as changed:
            changed.save_pretrained(tmp_path)
    after = dict(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).named_parameters())
    assert len(found.tensors) == 3
    for name, difference in found.tensors.items():
        assert (before[name] + difference - after[name]).abs().max() < 1e-6
    sums = several_memories.added(llm, DOCUMENTS, 1.0)
    assert all(
        (sums.tensors[name] - found.tensors[name]).norm() > 0.1 * found.tensors[name].norm()
        for name in before
        if name in sums.tensors
    )
    assert all(torch.equal(before[name], weight) for name, weight in llm.model.named_parameters())


def test_the_average_has_the_mean_of_the_weights(llm):
    average = several_memories.added(llm, DOCUMENTS, 1 / 3)
    originals = llm.split_model.parameters((-1,))
    tuned = [llm.memorize(document).weights(originals) for document in DOCUMENTS]
    for name, weight in average.weights(originals).items():
        assert torch.allclose(weight, sum(each[name] for each in tuned) / 3, atol=1e-6)


def test_a_row_is_unrelated_to_all_its_documents_and_the_same_in_a_shorter_study():
    found = side_effects.rows(side_effects.examples(None), 3, 6, 4)
    for number, one in enumerate(found):
        assert one.place == number
        assert len(set(one.documents)) == 4
        assert one.documents[one.place] == one.own.context
        assert {kind: len(examples) for kind, examples in one.unrelated.items()} == {
            "agreeing": 4,
            "contradicting": 4,
            "recalled": 4,
        }
        for example in (e for examples in one.unrelated.values() for e in examples):
            for name in (*example.answers, *example.original_answers, example.id.split("/")[-1].replace("-", " ")):
                assert not any(world.mentions(document, name) for document in one.documents)
        assert not {*one.texts} & {*one.documents}
    assert side_effects.rows(side_effects.examples(None), 1, 6, 4) == found[:1]


def test_a_cell_has_the_losses_and_answers_of_plain_calls(llm, row):
    memory = llm.memorize(row.own.context, replace(llm.recipe, steps=8, learning_rate=2e-3))
    cells = side_effects.measured(llm, row, {"base": None, "one": memory})
    model = plain_model()

    def losses():
        found = []
        for text in row.texts:
            tokens = llm.memory_tokens(text)
            labels = tokens.ids.masked_fill(~tokens.scored, -100)
            with torch.no_grad():
                logits = model(tokens.ids[None]).logits[0, :-1]
            found.append(torch.nn.functional.cross_entropy(logits, labels[1:], reduction="none")[tokens.scored[1:]])
        return torch.cat(found).mean().item()

    assert cells["base"]["loss"]["other"] == pytest.approx(losses(), abs=1e-4)
    assert cells["base"]["kl"] == {"other": 0.0, "neutral": 0.0}
    with memory.applied(model):
        assert cells["one"]["loss"]["other"] == pytest.approx(losses(), abs=1e-4)
    assert cells["one"]["loss"]["other"] != pytest.approx(cells["base"]["loss"]["other"], abs=1e-3)
    for name, used in (("base", None), ("one", memory)):
        for kind, examples in {"own": [row.own], **row.unrelated}.items():
            texts = [llm.generate(e.prompt, used, max_new_tokens=32).text for e in examples]
            right = [e.answers[0].lower() in text.lower() for e, text in zip(examples, texts, strict=True)]
            assert cells[name][kind] == right
    # A document that was memorized well is copied where its own beginning is continued.
    own = side_effects.content(llm.memory_tokens(row.own.context))
    assert llm.tokenizer.decode(own).strip() == row.own.context
    start = side_effects.beginning(llm.memory_tokens(row.own.context))
    assert start.ids[-side_effects.OPENING :].tolist() == own[: side_effects.OPENING]


def cell(own=True, right=(True,), other=1.0, copied=0.0, uniform=1.5):
    return {
        "own": [own],
        "agreeing": list(right),
        "contradicting": list(right),
        "recalled": [],
        "form": [True] * len(right),
        "loss": {"other": other, "neutral": 2.0},
        "kl": {"other": 0.0, "neutral": 0.0},
        "uniform": uniform,
        "distinct": [0.5, 0.5],
        "self_bleu": 0.2,
        "run": [3.0, 4.0],
        "copied": [copied, copied + 0.1],
        "place": 0,
    }


def results_of(number, uniform=1.5, questions=1, **changed):
    """Rows with the base and a condition that differs from it by `changed`, which are functions of the row."""
    rows = []
    for index in range(number):
        values = {name: value(index) for name, value in changed.items()}
        right = {"right": [True] * questions}
        rows.append({"base": cell(uniform=uniform, **right), "one, 1 x": cell(**{**right, **values})})
    return side_effects_table.Results.of(rows)


def test_the_decision_needs_enough_questions_and_no_harm():
    # No answer of 40 or of 160 differs: the exact bounds are 0.088 and 0.023, on both sides of the margin.
    few, many = results_of(40), results_of(40, questions=4)
    assert few.verdict("one, 1 x").startswith("open: agreeing document, contradicting document, form")
    assert many.verdict("one, 1 x") == "does not"
    assert few.effects["one, 1 x"]["agreeing"].high == pytest.approx(1 - 0.025 ** (1 / 40))
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(40, generator=random).tolist()
    harmed = results_of(40, questions=4, other=lambda i: 1.2 + 0.02 * noise[i])
    assert harmed.verdict("one, 1 x") == "dulls: nats on other documents"
    # Worse by less than the margin, and better by any amount.
    assert results_of(40, questions=4, other=lambda i: 1.02 + 0.02 * noise[i]).verdict("one, 1 x") == "does not"
    assert results_of(40, questions=4, other=lambda i: 0.5 + 0.02 * noise[i]).verdict("one, 1 x") == "does not"
    unsure = results_of(40, questions=4, copied=lambda i: 0.03 + 0.2 * noise[i])
    assert unsure.verdict("one, 1 x") == "open: copied 8-grams"
    wrong = results_of(40, questions=4, right=lambda i: [i % 2 == 0] * 4)
    assert wrong.verdict("one, 1 x") == "dulls: agreeing document; contradicting document"


def test_measures_without_values_and_texts_that_no_one_can_predict_do_not_count():
    names = [measure.name for measure in results_of(5).measures]
    assert "recalled" not in names
    assert "neutral" not in names  # the base's 2.0 nats are more than the 1.5 of a uniform guess
    assert "neutral" in [measure.name for measure in results_of(5, uniform=2.5).measures]


def test_what_several_documents_copy_is_held_against_the_base_with_the_same_documents():
    rows = [{"base": cell(), "2 in a row, 1 x": cell(copied=0.2), "one, 1 x": cell(copied=0.2)} for _ in range(5)]
    found = side_effects_table.Results.of(rows).effects
    assert found["2 in a row, 1 x"]["copied"].base == pytest.approx(0.1)
    assert found["2 in a row, 1 x"]["copied"].value == pytest.approx(0.3)
    assert found["one, 1 x"]["copied"].base == 0.0


def test_an_interrupted_study_continues_and_prints_its_tables(tmp_path, monkeypatch, capsys):
    for name, value in (
        ("ONE_RATES", (1.0,)),
        ("SHORT_RATES", ()),
        ("ROW_RATES", (1.0,)),
        ("CONTINUATION", 4),
        ("RECALLED", 1),
    ):
        monkeypatch.setattr(side_effects, name, value)
    monkeypatch.setattr(side_effects, "AGREEING", 1)
    monkeypatch.setattr(side_effects, "CONTRADICTING", 1)
    call = ["--output", str(tmp_path / "tiny"), "--several", "2", "--pool", "3"]
    side_effects.main([*call, "--documents", "1", "--conditions", "base", "one, 1 x"])
    path = tmp_path / "tiny" / "rows.jsonl"
    first = path.read_text()
    side_effects.main([*call, "--documents", "2"])
    assert path.read_text().startswith(first)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [len(line["cells"]) for line in lines] == [2, 3, 5]
    side_effects.main([*call, "--documents", "2"])
    assert len(path.read_text().splitlines()) == 3
    files = [str(tmp_path / name) for name in ("figure.svg", "all.json")]
    side_effects.main(["--table", "--output", str(tmp_path), "--figure", files[0], "--json", files[1]])
    printed = capsys.readouterr().out
    assert "| sum of 2 |" in printed
    assert "| tiny | 2 in a row, 1 x |" in printed
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")
    found = json.loads((tmp_path / "all.json").read_text())
    assert set(found["models"]["tiny"]["conditions"]) == {"one, 1 x", "2 in a row, 1 x", "average of 2", "sum of 2"}


def test_sizes_and_conditions_that_cannot_be_are_refused_before_the_model_is_loaded(tmp_path):
    from fastmem.errors import InputError

    for given in (["--several", "50"], ["--documents", "41"], ["--documents", "0"], ["--conditions", "two"]):
        with pytest.raises(InputError, match="--"):
            side_effects.main(["--output", str(tmp_path / "none"), *given])
    assert not (tmp_path / "none").exists()
