"""Tune any set of parameters on one document by plain autograd, and answer with them.

FastMem's own loop tunes FFNs only, and only its own way. What it is compared with tunes other weights, low-rank
factors or virtual tokens. All of these are parameters of some module, so one loop does: the whole module runs at
every step through `torch.func.functional_call`, which puts the tuned tensors in place for the call alone. The model
is never written to. Objective, optimizer, clipping and weight decay are FastMem's; tuning the last FFN this way gives
FastMem's losses (tests/test_compared_studies.py).

`greedy` decodes without a cache, which any module can do: several guesses of the answer are read at once, the one
that agrees longest with the module's own choices is kept, and so on until the answer ends. Where no guess is left,
the text is expected to repeat itself, as at rates that are too large. The tokens are those of plain greedy decoding.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmem import Recipe, Tokens
from fastmem.learn.objective import plain
from fastmem.memory.memory import Step
from fastmem.torch_modes import in_own_modes

Parameters = Mapping[str, Tensor]
# (parameters by name, ids [B, T], K) -> logits [B, K, V] at the last K positions
Logits = Callable[[Parameters, Tensor, int], Tensor]
GUESSES = 3  # read at once
SUFFIX, REPEATED = 3, 16  # tokens: the longest suffix that is looked for, and how many are expected to follow again


def logits_of(module: nn.Module) -> Logits:
    """The logits of a causal language model, or of a PEFT model around one, with some of its parameters replaced.

    Where the output embedding is tied to the input, replacing it by its own name leaves the input as it is.
    """

    def logits(parameters: Parameters, ids: Tensor, last: int) -> Tensor:
        arguments = {"input_ids": ids, "use_cache": False, "logits_to_keep": last}
        tied = not any("lm_head" in name for name in parameters)
        found: Tensor = functional_call(module, dict(parameters), (), arguments, tie_weights=tied).logits
        return found

    return logits


@in_own_modes
def tune(
    logits: Logits, start: Parameters, tokens: Tokens, untouched: Tensor, recipe: Recipe
) -> tuple[dict[str, Tensor], list[Step]]:
    """(the tuned parameters, one `Step` per step, measured before its update).

    start: the parameters before the first step, which are copied. untouched: [N, V], the logits of the untouched model
    at the scored positions, for the KL.
    """
    ids, positions = tokens.ids[None], tokens.scored[1:].nonzero()[:, 0]
    targets, trace = tokens.ids[positions + 1], []
    with torch.enable_grad():
        tuned = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}
        optimizer = torch.optim.AdamW(
            tuned.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        for index in range(recipe.steps):
            now = logits(tuned, ids, len(tokens))[0, positions]
            loss, cross_entropy, kl = plain(now, untouched, targets, recipe.kl_weight)
            # Not `backward`, which would also give every parameter of the model a gradient.
            gradients = torch.autograd.grad(loss, list(tuned.values()))
            for tensor, gradient in zip(tuned.values(), gradients, strict=True):
                tensor.grad = gradient
            trace.append(Step(index, loss.item(), cross_entropy.item(), kl.item()))
            torch.nn.utils.clip_grad_norm_(tuned.values(), recipe.max_grad_norm)
            optimizer.step()
    return {name: tensor.detach() for name, tensor in tuned.items()}, trace


@torch.no_grad()
def untouched_logits(model: nn.Module, tokens: Tokens) -> Tensor:
    """[N, V]: the logits of the model at the scored positions."""
    positions = tokens.scored[1:].nonzero()[:, 0]
    found: Tensor = model(input_ids=tokens.ids[None], use_cache=False).logits[0, positions]
    return found


@torch.no_grad()
def greedy(
    logits: Callable[[Tensor, int], Tensor],
    prompt: Sequence[int],
    guesses: Iterable[Sequence[int]],
    stop: frozenset[int],
    most: int,
) -> list[int]:
    """The tokens of greedy decoding, without the stop token, at most `most`.

    logits: (ids [B, T], K) -> logits [B, K, V] at the last K positions. guesses: token ids of whole answers; they
    change the time only.
    """
    known, answer = sorted({tuple(guess[:most]) for guess in guesses}, key=len, reverse=True), tuple[int, ...]()
    while True:
        fitting = [g for g in known if len(g) > len(answer) and g[: len(answer)] == answer][:GUESSES]
        fitting = fitting or [(*answer, *repetition((*prompt, *answer)))]
        width = max(map(len, fitting))
        # Padding on the right, which no earlier position attends to.
        rows = torch.tensor([[*prompt, *guess, *[0] * (width - len(guess))] for guess in fitting])
        chosen = logits(rows, width + 1).argmax(-1).tolist()
        found = answer
        for guess, next_tokens in zip(fitting, chosen, strict=True):
            same = len(answer)
            while same < len(guess) and next_tokens[same] == guess[same]:
                same += 1
            found = max(found, (*guess[:same], next_tokens[same]), key=len)
        ends = [place for place, token in enumerate(found) if token in stop]
        if ends or len(found) >= most:
            return list(found[: min([most, *ends])])
        answer = found


def repetition(text: Sequence[int]) -> list[int]:
    """What follows if the text goes on as it did after the last earlier occurrence of its longest suffix."""
    for length in range(SUFFIX, 0, -1):
        suffix = text[-length:]
        for start in range(len(text) - length - 1, -1, -1):
            if text[start : start + length] == suffix:
                followed = text[start + length :]
                return [followed[place % len(followed)] for place in range(REPEATED)]
    return []
