"""What the files of a run and of a search must hold to be reported: they can be edited by hand.

A shape is a type; a frozenset of accepted values; `Maybe`, where the value may be null or absent; a list with the one
shape of all items; a tuple with the shape of each item; a dictionary of names and shapes, which ignores others; or
`Each`, with the one shape of all values of an object.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from fastmem.errors import RunError, shown
from fastmem.lab.tasks.example import Kind

FORMAT = 1  # of run.json


@dataclass(frozen=True)
class Maybe:
    """A value that may be null, and unless it is `required` also absent."""

    shape: Any
    required: bool = False


@dataclass(frozen=True)
class Each:
    """An object whose values all have one shape, except for those that are named."""

    shape: Any
    named: Mapping[str, Any] = field(default_factory=dict)


class ScoreValue:
    """The shape of a score: a number, true, false or null."""


NUMBER = float  # whole ones too
TEXTS = [str]
ROW = {
    "id": str,
    "method": str,
    "group": str,
    "text": str,
    "error": Maybe(str, required=True),
    "scores": Each(ScoreValue, {"answer": Maybe(str)}),
    "seconds": {"trunk": NUMBER, "steps": NUMBER, "decode": NUMBER},
    "missing": Maybe(Each(str)),
    "peak_bytes": Maybe(NUMBER),
    "trace": Maybe([(NUMBER, NUMBER, NUMBER)]),
    "moved": Maybe([(str, NUMBER, NUMBER)]),
}
EXAMPLE = {
    "id": str,
    "kind": frozenset(get_args(Kind)),
    "context": str,
    "question": str,
    "answers": TEXTS,
    **dict.fromkeys(("original_answers", "choices"), Maybe(TEXTS)),
    **dict.fromkeys(("group", "subset", "template", "template_without_context"), Maybe(str)),
}
RECIPE = {"learning_rate": NUMBER, "steps": int, "kl_weight": NUMBER, "layers": [int], "placement": str}
DECODING = {"alpha": NUMBER, "relative_top": Maybe(NUMBER), "repetition_penalty": Maybe(NUMBER)}
IDENTITY = {
    "format": frozenset([FORMAT]),
    "task": str,
    "data": {"source": str, "revision": str, "selection": Maybe(str)},
    "model": {"dtype": str, "system_turn": Maybe(str)},
    "recipe": RECIPE,
    "decoding": DECODING,
    "metrics": Maybe(Each(str)),
}
RUN = {
    "identity": IDENTITY,
    "model": {"name": str},
    "kind": frozenset(get_args(Kind)),
    "headline": Maybe(str),
}
SUMMARY = {
    "environment": Maybe({"git": Maybe({"commit": Maybe(str)}), "packages": Maybe(Each(Maybe(str)))}),
}
POINT = {
    "recipe": RECIPE,
    "alpha": NUMBER,
    "score": NUMBER,
    "low": Maybe(NUMBER),
    "high": Maybe(NUMBER),
    "errors": Maybe(int),
    "error": Maybe(str),
}
SEARCH = {
    "task": str,
    "model_name": str,
    "sampler": str,
    "data": {"source": str, "examples": TEXTS},
    "points": [POINT],
    "best": Maybe(POINT),
    "seconds": NUMBER,
    "done": Maybe(int),
    "total": Maybe(int),
}
_NAMES = {str: "a text", float: "a number", int: "a whole number"}


def require_shape(value: Any, shape: Any, where: str) -> None:
    """Errors: `RunError` that names the place. where: the file, and the line if there are several."""
    if (wrong := _wrong(value, shape, "")) is not None:
        raise RunError(f"{where}: {wrong}. Undo what was changed there, or run it again in a new folder.")


def _wrong(value: Any, shape: Any, name: str) -> str | None:
    """What is wrong, the first thing; None if nothing is."""
    if isinstance(shape, Maybe):
        return None if value is None else _wrong(value, shape.shape, name)
    parts: list[tuple[Any, Any, str]] = []
    if shape is ScoreValue:
        fits, accepted = value is None or isinstance(value, int | float), "a number, true, false or null"
    elif isinstance(shape, type):
        types = (int, float) if shape is float else shape
        fits, accepted = isinstance(value, types) and not isinstance(value, bool), _NAMES[shape]
    elif isinstance(shape, frozenset):
        fits, accepted = any(value == one for one in shape), " or ".join(map(repr, sorted(shape)))
    elif isinstance(shape, list | tuple):
        several = isinstance(shape, list)
        fits = isinstance(value, list) and (several or len(value) == len(shape))
        accepted = "a list" if several else f"a list of {len(shape)}"
        if fits:
            inner = shape * len(value) if several else shape
            parts = [(each, of, f"{name}[{place}]") for place, (each, of) in enumerate(zip(value, inner, strict=True))]
    else:
        fits, accepted = isinstance(value, dict), "an object"
        if fits:
            names = dict.fromkeys(value, shape.shape) | dict(shape.named) if isinstance(shape, Each) else shape
            parts = [(value.get(key), of, f"{name}.{key}" if name else key) for key, of in names.items()]
            for key, of in names.items():
                if isinstance(of, Maybe) and of.required and key not in value:
                    return f"{key} is missing"
    if not fits:
        missing = "it is missing or null" if value is None else f"found {shown(value)}"
        return f"{name or 'it'} must be {accepted}; {missing}"
    return next((wrong for part in parts if (wrong := _wrong(*part)) is not None), None)
