"""The automatic recipe of a model: `calibrate` finds it once, then it is kept in the cache folder, a file per model.

The folder is `$FASTMEM_CACHE`, or the platform's for caches (platformdirs). A file's name has digests of the weights
and of everything else that the recipe depends on, so nothing that is found there can be out of date. A file that is
damaged or holds something else is made again. Any file may be deleted.
"""

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastmem.atomic_write import replacing
from fastmem.calibrate import LIMITS, Calibration, Neutral, OnProgress, Point, calibrate, read_neutral, settings
from fastmem.home_path import expanded
from fastmem.memory.recipe import AutoRecipe, Recipe
from fastmem.model import FastMem

log = logging.getLogger("fastmem")

FOLDER = "FASTMEM_CACHE"  # environment variable
RULE = 3
"""Raised whenever `calibrate` finds another rate for the same model and texts."""
MOST_BYTES = 2**20  # of a file that is read; one has about 1,500


@dataclass(frozen=True)
class Found:
    """A calibration. file: where it is kept; None if it cannot be. made: now, not earlier."""

    calibration: Calibration
    file: Path | None
    made: bool


def automatic_recipe(llm: FastMem, auto: AutoRecipe, on_progress: OnProgress = None) -> Recipe:
    """The recipe of this model, from the neutral set that comes with FastMem.

    It is found once, also if several threads ask for it. If the model's weights change, theirs is found at the next
    call. on_progress: as for `calibrate`. Errors: those of `calibrate`.
    """
    llm.base()  # drops the recipes of weights that have changed
    with llm.modules.resolving:
        recipe = llm.modules.recipes.get(auto)
        if recipe is None:
            recipe = llm.modules.recipes[auto] = _found(llm, auto, on_progress)
        return recipe


def _found(llm: FastMem, auto: AutoRecipe, on_progress: OnProgress) -> Recipe:
    found = find_recipe(llm, read_neutral(), settings(auto), on_progress)
    recipe = found.calibration.recipe
    place = f", saved in {found.file}" if found.made and found.file else ""
    log.info("automatic recipe: learning rate %g, %d steps%s.", recipe.learning_rate, recipe.steps, place)
    if not found.calibration.bounded:
        log.warning("no learning rate in the range reaches the limits; the nearest one is used.")
    return recipe


def find_recipe(llm: FastMem, neutral: Neutral, recipe: Recipe, on_progress: OnProgress = None) -> Found:
    """What `calibrate` finds, from the cache folder if it is there.

    A folder that cannot be written to is named in a warning. recipe: all but its rate. Errors: those of `calibrate`.
    """
    llm.split_model.require_decoder_only('recipe "auto"')
    identity = _identity(llm, neutral, recipe)
    name = f"{identity['weights'][:16]}-{_sha256(identity)[:16]}.json"
    folder = cache_folder()
    if (kept := _read(folder / name, identity, recipe)) is not None:
        return Found(kept, folder / name, made=False)
    log.info("finding a recipe for %s, once; this takes about as long as memorizing 20 to 30 documents.", llm.name)
    made = calibrate(llm, neutral, recipe, on_progress=on_progress)
    return Found(made, folder / name if _write(folder / name, identity, made) else None, made=True)


def cache_folder() -> Path:
    """The folder of the automatic recipes, which need not exist."""
    if given := os.environ.get(FOLDER):
        return expanded(given)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("fastmem", appauthor=False))


def _identity(llm: FastMem, neutral: Neutral, recipe: Recipe) -> dict[str, Any]:
    """All that the rate depends on, as JSON has it. The device is not in it: it changes the last digit at most."""
    fields = asdict(recipe) | {"layers": list(recipe.layers)}
    del fields["learning_rate"]
    return {
        "rule": RULE,
        "weights": _sha256([llm.base().digest, llm.modules.sampled_digest]),
        **llm.preparer.identity,
        "texts": _sha256([neutral.documents, neutral.questions]),
        "limits": asdict(LIMITS),
        "recipe": fields,
    }


def _read(path: Path, identity: dict[str, Any], recipe: Recipe) -> Calibration | None:
    """The calibration in a file; None if there is none, or another one."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            record = json.loads(file.read(MOST_BYTES))
        if record["identity"] != identity or not isinstance(record["bounded"], bool):
            return None
        points = tuple(Point(**{name: float(value) for name, value in point.items()}) for point in record["points"])
        return Calibration(replace(recipe, learning_rate=record["learning_rate"]), points, record["bounded"])
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _write(path: Path, identity: dict[str, Any], made: Calibration) -> bool:
    """Whether the calibration was written."""
    points = [{name: repr(value) for name, value in asdict(point).items()} for point in made.points]  # JSON has no inf
    record = {
        "identity": identity,
        "learning_rate": made.recipe.learning_rate,
        "bounded": made.bounded,
        "points": points,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(record, indent=1).encode())
    except OSError as error:
        log.warning(
            "the recipe cannot be saved in %s (%s) and has to be found again next time: set %s to another folder.",
            path.parent,
            error.strerror or type(error).__name__,
            FOLDER,
        )
        return False
    return True


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
