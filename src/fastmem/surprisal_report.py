"""What memorizing did to a document, token by token: the surprisal before and after."""

from dataclasses import dataclass

from fastmem.answer.detokenize import Detokenizer
from fastmem.learn.surprisal import token_surprisals
from fastmem.memory.memory import Memory
from fastmem.model import FastMem
from fastmem.prompts import Tokens


@dataclass(frozen=True)
class TokenSurprisal:
    """One scored token. text: what it adds to the document. before, after: -log probability, in nats."""

    text: str
    before: float
    after: float


def surprisal_report(llm: FastMem, tokens: Tokens, memory: Memory) -> list[TokenSurprisal]:
    """One row per scored token of a document, in order. A character of several tokens stands at its last one."""
    ffn = llm.ffn(memory)
    reading = llm.read(tokens, memory.recipe.layers)
    before, after = (token_surprisals(llm.split_model, reading, weights).tolist() for weights in (None, ffn))
    text = Detokenizer(llm.tokenizer)
    pieces = [text.add(token) for token in tokens.ids.tolist()]
    scored = [piece for piece, wanted in zip(pieces, tokens.scored.tolist(), strict=True) if wanted]
    scored[-1] += text.finish()
    return [TokenSurprisal(*row) for row in zip(scored, before, after, strict=True)]
