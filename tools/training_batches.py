"""Batches of training documents: rendered by the chat template, tokenized, weighed and padded."""

from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from tools.model_shapes import SPECIAL
from tools.training_mixture import Document
from tools.training_stages import Stage


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
