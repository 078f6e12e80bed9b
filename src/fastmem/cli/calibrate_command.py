"""`fastmem calibrate`: a recipe for a model, without labels."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmem.cli.flags import ModelFlags, OutputFlags, RecipeFlags, with_flags
from fastmem.cli.output import Status, emit, say
from fastmem.errors import InputError

if TYPE_CHECKING:
    from fastmem.calibrate import Calibration, Point


@with_flags
def calibrate(
    model: ModelFlags,
    recipe: RecipeFlags,
    output: OutputFlags,
    neutral: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSONL of documents and unrelated questions; default: English ones."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the recipe to this file, for --recipe.")
    ] = None,
) -> None:
    """Find the learning rate of a model, without labels.

    It is the largest rate at which the model's own answers to unrelated questions stay what they were. Three steps
    instead of ten, unless --steps says otherwise. Takes about as long as memorizing 20 documents.

    \b
    Examples:
      fastmem calibrate --model Qwen/Qwen3-0.6B --output recipe.json
      fastmem calibrate --model my-model --neutral german.jsonl --output recipe.json
    """
    from fastmem import calibrate as rates
    from fastmem.lab.run.experiment import recipe_values
    from fastmem.lab.run.run_files import write_json

    if recipe.learning_rate is not None:
        raise InputError("the learning rate is what is to be found: leave it out.", field="learning_rate")
    recipe.check()
    texts = rates.read_neutral(neutral) if neutral else rates.read_neutral()
    with Status(quiet=output.quiet) as status:
        llm = model.load(status)
        wanted = recipe.make(replace(llm.recipe, steps=rates.STEPS))
        status("answering the unrelated questions ...")
        tried = 0

        def show(point: "Point") -> None:
            nonlocal tried
            tried += 1
            status(f"rate {tried} of at most 5: {point.learning_rate:.2g} drifts {point.drift:.2g} ...")

        found = rates.calibrate(llm, texts, wanted, on_point=show)
    values = recipe_values(found.recipe)
    if file is not None:
        write_json(file, values)
    if output.json:
        emit({"recipe": values, "bounded": found.bounded, "points": [asdict(point) for point in found.points]})
        return
    print("\n".join(_lines(found)))
    if file is not None:
        print(f"written to {file}: use it with --recipe {file}")
    if not found.bounded:
        say("note: no rate in the range drifts as much as allowed; the nearest one was taken.")


def _lines(found: "Calibration") -> list[str]:
    """The rates that were tried, and the recipe."""
    rows = [
        f"{point.learning_rate:9.2g} {point.drift:12.2g} {point.loss_before:8.2f} {point.loss_after:8.2f}"
        for point in found.points
    ]
    recipe = found.recipe
    return [
        "     rate   drift, nats   loss of the document, before and after",
        *rows,
        f"recipe: --learning-rate {recipe.learning_rate:g} --steps {recipe.steps} --kl-weight {recipe.kl_weight:g}",
    ]
