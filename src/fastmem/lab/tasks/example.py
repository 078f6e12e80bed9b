"""`Example`: one row of a task, with its prompts with and without the document.

The prompts are those of the paper's code (arXiv 2406.16069, IAAR-Shanghai/FastMem `src/train_and_inference.py`), as
user turns without chat markup. This module reads no files and needs no model.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from fastmem.encoding import encoded
from fastmem.errors import InputError

if TYPE_CHECKING:
    from fastmem.prompts import Tokens

Kind = Literal["question", "choice", "summary"]

_CHOOSE = (
    "Please choose the candidate that best fits the instructions and provide the answer in the following format: "
    '"The answer is: ...".\n'
)


@dataclass(frozen=True)
class Example:
    """A row of any task.

    id: unique within its task; the same row of `nq` and `nq_swap` (or `hotpotqa` and `hotpotqa_titles`) has one id.
    kind: "question" (answer from a passage), "choice" (MemoTrap: two candidates), "summary".
    context: the text that is memorized: the passage, the article, or MemoTrap's instruction sentence. Empty for
        questions that are asked without one (`world_open`).
    question: the question; MemoTrap: the sentence to be completed; summaries: the instruction.
    answers: the accepted answers; for summaries the one reference.
    original_answers: the answers the model is expected to remember instead; empty if unknown.
    choices: the two candidates of "choice", otherwise empty.
    group: shared by rows that ask the same question; splits and intervals are made by group. Empty: the id.
    subset: the part of the data set, if it has parts (MemoTrap), otherwise empty.
    template: the user turn with `{context}` and `{question}` (for "choice" also `{choices}`), for tasks with a wording
        of their own. Empty: the paper's prompt for the kind.
    template_without_context: the same without the document, for contrasts of prompts (CAD). Empty: `template` with
        nothing in place of the document.
    """

    id: str
    kind: Kind
    context: str
    question: str
    answers: tuple[str, ...]
    original_answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    group: str = ""
    subset: str = ""
    template: str = ""
    template_without_context: str = ""

    @property
    def record(self) -> dict[str, Any]:
        """The fields as a run records them: templates only where there are any."""
        return {name: value for name, value in asdict(self).items() if value or not name.startswith("template")}

    @property
    def reference(self) -> str:
        """The reference summary; for other kinds the first answer."""
        return self.answers[0]

    @property
    def prompt(self) -> str:
        """The user turn with the document."""
        from fastmem.prompts import question_alone, question_prompt  # imports torch, which regrading does not need

        if self.template:
            return self._filled(self.template, self.context)
        if self.kind != "question":
            return f"{self.opening}{self.context}\n{self.question if self.kind == 'summary' else self._sentence}"
        return question_prompt(self.context, self.question) if self.context else question_alone(self.question)

    @property
    def opening(self) -> str:
        """What stands before the document in `prompt`."""
        from fastmem.prompts import QUESTION_OPENING

        if self.template:
            return self._filled(self.template.partition("{context}")[0], self.context)
        openings = {"summary": "Article: ", "choice": f"{_CHOOSE}Instruction: ", "question": QUESTION_OPENING}
        return openings[self.kind]

    def in_place(self, tokenizer: Any) -> "Tokens":
        """The prompt as it is memorized and answered with the placement "prompt". Errors: `InputError`."""
        from fastmem.prompts import in_place

        return in_place(tokenizer, self.prompt, self.context, len(self.opening))

    @property
    def prompt_without_context(self) -> str:
        """The user turn without the document, for contrasts of prompts (CAD).

        Questions: `Question: ...?` alone. Summaries: the instruction alone. MemoTrap: the prompt without its
        `Instruction:` line, because the instruction is what is memorized.
        """
        from fastmem.prompts import question_alone

        if self.template:
            return self._filled(self.template_without_context or self.template, "")
        if self.kind == "summary":
            return self.question
        return f"{_CHOOSE}{self._sentence}" if self.kind == "choice" else question_alone(self.question)

    def _filled(self, template: str, context: str) -> str:
        return template.format(context=context, question=self.question, choices=self._candidates)

    @property
    def _sentence(self) -> str:
        return f"Sentence: {self.question}\nCandidates: {self._candidates}"

    @property
    def _candidates(self) -> str:
        return " or ".join(f'"{choice}"' for choice in self.choices)


Value = float | bool | None  # of a score; None where it is missing or does not apply
# (raw answer, its example) -> name -> score, the main one first. The answer of a row with an error is empty.
Score = Callable[[str, Example], dict[str, Value]]


@dataclass(frozen=True)
class Shot:
    """A worked example and a reply in the requested form."""

    example: Example
    reply: str


def messages(example: Example, *, shot: Shot | None = None, with_context: bool = True) -> list[dict[str, str]]:
    """The conversation that asks `example`, after a worked example if a `shot` is given (the paper's Table 2).

    with_context: False leaves out the documents of both, so the two sides of a contrast differ in documents only.
    """

    def turn(row: Example) -> dict[str, str]:
        return {"role": "user", "content": row.prompt if with_context else row.prompt_without_context}

    earlier = [] if shot is None else [turn(shot.example), {"role": "assistant", "content": shot.reply}]
    return [*earlier, turn(example)]


def cut(example: Example, max_tokens: int, tokenizer: Any) -> Example:
    """`example` with its context cut to its first `max_tokens` tokens; question and instruction stay whole.

    tokenizer: a Hugging Face tokenizer. If it reports offsets, the cut context is an exact prefix of the original,
    otherwise decoded tokens. MemoTrap's context is the instruction and is never cut. The paper's limit is 7,500 tokens
    (IAAR-Shanghai/FastMem, `doc_token`). Errors: `InputError` for a limit below 1.
    """
    if max_tokens < 1:
        raise InputError(f"a context is cut to at least 1 token; given {max_tokens}.")
    if example.kind == "choice" or not example.context:
        return example
    if getattr(tokenizer, "is_fast", False):
        found = encoded(tokenizer, example.context, add_special_tokens=False, return_offsets_mapping=True)
        offsets = found["offset_mapping"]
        if len(offsets) <= max_tokens:
            return example
        # The tokens of one character all end where it ends, so stop before the first token that is left out.
        end = min(offsets[max_tokens - 1][1], max(offsets[max_tokens][0], 1))
        return replace(example, context=example.context[:end])
    ids = encoded(tokenizer, example.context, add_special_tokens=False)["input_ids"]
    return example if len(ids) <= max_tokens else replace(example, context=tokenizer.decode(ids[:max_tokens]))
