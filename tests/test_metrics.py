"""Scores of summaries, with tiny random scorer models made here. Scores that cannot be computed have a reason."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from fastmem.errors import InputError
from fastmem.lab.scores import grading, summary
from fastmem.lab.scores.summary import NAMES, Score, Scorers, score_summaries
from fastmem.lab.tasks import load

ARTICLES = [
    "The ferry stops running until March because its only ship has a crack in the hull.",
    "Rain is common in the hills, and the market opens at dawn.",
    "The mayor asked for help. " * 400,
]
SUMMARIES = ["The ferry stops until March.", "The market opens at dawn in the hills where rain is common.", "Help."]
REFERENCES = ["The ferry stops.", "It rains in the hills.", "The mayor asked for help."]

HHEM_CODE = """
import torch
from transformers import BertConfig, PreTrainedModel


class TinyHhem(PreTrainedModel):
    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.bias = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def predict(self, pairs):
        return torch.tensor([min(1.0, len(summary) / len(article)) for article, summary in pairs]) + self.bias
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 4 layers, 16 wide, and its word tokenizer: `encoder`, `classifier` (no tokenizer), `hhem`."""
    home = tmp_path_factory.mktemp("scorers")
    words = sorted({word for text in ARTICLES + SUMMARIES + REFERENCES for word in text.replace(".", " .").split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,  # at 0.02 every pair gets the same score
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(home / "encoder")
    tokenizer.save_pretrained(home / "encoder")
    tokenizer.save_pretrained(home / "tokenizer")
    BertForSequenceClassification(config).save_pretrained(home / "classifier")
    _save_hhem(home / "hhem", config)
    return home


def _save_hhem(home: Path, config: BertConfig) -> None:
    from safetensors.torch import save_file

    home.mkdir()
    (home / "modeling_tiny.py").write_text(HHEM_CODE)
    config.auto_map = {"AutoModelForSequenceClassification": "modeling_tiny.TinyHhem"}
    config.save_pretrained(home)
    save_file({"bias": torch.zeros(1)}, home / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def scorers(folder: Path) -> Scorers:
    return Scorers(
        bertscore=str(folder / "encoder"),
        bertscore_layer=3,
        factkb=str(folder / "classifier"),
        factkb_tokenizer=str(folder / "tokenizer"),
        hhem=str(folder / "hhem"),
        batch_size=2,
    )


def test_rouge_by_hand():
    scores = summary.rouge(["the cat sat"], ["the cat ran off"])
    assert scores["rouge1"][0].value == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert scores["rouge2"][0].value == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert scores["rougeL"][0].value == pytest.approx(4 / 7)
    assert summary.rouge(["running"], ["runs"])["rouge1"][0].value == 0.0  # no stemming, as in the paper


def test_every_score_of_every_summary(scorers):
    rows = score_summaries(SUMMARIES, ARTICLES, REFERENCES, scorers)
    assert len(rows) == 3
    for row in rows:
        assert tuple(row) == NAMES
        for name, score in row.items():
            assert score.reason is None, name
            assert -1.0 <= score.value <= 1.0


def test_batches_do_not_mix_rows(scorers):
    """The texts differ in length; a scorer that sorts by length must restore the order."""
    together = score_summaries(SUMMARIES, ARTICLES, REFERENCES, scorers)
    for i, row in enumerate(together):
        (alone,) = score_summaries([SUMMARIES[i]], [ARTICLES[i]], [REFERENCES[i]], scorers)
        assert {k: v.value for k, v in row.items()} == pytest.approx({k: v.value for k, v in alone.items()}, abs=1e-5)


def test_bertscore_is_the_precision_of_the_summary_against_the_article(scorers, folder):
    """Computed here from the states of the chosen layer: for every summary token the nearest article token."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    model = BertModel.from_pretrained(folder / "encoder").eval()

    def states(text: str) -> torch.Tensor:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[3][0, 1:-1]
        return hidden / hidden.norm(dim=-1, keepdim=True)

    expected = (states(SUMMARIES[0]) @ states(ARTICLES[0]).T).max(1).values.mean().item()
    (score,) = summary.bertscore_precision(SUMMARIES[:1], ARTICLES[:1], scorers)
    assert score.value == pytest.approx(expected, abs=1e-5)
    (turned,) = summary.bertscore_precision(ARTICLES[:1], SUMMARIES[:1], scorers)
    assert turned.value != pytest.approx(expected, abs=1e-3)


def test_factkb_is_class_1_of_the_pair_summary_article(scorers, folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "classifier").eval()
    pair = tokenizer(SUMMARIES[0], ARTICLES[0], return_tensors="pt")
    with torch.no_grad():
        expected = model(**pair).logits.softmax(-1)[0, 1].item()
    (score,) = summary.factkb(SUMMARIES[:1], ARTICLES[:1], scorers)
    assert score.value == pytest.approx(expected, abs=1e-6)
    (turned,) = summary.factkb(ARTICLES[:1], SUMMARIES[:1], scorers)
    assert turned.value != pytest.approx(expected, abs=1e-3)


def test_hhem_reads_the_article_first(scorers):
    (score,) = summary.hhem(["ab"], ["abcd"], scorers)
    assert score.value == pytest.approx(0.5)


def test_an_empty_summary_scores_0_and_stays_in_the_count(scorers):
    rows = score_summaries(["", SUMMARIES[1], " \n"], ARTICLES, REFERENCES, scorers)
    assert set(rows[0].values()) == set(rows[2].values()) == {Score(0.0)}
    (alone,) = score_summaries([SUMMARIES[1]], [ARTICLES[1]], [REFERENCES[1]], scorers)
    assert rows[1]["factkb"].value == pytest.approx(alone["factkb"].value, abs=1e-6)


def test_a_scorer_that_cannot_be_loaded_is_a_reason(scorers, folder, tmp_path):
    (tmp_path / "broken").mkdir()
    absent = Scorers(
        bertscore=str(tmp_path / "gone"),
        factkb=str(tmp_path / "broken"),
        factkb_tokenizer=str(folder / "tokenizer"),
        hhem=None,
    )
    for row in score_summaries(SUMMARIES, ARTICLES, REFERENCES, absent):
        assert row["rouge1"].value is not None
        for name in ("bertscore_precision", "factkb", "hhem"):
            assert row[name].value is None
            assert name in row[name].reason
        assert str(tmp_path / "gone") in row["bertscore_precision"].reason
        assert row["hhem"].reason == "hhem was left out: no model is named for it"


def test_a_scorer_that_cannot_be_loaded_is_tried_once(tmp_path, monkeypatch):
    import transformers

    attempts = []
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda name: attempts.append(name) or 1 / 0)
    for _ in range(3):
        (score,) = summary.bertscore_precision(["a"], ["b"], Scorers(bertscore="nowhere"))
        assert score.reason == (
            "bertscore_precision is missing: nowhere cannot be used (ZeroDivisionError: division by zero)"
        )
    assert attempts == ["nowhere"]


def test_a_layer_that_does_not_exist_is_a_reason(scorers, folder):
    deep = Scorers(bertscore=str(folder / "encoder"), bertscore_layer=17)
    (score,) = summary.bertscore_precision(SUMMARIES[:1], ARTICLES[:1], deep)
    assert score.value is None
    assert "17" in score.reason


def test_a_value_that_is_not_a_number_is_a_reason():
    scores = summary._scores_or_reason("factkb", "m", 2, lambda model: [0.5, float("nan")])
    assert scores == [Score(0.5), Score(None, "factkb is missing: m gave nan")]
    assert (
        summary._scores_or_reason("factkb", "m", 2, lambda model: [0.5])[0].reason
        == "factkb is missing: m gave 1 values for 2 summaries"
    )


def test_sequences_must_match(scorers):
    with pytest.raises(InputError, match="1 summaries, 2 articles and 1 references"):
        score_summaries(["a"], ["a", "b"], ["a"], scorers)


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("cnndm", "data/cnndm/cad_600.jsonl"),
        ("xsum", "data/xsum/train_1000.jsonl"),
        ("wikihow", "data/wikihow/train_1000.jsonl"),
    ],
)
def test_real_rows_end_to_end(task, file, scorers, shared):
    rows = load(task, shared / file, limit=3).examples
    scored = score_summaries(
        [e.reference for e in rows], [e.context for e in rows], [e.reference for e in rows], scorers
    )
    for row in scored:
        assert row["rougeL"].value == pytest.approx(1.0)
        assert all(score.reason is None for score in row.values())


def test_a_score_that_no_answer_has_is_not_the_zero_of_a_failed_row() -> None:
    failed = {"scores": {"factkb": 0.0}, "error": "InputError: too long", "text": "", "group": "a"}
    absent = {"scores": {"factkb": None}, "error": None, "text": "A summary.", "group": "b"}
    scored = absent | {"scores": {"factkb": 1.0}}
    assert grading.mean([failed, absent], "factkb").value is None
    assert grading.mean([failed, scored], "factkb").value == 0.5
    assert grading.mean([failed, failed], "factkb").value == 0.0
