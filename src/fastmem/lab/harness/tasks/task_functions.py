"""What the YAML tasks of this folder call: prompts and scores are those of `fastmem.lab`."""

from typing import Any

from fastmem.lab.scores import qa
from fastmem.lab.tasks import Example, load
from fastmem.lab.tasks.readers import dataset

Doc = dict[str, Any]


def _example(doc: Doc, swapped: bool) -> Example:
    side = "sub" if swapped else "org"
    known = tuple(doc["org_answer"]) if swapped else ()
    return Example("", "question", doc[f"{side}_context"], doc["question"], tuple(doc[f"{side}_answer"]), known)


def nq_swap_prompt(doc: Doc) -> str:
    """The paper's user turn."""
    return _example(doc, swapped=True).prompt


def nq_prompt(doc: Doc) -> str:
    """The same with the passage as it was."""
    return _example(doc, swapped=False).prompt


def nq_swap_results(doc: Doc, results: list[str]) -> dict[str, float]:
    """Both forms of accuracy and failure."""
    return _scores(results[0], _example(doc, swapped=True))


def nq_results(doc: Doc, results: list[str]) -> dict[str, float]:
    """The same with the passage as it was."""
    return _scores(results[0], _example(doc, swapped=False))


def _scores(reply: str, example: Example) -> dict[str, float]:
    grade = qa.grade(reply, example)
    return {
        "paper_accuracy": float(grade.paper_correct),
        "exact_match": float(grade.exact_match),
        "f1": grade.f1,
        "format_failure": float(grade.failure),
    }


def nq_doc(doc: Doc) -> Doc:
    """An NQ row with its document where `FastMemLM` looks for one."""
    return doc | {"context": doc["org_context"], "sub_context": ""}


def originals(dataset: Any) -> Any:
    """All rows with the passage as it was."""
    return dataset.map(nq_doc)


def wikihow(data: str = "", **_: Any) -> dict[str, Any]:
    """The rows of a local file; `--metadata '{"data": "wikihowAll.csv"}'`. Errors: `TaskError` without one."""
    rows = load("wikihow", data or None).examples
    return {"test": dataset([{"article": e.context, "prompt": e.prompt, "summary": e.reference} for e in rows])}


def wikihow_results(doc: Doc, results: list[str]) -> dict[str, float]:
    """ROUGE F of the summary."""
    from fastmem.lab.scores.summary import ROUGE, rouge

    found = rouge([results[0]], [doc["summary"]])
    return {name: found[name][0].value or 0.0 for name in ROUGE}
