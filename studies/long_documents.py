"""A long document: is it memorized at once, in parts with a memory each, or by its most surprising part?

    python -m studies.long_documents --output rows.jsonl                        # the embedded model, world_swap
    python -m studies.long_documents --task nq_swap --data FILE --model nq-mini --tokens 300 --output rows.jsonl
    python -m studies.long_documents --table --output rows.jsonl                # the table of all rows so far

**Question.** A document of several hundred tokens answers one question with one of its sentences. Which memory makes
the model read that sentence, and at what cost?

**Design.** The contexts of several examples are joined by empty lines, that of the question at a random place, until
the document has about `--tokens` tokens. A context that names an answer of the question, swapped or remembered, or
tells of its subject, is not among the others. Rows are those for development (`dev` of the embedded world). Every
question is asked with every prompt and memory below, so all comparisons are paired:

- prompt: the `whole` document (cut to the model's positions where it is longer), or `part N`: of its parts of at most
  N tokens (`fastmem.documents.document_parts`) the one that shares most words with the question (BM25); left out if
  none shares a word, as `fastmem ask` refuses such a question.
- memory: `none`; `whole`, the document at once; `part N`, that part alone; `surprising S`, a trunk pass over the whole
  document, then steps on only the sentences with the highest mean surprisal, until they have the share S of its
  tokens; `random S`, as many tokens in randomly chosen sentences, to see whether surprisal is what matters.

Costs are scored tokens x passes over them (a step is one; choosing by surprisal takes one over all of them), for one
question. All parts of a document together cost what the whole document costs.

**Decision rule**, written before the first run. Memories are compared at equal prompts. The questions are halved as in
`fastmem check`: on one half the best N and the best S are chosen, the other half judges them. A way is better than
memorizing the whole document if the 95 % interval of the paired difference (bootstrap) lies above 0; it is as good if
the interval lies above -0.05. Offered is the better one; of two that are as good, the cheaper one. That a part is
*in the prompt* is an effect of its own, which `part N` with memory `none` shows. (The comparison of a part that is
memorized and in the prompt with the whole document in both places was added after the first table.)

The rows of `--output` are JSON lines, written as they come; the same command goes on where it was stopped.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch

from fastmem import FastMem, Memory, Recipe, Tokens
from fastmem.answer.cache import PrefixCache
from fastmem.answer.detokenize import Detokenizer
from fastmem.documents import document_parts, fitting_part, sentences, word_scores
from fastmem.lab.report.content import mean_text
from fastmem.lab.run.run_files import Appender, Record, complete_rows
from fastmem.lab.scores.qa import paper_correct, paper_normalize
from fastmem.lab.scores.statistics import compare, mean
from fastmem.lab.search.search import is_searched
from fastmem.lab.tasks import Example, embedded_world, load
from fastmem.learn.surprisal import token_surprisals
from fastmem.prompts import question_prompt, token_count

NEW_TOKENS = 32


@dataclass(frozen=True)
class Made:
    """A memory and its cost. tokens: that are scored in each step. passes: tokens x passes over them."""

    of: str
    recipe: str
    memory: Memory
    tokens: int
    passes: int

    def record(self) -> Record:
        """Without the weights."""
        return {"memory": self.of, "recipe": self.recipe, "tokens": self.tokens, "passes": self.passes}


def long_document(llm: FastMem, examples: Sequence[Example], number: int, tokens: int) -> str:
    """The context of one example among others, about `tokens` tokens in all; random only by the number."""
    own, random = examples[number], Random(number)
    named = [paper_normalize(answer) for answer in (*own.answers, *own.original_answers)]
    chosen, room = [own.context], tokens - token_count(llm.tokenizer, own.context)
    for other in random.sample(examples, len(examples)):
        size, text = token_count(llm.tokenizer, other.context), paper_normalize(other.context)
        if _subject(other) == _subject(own) or size > room or any(answer in text for answer in named):
            continue
        chosen.insert(random.randint(0, len(chosen)), other.context)
        room -= size
    return "\n\n".join(chosen)


def _subject(example: Example) -> str:
    """What an example is about: in the embedded world its fact's subject, elsewhere its question."""
    return example.group.rsplit("/", 1)[-1]


def with_sentences_scored(llm: FastMem, document: str, tokens: Tokens, order: Sequence[int], share: float) -> Tokens:
    """The same tokens, of which only those of some sentences are scored: the first of `order` up to a share of all.

    document: the text of the tokens. The end of the turn belongs to the last sentence.
    """
    numbers = sentence_numbers(llm, document, tokens)
    wanted, kept = share * int(tokens.scored.sum()), torch.zeros_like(tokens.scored)
    for number in order:
        kept |= numbers == number
        if int(kept.sum()) >= wanted:
            break
    return Tokens(tokens.ids, kept)


def sentence_numbers(llm: FastMem, document: str, tokens: Tokens) -> torch.Tensor:
    """[S]: the number of the sentence in which each scored token ends; -1 for other tokens."""
    ends, total = [], 0
    for sentence in sentences(document):
        total += len(sentence)
        ends.append(total)
    text, numbers, at, number = Detokenizer(llm.tokenizer), torch.full_like(tokens.ids, -1), 0, 0
    for place in tokens.scored.nonzero()[:, 0].tolist():
        at += len(text.add(int(tokens.ids[place])))
        while number < len(ends) and at > ends[number]:
            number += 1
        if number == len(ends):
            break
        numbers[place] = number
    return numbers


def by_surprisal(llm: FastMem, document: str, tokens: Tokens) -> list[int]:
    """The sentences, most surprising first: the mean surprisal of their tokens under the untouched model."""
    numbers = sentence_numbers(llm, document, tokens)[tokens.scored]
    surprisals = token_surprisals(llm.split_model, llm.read(tokens)).cpu()
    means = {n: float(surprisals[numbers == n].mean()) for n in numbers.unique().tolist() if n >= 0}
    return sorted(means, key=lambda n: -means[n])


def memories(llm: FastMem, document: str, parts: dict[str, str], given: argparse.Namespace) -> Iterator[Made]:
    """The memories of one document, one by one. parts: the fitting part of each size."""
    tokens = llm.memory_tokens(document, llm.recipe, truncate=True)
    end = "" if llm.tokenizer.eos_token is None else llm.tokenizer.eos_token
    text = llm.tokenizer.decode(tokens.ids[tokens.scored]).removesuffix(end)
    everything = int(tokens.scored.sum())
    found = {"whole": (tokens, 0)} | {name: (llm.memory_tokens(part), 0) for name, part in parts.items()}
    surprising = by_surprisal(llm, text, tokens)
    shuffled = Random(text).sample(surprising, len(surprising))
    for share in given.shares:
        chosen = with_sentences_scored(llm, text, tokens, surprising, share)
        found[f"surprising {share:g}"] = (chosen, everything)
        found[f"random {share:g}"] = (with_sentences_scored(llm, text, tokens, shuffled, share), 0)
    for name, recipe in recipes(llm, given).items():
        for of, (document_tokens, choosing) in found.items():
            scored = int(document_tokens.scored.sum())
            made = llm.memorize(document_tokens, recipe)
            yield Made(of, name, made, scored, scored * recipe.steps + choosing)


def recipes(llm: FastMem, given: argparse.Namespace) -> dict[str, Recipe]:
    """By name: "10 x 0.0005" has ten steps at that rate."""
    made = {}
    for text in given.recipes.split(","):
        steps, rate = text.split("x")
        made[f"{int(steps)} x {float(rate):g}"] = replace(llm.recipe, steps=int(steps), learning_rate=float(rate))
    return made


def cells(llm: FastMem, example: Example, document: str, given: argparse.Namespace) -> list[Record]:
    """The answers to one question, with every prompt and memory."""
    parts, positions = {}, llm.split_model.max_positions
    for most in given.parts:
        cut = document_parts(document, most, lambda text: token_count(llm.tokenizer, text))
        if len(cut) > 1 and any(word_scores(example.question, cut)):
            parts[f"part {most}"] = cut[fitting_part(example.question, cut)]

    def ids(text: str) -> Tokens:
        return Tokens(llm.ids(question_prompt(text, example.question)))

    whole, _ = llm.preparer.fitting(document, ids, None if positions is None else positions - NEW_TOKENS)
    texts = {"whole": whole} | parts
    made = list(memories(llm, document, parts, given))
    found = []
    llm.prefixes.clear()
    for prompt, text in texts.items():
        used = [one for one in made if prompt == "whole" or one.of in (prompt, "whole")]
        # The first answer leaves keys and values of the prompt, which serve all others.
        answers = [llm.generate(ids(text), max_new_tokens=NEW_TOKENS)]
        answers += llm.generate([ids(text)] * len(used), [one.memory for one in used], max_new_tokens=NEW_TOKENS)
        for one, answer in zip([None, *used], answers, strict=True):
            cell = {"prompt": prompt} | (
                {"memory": "none", "recipe": "", "tokens": 0, "passes": 0} if one is None else one.record()
            )
            right, remembered = (
                paper_correct(answer.text, accepted) for accepted in (example.answers, example.original_answers)
            )
            found.append(cell | {"right": right, "remembered": remembered, "text": answer.text})
            found[-1] |= {"prompt_tokens": answer.prompt_tokens, "holds_answer": _holds(text, example)}
    for one in made:
        llm.release(one.memory)
    return found


def _holds(text: str, example: Example) -> bool:
    return paper_correct(f"The answer is: {text}", example.answers)


def run(given: argparse.Namespace) -> None:
    """Ask what has not been asked yet."""
    llm = FastMem.from_pretrained(given.model, dtype=given.dtype)
    llm.prefixes = PrefixCache(2**28)
    world = given.task in embedded_world.TASKS
    examples = load(given.task, given.data, split="dev" if world else None).examples
    once = list({e.group: e for e in reversed(examples)}.values())[::-1]  # each question once
    setting = {"model": llm.name.rstrip("/").rsplit("/", 1)[-1], "digest": llm.base().digest, "task": given.task}
    setting |= {name: getattr(given, name) for name in ("tokens", "parts", "shares", "recipes")}
    with Appender(given.output) as file:
        done = {row["id"] for row in file.rows if row["setting"] == setting}
        for number, example in enumerate(once[: given.limit]):
            if example.id in done:
                continue
            document = long_document(llm, once, number, given.tokens)
            row = {
                "setting": setting,
                "id": example.id,
                "group": example.group,
                "document": token_count(llm.tokenizer, document),
            }
            file.append(row | {"cells": cells(llm, example, document, given)})
            print(f"\r{number + 1} of {given.limit} questions", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


Cell = tuple[str, str, str]  # prompt, memory, recipe
HEADER = "| prompt | memory | recipe | right | less none | less the whole document | holds answer | tokens | passes |"


def print_table(rows: Sequence[Record]) -> None:
    """The means over all questions of one setting, and what the halves decide."""
    setting, groups = rows[0]["setting"], [row["group"] for row in rows]
    length = sum(row["document"] for row in rows) / len(rows)
    title = f"{setting['model']}, {setting['task']}, documents of {length:.0f} tokens, {len(rows)} questions"
    columns = {key: [_cell(row, key) for row in rows] for key in _keys(rows)}
    if lacking := sum(None in cells for cells in zip(*columns.values(), strict=True)):
        title += f"; {lacking} of them lack a part, since none shares a word with them or the document is one"
    print(f"\n{title}\n\n{HEADER}\n{'|---' * (HEADER.count('|') - 1)}|")
    for key, found in columns.items():
        prompt, memory, recipe = key
        right = _values(found, "right")
        shown = [mean_text(mean(right, groups))]
        for other in ((prompt, "none", ""), (prompt, "whole", recipe)):
            against = None if other == key or not recipe else _values(columns[other], "right")
            shown.append("" if against is None else mean_text(compare(against, right, groups).difference, "+"))
        means = [f"{mean(_values(found, name)).value:.3g}" for name in ("holds_answer", "tokens")]
        passes = mean(_values(found, "passes")).value
        print(f"| {' | '.join([prompt, memory, recipe, *shown, *means])} | {passes:.0f} |")
    print("\n" + "\n".join(f"- {line}" for line in decide(columns, groups)))


def decide(columns: Mapping[Cell, Sequence[Record | None]], groups: Sequence[str]) -> list[str]:
    """One half chooses the best N and S for every recipe, the other half compares it with the whole document.

    The last way, a part memorized and in the prompt, has another prompt: it is what `--part-tokens` does.
    """
    searched, said = [is_searched(group) for group in groups], []
    for recipe in sorted({recipe for _, _, recipe in columns if recipe}):
        whole, own = columns["whole", "whole", recipe], [key for key in columns if key[2] == recipe]
        ways = {
            "part": [key for key in own if key[0] == "whole" and key[1].startswith("part")],
            "surprising": [key for key in own if key[0] == "whole" and key[1].startswith("surprising")],
            "part, alone in the prompt": [key for key in own if key[0] == key[1] != "whole"],
        }
        for way, keys in ways.items():
            if not keys:
                continue
            best = max(keys, key=lambda key: _right(columns[key], searched))
            pairs = [
                (a["right"], b["right"], group)
                for a, b, group, chooses in zip(whole, columns[best], groups, searched, strict=True)
                if a and b and not chooses
            ]
            if pairs:
                first, second, judged = map(list, zip(*pairs, strict=True))
                found = compare(first, second, judged)
                text = f"{mean_text(found.difference, '+')} on {found.n} questions of the other half"
                said.append(f"{recipe}, {way}: {best[1]} less the whole document {text}")
    return said


def _values(column: Sequence[Record | None], name: str) -> list[float | bool | None]:
    return [None if one is None else one[name] for one in column]


def _right(column: Sequence[Record | None], wanted: Sequence[bool]) -> float:
    values = [one["right"] for one, chosen in zip(column, wanted, strict=True) if one and chosen]
    return sum(values) / max(len(values), 1)


def _keys(rows: Sequence[Record]) -> list[Cell]:
    return list(dict.fromkeys((c["prompt"], c["memory"], c["recipe"]) for row in rows for c in row["cells"]))


def _cell(row: Record, key: Cell) -> Record | None:
    return next((c for c in row["cells"] if (c["prompt"], c["memory"], c["recipe"]) == key), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="folder or hub id; the embedded model if left out")
    parser.add_argument("--dtype", help="as in transformers; the checkpoint's if left out")
    parser.add_argument("--task", default="world_swap")
    parser.add_argument("--data", type=Path, help="rows for development; the embedded world has its own")
    parser.add_argument("--tokens", type=int, default=300, help="length of a document")
    parser.add_argument("--parts", type=int, nargs="*", default=[100, 200, 400], help="most tokens of a part")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.25, 0.5], help="shares of the tokens")
    parser.add_argument("--recipes", default="10x2e-3,3x6e-3", help="steps x learning rate")
    parser.add_argument("--limit", type=int, default=200, help="questions")
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines, a question each")
    parser.add_argument("--table", action="store_true", help="only print the tables of all rows in the file")
    given = parser.parse_args()
    if not given.table:
        run(given)
    by_setting: dict[str, list[Record]] = {}
    for row in complete_rows(given.output)[1]:
        by_setting.setdefault(json.dumps(row["setting"]), []).append(row)
    for rows in by_setting.values():
        print_table(rows)


if __name__ == "__main__":
    main()
