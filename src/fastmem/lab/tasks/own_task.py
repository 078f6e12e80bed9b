"""A task of one's own: the function `examples` of a Python file.

    from fastmem.lab.tasks import Example

    def examples():
        yield Example("", "question", context="The office closes at noon.", question="When?", answers=("noon",))

The file may also define `KIND` ("question", "choice" or "summary"), `MAX_NEW_TOKENS`, `SHOT` (a `Shot` for the method
one-shot) and `score(text, example)`, which then alone grades the answers; see `lab/scores/own_metric.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, get_args

from fastmem.encoding import half_character
from fastmem.errors import InputError
from fastmem.lab.python_file import PythonFile
from fastmem.lab.tasks.example import Example, Kind, Shot

USE = 'def examples(): yield Example("", "question", context, question, answers)'


def kind_of(file: PythonFile) -> Kind:
    """The kind of all its examples. Errors: `InputError`."""
    kind = file.value("KIND", "question")
    if kind not in get_args(Kind):
        raise file.error(f"KIND is {kind!r:.60}; accepted: {', '.join(get_args(Kind))}")
    return kind  # type: ignore[return-value]


def tokens_of(file: PythonFile) -> int | None:
    """The most new tokens of an answer; None for those of the kind. Errors: `InputError`."""
    tokens = file.value("MAX_NEW_TOKENS")
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
        raise file.error(f"MAX_NEW_TOKENS is {tokens!r:.60}; give a whole number, 1 or more")
    return tokens


def shot_of(file: PythonFile) -> Shot | None:
    """The worked example, if there is one. Errors: `InputError`."""
    shot = file.value("SHOT")
    if shot is not None and not isinstance(shot, Shot):
        raise file.error(f"SHOT is {shot!r:.60}; give Shot(Example(...), reply)")
    return shot


def examples_of_file(file: PythonFile) -> Iterator[Example]:
    """The examples, each checked; one without an id is `row-N`, counted from 1.

    Errors: `InputError` with the number of the example.
    """
    function, places = file.function("examples", USE), dict[str, int]()
    try:
        found = function()
        if not isinstance(found, Iterable):
            raise TypeError(f"examples() gave {type(found).__name__}, not examples")
        numbered = enumerate(found, 1)
        while True:
            number, example = next(numbered, (0, None))
            if not number:
                return
            checked = _checked(file, example, f"example {number}")
            name = checked.id or f"row-{number}"
            if name in places:
                raise file.error(f"example {number} has the id {name!r:.60} of example {places[name]}; ids are unique")
            places[name] = number
            yield replace(checked, id=name, group=checked.group or name)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise file.failure(error) from error


def _checked(file: PythonFile, given: object, where: str) -> Example:
    """The example, its answers as a tuple. Errors: `InputError`."""
    if not isinstance(given, Example):
        raise file.error(f"{where} is {given!r:.60}; give an Example of fastmem.lab.tasks")
    for name in ("id", "context", "question", "group", "subset", "template", "template_without_context"):
        value = getattr(given, name)
        if not isinstance(value, str):
            raise file.error(f"{where}: its {name} is {value!r:.60}; give a text")
        _encodable(file, value, f"{where}: its {name}")
    lists: dict[str, Any] = {}
    for name in ("answers", "original_answers", "choices"):
        value = getattr(given, name)
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            raise file.error(f"{where}: its {name} are {value!r:.60}; give a tuple of texts")
        for text in value:
            _encodable(file, text, f"{where}: one of its {name}")
        lists[name] = tuple(value)
    example = replace(given, **lists)
    if example.kind != (kind := kind_of(file)):
        raise file.error(f"{where} is a {example.kind!r:.60}, the file's KIND is {kind!r}; give both the same")
    if not example.question.strip():
        raise file.error(f"{where} has no question")
    scored = file.value("score") is not None
    if not any(answer.strip() for answer in example.answers) and (kind != "question" or not scored):
        own = ", or define score(text, example)" if kind == "question" else ""
        raise file.error(f"{where} has no answer; give the accepted ones{own}")
    if kind == "choice" and (len(example.choices) != 2 or example.answers[0] not in example.choices):
        raise file.error(f"{where}: its choices are {example.choices!r:.80}; give two, one of them the answer")
    _try_prompts(file, example, where)
    return example


def _try_prompts(file: PythonFile, example: Example, where: str) -> None:
    """Errors: `InputError` for a template that cannot be filled, or that leaves the document out."""
    try:
        prompt = example.prompt
        _ = example.prompt_without_context
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise file.error(
            f"{where}: its template cannot be filled ({reason}); its fields are {{context}}, {{question}} and "
            "{choices}, other braces are doubled"
        ) from error
    if example.context and (example.context not in prompt or "{context}" not in (example.template or "{context}")):
        raise file.error(f"{where}: its template has no {{context}}, so the prompt lacks the document")


def _encodable(file: PythonFile, text: str, what: str) -> None:
    if half := half_character(text):
        raise file.error(f"{what} is not text ({half})")
