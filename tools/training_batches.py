"""Batches of training documents: rendered by the chat template, tokenized, weighed and padded."""

from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from tools.model_shapes import SPECIAL
from tools.training_mixture import BOTH, FINISH, READ, REMEMBER, TRUST, TURNED, Document, Shares


class Stage(NamedTuple):
    """A part of the training, with its own optimizers."""

    seed: int  # added to --seed
    shares: Shares
    tokens: int
    rates: tuple[float, float]  # multiples of --learning-rate at the start and the end, linear in between
    statement_weight: float = 0.5  # loss weight of plain statements; that of answers is 1
    user_weight: float = 0.25  # loss weight of instructions, contexts and questions
    user_share: float = 1.0  # of the documents with that weight; of the others, it is 0, which saves their head
    answer_first: float = 0.0  # share of the statements that must name the answer before the subject


# Facts come first: two million tokens teach four fifths of them. The model learned to find the answer of the right
# subject among others of its kind only in stage 2, with several questions about one context and a small weight on the
# context itself. Before stage 4 the model believed a contradicting context in 0.23 of the cases, after it in 0.67.
# Stages 5 and 6 add more reading; the answer-first statements of stage 6 reduced wrong spans under FastMem from 14 to
# 7 of 200.
STAGES = (
    Stage(0, REMEMBER, 1_815_552, (1.0, 1.0)),
    Stage(1, READ, 3_217_440, (1.0, 1.0)),
    Stage(2, BOTH, 1_998_592, (0.7, 0.7), 0.25, 0.05),
    Stage(3, BOTH, 1_500_000, (0.7, 0.0), 0.25, 0.05),
    Stage(4, TRUST, 1_200_000, (0.35, 0.0), 0.25, 0.05),
    Stage(5, FINISH, 4_500_000, (0.6, 0.0), 0.25, 0.05),
    Stage(6, TURNED, 2_400_000, (0.5, 0.0), 0.25, 0.05, answer_first=0.5),
)


class Batch(NamedTuple):
    """ids: [B, S], padded on the right. weights: [B, S], the loss weight of each token as a target, 0 for none."""

    ids: torch.Tensor
    weights: torch.Tensor


def render(document: Document) -> str:
    """The text of the chat template for a document; without a user turn, only the assistant turn."""
    turns = [("user", document.user)] if document.user is not None else []
    turns.append(("assistant", document.assistant))
    for question, answer in document.more:
        turns += [("user", question), ("assistant", answer)]
    body = "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in turns)
    return SPECIAL["bos_token"] + body


def rounded(length: int) -> int:
    """`length` rounded up to a multiple of 16: with few shapes, the CPU's kernels are reused."""
    return -(-length // 16) * 16


def batches(
    tokenizer: PreTrainedTokenizerFast, stage: Stage, documents: Iterable[Document], seed: int, batch_tokens: int
) -> Iterator[Batch]:
    """Batches of about `batch_tokens` tokens, of documents of similar length.

    documents: an endless stream of those of the stage. seed: of the run, for the order of the batches.
    """
    header_start, header_end, assistant = tokenizer.convert_tokens_to_ids(
        [SPECIAL["header_start"], SPECIAL["header_end"], "assistant"]
    )

    def weigh(tokens: list[int], answer_weight: float, user_weight: float) -> list[float]:
        """The loss weight of each token: `answer_weight` in assistant turns after the header and its line end."""
        weights, weight = [0.0], user_weight
        for index in range(1, len(tokens)):
            if tokens[index] == header_start:
                weight = user_weight
            elif index > 2 and tokens[index - 2] == header_end and tokens[index - 3] == assistant:
                weight = answer_weight
            weights.append(weight)
        return weights

    stream = iter(documents)
    shuffle = torch.Generator().manual_seed(seed + stage.seed)
    share = Random(seed + stage.seed)
    while True:
        drawn = list(islice(stream, 2048))
        encoded = tokenizer([render(document) for document in drawn], add_special_tokens=False)["input_ids"]
        rows = sorted(zip(encoded, drawn, strict=True), key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], Document]]] = []
        group: list[tuple[list[int], Document]] = []
        for row in rows:
            if group and (len(group) + 1) * rounded(len(row[0])) > batch_tokens:
                groups.append(group)
                group = []
            group.append(row)
        groups.append(group)
        for index in torch.randperm(len(groups), generator=shuffle).tolist():
            longest = rounded(len(groups[index][-1][0]))
            ids = torch.full((len(groups[index]), longest), tokenizer.pad_token_id)
            weights = torch.zeros(ids.shape)
            for position, (tokens, document) in enumerate(groups[index]):
                answer_weight = 1.0 if document.user is not None else stage.statement_weight
                learned = document.user is None or share.random() < stage.user_share
                ids[position, : len(tokens)] = torch.tensor(tokens)
                weights[position, : len(tokens)] = torch.tensor(
                    weigh(tokens, answer_weight, stage.user_weight if learned else 0.0)
                )
            yield Batch(ids, weights)
