"""Flags that several commands share, as records: one field, one option.

    @with_flags
    def ask(question: str, model: ModelFlags, recipe: RecipeFlags) -> None: ...

`with_flags` exchanges each parameter annotated with a record for the record's fields, so that the command gets
records and the parser gets options.
"""

import functools
import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from fastmem.errors import InputError, one_of

if TYPE_CHECKING:
    from fastmem.core.memory import Recipe
    from fastmem.model import FastMem


def with_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command` with one keyword parameter per field instead of each parameter that is a record of flags."""
    signature = inspect.signature(command, eval_str=True)
    records: dict[str, Any] = {
        p.name: p.annotation for p in signature.parameters.values() if is_dataclass(p.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name in records:
            hints = get_type_hints(records[parameter.name], include_extras=True)
            parameters += [
                inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
                for f in fields(records[parameter.name])
            ]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def flat(**given: Any) -> Any:
        made = {n: record(**{f.name: given.pop(f.name) for f in fields(record)}) for n, record in records.items()}
        return command(**given, **made)

    flat.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in parameters}
    return flat


@dataclass(frozen=True)
class ModelFlags:
    """Which model, where, in which type."""

    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="ID", help="Hub id or folder; the embedded model if left out."),
    ] = None
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="TYPE", help="float32, bfloat16, float16; the checkpoint's own.")
    ] = None
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; a GPU where there is one.")
    ] = None

    def load(self) -> "FastMem":
        """The model. transformers' own progress bars and warnings are shown under --debug only."""
        import transformers

        from fastmem.model import FastMem

        if not logging.getLogger("fastmem").isEnabledFor(logging.DEBUG):
            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()
        return FastMem.from_pretrained(self.model, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class RecipeFlags:
    """How to memorize: a file, and single values that win over it. What is left out is the model's default."""

    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="JSON of recipe fields, as search writes it.")
    ] = None
    learning_rate: Annotated[float | None, typer.Option(help="AdamW rate.")] = None
    steps: Annotated[int | None, typer.Option(help="Updates, each on the whole document.")] = None
    kl_weight: Annotated[float | None, typer.Option(help="Weight of KL(original || now).")] = None
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's weight decay.")] = None
    max_grad_norm: Annotated[float | None, typer.Option(help="Clip the gradient to this norm.")] = None
    layers: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Layers whose FFN is tuned, negative ones from the end: -1 or 4,5."),
    ] = None
    placement: Annotated[
        str | None, typer.Option(metavar="WHERE", help="The document as assistant turn, user turn, text, or prompt.")
    ] = None
    adaptive_kl: Annotated[float | None, typer.Option(help="Target KL of an adaptive weight, nats.")] = None
    target_loss: Annotated[float | None, typer.Option(help="Stop at this loss.")] = None
    max_kl: Annotated[float | None, typer.Option(help="Stop above this KL, nats.")] = None
    patience: Annotated[int | None, typer.Option(help="Stop after so many steps without a better loss.")] = None

    def make(self, default: "Recipe") -> "Recipe":
        """`default`, changed by the file and then by the single flags. Errors: `InputError`."""
        from dataclasses import replace

        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "recipe"}
        changed = {name: value for name, value in given.items() if value is not None}
        if self.layers is not None:
            changed["layers"] = _layers(self.layers)
        return replace(default, **(_recipe_file(self.recipe, [f.name for f in fields(default)]) | changed))


@dataclass(frozen=True)
class OutputFlags:
    """How to print. `run` reads --quiet and --debug itself."""

    json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of standard output.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No notices and no progress.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and what transformers has to say.")] = False


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"--layers is {text!r}: give layer numbers with commas between, such as -1 or 4,5."
        ) from error


def _recipe_file(path: Path | None, accepted: list[str]) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"recipe file {str(path)!r} cannot be read: {error.strerror}; give a JSON file.") from error
    except ValueError as error:
        raise InputError(
            f"recipe file {str(path)!r} is not JSON ({error}): write it as `fastmem search` does."
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"recipe file {str(path)!r} holds a {type(found).__name__}: give an object of recipe fields.")
    return {one_of(name, accepted, f"recipe field in {path}"): value for name, value in found.items()}
