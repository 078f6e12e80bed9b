"""Flags that several commands share, as dataclasses: each field is one option.

    @with_flags
    def ask(question: str, model: ModelFlags, recipe: RecipeFlags) -> None: ...

`with_flags` replaces each parameter of such a type by one parameter per field for the parser, checks the values, and
passes instances to the command.
"""

import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, cast, get_type_hints

import typer

from fastmem.errors import FastMemError, InputError

if TYPE_CHECKING:
    from fastmem.cli.output import Status
    from fastmem.memory.recipe import AutoRecipe, Recipe
    from fastmem.model import FastMem

T = TypeVar("T")
N = TypeVar("N", int, float)
LAYERS = "layer numbers separated by commas, such as -1 or 4,5"


def with_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command` with one keyword parameter per field of its parameters that are classes of flags."""
    signature = inspect.signature(command, eval_str=True)
    classes: dict[str, Any] = {}
    own: list[inspect.Parameter] = []
    shared: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if is_dataclass(parameter.annotation):
            classes[parameter.name] = parameter.annotation
            shared += _parameters(parameter.annotation)
        else:
            own.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def flat(**given: Any) -> Any:
        values = dict(given)
        made = {name: flags(**{f.name: given.pop(f.name) for f in fields(flags)}) for name, flags in classes.items()}
        for flags in made.values():
            if check := getattr(flags, "check", None):
                check()
        for name, value in values.items():
            if isinstance(value, int | float):
                require_usable(name, value)
        return command(**given, **made)

    flat.__signature__ = signature.replace(parameters=own + shared)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in own + shared}
    return flat


def option(
    help: str,
    metavar: str | None = None,
    short: str | None = None,
    default: T | None = None,
    min: int | None = None,
) -> T:
    """A field of a class of flags. The option is the field's name with dashes; short: a second name such as `-m`.

    min: the least value, for numbers whose range the library does not check before it loads a model.
    """
    info = {"help": help, "metavar": metavar, "short": short, "min": min}
    return cast(T, field(default=default, metadata=info))


def require_usable(name: str, value: float) -> None:
    """Errors: `InputError` for a number that no option takes: infinite, NaN, or too large for the machine."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value}: give a finite number.", field=name)
    bits = 64 if name.endswith("seed") else 63  # torch's generators take 64 bits
    if isinstance(value, int) and abs(value) >= 2**bits:
        raise InputError(f"{name} is {value}: give a whole number below 2**{bits}.", field=name)


def numbers(option: str, given: str, kind: type[N], accepted: str) -> tuple[N, ...]:
    """`1,2.5` as numbers. option: its name, such as `--rates`. accepted: what to give. Errors: `InputError`."""
    try:
        values = tuple(kind(part) for part in given.split(","))
    except ValueError as error:
        raise InputError(f"{option} is {given!r}: give {accepted}.") from error
    for value in values:
        require_usable(option.removeprefix("--"), value)
    return values


def require_effect(options: Mapping[str, Any], needed: str, field: str) -> None:
    """Errors: `InputError` for the first of the options that was given: it does nothing without another one.

    options: option, such as `--rank`, -> value; None if it was not given. needed: the other option. field: its name.
    """
    for option, value in options.items():
        if value is not None:
            raise InputError(f"{option} needs {needed}.", field=field)


@contextmanager
def fields_named(options: Mapping[str, str]) -> Iterator[None]:
    """Within the block, errors name the options of a command. options: field -> option, where the two differ."""
    try:
        yield
    except FastMemError as error:
        error.field = options.get(error.field or "", error.field)
        raise


def _parameters(flags: Any) -> list[inspect.Parameter]:
    """One keyword parameter per field, in the help section of the class."""
    hints = get_type_hints(flags)
    parameters = []
    for f in fields(flags):
        names = [f"--{f.name.replace('_', '-')}", *([f.metadata["short"]] if f.metadata["short"] else [])]
        info = typer.Option(
            *names,
            help=f.metadata["help"],
            metavar=f.metadata["metavar"],
            min=f.metadata["min"],
            rich_help_panel=flags.heading,
        )
        parameter = inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default)
        parameters.append(parameter.replace(annotation=Annotated[hints[f.name], info]))
    return parameters


def given_values(flags: Any) -> dict[str, Any]:
    """The fields of an instance that are not None: the options that were given."""
    values = {f.name: getattr(flags, f.name) for f in fields(flags)}
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class ModelFlags:
    """The model, its device and its data type."""

    heading: ClassVar[str] = "Model"

    model: str | None = option("Hub id or folder; default: the embedded model.", "ID", "-m")
    dtype: str | None = option("float32, bfloat16 or float16; default: the checkpoint's.", "TYPE")
    device: str | None = option("cpu, cuda, cuda:1, ...; default: a GPU if there is one.", "NAME")
    no_system_turn: bool = option(
        "Drop the system turn that the chat template adds by itself (Qwen1.5).", default=False
    )

    def load(self, status: Callable[[str], None] | None = None) -> "FastMem":
        """The model. status: called with a line that says what is loaded. transformers' output needs --debug."""
        if status:
            status(f"loading {self.model or 'the embedded model'} ...")
        from fastmem.loading import quieten
        from fastmem.model import FastMem

        if not logging.getLogger("fastmem").isEnabledFor(logging.DEBUG):
            quieten()
        llm = FastMem.from_pretrained(self.model, dtype=self.dtype, device=self.device)
        if self.no_system_turn:
            from fastmem.system_turn import remove_system_turn

            remove_system_turn(llm.tokenizer)
        return llm

    def given(self) -> list[str]:
        """The flags as words of a command line."""
        values = {"--model": self.model, "--dtype": self.dtype, "--device": self.device}
        words = [word for flag, value in values.items() if value is not None for word in (flag, value)]
        return [*words, "--no-system-turn"] if self.no_system_turn else words


@dataclass(frozen=True)
class RecipeFlags:
    """How to memorize: a named recipe, and single values that override it. Anything else is the model's default."""

    heading: ClassVar[str] = "Recipe"

    recipe: str | None = option(
        "auto (found for the model, once), paper, or a JSON file of recipe fields as search writes it.",
        "auto|paper|FILE",
    )
    learning_rate: float | None = option("Learning rate of AdamW.", "X")
    steps: int | None = option("Updates, each on the whole document.", "N")
    kl_weight: float | None = option("Weight of the KL from the original model.", "X")
    weight_decay: float | None = option("Weight decay of AdamW.", "X")
    max_grad_norm: float | None = option("Clip the gradient to this norm.", "X")
    layers: str | None = option("Layers whose FFN is tuned; negative numbers count from the end: -1 or 4,5.", "N,N")
    placement: str | None = option(
        "How the document is laid out: assistant or user (a chat turn), text, or prompt.", "WHERE"
    )
    adaptive_kl: float | None = option("Adapt the KL weight to reach this KL, in nats.", "X")
    target_loss: float | None = option("Stop at this loss.", "X")
    max_kl: float | None = option("Stop above this KL, in nats.", "X")
    patience: int | None = option("Stop after this many steps without a lower loss.", "N")
    parametrization: str | None = option("What is tuned: full (all weights) or lora.", "NAME")
    rank: int | None = option("lora: rank of the factors.", "N")
    lora_alpha: float | None = option("lora: the product is multiplied by lora-alpha / rank.", "X")
    recipe_seed: int | None = option("lora: seed of the random factor.", "N")
    shortlist: int | None = option("Approximate the softmax with N tokens: faster steps.", "N")

    def of(self, llm: "FastMem", status: "Status | None" = None, default: "Recipe | None" = None) -> "Recipe":
        """The recipe for this model, in numbers; an automatic one is found now, which `status` shows.

        default: instead of the model's. Errors: `InputError`.
        """
        from fastmem.memory.recipe import Recipe

        made = self.make(default or llm.recipe)
        if isinstance(made, Recipe):
            return made
        from fastmem.auto_recipe import automatic_recipe
        from fastmem.cli.calibration_view import ProgressBar

        if status:
            status("")  # what is logged begins a line of its own
        return automatic_recipe(llm, made, ProgressBar(status) if status else None)

    def known(self) -> "Recipe":
        """The recipe as far as it is known before a model is loaded; the rest is the paper's. Errors: `InputError`."""
        from fastmem.memory.recipe import Recipe, changed_recipe

        made = self.make(Recipe())
        return made if isinstance(made, Recipe) else changed_recipe(Recipe(), dict(made.changes))

    def make(self, default: "Recipe") -> "Recipe | AutoRecipe":
        """`default`, or what --recipe names, changed by the single flags. Errors: `InputError`."""
        from fastmem.memory.recipe import merged_recipe

        changes = given_values(self)
        changes.pop("recipe", None)
        if "recipe_seed" in changes:  # --seed is the seed of sampling
            changes["seed"] = changes.pop("recipe_seed")
        if "layers" in changes:
            changes["layers"] = numbers("--layers", changes["layers"], int, LAYERS)
        with fields_named({"seed": "recipe.seed"}):
            return merged_recipe(default, self.recipe, changes)

    def check(self) -> None:
        """Check all values before a model is loaded. Errors: `InputError`, also for values that only lora uses."""
        if self.known().parametrization != "lora":
            low_rank = {"--rank": self.rank, "--lora-alpha": self.lora_alpha, "--recipe-seed": self.recipe_seed}
            require_effect(low_rank, "--parametrization lora", "parametrization")


@dataclass(frozen=True)
class ServedRecipeFlags(RecipeFlags):
    """The recipe of a server, in which values of lora have an effect: for adapters, and requests that ask for lora."""

    def check(self) -> None:
        """Check all values before a model is loaded. Errors: `InputError`."""
        self.known()


@dataclass(frozen=True)
class DecodingFlags:
    """How to decode. What is not given is the default of `Decoding`."""

    heading: ClassVar[str] = "Decoding"

    max_new_tokens: int | None = option("Longest answer, in tokens; default: 100.", "N")
    min_new_tokens: int | None = option("Shortest answer, in tokens; default: 0.", "N")
    temperature: float | None = option("Sampling temperature; 0 always gives the most likely token; default: 0.", "X")
    top_k: int | None = option("Sample from this many tokens; default: 0, all.", "N")
    top_p: float | None = option("Sample from the most likely tokens of this total probability; default: 1.", "X")
    min_p: float | None = option("Sample above this fraction of the top probability; default: 0.", "X")
    repetition_penalty: float | None = option("Values above 1 reduce repetition; default: 1.", "X")
    presence_penalty: float | None = option(
        "Values above 0 make tokens that the answer already has less likely; default: 0.", "X"
    )
    frequency_penalty: float | None = option("The same, in proportion to their number; default: 0.", "X")
    seed: int | None = option("Seed of the sampling.", "N")
    ignore_eos: bool | None = option("Continue after the model's end tokens.")
    json_schema: Path | None = option("The answer is JSON that follows the schema in this file.", "FILE")  # noqa: RUF009
    stop: list[str] | None = option("End the answer at this text; repeatable.", "TEXT")  # noqa: RUF009
    alpha: float | None = option("Strength of a contrast; default: 0.5.", "X")
    relative_top: float | None = option("Plausibility cut of a contrast; default: 0.1 for DoLa, else none.", "X")
    final_norm: bool | None = option("DoLa: apply the final norm to early states.")

    def options(self) -> dict[str, Any]:
        """The given values as keyword arguments of `generate`. Errors: `InputError` for an unreadable schema."""
        given = given_values(self)
        if self.json_schema is not None:
            try:
                given["json_schema"] = self.json_schema.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                text = f"the JSON schema {str(self.json_schema)!r} cannot be read: {error}."
                raise InputError(text, field="json_schema") from error
        return given

    def check(self) -> None:
        """Check all values before a model is loaded. Errors: `InputError`."""
        if not self.options():
            return  # before torch is imported
        from fastmem.answer.contrast import Contrast
        from fastmem.answer.request import Decoding

        checked = Decoding.of(self.options())
        checked.sampling()
        Contrast("dola", checked.alpha, relative_top=checked.relative_top)


@dataclass(frozen=True)
class OutputFlags:
    """What to print. `run` reads --quiet and --debug itself."""

    heading: ClassVar[str] = "Output"

    json: bool = option("One JSON object on the last line of standard output.", default=False)
    quiet: bool = option("No notes and no progress.", short="-q", default=False)
    debug: bool = option("Show tracebacks and the messages of transformers.", default=False)
