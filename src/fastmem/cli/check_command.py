"""`fastmem check`: does memorizing help this model on these documents and questions?"""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmem.cli.eval_commands import ProgressReporter, names, resumable
from fastmem.cli.flags import ModelFlags, OutputFlags, RecipeFlags, fields_named, with_flags
from fastmem.cli.output import Status, emit, say
from fastmem.cli.worker_flags import WorkerFlags
from fastmem.errors import InputError

if TYPE_CHECKING:
    from fastmem.lab.report.results import Results
    from fastmem.lab.report.verdict import Verdict
    from fastmem.lab.scores.statistics import Mean

DEFAULT_METHODS = "fastmem,fastmem+cd,fastmem+adacd"


@with_flags
def check(
    model: ModelFlags,
    recipe: RecipeFlags,
    workers: WorkerFlags,
    output: OutputFlags,
    questions: Annotated[
        Path,
        typer.Option("--questions", metavar="FILE", help="Questions with answers: csv, tsv, json, jsonl, parquet."),
    ],
    documents: Annotated[
        Path | None,
        typer.Option("--documents", metavar="DIR", help="Folder of the files that FILE names, or one file."),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="P=NAME,..", help="Columns of FILE, as in question=Q,answer=A,document=D.")
    ] = None,
    methods: Annotated[
        str, typer.Option(metavar="M,M", help="Methods to choose from; also Python files.")
    ] = DEFAULT_METHODS,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N questions.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Longest answer, in tokens; default: 100.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Folder of the results; default: check-FILE.")
    ] = None,
) -> None:
    """Measure whether memorizing helps with your documents.

    One half of the questions chooses the method, the other half judges it. Each answer is written at once: if the
    command is interrupted, run it again to continue. If FILE has no answers, the command lists the changed answers
    for you to judge. The recipe is the automatic one of the model, unless --recipe or --learning-rate says otherwise.

    \b
    Examples:
      fastmem check --model Qwen/Qwen3-0.6B --documents policies --questions questions.csv
      fastmem check --questions questions.jsonl --columns question=Frage,answer=Antwort --learning-rate 1e-4
    """
    from fastmem.lab.python_file import is_python_file
    from fastmem.lab.report import load_results
    from fastmem.lab.report.check_page import changes, check_page
    from fastmem.lab.report.content import mean_text
    from fastmem.lab.report.verdict import judged, seconds_of
    from fastmem.lab.run import run_files
    from fastmem.lab.run.experiment import Experiment, recipe_values
    from fastmem.lab.run.own_method import own_method
    from fastmem.lab.run.runner import run
    from fastmem.lab.tasks import Data
    from fastmem.lab.tasks.own_questions import TASK, named_columns, read_questions

    with fields_named({"method": "methods"}):
        own_methods = {name: own_method(name) for name in names(methods) if is_python_file(name)}
    chosen_from = tuple(own_methods[name].file.label if name in own_methods else name for name in names(methods))
    if "base" in chosen_from or not chosen_from:
        raise InputError(f"--methods is {methods!r}: give one or more to compare with base, which is always run.")
    # The embedded model brings its own recipe.
    own = recipe.recipe is not None or recipe.learning_rate is not None or model.model is None
    chosen = recipe if own else replace(recipe, recipe="auto")
    experiment = Experiment(
        TASK,
        ("base", *chosen_from),
        chosen.known(),
        max_new_tokens=max_new_tokens,
        own_methods=tuple(own_methods.values()),
    )
    target, here = folder or Path(f"check-{questions.stem}"), workers.driver(model)
    with Status(quiet=output.quiet) as status:
        status("reading the questions ...")
        found = read_questions(
            questions,
            None if columns is None else named_columns(columns),
            documents,
            limit=limit,
            answers_required=False,
        )
        experiment.headline(found.examples)
        llm = here.load(status)
        experiment = replace(experiment, recipe=chosen.of(llm, status))
        reporter = ProgressReporter(status, output.quiet)
        data = Data(TASK, found.examples, found.source, found.revision)
        with workers.opened(model, llm) as answering, resumable(reporter, target):
            run(llm, experiment, data, target, reporter, answering)
    run_files.write_json(target / "recipe.json", recipe_values(experiment.recipe))
    results = load_results(target)
    for name in ("base", *chosen_from):
        if len(errors := results.errors(name)) == len(results.rows[name]) > 0:
            raise InputError(f"every question failed with {name}, the first with: {errors[0]}")
    verdict = judged(results, chosen_from)
    method = verdict.method if verdict is not None else chosen_from[0]
    unanswered = sum(not example.answers for example in results.examples)
    notes, word = _notes(results, method, verdict, unanswered), verdict.word if verdict is not None else ""
    command = next_command(model, questions, columns, documents, target, word, method, methods, unanswered)
    page, changed = target / "check.html", changes(results, method)
    run_files.write_text(page, check_page(results, verdict, method, changed, notes, command))
    if output.json:
        emit(_document(results, verdict, method) | {"recipe": recipe_values(experiment.recipe), "page": str(page)})
        return
    if verdict is not None:
        for name in results.methods:
            right, exact = (mean_text(verdict.means[name][score]) for score in ("paper_correct", "exact_match"))
            print(f"{name:14} contains the answer {right}   equals it {exact}   {seconds_of(results, name):.2f} s")
        print(f"\n{verdict.sentence}")
    for outcome, listed in changed.items():
        print(f"{outcome}: {len(listed)} of {len(results.examples)} answers")
    for change in changed.get("changed", [])[:10] if verdict is None else ():
        print(f"  {change.example.question}\n    {change.before['text'].strip()}  →  {change.after['text'].strip()}")
    for note in notes:
        print(note)
    print(f"\npage: {page}\nnext: {command}")
    if not output.quiet and verdict is None:
        say("FILE has no answers, so there is no verdict: judge the changes on the page.")


def _notes(results: "Results", method: str, verdict: "Verdict | None", unanswered: int) -> list[str]:
    """Further remarks for the reader. unanswered: how many questions have no answer."""
    from fastmem.lab.report.content import mean_text
    from fastmem.lab.report.verdict import hardly_memorized

    notes = []
    if (losses := hardly_memorized(results, method)) is not None:
        notes.append(
            f"memorizing had almost no effect: the loss of the documents went from {losses[0]:.2f} to "
            f"{losses[1]:.2f}. Try a larger rate, such as --learning-rate 1e-3 (small models) or 1e-4, with "
            "another --output."
        )
    for name in results.methods:
        if errors := results.errors(name):
            notes.append(f"{name}: {len(errors)} questions failed with an error; the first: {errors[0]}")
    if verdict is not None and unanswered:
        notes.append(f"{unanswered} questions have no answer in the file and are not judged.")
        if verdict.word in ("harms", "no difference"):
            notes.append("search takes none of these: give it a FILE without them.")
    if verdict is not None and verdict.exact.difference.value is not None:
        notes.append(f"by exact match: {mean_text(verdict.exact.difference, '+')}.")
    return notes


def next_command(
    model: ModelFlags,
    questions: Path,
    columns: str | None,
    documents: Path | None,
    folder: Path,
    verdict: str,
    method: str,
    methods: str,
    unanswered: int,
) -> str:
    """The next command to run; words in capitals are to be filled in. methods: the value of --methods. unanswered: how
    many questions have no answer, which `search` would refuse."""
    from fastmem.answer.contrast import METHODS

    loaded = model.given()
    named = [*(["--columns", columns] if columns else []), *(["--documents", str(documents)] if documents else [])]
    recipe = ["--recipe", str(folder / "recipe.json")]
    if verdict in ("harms", "no difference"):
        data = "FILE" if unanswered else str(questions)
        words = ["search", "--task", "qa", "--data", data, *named, *loaded, "--output", f"{folder}-search"]
    elif verdict == "too few questions" or method not in METHODS:  # other methods are unknown to `ask`
        those = ["--methods", methods] if methods != DEFAULT_METHODS else []
        words = ["check", "--questions", "FILE", *named, *loaded, *those, *recipe, "--output", f"{folder}-more"]
    else:
        folder_given = documents is not None and documents.is_dir()
        place = ["--documents", str(documents)] if folder_given else ["--context", str(documents or "FILE")]
        words = ["ask", "QUESTION", *place, *loaded, "--method", method, *recipe]
    return shlex.join(["fastmem", *words])


def _document(results: "Results", verdict: "Verdict | None", method: str) -> dict[str, Any]:
    """The JSON of --json, without recipe and page."""
    if verdict is None:
        return {"verdict": None, "questions": len(results.examples), "method": method, "errors": _errors(results)}
    value = verdict.difference.difference.value
    return {
        "verdict": verdict.word,
        "questions": verdict.questions,
        "method": method,
        "methods": {
            name: {
                "accuracy": _interval(means["paper_correct"]),
                "exact_match": _interval(means["exact_match"]),
            }
            for name, means in verdict.means.items()
        },
        "difference": {"value": value, "low": verdict.low, "high": verdict.high},
        "needed": verdict.needed,
        "seconds_per_question": round(verdict.seconds, 4),
        "errors": _errors(results),
    }


def _errors(results: "Results") -> dict[str, int]:
    """How many questions failed, by method."""
    return {name: len(errors) for name in results.methods if (errors := results.errors(name))}


def _interval(mean: "Mean") -> dict[str, float | None]:
    return {"value": mean.value, "low": mean.low, "high": mean.high}
