"""Flags that several commands share, as records: one field, one option.

    @with_flags
    def ask(question: str, model: ModelFlags, recipe: RecipeFlags) -> None: ...

`with_flags` exchanges each parameter annotated with a record for the record's fields, so that the command gets
records and the parser gets options.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_type_hints

import typer

from fastmem.errors import InputError

if TYPE_CHECKING:
    from fastmem.memory.recipe import Recipe
    from fastmem.model import FastMem


def with_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command` with one keyword parameter per field instead of each parameter that is a record of flags."""
    signature = inspect.signature(command, eval_str=True)
    records: dict[str, Any] = {
        p.name: p.annotation for p in signature.parameters.values() if is_dataclass(p.annotation)
    }
    own: list[inspect.Parameter] = []
    shared: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name in records:
            shared += _options(records[parameter.name])
        else:
            own.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def flat(**given: Any) -> Any:
        made = {n: record(**{f.name: given.pop(f.name) for f in fields(record)}) for n, record in records.items()}
        return command(**given, **made)

    flat.__signature__ = signature.replace(parameters=own + shared)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in own + shared}
    return flat


def _options(record: Any) -> list[inspect.Parameter]:
    """One keyword parameter per field, under the record's heading in the help."""
    options = []
    for name, hint in get_type_hints(record, include_extras=True).items():
        if name == "heading":
            continue
        hint.__metadata__[0].rich_help_panel = record.heading
        default = record.__dataclass_fields__[name].default
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    return options


@dataclass(frozen=True)
class ModelFlags:
    """Which model, where, in which type."""

    heading: ClassVar[str] = "Model"

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
        from fastmem.loading import quieten
        from fastmem.model import FastMem

        if not logging.getLogger("fastmem").isEnabledFor(logging.DEBUG):
            quieten()
        return FastMem.from_pretrained(self.model, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class RecipeFlags:
    """How to memorize: a file, and single values that win over it. What is left out is the model's default."""

    heading: ClassVar[str] = "Recipe"

    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="JSON of recipe fields, as search writes it.")
    ] = None
    learning_rate: Annotated[float | None, typer.Option(metavar="X", help="AdamW rate.")] = None
    steps: Annotated[int | None, typer.Option(metavar="N", help="Updates, each on the whole document.")] = None
    kl_weight: Annotated[float | None, typer.Option(metavar="X", help="Weight of KL(original || now).")] = None
    weight_decay: Annotated[float | None, typer.Option(metavar="X", help="AdamW's weight decay.")] = None
    max_grad_norm: Annotated[float | None, typer.Option(metavar="X", help="Clip the gradient to this norm.")] = None
    layers: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Layers whose FFN is tuned, negative ones from the end: -1 or 4,5."),
    ] = None
    placement: Annotated[
        str | None, typer.Option(metavar="WHERE", help="The document as assistant turn, user turn, text, or prompt.")
    ] = None
    adaptive_kl: Annotated[float | None, typer.Option(metavar="X", help="Target KL of an adaptive weight, nats.")] = (
        None
    )
    target_loss: Annotated[float | None, typer.Option(metavar="X", help="Stop at this loss.")] = None
    max_kl: Annotated[float | None, typer.Option(metavar="X", help="Stop above this KL, nats.")] = None
    patience: Annotated[
        int | None, typer.Option(metavar="N", help="Stop after so many steps without a better loss.")
    ] = None
    parametrization: Annotated[str | None, typer.Option(metavar="NAME", help="Tune full weights, or lora.")] = None
    rank: Annotated[int | None, typer.Option(metavar="N", help="lora: rank of the factors.")] = None
    lora_alpha: Annotated[
        float | None, typer.Option(metavar="X", help="lora: the product counts lora-alpha / rank times.")
    ] = None
    recipe_seed: Annotated[
        int | None, typer.Option("--recipe-seed", metavar="N", help="lora: of the drawn factor.")
    ] = None
    shortlist: Annotated[
        int | None,
        typer.Option(metavar="N", help="Approximate the softmax with N tokens: faster steps."),
    ] = None

    def make(self, default: "Recipe") -> "Recipe":
        """`default`, changed by the file and then by the single flags. Errors: `InputError`."""
        from fastmem.memory.recipe import changed_recipe, read_recipe

        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "recipe"}
        given["seed"] = given.pop("recipe_seed")  # --seed is the sampling's
        changed = {name: value for name, value in given.items() if value is not None}
        if self.layers is not None:
            changed["layers"] = _layers(self.layers)
        return changed_recipe(default, (read_recipe(self.recipe) if self.recipe else {}) | changed)

    def check(self) -> None:
        """Refuse what cannot be used before a model is loaded. Errors: `InputError`."""
        from fastmem.memory.recipe import Recipe

        self.make(Recipe())


@dataclass(frozen=True)
class DecodingFlags:
    """How to decode; what is left out is `Decoding`'s default."""

    heading: ClassVar[str] = "Decoding"

    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", help="Longest answer; 100.")] = None
    temperature: Annotated[float | None, typer.Option(metavar="X", help="0 takes the most likely token; 0.")] = None
    top_k: Annotated[int | None, typer.Option(metavar="N", help="Sample among this many tokens; 0 is all.")] = None
    top_p: Annotated[
        float | None, typer.Option(metavar="X", help="Sample among the most likely of this probability; 1.")
    ] = None
    min_p: Annotated[
        float | None, typer.Option(metavar="X", help="Sample above this fraction of the top probability; 0.")
    ] = None
    repetition_penalty: Annotated[float | None, typer.Option(metavar="X", help="Above 1 repeats less; 1.")] = None
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of the sampling.")] = None
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End the answer here; repeatable.")] = None
    alpha: Annotated[float | None, typer.Option(metavar="X", help="Strength of a contrast; 0.5.")] = None
    relative_top: Annotated[
        float | None, typer.Option(metavar="X", help="Plausibility cut of a contrast; DoLa's is 0.1, others none.")
    ] = None
    final_norm: Annotated[bool | None, typer.Option("--final-norm", help="DoLa: norm early states.")] = None

    def options(self) -> dict[str, Any]:
        """What was given, as keyword arguments of `generate`. Errors: `InputError`."""
        from fastmem.answer.contrast import Contrast
        from fastmem.answer.request import Decoding

        given = {f.name: getattr(self, f.name) for f in fields(self)}
        options = {name: value for name, value in given.items() if value is not None}
        checked = Decoding.of(options)
        checked.sampling()
        Contrast("dola", checked.alpha, relative_top=checked.relative_top)
        return options


@dataclass(frozen=True)
class OutputFlags:
    """How to print. `run` reads --quiet and --debug itself."""

    heading: ClassVar[str] = "Output"

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
