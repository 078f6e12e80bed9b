"""Training batches for an encoder-decoder: what its encoder reads, and what its decoder learns to write.

The encoder reads a conversation up to the first answer, the decoder writes the rest. A plain statement has no user
turn: the encoder reads a part of its tokens, from none to all, so that it has seen every input that FastMem may give
it while a document is memorized.
"""

from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from tools.model_shapes import SPECIAL
from tools.training_batches import Batch

NOTHING_SHARE = 1 / 3
"""The share of the statements of which the encoder reads nothing. Of the others it reads a share of 0 to 1."""


class EncoderDecoderBatch(NamedTuple):
    """source, source_mask: [B, S], what the encoder reads. ids, weights: [B, T], as of `Batch`, behind a start."""

    source: torch.Tensor
    source_mask: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor


def for_encoder_decoder(
    batch: Batch, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator
) -> EncoderDecoderBatch:
    """The rows of a batch, cut where the first answer begins. generator: chooses the tokens that are left out."""
    user, assistant, header_end, end = tokenizer.convert_tokens_to_ids(
        ["user", "assistant", SPECIAL["header_end"], SPECIAL["eos_token"]]
    )
    start = torch.tensor([tokenizer.bos_token_id])
    sources, ids, weights = [], [], []
    for row, row_weights in zip(batch.ids, batch.weights, strict=True):
        length = int((row != tokenizer.pad_token_id).sum())
        row, row_weights = row[:length], row_weights[:length]
        headers = (row[1:] == header_end) & (row[:-1] == assistant)
        begin = int(headers.nonzero()[0]) + 3  # after the header's end and the line break
        source = row[:begin]
        if row[2] != user:
            written = row[begin : length - 1]
            nothing = torch.rand((), generator=generator) < NOTHING_SHARE
            share = 0.0 if nothing else torch.rand((), generator=generator)
            kept = torch.rand(len(written), generator=generator) < share
            source = torch.cat([written[kept], torch.tensor([end])])
        sources.append(source)
        ids.append(torch.cat([start, row[begin:]]))
        weights.append(torch.cat([torch.zeros(1), row_weights[begin:]]))
    return EncoderDecoderBatch(
        pad_sequence(sources, batch_first=True, padding_value=tokenizer.pad_token_id),
        pad_sequence([torch.ones(len(source), dtype=torch.int64) for source in sources], batch_first=True),
        pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
        pad_sequence(weights, batch_first=True),
    )
