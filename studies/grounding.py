"""Is an answer grounded in the document? A score from the two tails, against the answer's own probability.

    python -m studies.grounding --output DIR/embedded --part dev
    python -m studies.grounding --model nq-mini --data nq_swap_dev_333.json --output DIR/nq-mini --part dev

and the same with `--part test`. `grounding_table.py` prints the tables from DIR.

Question. A memory is another last FFN on the same trunk, so every answer can be scored by both tails, the memorized
and the original one, without a second model. Does what the tails say together tell, better than the answer's own
probability, whether the answer is what the document says?

Design. Every row is answered by `fastmem`, greedy, with a memory of its document. The answer is then scored three
times: with the memory, without it, and without it and without the document in the prompt. A row of the output holds,
for every token of the answer's content (what follows "The answer is:", without final punctuation and without the end
token), the three log-probabilities and the Jensen-Shannon divergence of the two tails. `grounding_table.py` has the
scores.
Rows: documents that contradict what the model knows, that agree, that are irrelevant (they hold neither subject nor
answer; on NQ the passage of another question), and, in the embedded world, that name the answer before the subject
("turned"). Up to 200 development and 500 test rows of each kind; nq-mini has 116 and 181.
Labels:
(a) right: the answer is what the document says. An irrelevant document does not say it, so no answer to it is right.
(b) from the document rather than from memory: contradicting and turned rows that were answered with one of the two.
(c) answerable: the document holds the fact (all kinds but irrelevant).

Decision, written before any row was answered. Of the candidates, with either sign, the one with the highest AUROC for
(a) on development rows, as the mean of both models, is the score. It becomes a part of the product only if, on test
rows, its AUROC for (a) exceeds that of the better of the two plain probabilities (mean and least log-probability of a
token; the better one on development rows) with a 95 % interval of the paired difference above 0 on both models, and if
for (b) and (c) no such interval lies below 0. Otherwise the page of results is all.

Rows are written as they are answered; a second call continues. The kinds take turns, so an unfinished file has all.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastmem import FastMem, Memory
from fastmem.lab.run.run_files import Appender
from fastmem.lab.scores.grading import graded
from fastmem.lab.tasks import Example
from studies import study_rows
from studies.study_rows import NEW_TOKENS, NQ_LEARNING_RATE, Row

ROWS = {"dev": 200, "test": 500}
KINDS = ("contradicts", "agrees", "irrelevant", "turned")


def content(tokenizer: Any, answer: Sequence[int]) -> slice:
    """Which tokens of an answer are its content: what follows "The answer is:", up to the last letter or digit.

    All of the answer if nothing would be left.
    """
    texts = [tokenizer.decode(answer[: n + 1], skip_special_tokens=True) for n in range(len(answer))]
    start = next((n + 1 for n, text in enumerate(texts) if text.lower().rstrip().endswith("answer is:")), 0)
    ends = [
        n + 1
        for n, token in enumerate(answer)
        if any(letter.isalnum() for letter in tokenizer.decode([token], skip_special_tokens=True))
    ]
    return slice(start, ends[-1]) if ends and ends[-1] > start else slice(0, len(answer))


def divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """[T]: the Jensen-Shannon divergence in nats of two rows of log-probabilities [T, V]."""
    middle = torch.logaddexp(first, second) - torch.log(torch.tensor(2.0))
    halves = [(one.exp() * (one - middle)).sum(-1) for one in (first, second)]
    return (halves[0] + halves[1]) / 2


def log_probabilities(llm: FastMem, prompt: torch.Tensor, answer: torch.Tensor, memory: Memory | None) -> torch.Tensor:
    """[T, V]: of every next token where the T tokens of the answer stand."""
    logits = llm.logits(torch.cat([prompt, answer]), memory)
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def token_scores(llm: FastMem, example: Example, answer: Sequence[int], memory: Memory) -> list[list[float]]:
    """For every token of the content: its log-probability with the memory, without it, and without memory and
    document; and the divergence of the first two."""
    ids, chosen = torch.tensor(answer), content(llm.tokenizer, answer)
    prompt, alone = llm.ids(example.prompt), llm.ids(example.prompt_without_context)
    memorized, original = (log_probabilities(llm, prompt, ids, one) for one in (memory, None))
    without = log_probabilities(llm, alone, ids, None)
    columns = [one.gather(1, ids[:, None])[:, 0] for one in (memorized, original, without)]
    columns.append(divergence(memorized, original))
    return [[round(value, 7) for value in token] for token in torch.stack(columns, 1)[chosen].tolist()]


def answered(llm: FastMem, asked: Row) -> dict[str, Any]:
    """One row of the output."""
    kind, example = asked.kind, asked.example
    memory = llm.memorize(example.context)
    answer = llm.generate(example.prompt, memory, "fastmem", max_new_tokens=NEW_TOKENS)
    scores = graded(answer.text, example)
    row = {
        "kind": kind,
        "id": example.id,
        "group": example.group,
        "text": answer.text,
        "right": bool(scores["paper_correct"]) and kind != "irrelevant",
        "remembered": bool(scores["paper_correct"] if kind == "irrelevant" else scores["remembered"]),
        "tokens": token_scores(llm, example, answer.token_ids, memory),
    }
    llm.release(memory)
    return row


def main(arguments: list[str] | None = None) -> None:
    """Answer one part of one model's rows."""
    parser = argparse.ArgumentParser(prog="python -m studies.grounding", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", help="folder or hub id; the embedded model if left out")
    parser.add_argument("--data", type=Path, help="NQ-SWAP rows with the paper's columns; default: the embedded world")
    parser.add_argument("--output", type=Path, required=True, help="folder of this model's results")
    parser.add_argument("--part", choices=("dev", "test"), default="dev")
    parser.add_argument("--limit", type=int, help="rows of each kind; default: 200 on dev, 500 on test")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    llm = FastMem.from_pretrained(args.model, dtype=torch.float32)
    if args.data:
        llm.recipe = replace(llm.recipe, learning_rate=NQ_LEARNING_RATE)
    limit = args.limit or ROWS[args.part]
    wanted = list(study_rows.in_turns(study_rows.rows(args.data, args.part, KINDS, limit)))
    with Appender(args.output / f"{args.part}.jsonl") as file:
        done = {(row["kind"], row["id"]) for row in file.rows}
        for number, row in enumerate(wanted):
            if (row.kind, row.example.id) not in done:
                file.append(answered(llm, row))
                print(f"{args.part}: row {number + 1} of {len(wanted)}", end="\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
