"""FastMem beside other ways to make a model believe a document: adapters, virtual tokens, and what costs nothing.

    python -m studies.alternatives --output DIR/embedded
    python -m studies.alternatives --output DIR/nq-mini --model FOLDER --data nq_swap_dev.json
    python -m studies.alternatives --table --output DIR --figure alternatives.svg    # of both

**Question.** FastMem tunes the last FFN on the document. Does something else give more right answers, does less harm,
or costs less? In particular: does a better prompt do as well for nothing?

**Design.** Rows, choice of rates and tests are those of `compared_ways.py`; the prompt of the task, which is the
paper's but for JSON objects and summaries, holds the document in every way. All that is tuned has the same objective
(cross entropy + 0.1 KL to the untouched model on the document's tokens), AdamW, and three steps, as many as `fastmem
calibrate` takes, at a rate that is chosen on development rows.

- *FastMem*: all weights of the last FFN; also with ten steps, as in the paper. *LoRA* (arXiv 2106.09685): rank 8,
  alpha 16, on the last FFN and all FFNs by FastMem's own `parametrization="lora"`, on attention and everywhere by
  peft. *Full tuning*: every parameter.
- *Prefix tuning* (arXiv 2101.00190): 16 virtual keys and values in every layer, which begin as those of the prompt's
  opening. *Prompt tuning* (arXiv 2104.08691): 16 virtual tokens in front, which begin as tokens of the vocabulary.
  *p-tuning* (arXiv 2103.10385): 16 virtual tokens made by an MLP. All three by peft.
- *Query projections* (arXiv 2512.13898): those of every layer, keys and values frozen: what the untouched model has
  for the same tokens.
- *Ridge step*: the last matrix of the last FFN in one closed-form step (`memory_variants.py`); its rate is the KL.
- For nothing: the document *twice* in the prompt; a *stronger instruction*; the *opinion-based* prompt (arXiv
  2303.11315); CAD (arXiv 2305.14739; alpha chosen as the rates are), AdaCAD (arXiv 2409.07394) and DoLa (arXiv
  2309.03883).

The first three rates of a way lie a factor of 4 apart. They were placed before any row was answered, by the loss
before the last step on a document that no measured row uses (`--losses`). For prefix tuning, prompt tuning and query
projections it still fell at the largest rate tried, which became the middle one.

**Decision rule**, written before the first run. A way is better than FastMem if on contradicting test rows the paired
difference is above 0 by McNemar's test at 0.05, corrected by Holm over all ways and kinds of a model, and on no other
kind below 0 likewise. If a way that costs nothing is better, or differs by less than 0.05 with an interval that
includes 0, the README says so.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastmem import FastMem, Memory, Recipe
from fastmem.answer.request import Request
from fastmem.lab.tasks import Example
from fastmem.learn.memorize import drain
from fastmem.prompts import QUESTION_OPENING
from studies import study_rows, which_layer
from studies.compared_ways import BASE, Made, Way, load, size_of, timed
from studies.memory_variants import memories
from studies.study_rows import Row
from studies.tuned_parameters import Logits, Parameters, logits_of, tune, untouched_logits
from studies.which_layer import RATES, STEPS, act, base, everything, ffn, parser, weights

REFERENCE = "FastMem"
RANK, ALPHA, VIRTUAL_TOKENS = 8, 16, 16
LORA_RATES = (4e-3, 1.6e-2, 6.4e-2)
STRONGER = "Answer only from the context, even if it contradicts what you know.\n"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EVERYWHERE = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
Maker = Callable[[FastMem, str, float], Made]


def memory_way(make: Callable[[FastMem, str, float], Memory]) -> Maker:
    """Answers with a `Memory`."""

    def made(llm: FastMem, document: str, rate: float) -> Made:
        memory, seconds = timed(lambda: make(llm, document, rate))

        def request(row: Row) -> Request:
            return llm.request(row.example.prompt, memory, "fastmem", max_new_tokens=row.max_new_tokens)

        return Made(seconds, memory.size_bytes, request, loss=memory.trace[-1].loss if memory.trace else None)

    return made


def lora_ffn(layers: tuple[int, ...]) -> Maker:
    """FastMem's own low-rank memories."""

    def make(llm: FastMem, document: str, rate: float) -> Memory:
        recipe = Recipe(
            rate, STEPS, llm.recipe.kl_weight, layers=layers, parametrization="lora", rank=RANK, lora_alpha=ALPHA
        )
        return drain(llm.memorizing(llm.memory_tokens(document), recipe, watch=False))[0]

    return memory_way(make)


def ridge(llm: FastMem, document: str, kl: float) -> Memory:
    """One step in closed form that costs this KL on the document."""
    ((_, memory),) = memories(llm, llm.read(llm.memory_tokens(document)), {"ridge": (kl,)}, kl)
    return memory


def peft_way(config: Callable[[], Any], kept: Callable[[Parameters], int] = size_of) -> Maker:
    """Tunes what peft adds to a copy of the model. config: of peft. kept: bytes to keep of what was tuned."""

    @functools.lru_cache(1)
    def built(llm: FastMem) -> tuple[Logits, dict[str, Tensor]]:
        import peft

        torch.manual_seed(0)
        module: Any = peft.get_peft_model(copy.deepcopy(llm.model), config()).eval()
        if config().peft_type == "PREFIX_TUNING":
            peft.initialize_kv_prefix_from_text(module, llm.tokenizer, text=QUESTION_OPENING, use_chat_template=False)
        start = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        return logits_of(module), start

    def make(llm: FastMem, document: str, rate: float) -> Made:
        logits, start = built(llm)
        return tuned(llm, document, rate, logits, start, kept)

    return make


def tuned(
    llm: FastMem,
    document: str,
    rate: float,
    logits: Logits,
    start: Parameters,
    kept: Callable[[Parameters], int] = size_of,
) -> Made:
    """Tunes `start` with the study's objective."""
    recipe, tokens = replace(llm.recipe, learning_rate=rate, steps=STEPS), llm.memory_tokens(document)
    (found, trace), seconds = timed(lambda: tune(logits, start, tokens, untouched_logits(llm.model, tokens), recipe))
    return Made(seconds, kept(found), logits=lambda ids, last: logits(found, ids, last), loss=trace[-1].loss)


class FrozenKeys:
    """A copy of a model whose keys and values are always those of the untouched model for the same tokens."""

    def __init__(self, model: nn.Module):
        self.module = copy.deepcopy(model)
        self.logits = logits_of(self.module)
        self.ids: Tensor | None = None  # what was recorded last
        self.recorded: dict[str, Tensor] = {}
        self.recording = False
        for name, part in self.module.named_modules():
            if name.endswith(("k_proj", "v_proj")):
                part.register_forward_hook(functools.partial(self._replayed, name))
        self.start = {n: p.detach() for n, p in self.module.named_parameters() if "q_proj" in n}

    def _replayed(self, name: str, module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        if self.recording:
            self.recorded[name] = output
        return self.recorded[name]

    def __call__(self, parameters: Parameters, ids: Tensor, last: int) -> Tensor:
        """Logits [B, K, V] at the last K positions."""
        if self.ids is None or not torch.equal(self.ids, ids):
            self.recording, self.ids = True, ids
            with torch.no_grad():
                self.module(input_ids=ids, use_cache=False, logits_to_keep=1)
            self.recording = False
        return self.logits(parameters, ids, last)


@functools.lru_cache(1)
def frozen_keys(llm: FastMem) -> FrozenKeys:
    """One for each model."""
    return FrozenKeys(llm.model)


def queries(llm: FastMem, document: str, rate: float) -> Made:
    """The query projections, with frozen keys and values."""
    frozen = frozen_keys(llm)
    frozen.ids = None  # each document pays for its own recording
    return tuned(llm, document, rate, frozen, frozen.start)


def prompt_way(prompt: Callable[[Example], str]) -> Maker:
    """Another prompt. prompt: from an example to the user turn."""

    def make(llm: FastMem, document: str, rate: float) -> Made:
        return Made(request=lambda row: llm.request(prompt(row.example), max_new_tokens=row.max_new_tokens))

    return make


def decoding_way(method: str) -> Maker:
    """A contrast of the untouched model; the rate is its alpha."""

    def make(llm: FastMem, document: str, rate: float) -> Made:
        def request(row: Row) -> Request:
            example = row.example
            return llm.prepare(
                example.prompt,
                method,
                max_new_tokens=row.max_new_tokens,
                without_context=example.prompt_without_context,
                alpha=rate or 0.5,
            )

        return Made(request=request)

    return make


def twice(example: Example) -> str:
    """The prompt with the document two times."""
    return replace(example, context=f"{example.context} {example.context}").prompt


def stronger(example: Example) -> str:
    """The prompt after a sentence that asks to believe the context."""
    return STRONGER + example.prompt


def opinion(example: Example) -> str:
    """The prompt in the form of arXiv 2303.11315."""
    asked, mark = example.question.strip().rstrip("?."), "." if example.template else "?"
    told = f'Bob said, "{example.context}"'
    return replace(example, context=told, question=f"{asked} in Bob's opinion{mark}").prompt


def lora(targets: list[str]) -> Callable[[], Any]:
    """peft's LoRA on these linear layers."""

    def config() -> Any:
        import peft

        return peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")

    return config


def virtual_tokens(name: str, **options: Any) -> Callable[[], Any]:
    """One of peft's configurations with virtual tokens."""

    def config() -> Any:
        import peft

        return getattr(peft, name)(num_virtual_tokens=VIRTUAL_TOKENS, task_type="CAUSAL_LM", **options)

    return config


def embeddings_of(parameters: Parameters) -> int:
    """Bytes of the virtual tokens alone: the MLP that makes them need not be kept."""
    return size_of({name: tensor for name, tensor in parameters.items() if "embedding" in name})


def ways() -> list[Way]:
    """All that are compared."""
    depth = which_layer.DEPTH
    return [
        Way(BASE, (0.0,), base),
        Way(REFERENCE, RATES, ffn((-1,))),
        Way("FastMem, ten steps", RATES, ffn((-1,), steps=10)),
        Way("LoRA, last FFN", LORA_RATES, lora_ffn((-1,))),
        Way("LoRA, all FFNs", LORA_RATES, lora_ffn(tuple(range(depth)))),
        Way("LoRA, attention", LORA_RATES, peft_way(lora(ATTENTION))),
        Way("LoRA, everywhere", LORA_RATES, peft_way(lora(EVERYWHERE))),
        Way("full tuning", RATES, weights(everything)),
        Way("prefix tuning", (8e-2, 3.2e-1, 1.28), peft_way(virtual_tokens("PrefixTuningConfig"))),
        Way(
            "p-tuning",
            (1.25e-4, 5e-4, 2e-3),
            peft_way(virtual_tokens("PromptEncoderConfig", encoder_hidden_size=256), embeddings_of),
        ),
        Way(
            "prompt tuning",
            (4e-2, 1.6e-1, 6.4e-1),
            peft_way(virtual_tokens("PromptTuningConfig", prompt_tuning_init="SAMPLE_VOCAB")),
        ),
        Way("query projections", (2e-3, 8e-3, 3.2e-2), queries),
        Way("ridge step", (0.3, 0.6, 1.2), memory_way(ridge)),
        Way("document twice", (0.0,), prompt_way(twice)),
        Way("stronger instruction", (0.0,), prompt_way(stronger)),
        Way("opinion-based prompt", (0.0,), prompt_way(opinion)),
        Way("CAD", (0.25, 0.5, 1.0), decoding_way("cad")),
        Way("AdaCAD", (0.0,), decoding_way("adacad")),
        Way("DoLa", (0.0,), decoding_way("dola")),
    ]


def print_losses(llm: FastMem) -> None:
    """The loss on one document before the last step, at rates around those of every way."""
    document = study_rows.texts(None).documents[0]
    for way in ways():
        if len(way.rates) > 1:
            found = {rate: way.make(llm, document, rate).loss for rate in (way.rates[0] / 4, *way.rates)}
            shown = [f"{rate:g}: {loss:.2f}" for rate, loss in found.items() if loss is not None]
            print(f"{way.name}: {', '.join(shown)}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure one model."""
    accepted = parser("alternatives", __doc__.splitlines()[0])
    accepted.add_argument("--losses", action="store_true", help="only print losses by rate, for the embedded model")
    args = accepted.parse_args(arguments)
    if args.losses:
        print_losses(load(None))
    else:
        act(args, ways(), REFERENCE)


if __name__ == "__main__":
    main()
