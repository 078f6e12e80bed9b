"""`fastmem calibrate`: a recipe for a model, without labels."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmem.cli.flags import ModelFlags, OutputFlags, RecipeFlags, with_flags
from fastmem.cli.output import Status, emit, say
from fastmem.errors import InputError

if TYPE_CHECKING:
    from fastmem.calibrate import Point


@with_flags
def calibrate(
    model: ModelFlags,
    recipe: RecipeFlags,
    output: OutputFlags,
    documents: Annotated[
        Path | None,
        typer.Option("--documents", metavar="DIR", help="Your own documents: short passages are read, 8 at most."),
    ] = None,
    neutral: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL file of documents and questions; default: English texts that come with FastMem.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the recipe to this file, for --recipe.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw drift and loss by rate: FILE.svg or FILE.png.")
    ] = None,
) -> None:
    """Find the learning rate of a model, without labels.

    This is the largest rate at which the model's answers about other documents hardly change. If documents are not
    learnt at that rate, a wider limit allows a larger one. The recipe has three steps instead of ten, unless --steps
    says otherwise. This takes about as long as memorizing 20 to 30 documents.

    The result is saved in a cache folder ($FASTMEM_CACHE, or the platform's), so each model is calibrated once.
    Without --documents, --neutral and other recipe options, it is the recipe of --recipe auto, which calibrates on
    first use.

    \b
    Examples:
      fastmem calibrate --model Qwen/Qwen3-0.6B
      fastmem calibrate --model Qwen/Qwen3-0.6B --documents policies --output recipe.json --plot rates.svg
      fastmem calibrate --model my-model --neutral german.jsonl --output recipe.json
    """
    if recipe.learning_rate is not None:
        raise InputError("calibrate finds the learning rate: leave it out.", field="learning_rate")
    if recipe.recipe == "auto":
        raise InputError("calibrate finds the automatic recipe: leave it out.", field="recipe")
    if plot is not None:
        from fastmem.cli.calibration_chart import require_drawable

        require_drawable(plot)
    from fastmem import calibrate as rates
    from fastmem.auto_recipe import find_recipe
    from fastmem.cli.calibration_documents import calibration_pieces, cut
    from fastmem.cli.calibration_view import ProgressBar, lines
    from fastmem.lab.run.experiment import recipe_values
    from fastmem.lab.run.run_files import write_json
    from fastmem.memory.recipe import Recipe

    texts = rates.read_neutral(neutral) if neutral else rates.read_neutral()
    with Status(quiet=output.quiet) as status:
        pieces, skipped = (
            calibration_pieces(documents, lambda name: status(f"reading {name} ...")) if documents else ([], [])
        )
        status("")
        for one in () if output.quiet else skipped:
            say(f"skipped: {one.name}: {one.reason.rstrip('.')}.")
        llm = model.load(status)
        if pieces:
            texts = replace(texts, documents=tuple(cut(piece, llm.tokenizer) for piece in pieces))
        status("")
        settings = recipe.of(llm, default=rates.settings(Recipe.auto()))
        found = find_recipe(llm, texts, settings, ProgressBar(status))
    values = recipe_values(found.calibration.recipe)
    if file is not None:
        write_json(file, values)
    if plot is not None:
        from fastmem.cli.calibration_chart import draw

        draw(found.calibration, plot, llm.name)
    if output.json:
        points = [_record(point) for point in found.calibration.points]
        place = {"kept": str(found.file) if found.file else None, "found_before": not found.made}
        emit({"recipe": values, "bounded": found.calibration.bounded, "points": points} | place)
        return
    print("\n".join(lines(found.calibration)))
    automatic = not documents and not neutral and settings == rates.settings(Recipe.auto())
    if automatic:
        print("use it with --recipe auto")
    if file is not None:
        print(f"written to {file}: use it with --recipe {file}")
    elif not automatic:
        print(
            "to use it, save it with --output FILE and give --recipe FILE (--recipe auto has only the default texts)"
        )
    if plot is not None:
        print(f"drawn in {plot}")
    if found.file is not None and not output.quiet:
        say(f"saved in {found.file}" if found.made else f"from an earlier calibration, saved in {found.file}")
    if not found.calibration.bounded:
        say("note: no learning rate in the range reaches the limits; this is the nearest one.")


def _record(point: "Point") -> dict[str, float | None]:
    """A point as JSON, which has no infinite numbers."""
    return {name: value if math.isfinite(value) else None for name, value in asdict(point).items()}
