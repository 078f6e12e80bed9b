"""Train the embedded model from nothing: `python -m fastmem.tiny.train --output DIR`.

Tokenizer (byte-level BPE), a Llama of 5.2 million weights, AdamW, about half an hour on two CPU cores. The seed and
the number of tokens decide the weights; on one machine with one number of threads they are the same to the bit. The
folder that comes out is an ordinary transformers folder, weights in bfloat16, with `trained.json` beside them: what
was run and what greedy decoding reaches on the first development rows of each split, scored by exact match.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fastmem.tiny.mixture import SHARES, Document, Mixture
from fastmem.tiny.world import INSTRUCTION, SPLITS, Example, examples, invented_word, normalize, reserved_words

VOCABULARY = 2048
POSITIONS = 512
SPECIAL = {
    "pad_token": "<|pad|>",
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "header_start": "<|start_header_id|>",
    "header_end": "<|end_header_id|>",
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim "
    "+ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
# Llama 3's splitting (words with their space, runs of signs, line ends), but every digit alone.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Batch(NamedTuple):
    """`ids` [B, S] padded on the right; `weights` [B, S] of each token as a target, 0 where it is not learned."""

    ids: torch.Tensor
    weights: torch.Tensor


def render(document: Document) -> str:
    """The text that the chat template gives; an absent user turn leaves the assistant turn alone."""
    turns = [("user", document.user)] if document.user is not None else []
    turns.append(("assistant", document.assistant))
    body = "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in turns)
    return SPECIAL["bos_token"] + body


def nameless_texts(seed: int, count: int) -> Iterator[str]:
    """Training texts in which each word of the world's names is replaced by one made up on the spot."""
    random = Random(seed)
    for document in islice(Mixture(seed, {"new_context": 0.97, "recall": 0.03}), count):
        yield re.sub(
            r"\b[A-Z][a-z]+\b",
            lambda match: invented_word(random) if match[0] in reserved_words() else match[0],
            render(document),
        )


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that has seen no name of the world, so that every name stays several tokens."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(nameless_texts(seed, 8000), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS,
        additional_special_tokens=[SPECIAL["header_start"], SPECIAL["header_end"]],
        **{name: text for name, text in SPECIAL.items() if name.endswith("_token")},
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A random Llama, float32, 5,246,208 weights: 256 wide, 6 layers, FFN 768, tied head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="eager")  # on a CPU 1.2 times as fast as sdpa


def batches(
    tokenizer: PreTrainedTokenizerFast,
    stream: Iterator[Document],
    seed: int,
    batch_tokens: int,
    statement_weight: float,
) -> Iterator[Batch]:
    """Batches of about `batch_tokens` tokens, of documents of like length; each assistant turn is learned."""
    header_end = tokenizer.convert_tokens_to_ids(SPECIAL["header_end"])
    shuffle = torch.Generator().manual_seed(seed)
    while True:
        documents = list(islice(stream, 2048))
        encoded = tokenizer([render(document) for document in documents], add_special_tokens=False)["input_ids"]
        rows = sorted(zip(encoded, documents, strict=True), key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], Document]]] = []
        group: list[tuple[list[int], Document]] = []
        for row in rows:
            if group and (len(group) + 1) * len(row[0]) > batch_tokens:
                groups.append(group)
                group = []
            group.append(row)
        for index in torch.randperm(len(groups), generator=shuffle).tolist():
            longest = len(groups[index][-1][0])
            ids = torch.full((len(groups[index]), longest), tokenizer.pad_token_id)
            weights = torch.zeros(ids.shape)
            for position, (tokens, document) in enumerate(groups[index]):
                start = len(tokens) - tokens[::-1].index(header_end) + 1  # one token, the line end, follows the header
                ids[position, : len(tokens)] = torch.tensor(tokens)
                weights[position, start : len(tokens)] = 1.0 if document.user is not None else statement_weight
            yield Batch(ids, weights)


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted mean cross entropy of the learned tokens; the head sees their positions alone."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
        learned = batch.weights[:, 1:] > 0
        logits = model.lm_head(hidden[learned])
    losses = F.cross_entropy(logits.float(), batch.ids[:, 1:][learned], reduction="none")
    weights = batch.weights[:, 1:][learned]
    return (losses * weights).sum() / weights.sum()


def train(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> tuple[LlamaForCausalLM, int]:
    """The trained model in float32 and the tokens it saw; `args` are the options of the command line."""
    model = new_model(tokenizer, args.seed)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98), fused=True)
    stream = batches(tokenizer, iter(Mixture(args.seed)), args.seed, args.batch_tokens, args.statement_weight)
    seen, started, running = 0, time.monotonic(), 0.0
    for step, batch in enumerate(stream):
        elapsed_seconds = time.monotonic() - started
        done = max(seen / args.tokens, elapsed_seconds / args.seconds if args.seconds else 0.0)
        if done >= 1.0:
            break
        warm = min(1.0, (step + 1) / 150)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += batch.ids.numel()
        running = 0.98 * running + 0.02 * loss.item()
        if step % 50 == 49:
            mean = running / (1 - 0.98 ** (step + 1))
            print(f"{done:6.1%}  {seen:,} tokens  loss {mean:.3f}  {elapsed_seconds:.0f} s", flush=True)
    return model.eval(), seen


def prompt_of(example: Example) -> str:
    """The user turn of a measured row: the paper's instruction and the context, or the question alone."""
    if not example.context:
        return f"Question: {example.question}"
    return f"{INSTRUCTION}\nContext: {example.context}\nQuestion: {example.question}"


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: tuple[Example, ...]) -> float:
    """Share of rows whose greedy answer is `The answer is: ` and exactly the expected words."""
    right = 0
    for start in range(0, len(rows), 50):
        part = rows[start : start + 50]
        chats = [[{"role": "user", "content": prompt_of(row)}] for row in part]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        out = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        for row, text in zip(part, tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], True), strict=True):
            head, marker, answer = text.partition("The answer is:")
            right += bool(marker) and not head and normalize(answer) == normalize(row.answers[0])
    return right / len(rows)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m fastmem.tiny.train", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="padded tokens to train on")
    parser.add_argument("--seconds", type=float, default=0, help="stop after this long (0: only --tokens decides)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--statement-weight", type=float, default=0.5, help="loss weight of plain statements")
    parser.add_argument("--rows", type=int, default=200, help="development rows of each split to measure at the end")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = options(arguments)
    started = time.monotonic()
    tokenizer = train_tokenizer(args.seed)
    model, seen = train(tokenizer, args)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(args.output)
    model.config.dtype = torch.float32  # stored in bfloat16, computed in float32: faster and exact enough on a CPU
    model.config.save_pretrained(args.output)
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(args.output)
    report = {
        "tokens": seen,
        "seconds": round(time.monotonic() - started),
        "options": {name: value for name, value in vars(args).items() if name != "output"},
        "shares": SHARES,
        "accuracy_dev": {split: accuracy(model, tokenizer, examples(split, "dev", args.rows)) for split in SPLITS},
    }
    (args.output / "trained.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
