"""Mixtures that keep their experts in a list, as remote code and transformers before version 5 do.

Such an expert runs only if a token chose it, so its weights have a gradient in some steps and pieces and none in
others. Truth: `examples/naive.py`, where autograd keeps the account.
"""

import itertools

import pytest
import torch
from torch import nn

from families import build, randomize
from fastmem import FastMem, Tokens
from fastmem.learn import budget
from fastmem.learn.optimize import Optimization
from test_memorize import QUERY, assert_equals_naive, recipe, run_naive

# 16 of the 24 tokens are scored; few enough that experts stay unused.
TOKENS = Tokens(torch.arange(3, 27) * 11 % 288, torch.arange(24) >= 8)


class Expert(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, hidden):
        return self.down(nn.functional.silu(self.up(hidden)))


class ExpertList(nn.Module):
    """Every token goes to its best two of ten experts; an expert without tokens is not called."""

    def __init__(self, width=48, inner=24, experts=10):
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(Expert(width, inner) for _ in range(experts))

    def forward(self, hidden):
        flat = hidden.reshape(-1, hidden.shape[-1])
        shares, chosen = self.gate(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number in chosen.unique().tolist():
            rows, places = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, rows, self.experts[number](flat[rows]) * shares[rows, places, None])
        return out.reshape(hidden.shape)


def mixture(seed=0):
    model = build("llama")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in model.model.layers:
            layer.mlp = ExpertList()
            randomize(layer.mlp)
    return model.eval()


@pytest.fixture
def uninitialized_memory_is_nan():
    """What is read before it is written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("piece", [1000, 5], ids=["whole", "pieces"])
@pytest.mark.parametrize("changes", [{}, {"learning_rate": 0.1, "steps": 8}], ids=str)
@pytest.mark.usefixtures("uninitialized_memory_is_nan")
def test_equals_the_plain_way(monkeypatch, changes, piece):
    monkeypatch.setattr(budget, "PIECE_POSITIONS", piece)
    llm = FastMem(mixture(), None)
    memory = llm.memorize(TOKENS, recipe(**changes))
    assert_equals_naive(memory, llm.logits(QUERY, memory), *run_naive(mixture(), TOKENS, **changes))


def test_an_expert_that_is_no_longer_used_has_no_gradient():
    """The rate is so high that the router sends tokens elsewhere from step to step."""
    llm = FastMem(mixture(), None)
    run = Optimization(llm.split_model, llm.read(TOKENS), recipe(learning_rate=0.1))
    used = []
    for _ in range(6):
        run.compute_gradients()
        run.update()
        used.append({name for name, master in run.masters.items() if master.grad is not None})
    assert len(set(map(frozenset, used))) > 1
    assert any(earlier - later for earlier, later in itertools.pairwise(used))
