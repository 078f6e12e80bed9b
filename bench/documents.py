"""Several documents: memorized together, one memory each and one picked per question, or differences combined.

    python bench/documents.py                                                # the embedded model on world_swap
    python bench/documents.py --task nq_swap --data rows.json --model FOLDER --dtype float32

Neighbouring rows form groups of `--count` documents. Asked is, greedy and graded by the paper's rule:

- with the question's own document in the prompt (somebody else has found it): a memory of it alone, of all the group's
  documents together, the group's memories averaged or added;
- with all documents of the group in the prompt;
- with the document that was picked, and its memory. Ways to pick: `words`, BM25 over lower-case words; `memory`, the
  memory under which the question alone is least surprising (one trunk pass, one tail per memory); `in context`, the
  document after which the untouched model finds the question least surprising (one forward pass per document).

The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from fastmem import FastMem, Memory
from fastmem.documents import word_scores
from fastmem.errors import InputError
from fastmem.lab.tasks import Example
from fastmem.learn.surprisal import token_surprisals
from fastmem.prompts import Tokens, in_place, memory_tokens, question_alone, question_prompt, with_mark
from memory_rows import Kept, Measured, Rows, interval, rows_of

PICKS = "| among | picked by | the right one |\n|---|---|---|"
HEADER = "| prompt | memory | accuracy |\n|---|---|---|"


def combined(memories: Sequence[Memory], weight: float) -> Memory:
    """The weighted sum of full memories."""
    tensors = {name: weight * torch.stack([m.tensors[name] for m in memories]).sum(0) for name in memories[0].tensors}
    return replace(memories[0], tensors=tensors)


def by_words(question: str, documents: Sequence[str]) -> int:
    """As `fastmem ask --documents` picks: BM25."""
    scores = word_scores(question, documents)
    return max(range(len(scores)), key=scores.__getitem__)


def by_memory(llm: FastMem, question: str, memories: Sequence[Memory]) -> int:
    """The memory under which the question alone is least surprising."""
    tokens = memory_tokens(llm.tokenizer, question_alone(question), "user")
    return _least(llm, tokens, memories)


def by_context(llm: FastMem, question: str, documents: Sequence[str]) -> int:
    """The document after which the untouched model finds the question least surprising."""
    losses = []
    for document in documents:
        prompt, marked = question_prompt(document, question), with_mark(question)
        tokens = in_place(llm.tokenizer, prompt, marked, prompt.rindex(marked))
        losses.append(token_surprisals(llm.split_model, llm.read(tokens)).mean().item())
    return min(range(len(losses)), key=losses.__getitem__)


def _least(llm: FastMem, tokens: Tokens, memories: Sequence[Memory]) -> int:
    reading = llm.read(tokens)
    losses = []
    for memory in memories:
        losses.append(token_surprisals(llm.split_model, reading, llm.ffn(memory)).mean().item())
        llm.release(memory)
    return min(range(len(losses)), key=losses.__getitem__)


def picks(rows: Rows, memories: Sequence[Memory], count: int, ways: Sequence[str]) -> dict[str, list[int]]:
    """Way -> the row whose document was picked for each question, among the `count` documents of its group."""
    found: dict[str, list[int]] = {way: [] for way in ways}
    for i, example in enumerate(rows.examples):
        group = _group(i, count, len(rows.examples))
        texts, own = [rows.examples[j].context for j in group], [memories[j] for j in group]
        for way in ways:
            if way == "words":
                at = by_words(example.question, texts)
            elif way == "memory":
                at = by_memory(rows.llm, example.question, own)
            else:
                at = by_context(rows.llm, example.question, texts)
            found[way].append(group[at])
    return found


def _group(row: int, count: int, rows: int) -> range:
    start = row // count * count
    return range(start, min(start + count, rows))


def together(rows: Rows, count: int, steps: int) -> list[Memory]:
    """For each row the memory of all the documents of its group, joined by empty lines."""
    made: dict[int, Memory] = {}
    recipe = replace(rows.llm.recipe, steps=steps)
    for i in range(0, len(rows.examples), count):
        group = _group(i, count, len(rows.examples))
        text = "\n\n".join(rows.examples[j].context for j in group)
        memory = rows.llm.memorize(text, recipe, truncate=True)
        made |= dict.fromkeys(group, memory)
    return [made[i] for i in range(len(rows.examples))]


def asked(examples: Sequence[Example], documents: Sequence[str]) -> list[str]:
    """The questions, with these documents in their prompts."""
    return [question_prompt(text, e.question) for e, text in zip(examples, documents, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="folder or hub id; the embedded model if left out")
    parser.add_argument("--dtype", help="as in transformers; the checkpoint's if left out")
    parser.add_argument("--task", default="world_swap")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--count", type=int, default=4, help="documents of a group")
    parser.add_argument("--among", type=int, default=20, help="pick among so many, too; only counted")
    parser.add_argument("--picks", action="store_true", help="count the picks and ask nothing")
    parser.add_argument("--learning-rate", type=float, help="the model's own recipe's if left out")
    parser.add_argument("--kept", type=Path, help="file of finished measurements, for runs in pieces")
    given = parser.parse_args()
    llm, kept = FastMem.from_pretrained(given.model, dtype=given.dtype), Kept(given.kept)
    llm.recipe = replace(llm.recipe, learning_rate=given.learning_rate or llm.recipe.learning_rate)
    found = rows_of(given.task, given.data, given.limit, 1)[0]
    rows = Rows(llm, list({e.group or e.id: e for e in reversed(found)}.values())[::-1])  # each question once
    examples, count = rows.examples, given.count
    groups = [_group(i, count, len(examples)) for i in range(len(examples))]
    key = [llm.base().digest, given.task, len(examples), count, asdict(llm.recipe)]
    own, _ = rows.memorize(llm.recipe)
    contexts = [e.context for e in examples]
    everything = ["\n\n".join(contexts[j] for j in group) for group in groups]
    print(PICKS)
    ways, shares = ("words", "memory", "in context"), {}
    picked = picks(rows, own, count, ways)
    for among, found in ((count, picked), (given.among, picks(rows, own, given.among, ways[:2]))):
        for way, at in found.items():
            right = Measured("".join("01"[j == i] for i, j in enumerate(at)), 0.0, 0, 0.0)
            print(f"| {among} | {way} | {interval(right, rows.groups)} |", flush=True)
            shares[f"{way} of {among}"] = right.right
    if given.picks:
        return
    print("\n" + HEADER)
    results = {}

    def line(prompt: str, memory: str, memories: Sequence[Memory] | None, documents: Sequence[str]) -> None:
        try:
            measured = kept.get(
                [*key, prompt, memory], lambda: Measured(rows.right(asked(examples, documents), memories), 0.0, 0, 0.0)
            )
        except InputError as error:  # all documents at once are too long for the model's positions
            print(f"| {prompt} | {memory} | {error} |", flush=True)
            return
        print(f"| {prompt} | {memory} | {interval(measured, rows.groups)} |", flush=True)
        results[f"{prompt}: {memory}"] = measured.right

    line("own document", "none", None, contexts)
    line("own document", "its own", own, contexts)
    few, many = llm.recipe.steps, llm.recipe.steps * count
    joined = together(rows, count, many)
    line("own document", f"{count} together, {few} steps", together(rows, count, few), contexts)
    line("own document", f"{count} together, {many} steps", joined, contexts)
    for name, weight in (("averaged", 1 / count), ("added", 1.0)):
        line("own document", f"{count} {name}", [combined([own[j] for j in g], weight) for g in groups], contexts)
    line(f"all {count}", "none", None, everything)
    line(f"all {count}", "of the own document", own, everything)
    line(f"all {count}", f"{count} together, {many} steps", joined, everything)
    for way, at in picked.items():
        line("the picked one", f"picked by {way}", [own[j] for j in at], [contexts[j] for j in at])
    print(json.dumps({"task": given.task, "rows": len(examples), "picked": shares, "right": results}))


if __name__ == "__main__":
    main()
