"""MemoTrap (liujch1998/memo-trap): an instruction that contradicts a familiar ending, and two candidates.

`memotrap` is the paper's form, 936 rows of two parts (the Inverse Scaling release). `memotrap_full` is the whole set,
2,539 rows of four parts, read from the folder of its four CSV files. As in the paper's code, the prompt is split at
its first colon into instruction and sentence, and the final punctuation of candidates is removed
(IAAR-Shanghai/FastMem `src/utils.py`, `data_format`). Two of the parts have another form and are split elsewhere:

- translations (`... into English.\\nTEXT\\nto:\\nSENTENCE`): the instruction is the text before `to:`;
- history of science (`QUESTION\\nA. ONE\\nB. TWO\\nAnswer:`): the candidates are the two statements, not their letters
  (scoring drops the article "a", and every reply contains an empty gold answer); the sentence is `Answer:`.

In six of the 936 rows (twelve of the 2,539) the candidates differ only in letter case. These rows are kept.
"""

import re
import string

from fastmem.errors import TaskError
from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Hub, Row
from fastmem.lab.tasks.row_schema import Schema, as_list, text

# The commit that added the `memo-trap` folder (the hub's commit page, 2023-12-13); its one split is called `data`.
HUB = Hub(
    "pminervini/inverse-scaling",
    split="data",
    revision="5eb9b1cfdcca8c30e7e357d454cfbf30b0df4fc0",
    config="memo-trap",
)

_PARTS = {1: "proverb-ending", 3: "hate-speech-ending"}  # column `part` of the 936 rows
_SCIENCE = re.compile(r"(?P<instruction>.+)\nA\. (?P<first>.+)\nB\. (?P<second>.+)\n(?P<sentence>Answer:)", re.DOTALL)


def parse(row: Row) -> Example:
    """The example of a row. Errors: `TaskError` if the prompt cannot be split or does not have two candidates."""
    prompt, candidates = text(row, "prompt"), as_list(row.values["classes"])
    if science := _SCIENCE.fullmatch(prompt):
        instruction, sentence = science["instruction"].strip(), science["sentence"]
        candidates = [science["first"], science["second"]]
    elif "\nto:\n" in prompt:
        instruction, sentence = (part.strip() for part in prompt.split("\nto:\n", 1))
    elif ":" in prompt:
        instruction, sentence = (part.strip() for part in prompt.split(":", 1))
        instruction += "."
    else:
        raise TaskError(
            f"{row.where}: the prompt has no colon to split instruction and sentence at; found {prompt!r:.60}."
        )
    choices = tuple(str(candidate).strip().rstrip(string.punctuation) for candidate in candidates)
    if len(choices) != 2 or not all(choices):
        raise TaskError(f"{row.where}: 'classes' must be two candidates; found {row.values['classes']!r:.60}.")
    index = str(row.values["answer_index"])
    if index not in ("0", "1"):
        raise TaskError(f"{row.where}: 'answer_index' must be 0 or 1; found {index!r:.60}.")
    gold, other = choices[int(index)], choices[1 - int(index)]
    return Example("", "choice", instruction, sentence, (gold,), (other,), choices, subset=_subset(row))


def _subset(row: Row) -> str:
    """The part, e.g. `proverb-ending`: from the column `part`, or from a file name such as `1-proverb-ending.csv`."""
    part = str(row.values.get("part", ""))
    if part.isdigit():
        return _PARTS.get(int(part), part)
    name = re.fullmatch(r"\d+-(.+)", row.path.stem) if row.path else None
    return name[1] if name else ""


SCHEMAS = (Schema("the publisher's", ("prompt", "classes", "answer_index"), parse),)
