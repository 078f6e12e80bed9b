"""Functions that the YAML tasks of this folder call. Prompts and scores are those of `fastmem.lab`."""

from typing import TYPE_CHECKING, Any

from fastmem.lab.scores import qa
from fastmem.lab.tasks import Example, load
from fastmem.lab.tasks.readers import dataset

if TYPE_CHECKING:
    from datasets import Dataset

Doc = dict[str, Any]


def _example(doc: Doc, swapped: bool) -> Example:
    side = "sub" if swapped else "org"
    original = tuple(doc["org_answer"]) if swapped else ()
    return Example("", "question", doc[f"{side}_context"], doc["question"], tuple(doc[f"{side}_answer"]), original)


def nq_swap_prompt(doc: Doc) -> str:
    """The paper's user turn, with the swapped passage."""
    return _example(doc, swapped=True).prompt


def nq_prompt(doc: Doc) -> str:
    """The paper's user turn, with the original passage."""
    return _example(doc, swapped=False).prompt


def nq_swap_results(doc: Doc, results: list[str]) -> dict[str, float]:
    """The scores of a reply to `nq_swap_prompt`."""
    return _scores(results[0], _example(doc, swapped=True))


def nq_results(doc: Doc, results: list[str]) -> dict[str, float]:
    """The scores of a reply to `nq_prompt`."""
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
    """An NQ row with the original passage in the column that `FastMemLM` memorizes."""
    return doc | {"context": doc["org_context"], "sub_context": ""}


def originals(dataset: "Dataset") -> "Dataset":
    """All rows, each as `nq_doc` returns it."""
    return dataset.map(nq_doc)


def wikihow(data: str = "", **_: Any) -> dict[str, "Dataset"]:
    """The rows of a local file: `--metadata '{"data": "wikihowAll.csv"}'`. Errors: `TaskError` without one."""
    rows = load("wikihow", data or None).examples
    return {"test": dataset([{"article": e.context, "prompt": e.prompt, "summary": e.reference} for e in rows])}


def wikihow_results(doc: Doc, results: list[str]) -> dict[str, float]:
    """ROUGE F of the summary."""
    from fastmem.lab.scores.summary import ROUGE, rouge

    found = rouge([results[0]], [doc["summary"]])
    return {name: found[name][0].value or 0.0 for name in ROUGE}
