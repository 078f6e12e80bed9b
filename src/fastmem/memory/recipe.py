"""`Recipe`: how a document is memorized."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fastmem.errors import InputError, one_of

PARAMETRIZATIONS = ("full", "lora")
PLACEMENTS = ("assistant", "user", "text", "prompt")


@dataclass(frozen=True)
class Recipe:
    """How to memorize. The defaults are the paper's for question answering with Llama-3-8B (arXiv 2406.16069)."""

    learning_rate: float = 1e-5
    """Constant AdamW rate (betas 0.9/0.999, eps 1e-8). Small models need larger rates: 1e-3 at 5 M parameters."""
    steps: int = 10
    """Updates, each on the whole document. 0 gives a memory that changes nothing."""
    kl_weight: float = 0.1
    """Weight of KL(original || now) in the loss, relative to the cross entropy."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay; the authors' code uses torch's default, whatever its scripts say."""
    max_grad_norm: float = 1.0
    """The gradient over all tuned tensors together is clipped to this norm, the default of the authors' Trainer."""
    layers: tuple[int, ...] = (-1,)
    """Layers whose FFN is tuned, from 0, or negative from the end. Only the last layer is fast and shares the
    cache."""
    placement: str = "assistant"
    """What is memorized: the document as an `assistant` turn (the paper), as a `user` turn, as bare `text`, or where
    it stands in the question's `prompt`, which needs no additional trunk pass."""
    adaptive_kl: float | None = None
    """Target KL in nats of an adaptive KL weight (Ziegler et al. 2019, arXiv 1909.08593, eq. 4, with the authors' clip
    at 0.2 and `steps` as horizon; their target is 5.0). None keeps `kl_weight` constant."""
    target_loss: float | None = None
    """Stop as soon as the loss is at or below this value. None: run all steps."""
    max_kl: float | None = None
    """Stop when the KL exceeds this value in nats, and keep the last weights below it. None: no limit."""
    patience: int | None = None
    """Stop when the loss has not improved for this many steps, and keep the best weights. None: never."""
    parametrization: str = "full"
    """What is tuned in the FFN: all weights (`full`, the paper) or low-rank factors of its matrices (`lora`)."""
    rank: int = 8
    """lora: rank of the factors of every matrix, at most its smaller side."""
    lora_alpha: float = 16.0
    """lora: the product of the factors is multiplied by lora_alpha / rank."""
    seed: int = 0
    """lora: seed of the random factor. Nothing else is random."""
    shortlist: int | None = None
    """Approximate the softmax with this many tokens (`sampled_softmax.py`), which makes a step much cheaper. The final
    loss is measured exactly, and a run that was too inaccurate is repeated exactly. None: the whole vocabulary."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        for name, greatest in (
            ("learning_rate", 10.0),
            ("kl_weight", math.inf),
            ("weight_decay", 10.0),
            ("max_grad_norm", math.inf),
            ("lora_alpha", math.inf),
            ("adaptive_kl", math.inf),
            ("target_loss", math.inf),
            ("max_kl", math.inf),
        ):
            self._check_number(name, greatest)
        for name, least in (("steps", 0), ("patience", 1), ("rank", 1), ("seed", 0), ("shortlist", 1)):
            self._check_whole(name, least)
        one_of(self.parametrization, PARAMETRIZATIONS, "parametrization", field="parametrization")
        one_of(self.placement, PLACEMENTS, "placement", field="placement")
        if not self.layers or not all(isinstance(layer, int) for layer in self.layers):
            raise InputError(f"recipe layers is {self.layers!r}: give layer numbers such as (-1,).", field="layers")

    @property
    def lora_scale(self) -> float:
        """The factor by which the product of the low-rank factors is multiplied."""
        return self.lora_alpha / self.rank

    def _check_number(self, name: str, greatest: float) -> None:
        value = getattr(self, name)
        if value is None and type(self).__dataclass_fields__[name].default is None:
            return
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or not 0 <= value <= greatest:
            accepted = "0 or more" if math.isinf(greatest) else f"0 to {greatest:g}"
            raise InputError(f"recipe {name} is {value!r}: give a number, {accepted}.", field=name)

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is None and type(self).__dataclass_fields__[name].default is None:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"recipe {name} is {value!r}: give a whole number, {least} or more.", field=name)


def changed_recipe(default: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """`default` with some fields replaced. Errors: `InputError` for unknown fields and values out of range."""
    accepted = [f.name for f in fields(Recipe)]
    for name in changes:
        one_of(name, accepted, "recipe field", field=name)
    return replace(default, **changes)


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe fields in a JSON file, as `fastmem search` writes it. Errors: `InputError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"recipe file {str(path)!r} cannot be read ({error.strerror}): give a JSON file.") from error
    except ValueError as error:
        raise InputError(f"recipe file {str(path)!r} is not JSON ({error}): give one as search writes it.") from error
    if not isinstance(found, dict):
        raise InputError(f"recipe file {str(path)!r} holds a {type(found).__name__}: give an object of recipe fields.")
    return found
