"""Scores of a summary: ROUGE against the reference, BERTScore, FactKB and HHEM against the article.

As in the paper's evaluation (IAAR-Shanghai/FastMem `eval/evaluate_summary.py`): ROUGE F without stemming; BERTScore
precision of the summary *against the article*; FactKB on the pair (summary, article). A score that cannot be computed
is a `Score` with a reason instead of a value, so that it neither ends the run nor goes unnoticed. An empty summary
scores 0 everywhere and so stays in the denominator.

Heavy libraries are imported inside the functions that use them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fastmem.errors import InputError
from fastmem.extras import require

ROUGE = ("rouge1", "rouge2", "rougeL")
NAMES = (*ROUGE, "bertscore_precision", "factkb", "hhem")


@dataclass(frozen=True)
class Score:
    """A value, or None and the reason why it is missing."""

    value: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Scorers:
    """The scorer models, each a hub id or a folder. None leaves a score out, which is then its reason for missing.

    bertscore_layer: the layer whose states are compared, counted from 1; 17 for roberta-large.
    factkb_tokenizer: the FactKB repository has no tokenizer; it was trained with roberta-base's.
    hhem: off by default, since loading it runs code from its repository: set `hhem_revision` to a commit that you
        have reviewed. HHEM-2.1 is `vectara/hallucination_evaluation_model`.
    max_tokens: limit on summary and article together (FactKB), or on each (BERTScore); longer texts are truncated, as
        in the paper.
    batch_size: number of pairs per batch, for FactKB and HHEM.
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


def require_packages(scorers: Scorers) -> None:
    """What these scorers need, checked before any answer is made. Errors: `MissingPackageError`."""
    require_rouge()
    if scorers.bertscore is not None:
        require("torchmetrics", extra="eval", purpose="BERTScore", options=("bertscore",))


def require_rouge() -> None:
    """What `rouge` needs. Errors: `MissingPackageError`."""
    require("rouge_score", extra="eval", purpose="ROUGE, the score of summaries,")


def score_summaries(
    summaries: Sequence[str], articles: Sequence[str], references: Sequence[str], scorers: Scorers | None = None
) -> list[dict[str, Score]]:
    """Every score of `NAMES` for every summary, given its article and its reference. Errors: `InputError`."""
    if not len(summaries) == len(articles) == len(references):
        raise InputError(
            f"given {len(summaries)} summaries, {len(articles)} articles and {len(references)} references; "
            "give one article and one reference per summary."
        )
    scorers = scorers or Scorers()
    filled = [i for i, summary in enumerate(summaries) if summary.strip()]
    texts, sources = [summaries[i] for i in filled], [articles[i] for i in filled]
    columns = rouge(texts, [references[i] for i in filled]) | {
        "bertscore_precision": bertscore_precision(texts, sources, scorers),
        "factkb": factkb(texts, sources, scorers),
        "hhem": hhem(texts, sources, scorers),
    }
    rows = [dict.fromkeys(NAMES, Score(0.0)) for _ in summaries]
    for name in NAMES:
        for i, score in zip(filled, columns[name], strict=True):
            rows[i][name] = score
    return rows


def rouge(summaries: Sequence[str], references: Sequence[str]) -> dict[str, list[Score]]:
    """F measures of ROUGE-1, -2 and -L from `rouge-score`, without stemming. Errors: `MissingPackageError`."""
    require_rouge()
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=False)
    rows = [scorer.score(reference, summary) for summary, reference in zip(summaries, references, strict=True)]
    return {name: [Score(row[name].fmeasure) for row in rows] for name in ROUGE}


def bertscore_precision(summaries: Sequence[str], articles: Sequence[str], scorers: Scorers) -> list[Score]:
    """BERTScore precision (arXiv 1904.09675) of summary against article, from torchmetrics; no idf, no rescaling.

    One pair per call: torchmetrics 1.9.0 sorts both sides of a batch by length and undoes this with the permutation
    itself instead of its inverse (`functional/text/bert.py`), which mixes up the rows of batches of three or more.
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

    return _scores_or_reason("bertscore_precision", scorers.bertscore, len(summaries), compute)


def factkb(summaries: Sequence[str], articles: Sequence[str], scorers: Scorers) -> list[Score]:
    """FactKB (arXiv 2305.08281): the probability of class 1 (factual) for the pair (summary, article)."""

    def compute(name: str) -> list[float]:
        import torch

        model, tokenizer = _classifier(name, scorers.factkb_tokenizer, scorers.device)
        values: list[float] = []
        for some_summaries, some_articles in _batches(summaries, articles, scorers.batch_size):
            pairs = tokenizer(
                some_summaries,
                some_articles,
                truncation=True,
                max_length=scorers.max_tokens,
                padding=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                logits = model(**pairs.to(scorers.device)).logits
            values += logits.float().softmax(-1)[..., 1].tolist()
        return values

    return _scores_or_reason("factkb", scorers.factkb, len(summaries), compute)


def hhem(summaries: Sequence[str], articles: Sequence[str], scorers: Scorers) -> list[Score]:
    """HHEM-2.1: how well the article supports the summary, by the model's own `predict` of (article, summary)."""

    def compute(name: str) -> list[float]:
        import torch

        model = _hhem_model(name, scorers.hhem_revision, scorers.device)
        values: list[float] = []
        for some_summaries, some_articles in _batches(summaries, articles, scorers.batch_size):
            with torch.inference_mode():
                scores = model.predict(list(zip(some_articles, some_summaries, strict=True)))
            values += [float(score) for score in scores]
        return values

    return _scores_or_reason("hhem", scorers.hhem, len(summaries), compute)


def _batches(
    summaries: Sequence[str], articles: Sequence[str], batch_size: int
) -> Iterator[tuple[list[str], list[str]]]:
    for start in range(0, len(summaries), batch_size):
        stop = start + batch_size
        yield list(summaries[start:stop]), list(articles[start:stop])


def _scores_or_reason(name: str, model: str | None, count: int, compute: Callable[[str], list[float]]) -> list[Score]:
    """The computed values as scores. If the model cannot be loaded or run, every score has this as its reason."""
    if model is None:
        return [Score(None, f"{name} was left out: no model is named for it")] * count

    def missing(reason: str) -> list[Score]:
        return [Score(None, f"{name} is missing: {reason}")] * count

    if count == 0:
        return []
    try:
        values = compute(model)
    except Exception as error:  # the hub client, the checkpoint reader or the model's own code can raise anything
        return missing(f"{model} cannot be used ({type(error).__name__}: {_first_line(error)})")
    if len(values) != count:
        return missing(f"{model} gave {len(values)} values for {count} summaries")
    return [Score(v) if math.isfinite(v) else Score(None, f"{name} is missing: {model} gave {v}") for v in values]


def _first_line(error: Exception) -> str:
    """The first line of an error's text; in hub errors it contains the cause."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no text")


def _cached(load: Callable[..., Any]) -> Callable[..., Any]:
    """`load` with its last result cached. Failures too, so that thousands of rows try an unreachable hub only once."""

    @lru_cache(maxsize=1)
    def attempt(*arguments: Any) -> tuple[Any, Exception | None]:
        try:
            return load(*arguments), None
        except Exception as error:
            return None, error

    def loaded(*arguments: Any) -> Any:
        result, error = attempt(*arguments)
        if error is not None:
            raise error
        return result

    return loaded


@_cached
def _encoder(model: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(model).to(device).eval(), AutoTokenizer.from_pretrained(model)


@_cached
def _classifier(model: str, tokenizer: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    loaded = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    return loaded.to(device).eval(), AutoTokenizer.from_pretrained(tokenizer)


@_cached
def _hhem_model(model: str, revision: str | None, device: str) -> Any:
    from transformers import AutoModelForSequenceClassification

    loaded = AutoModelForSequenceClassification.from_pretrained(
        model, revision=revision or "main", trust_remote_code=True
    )
    return loaded.to(device).eval()
