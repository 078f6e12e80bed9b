"""Scores of a summary: ROUGE against the reference, BERTScore, FactKB and HHEM against the article.

As in the paper's evaluation (IAAR-Shanghai/FastMem `eval/evaluate_summary.py`): ROUGE F without stemming; BERTScore
precision of the summary *against the article*; FactKB on the pair (summary, article). Scorer models are named by id or
folder. A score that cannot be computed is a `Score` without a value and with the reason: never an exception that
loses a run, never a silent gap. An empty summary scores 0 everywhere, so that saying nothing cannot leave the
denominator.

Heavy libraries are imported where they are used.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fastmem.errors import InputError

ROUGE = ("rouge1", "rouge2", "rougeL")
NAMES = (*ROUGE, "bertscore_precision", "factkb", "hhem")


@dataclass(frozen=True)
class Score:
    """`value`, or None and the `reason` why there is none."""

    value: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Scorers:
    """The models that score, each an id or a folder; None leaves a score out on purpose, with that as its reason.

    bertscore_layer: the layer whose states are compared, counted from 1; 17 is the one for roberta-large.
    factkb_tokenizer: the FactKB repository holds no tokenizer; it was trained with roberta-base's.
    hhem: off unless named (`vectara/hallucination_evaluation_model` is HHEM-2.1): loading it runs code from its
        repository, so name the commit in `hhem_revision` that you read.
    max_tokens: of summary and article together for FactKB, of each for BERTScore;
        what is longer is cut, as in the paper.
    batch_size: pairs at a time, in FactKB and HHEM.
    """

    bertscore: str | None = "roberta-large"
    bertscore_layer: int = 17
    factkb: str | None = "bunsenfeng/FactKB"
    factkb_tokenizer: str = "roberta-base"
    hhem: str | None = None
    hhem_revision: str | None = None
    max_tokens: int = 512
    batch_size: int = 8
    device: str = "cpu"


def score_summaries(
    summaries: Sequence[str], articles: Sequence[str], references: Sequence[str], scorers: Scorers | None = None
) -> list[dict[str, Score]]:
    """Every score of `NAMES` for every summary; the three sequences run in parallel."""
    if not len(summaries) == len(articles) == len(references):
        raise InputError(
            f"{len(summaries)} summaries, {len(articles)} articles and {len(references)} references differ."
        )
    scorers = scorers or Scorers()
    spoken = [i for i, summary in enumerate(summaries) if summary.strip()]
    said, read = [summaries[i] for i in spoken], [articles[i] for i in spoken]
    columns = {name: [Score(0.0)] * len(summaries) for name in NAMES}

    def fill(name: str, scores: Sequence[Score]) -> None:
        for i, score in zip(spoken, scores, strict=True):
            columns[name][i] = score

    for name, scores in rouge(said, [references[i] for i in spoken]).items():
        fill(name, scores)
    fill("bertscore_precision", bertscore_precision(said, read, scorers))
    fill("factkb", factkb(said, read, scorers))
    fill("hhem", hhem(said, read, scorers))
    return [{name: columns[name][i] for name in NAMES} for i in range(len(summaries))]


def rouge(summaries: Sequence[str], references: Sequence[str]) -> dict[str, list[Score]]:
    """F measures of ROUGE-1, -2 and -L, from `rouge-score`, without stemming."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        reason = f"ROUGE is missing: rouge-score is not installed ({error}): pip install 'fastmem[eval]'"
        return dict.fromkeys(ROUGE, [Score(None, reason)] * len(summaries))
    scorer = RougeScorer(list(ROUGE), use_stemmer=False)
    rows = [scorer.score(reference, summary) for summary, reference in zip(summaries, references, strict=True)]
    return {name: [Score(row[name].fmeasure) for row in rows] for name in ROUGE}


def bertscore_precision(summaries: Sequence[str], articles: Sequence[str], scorers: Scorers) -> list[Score]:
    """BERTScore precision (arXiv 1904.09675) of summary against article, from torchmetrics; no idf, no rescaling.

    One pair a call: torchmetrics 1.9.0 sorts both sides of a batch by length and undoes it by the same permutation
    instead of its inverse (`functional/text/bert.py`), so in batches of three or more, rows meet the wrong articles.
    """

    def compute(name: str) -> list[float]:
        from torchmetrics.functional.text.bert import bert_score

        model, tokenizer = _encoder(name, scorers.device)
        values: list[float] = []
        for summary, article in zip(summaries, articles, strict=True):
            scores = bert_score(
                [summary],
                [article],
                model_name_or_path=name,
                model=model,
                user_tokenizer=tokenizer,
                num_layers=scorers.bertscore_layer,
                truncation=True,
                max_length=scorers.max_tokens,
                device=scorers.device,
            )
            values.append(float(scores["precision"]))
        return values

    return _guarded("bertscore_precision", scorers.bertscore, len(summaries), compute)


def factkb(summaries: Sequence[str], articles: Sequence[str], scorers: Scorers) -> list[Score]:
    """FactKB (arXiv 2305.08281): the probability of class 1, factual, for the pair (summary, article)."""

    def compute(name: str) -> list[float]:
        import torch

        model, tokenizer = _classifier(name, scorers.factkb_tokenizer, scorers.device)
        values: list[float] = []
        for start in range(0, len(summaries), scorers.batch_size):
            stop = start + scorers.batch_size
            pairs = tokenizer(
                list(summaries[start:stop]),
                list(articles[start:stop]),
                truncation=True,
                max_length=scorers.max_tokens,
                padding=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                logits = model(**pairs.to(scorers.device)).logits
            values += logits.float().softmax(-1)[..., 1].tolist()
        return values

    return _guarded("factkb", scorers.factkb, len(summaries), compute)


def hhem(summaries: Sequence[str], articles: Sequence[str], scorers: Scorers) -> list[Score]:
    """HHEM-2.1: how far the article supports the summary, from the model's own `predict` of (article, summary)."""

    def compute(name: str) -> list[float]:
        import torch

        model = _hhem_model(name, scorers.hhem_revision, scorers.device)
        values: list[float] = []
        for start in range(0, len(summaries), scorers.batch_size):
            stop = start + scorers.batch_size
            pairs = list(zip(articles[start:stop], summaries[start:stop], strict=True))
            with torch.inference_mode():
                values += [float(value) for value in model.predict(pairs)]
        return values

    return _guarded("hhem", scorers.hhem, len(summaries), compute)


def _guarded(name: str, model: str | None, count: int, compute: Callable[[str], list[float]]) -> list[Score]:
    """The values as Scores; a failure to load or to run becomes the reason of all of them."""
    if model is None:
        return [Score(None, f"{name} was left out: no model is named for it")] * count

    def missing(why: str) -> list[Score]:
        return [Score(None, f"{name} is missing: {why}")] * count

    if count == 0:
        return []
    try:
        values = compute(model)
    except ImportError as error:
        return missing(f"a library is not installed ({_line(error)}): pip install 'fastmem[eval]'")
    except (
        Exception
    ) as error:  # a hub client, a checkpoint reader or a model's own code: anything, and the run goes on
        return missing(f"{model} cannot be used ({type(error).__name__}: {_line(error)})")
    if len(values) != count:
        return missing(f"{model} gave {len(values)} values for {count} summaries")
    return [Score(v) if math.isfinite(v) else Score(None, f"{name} is missing: {model} gave {v}") for v in values]


def _line(error: Exception) -> str:
    """The first line of an error's text, which for hub errors is the one that says what is wrong."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no text")


def _once(load: Callable[..., Any]) -> Callable[..., Any]:
    """`load` with its last result kept; a failure, too: a run of thousands of rows asks an absent hub once."""

    @lru_cache(maxsize=1)
    def tried(*arguments: Any) -> tuple[Any, Exception | None]:
        try:
            return load(*arguments), None
        except Exception as error:
            return None, error

    def loaded(*arguments: Any) -> Any:
        found, error = tried(*arguments)
        if error is not None:
            raise error
        return found

    return loaded


@_once
def _encoder(model: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(model).to(device).eval(), AutoTokenizer.from_pretrained(model)


@_once
def _classifier(model: str, tokenizer: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    loaded = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    return loaded.to(device).eval(), AutoTokenizer.from_pretrained(tokenizer)


@_once
def _hhem_model(model: str, revision: str | None, device: str) -> Any:
    from transformers import AutoModelForSequenceClassification

    loaded = AutoModelForSequenceClassification.from_pretrained(
        model, revision=revision or "main", trust_remote_code=True
    )
    return loaded.to(device).eval()
