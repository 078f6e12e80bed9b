"""Train the embedded model from scratch: `python -m tools.train_embedded_model --output DIR`, in the repository root.

A tokenizer (byte-level BPE) and a Llama of 5.8 million weights, trained on 39 million tokens in stages. Two idle CPU
cores with bfloat16 units read 5,500 to 6,800 tokens per second with `--compile`: two hours. Without such units,
`--precision float32` is faster (2,400 to 4,600 tokens per second). A GPU needs `--device cuda --batch-tokens 32768`.

The seed determines the weights: two runs on the same machine with the same number of threads are equal, also if one of
them was interrupted: the run goes on from its last checkpoint, which is kept in the output folder. The output is an
ordinary transformers folder with weights in float16, whose rounding is an eighth of that of bfloat16. Its
`trained.json` records the options, and the accuracy (exact match) of greedy decoding on the first development examples
of each split.

Other shapes, seeds and vocabularies give models to test a rule on that nothing was chosen for (docs/results/rate.md).
"""

import argparse
import json
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from fastmem.tiny import world
from tools.adapted_encoder_decoder import adapted
from tools.batched_muon import BatchedMuon
from tools.encoder_decoder_batches import EncoderDecoderBatch, for_encoder_decoder
from tools.model_shapes import EMBEDDED, FAMILIES, Shape, new_model, train_tokenizer
from tools.training_batches import Batch, batches, render
from tools.training_stages import STAGES, Stage, documents_of, tokenizer_documents

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_STEPS = 200
LONGEST_REPLY = 96  # tokens
ADAPTING_DOCUMENTS = 60  # that a Llama's blocks are measured on before it becomes an encoder-decoder


class Checkpoint(NamedTuple):
    """Everything that the rest of a training depends on, after `steps` steps of the stage with this number."""

    stage: int
    steps: int
    tokens: int  # of the stages before
    running: float  # the running mean of the loss, for the progress line
    model: dict[str, torch.Tensor]
    optimizers: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "Checkpoint | None":
        """The checkpoint in a folder; None if there is none."""
        path = folder / CHECKPOINT
        return cls(*torch.load(path, weights_only=True, map_location="cpu")) if path.exists() else None

    def write(self, folder: Path) -> None:
        """Write it in place of an earlier one; an interruption leaves one of both."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(tuple(self), folder / f"{CHECKPOINT}.new")
        (folder / f"{CHECKPOINT}.new").replace(folder / CHECKPOINT)


def loss_of(model: PreTrainedModel, batch: Batch | EncoderDecoderBatch, precision: str) -> torch.Tensor:
    """Weighted mean cross entropy of the tokens with a weight; the head is computed at their positions only."""
    inputs = {"input_ids": batch.ids}
    if isinstance(batch, EncoderDecoderBatch):
        inputs = {
            "input_ids": batch.source, "attention_mask": batch.source_mask, "decoder_input_ids": batch.ids
        }  # fmt: skip
    with torch.autocast(batch.ids.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext():
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        learned = batch.weights[:, 1:] > 0
        logits = model.get_output_embeddings()(hidden[learned])
    losses = F.cross_entropy(logits.float(), batch.ids[:, 1:][learned], reduction="none")
    weights = batch.weights[:, 1:][learned]
    return (losses * weights).sum() / weights.sum()


def optimizers_of(model: PreTrainedModel, precision: str) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the inner matrices (it needs about half as many tokens as AdamW), AdamW for embeddings and norms."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    named = [(p, p.ndim == 2 and "embed" not in n and id(p) not in embeddings) for n, p in model.named_parameters()]
    inner, outer = ([p for p, is_inner in named if is_inner is wanted] for wanted in (True, False))
    return (
        BatchedMuon(inner, weight_decay=0.02, dtype=getattr(torch, precision)),
        torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    )


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    stage: Stage,
    args: argparse.Namespace,
    tokens: int = 0,
    checkpoint: Checkpoint | None = None,
) -> int:
    """Train the model in place for one stage. Returns the number of its tokens.

    args: the parsed options. tokens: of the stages before. checkpoint: one of this stage, to go on from; the batches
    before it are made again and skipped.
    """
    optimizers = optimizers_of(model, args.precision)
    if checkpoint is not None:
        model.load_state_dict(checkpoint.model)
        for optimizer, state in zip(optimizers, checkpoint.optimizers, strict=True):
            optimizer.load_state_dict(state)
    # Only now, since loading replaces the groups.
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    seen, started, running = 0, time.monotonic(), 0.0
    documents = documents_of(stage, args.seed)
    for step, batch in enumerate(
        batches(tokenizer, stage, documents, args.seed, args.batch_tokens or stage.batch_tokens)
    ):
        done = seen / (stage.tokens * args.scale)
        if done >= 1.0:
            break
        seen += batch.ids.numel()
        if checkpoint is not None and step < checkpoint.steps:
            running = checkpoint.running
            continue
        if model.config.is_encoder_decoder:
            batch = for_encoder_decoder(batch, tokenizer, torch.Generator().manual_seed(step))
        warm = min(1.0, (step + 1) / 60)
        for group in groups:
            group["lr"] = args.learning_rate * warm * ((1 - done) * stage.rates[0] + done * stage.rates[1])
        loss = loss_of(model, type(batch)(*(part.to(args.device) for part in batch)), args.precision)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running = 0.98 * running + 0.02 * loss.item()
        if step % 25 == 24:
            mean, seconds = running / (1 - 0.98 ** (step + 1)), time.monotonic() - started
            print(f"stage {stage.seed}  {done:6.1%}  {seen:,} tokens  loss {mean:.3f}  {seconds:.0f} s", flush=True)
        if step % CHECKPOINT_STEPS == CHECKPOINT_STEPS - 1:
            states = [optimizer.state_dict() for optimizer in optimizers]
            Checkpoint(STAGES.index(stage), step + 1, tokens, running, model.state_dict(), states).write(args.output)
    return seen


@torch.no_grad()
def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, measured: tuple[world.Example, ...]) -> float:
    """Share of the examples with a right greedy answer; 0 of none."""
    right = 0
    # As in training: an encoder with learnt positions counts them from the padding on.
    padding = {"padding_side": "right" if model.config.is_encoder_decoder else "left"}
    for start in range(0, len(measured), 50):
        part = measured[start : start + 50]
        chats = [[{"role": "user", "content": world.prompt_of(example)}] for example in part]
        inputs = tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
            tokenizer_kwargs=padding,
        ).to(model.device)
        out = model.generate(**inputs, max_new_tokens=LONGEST_REPLY, do_sample=False)
        read = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        texts = tokenizer.batch_decode(out[:, read:], True)
        right += sum(map(world.is_right, texts, part))
    return right / max(1, len(measured))


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The parsed command-line options. arguments: None takes those of the process."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_embedded_model", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--scale", type=float, default=1.0, help="train on this share of each stage's tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--start", type=Path, help="folder to begin with: of the same family, or a Llama for --family t5gemma"
    )
    parser.add_argument(
        "--stages", type=int, nargs="+", default=list(range(len(STAGES))), help="numbers of the stages, in order"
    )
    parser.add_argument("--family", choices=sorted(FAMILIES), default=EMBEDDED.family)
    for name, size in EMBEDDED._asdict().items():
        if name != "family":
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--device", default="cpu", help="of the training and the measuring, such as cuda")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of the products")
    parser.add_argument("--compile", action="store_true", help="compile the model: 1.3 times as fast on two CPU cores")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-tokens", type=int, help="in every stage, instead of those of each")
    parser.add_argument(
        "--rows", type=int, default=200, help="development examples of each split to measure at the end"
    )
    return parser.parse_args(arguments)


def first_model(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace, shape: Shape) -> PreTrainedModel:
    """The model that training begins with, in float32: random, or with the weights of `args.start`."""
    if args.start is None:
        return new_model(tokenizer, args.seed, shape)
    if shape.family == "t5gemma" and AutoConfig.from_pretrained(args.start).model_type == "llama":
        llama = AutoModelForCausalLM.from_pretrained(args.start, dtype=torch.float32)
        documents = documents_of(STAGES[args.stages[0]], args.seed)
        return adapted(llama, tokenizer, [render(document) for document in islice(documents, ADAPTING_DOCUMENTS)])
    model = new_model(tokenizer, args.seed, shape)
    model.load_state_dict(type(model).from_pretrained(args.start, dtype=torch.float32).state_dict())
    return model


def main(arguments: list[str] | None = None) -> None:
    """Train, measure and write the model folder."""
    args = options(arguments)
    started = time.monotonic()
    shape = Shape(*(getattr(args, name) for name in Shape._fields))
    if args.start is None:
        tokenizer = train_tokenizer(map(render, tokenizer_documents(args.seed)), shape)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
    model = first_model(tokenizer, args, shape).to(args.device)
    if args.device != "cpu":  # compiled, two cores read 6,800 tokens per second with eager attention, 5,500 with this
        model.set_attn_implementation("sdpa")
    if args.compile:
        model.base_model.compile(dynamic=True)
    checkpoint = Checkpoint.read(args.output)
    seen, first = (checkpoint.tokens, args.stages.index(checkpoint.stage)) if checkpoint else (0, 0)
    for number in args.stages[first:]:
        reached = checkpoint if checkpoint and number == checkpoint.stage else None
        seen += train(model, tokenizer, STAGES[number], args, seen, reached)
    model.eval().to(torch.float16)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=tokenizer.bos_token_id if model.config.is_encoder_decoder else None,
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(args.output)
    # Weights are stored in float16 and loaded as float32, which is faster on a CPU.
    model.config.dtype = torch.float32
    model.config.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    model.float()  # now as the stored weights are loaded
    report = {
        "tokens": seen,
        "seconds": round(time.monotonic() - started),
        "options": {name: value for name, value in vars(args).items() if name not in ("output", "start", "stages")},
        "stages": [STAGES[number]._asdict() for number in args.stages],
        "accuracy_dev": {
            split: accuracy(model, tokenizer, world.examples(split, "dev", args.rows)) for split in world.SPLITS
        },
    }
    (args.output / "trained.json").write_text(json.dumps(report, indent=2) + "\n")
    (args.output / CHECKPOINT).unlink(missing_ok=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
