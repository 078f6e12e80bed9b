"""`Recipe`: how a document is memorized."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from fastmem.errors import InputError, one_of, shown
from fastmem.ranges import Number, Other, check, ranged

PARAMETRIZATIONS = ("full", "lora")
PLACEMENTS = ("assistant", "user", "text", "prompt")
WORDS = ("auto", "paper")
"""Named recipes: the one that is found for a model, and the paper's."""


def _layers(given: Any) -> tuple[int, ...]:
    numbers = (given,) if isinstance(given, str | bytes) or not isinstance(given, Iterable) else tuple(given)
    if not numbers:
        raise ValueError
    return tuple(int(Number(-math.inf, whole=True).accept(number)) for number in numbers)


@dataclass(frozen=True)
class Recipe:
    """How to memorize. The defaults are the paper's for question answering with Llama-3-8B (arXiv 2406.16069)."""

    learning_rate: float = ranged(1e-5, Number(0, 10))
    """Constant AdamW rate (betas 0.9/0.999, eps 1e-8). Small models need larger rates: 1e-3 at 5 M parameters."""
    steps: int = ranged(10, Number(0, whole=True))
    """Updates, each on the whole document. 0 gives a memory that changes nothing."""
    kl_weight: float = ranged(0.1, Number(0, 1_000_000))
    """Weight of KL(original || tuned) in the loss, relative to the cross entropy."""
    weight_decay: float = ranged(0.01, Number(0, 10))
    """AdamW's decoupled weight decay; the authors' code uses torch's default, whatever its scripts say."""
    max_grad_norm: float = ranged(1.0, Number(0))
    """The gradient over all tuned tensors together is clipped to this norm, the default of the authors' Trainer."""
    layers: tuple[int, ...] = ranged((-1,), Other("layer numbers such as (-1,)", _layers))
    """Layers whose FFN is tuned, from 0, or negative from the end; a single number is accepted. Only the last layer is
    fast and shares the cache."""
    placement: str = ranged("assistant", PLACEMENTS)
    """What is memorized: the document as an `assistant` turn (the paper), as a `user` turn, as bare `text`, or where
    it stands in the question's `prompt`, which needs no additional trunk pass."""
    adaptive_kl: float | None = ranged(None, Number(0))
    """Target KL in nats of an adaptive KL weight (Ziegler et al. 2019, arXiv 1909.08593, eq. 4, with the authors' clip
    at 0.2 and `steps` as horizon; their target is 5.0). None keeps `kl_weight` constant."""
    target_loss: float | None = ranged(None, Number(0))
    """Stop as soon as the loss is at or below this value. None: run all steps."""
    max_kl: float | None = ranged(None, Number(0))
    """Stop when the KL exceeds this value in nats, and keep the last weights below it. None: no limit."""
    patience: int | None = ranged(None, Number(1, whole=True))
    """Stop when the loss has not improved for this many steps, and keep the best weights. None: never."""
    parametrization: str = ranged("full", PARAMETRIZATIONS)
    """What is tuned in the FFN: all weights (`full`, the paper) or low-rank factors of its matrices (`lora`)."""
    rank: int = ranged(8, Number(1, whole=True))
    """lora: rank of the factors of every matrix, at most its smaller side."""
    lora_alpha: float = ranged(16.0, Number(0))
    """lora: the product of the factors is multiplied by lora_alpha / rank."""
    seed: int = ranged(0, Number(0, 2**64 - 1, whole=True), path="recipe.seed")
    """lora: seed of the random factor. Nothing else is random."""
    shortlist: int | None = ranged(None, Number(1, whole=True))
    """Approximate the softmax with this many tokens (`sampled_softmax.py`), which makes a step much cheaper. The final
    loss is measured exactly, and a run that was too inaccurate is repeated exactly. None: the whole vocabulary."""

    def __post_init__(self) -> None:
        check(self, "recipe")

    @property
    def lora_scale(self) -> float:
        """The factor by which the product of the low-rank factors is multiplied."""
        return self.lora_alpha / self.rank

    @staticmethod
    def auto(**changes: Any) -> "AutoRecipe":
        """The recipe that is found for a model when it first memorizes (`fastmem.auto_recipe`).

        changes: fields with fixed values; any but the learning rate. Errors: `InputError`.
        """
        return AutoRecipe(tuple(changes.items()))


@dataclass(frozen=True)
class AutoRecipe:
    """A recipe whose learning rate is not known yet. Before memorizing, `FastMem.resolved` makes a `Recipe` of it.

    changes: names and values of the fields that are given. Errors: `InputError` for unknown fields, values out of
    range, and a rate.
    """

    changes: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        given = dict(self.changes)
        checked = changed_recipe(Recipe(), given)
        if "learning_rate" in given:
            raise InputError("the automatic recipe finds the learning rate: leave it out.", field="learning_rate")
        object.__setattr__(self, "changes", tuple((name, getattr(checked, name)) for name in sorted(given)))


RecipeChoice = Recipe | AutoRecipe | Literal["auto", "paper"] | None
"""What an argument `recipe` accepts. None: the default that its function documents."""


def chosen_recipe(given: RecipeChoice) -> Recipe | AutoRecipe:
    """The recipe that is given or named. Errors: `InputError` for anything else."""
    if isinstance(given, Recipe | AutoRecipe):
        return given
    if isinstance(given, str) and given in WORDS:
        return Recipe() if given == "paper" else Recipe.auto()
    raise InputError(f'recipe is {shown(given)}: give a Recipe, "auto" or "paper".', field="recipe")


def changed_recipe(default: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """`default` with some fields replaced. Errors: `InputError` for unknown fields and values out of range."""
    accepted = [f.name for f in fields(Recipe)]
    for name in changes:
        one_of(name, accepted, "recipe field", field=name)
    return replace(default, **changes)


def merged_recipe(default: Recipe, given: str | None, changes: Mapping[str, Any]) -> Recipe | AutoRecipe:
    """The recipe that `given` names, or else `default`, with single fields changed.

    given: "auto", "paper", or the path of a recipe file (./auto for a file of that name). Errors: `InputError`.
    """
    if given == "auto":
        return Recipe.auto(**changes)
    if given == "paper":
        return changed_recipe(Recipe(), changes)
    return changed_recipe(default, (read_recipe(Path(given)) if given is not None else {}) | dict(changes))


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe fields in a JSON file, as `fastmem search` writes it. Errors: `InputError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        text = f"recipe file {str(path)!r} cannot be read ({error.strerror}): give a JSON file, auto or paper."
        raise InputError(text) from error
    except ValueError as error:
        raise InputError(f"recipe file {str(path)!r} is not JSON ({error}): give one as search writes it.") from error
    if not isinstance(found, dict):
        raise InputError(f"recipe file {str(path)!r} holds a {type(found).__name__}: give an object of recipe fields.")
    return found
