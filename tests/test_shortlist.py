"""The objective over a shortlist: exact at the start, second-order beyond, measured at the end, refused where wrong.

In float64, so that what is called exact can be told from what is nearly so.
"""

import logging

import pytest
import torch
from torch import nn

from families import build
from fastmem import FastMem, Memory, Recipe
from fastmem.errors import InputError
from fastmem.learn import optimize, sampled_softmax
from fastmem.learn.objective import plain
from fastmem.memory import memory as memory_module
from fastmem.split.split_model import SplitModel
from test_memorize import QUERY, TOKENS, losses, recipe
from test_speed_paths import Int8Linear, documents, quantized

# Plain, tied, with soft caps, with scaled logits, with a bias at the head.
FAMILIES = ["llama", "qwen3", "gemma2", "cohere2", "granite", "phi", "gpt_neox", "gpt2"]


def double(family):
    return FastMem(build(family, dtype=torch.float64), None)


def optimization(llm, size, tokens=TOKENS, **changes):
    reading = llm.read(tokens, changes.get("layers", (-1,)))
    return optimize.Optimization(llm.split_model, reading, recipe(shortlist=size, **changes))


def assert_equal(found, wanted, tolerance=1e-9):
    scale = wanted.abs().max()
    assert (found - wanted).abs().max() <= tolerance * scale, (found - wanted).abs().max() / scale


@pytest.mark.parametrize("layers", [(-1,), (0, -1)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_at_the_start_are_exact(family, layers):
    llm = double(family)
    exact, short = (optimization(llm, size, layers=layers) for size in (None, 40))
    for run in (exact, short):
        run.compute_gradients()
    ((chunk,),) = (piece.chunks for piece in short.pieces)
    assert chunk.base_logits.shape[1] < 60
    (found,), (wanted,) = (torch.tensor([[s.loss, s.cross_entropy, s.kl] for s in r.trace()]) for r in (short, exact))
    assert_equal(found, wanted)
    assert short.trace()[0].kl == 0
    for name, gradient in exact._gradients.items():
        assert_equal(short._gradients[name], gradient)


def test_the_error_grows_with_the_square_of_the_way():
    llm = double("gemma2")
    ((whole, short),) = ((piece.exact[0], piece.chunks[0]) for piece in optimization(llm, 40).pieces)
    way = torch.randn(whole.base_hidden.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def wrong_by(length):
        hidden = whole.base_hidden + length * way
        rest = whole.head(hidden).index_fill(-1, short.head.tokens.listed, -torch.inf).logsumexp(-1)
        return (short.head(hidden)[:, len(short.head.tokens.listed) :].logsumexp(-1) - rest).abs().max()

    assert wrong_by(0.0) < 1e-12
    assert wrong_by(1e-3) / wrong_by(5e-4) == pytest.approx(4, rel=0.05)


def random_logits():
    return 3 * torch.randn(7, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_targets_and_what_carries_most_is_listed():
    logits, targets = random_logits(), torch.tensor([5, 5, 9, 30, 31, 32, 33])
    found = sampled_softmax.choose_tokens(logits, targets, 24)
    mass = logits.softmax(-1).sum(0)
    free = [v for v in range(90) if v not in targets]
    assert found.listed.tolist() == sorted([*sorted(free, key=lambda v: -mass[v])[:6], *set(targets.tolist())])
    assert sampled_softmax.choose_tokens(logits, targets, 1).listed.tolist() == sorted(set(targets.tolist()))


def test_the_sample_stands_for_all_others():
    """Each token for as much as is between two draws: what it counts for is never more than half a draw off."""
    logits, targets = random_logits(), torch.tensor([5, 5, 9, 30, 31, 32, 33])
    found = sampled_softmax.choose_tokens(logits, targets, 24)
    mass = logits.softmax(-1).sum(0)
    left = [v for v in range(90) if v not in found.listed]
    assert set(found.sampled.tolist()) <= set(left)
    counted = found.log_weights.exp() * mass[found.sampled]
    assert_equal(counted.sum(), mass[left].sum())
    draw = mass[left].sum() / 12
    for end in range(91):
        sampled, all_of_it = counted[found.sampled < end].sum(), sum(mass[v] for v in left if v < end)
        assert abs(sampled - all_of_it) <= draw / 2 + 1e-9


def test_the_others_keep_their_mass():
    logits = 3 * torch.randn(7, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = torch.tensor([0, 4, 59])
    rest, among = sampled_softmax.remaining_tokens(logits, tokens)
    p = logits.softmax(-1)
    p[:, tokens] = 0
    assert_equal(rest, logits.logsumexp(-1) + p.sum(-1).log())
    assert_equal(among, p / p.sum(-1, keepdim=True))


@pytest.mark.parametrize("size", [288, 10**6])
def test_a_shortlist_of_everything_is_the_exact_objective(size):
    llm = double("llama")
    exact, short = (llm.memorize(TOKENS, recipe(shortlist=size)) for size in (None, size))
    assert short.trace == exact.trace
    assert all(torch.equal(short.tensors[name], wanted) for name, wanted in exact.tensors.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_memory_is_that_of_the_exact_objective_nearly(family):
    """144 of 288 tokens, 48 numbers wide: far fewer than any model has, so that errors are larger than anywhere."""
    llm = double(family)
    before = llm.logits(QUERY)
    exact, short = (llm.memorize(TOKENS, recipe(learning_rate=1e-4, shortlist=size)) for size in (None, 144))
    assert short.recipe.shortlist == 144
    change, error = (
        m - n for m, n in ((llm.logits(QUERY, exact), before), (llm.logits(QUERY, short), llm.logits(QUERY, exact)))
    )
    assert error.norm() <= 0.02 * change.norm(), error.norm() / change.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_last_step_of_the_trace_is_exact(dtype):
    llm = FastMem(build("llama", dtype=dtype), None)
    memory = llm.memorize(TOKENS, recipe(steps=6, shortlist=40, learning_rate=1e-4))
    before = llm.memorize(TOKENS, recipe(steps=5, shortlist=40, learning_rate=1e-4))
    positions = TOKENS.scored[1:].nonzero()[:, 0]
    now, base = (llm.logits(TOKENS.ids, m)[positions] for m in (before, None))
    expected = torch.stack(plain(now, base, TOKENS.ids[positions + 1], 0.3)).double()
    torch.testing.assert_close(losses(memory)[-1].double(), expected, rtol=1e-4, atol=1e-6)
    assert memory.trace[0].kl == 0


def test_one_that_is_too_far_off_is_memorized_again_exactly(caplog):
    llm = double("llama")
    with caplog.at_level(logging.WARNING, logger="fastmem"):
        memory = llm.memorize(TOKENS, recipe(learning_rate=3e-2, shortlist=20))
    assert "recipe shortlist 20 is too small: the loss was off by" in caplog.text
    exact = llm.memorize(TOKENS, recipe(learning_rate=3e-2))
    assert memory.recipe == exact.recipe
    assert memory.trace == exact.trace
    assert all(torch.equal(memory.tensors[name], wanted) for name, wanted in exact.tensors.items())


def test_the_steps_of_a_run_that_is_repeated_are_seen_once(caplog):
    seen = []
    wide = recipe(learning_rate=3e-2, shortlist=20, target_loss=1e-9)
    memory = double("llama").memorize(TOKENS, wide, on_step=seen.append)
    assert "memorizing again over the whole vocabulary" in caplog.text
    assert [step.index for step in seen] == list(range(wide.steps))
    assert memory.details["replaced_shortlist"] == 20


@pytest.mark.parametrize("changes", [{"layers": (0, -1)}, {"parametrization": "lora"}, {"adaptive_kl": 5.0}], ids=str)
def test_it_goes_with_the_rest_of_a_recipe(changes):
    llm = double("llama")
    exact, short = (llm.memorize(TOKENS, recipe(learning_rate=1e-4, shortlist=n, **changes)) for n in (None, 144))
    assert short.recipe.shortlist == 144
    torch.testing.assert_close(losses(short), losses(exact), rtol=1e-3, atol=1e-3)


def test_it_stops_by_rule():
    llm = double("llama")
    full = llm.memorize(TOKENS, recipe(shortlist=144, steps=8, learning_rate=1e-4))
    target = (full.trace[3].loss + full.trace[4].loss) / 2
    memory = llm.memorize(TOKENS, recipe(shortlist=144, steps=8, learning_rate=1e-4, target_loss=target))
    assert "after 4 steps" in memory.stopped
    assert len(memory.trace) == 4


def test_a_list_gives_the_memory_of_each():
    llm = double("llama")
    texts = documents(24, 7, 21)
    alone = [llm.memorize(text, recipe(shortlist=60)) for text in texts]
    for one, other in zip(llm.memorize(texts, recipe(shortlist=60)), alone, strict=True):
        assert all(torch.equal(one.tensors[name], wanted) for name, wanted in other.tensors.items())


def test_a_quantized_trunk_will_do():
    llm = FastMem(quantized("llama")[0], None)
    exact, short = (llm.memorize(TOKENS, recipe(learning_rate=1e-4, shortlist=n)) for n in (None, 144))
    assert short.recipe.shortlist == 144
    torch.testing.assert_close(losses(short), losses(exact), rtol=1e-3, atol=1e-3)


class Centred(nn.Linear):
    """A head whose logits depend on each other."""

    def forward(self, states):
        logits = super().forward(states)
        return logits - logits.mean(-1, keepdim=True)


def test_a_head_that_is_more_than_its_rows_is_refused(llama):
    llama.lm_head.__class__ = Centred
    llm = FastMem(llama, None)
    llm.memorize(TOKENS, recipe())
    with pytest.raises(InputError, match=r"recipe shortlist does not work with 'llama'.*Leave it out"):
        llm.memorize(TOKENS, recipe(shortlist=40))


def test_a_head_without_rows_is_refused(llama):
    llama.lm_head = Int8Linear(llama.lm_head)
    with pytest.raises(InputError, match=r"needs an output embedding with float rows; 'llama' has Int8Linear"):
        FastMem(llama, None).memorize(TOKENS, recipe(shortlist=40))


def test_gathered_rows_copy_no_other_weight(llama):
    split_model = SplitModel(llama)
    head = split_model.head_over(torch.tensor([3, 7]))
    own = {p.data_ptr() for p in llama.parameters()}
    (module,) = head.args
    assert [p.shape for p in module.parameters() if p.data_ptr() not in own] == [(2, 48)]


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_shortlist_is_a_number_of_tokens(size):
    with pytest.raises(InputError, match=r"recipe shortlist is .*: give a whole number, 1 or more"):
        Recipe(shortlist=size)


def test_a_memory_from_before_there_were_shortlists_is_read(tmp_path, monkeypatch, llama):
    memory = FastMem(llama, None).memorize(TOKENS, recipe(steps=1))
    whole = memory_module.write_memory_file

    def as_before(path, tensors, record):
        del record["recipe"]["shortlist"]
        whole(path, tensors, record)

    monkeypatch.setattr(memory_module, "write_memory_file", as_before)
    memory.save(tmp_path / "old.safetensors")
    assert Memory.load(tmp_path / "old.safetensors").recipe == memory.recipe
