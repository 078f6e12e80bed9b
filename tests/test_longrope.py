"""longrope models (Phi-3, 3.5 and 4-mini with 128k positions) read sequences above a switch with other frequencies.

The truth is transformers' own `generate`, one prompt at a time, on prompts below the switch, above it, and such that
the answer passes it.
"""

import copy

import pytest
import torch
import transformers

import reference
from families import SHAPE, randomize
from fastmem import FastMem, Recipe, Tokens

SWITCH, NEW = 64, 6
LENGTHS = (20, 60, 100, 64, 70)  # below, passing it, and above, mixed


def build_longrope():
    half = SHAPE["head_dim"] // 2
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.1 * i for i in range(half)],
        "long_factor": [3.0 + 2.0 * i for i in range(half)],
        "original_max_position_embeddings": SWITCH,
    }
    config = transformers.Phi3Config(
        **SHAPE | {"eos_token_id": None},
        num_hidden_layers=3,
        rope_parameters=rope,
        original_max_position_embeddings=SWITCH,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(transformers.Phi3ForCausalLM(config)).eval()


def prompt(seed, length):
    return torch.randint(5, 288, (length,), generator=torch.Generator().manual_seed(seed))


PROMPTS = [prompt(seed, length) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def llm():
    return FastMem(build_longrope(), prefix_bytes=2**24)


def generated(model, ids):
    """The tokens of transformers' `generate`; on a copy, because the model keeps the frequencies it used last."""
    with torch.no_grad():
        out = copy.deepcopy(model).generate(ids[None], do_sample=False, max_new_tokens=NEW)
    return tuple(out[0, len(ids) :].tolist())


def test_the_switch_is_seen_and_matters(llm):
    assert llm.split_model.longrope_switch == SWITCH
    ids = PROMPTS[2]
    own = copy.deepcopy(llm.model)(ids[None], use_cache=False).logits[0]
    assert (own[: SWITCH - 4] - llm.logits(ids[: SWITCH - 4])).abs().max() > 0.1
    torch.testing.assert_close(llm.logits(ids), own, atol=3e-5, rtol=0)


def test_answers_are_those_of_generate_alone_and_in_a_batch(llm):
    expected = [generated(llm.model, ids) for ids in PROMPTS]
    options = {"max_new_tokens": NEW}
    llm.prefixes.clear()
    assert [llm.generate(Tokens(ids), **options).token_ids for ids in PROMPTS] == expected
    together = llm.generate([Tokens(ids) for ids in PROMPTS], **options)
    assert [answer.token_ids for answer in together] == expected


@pytest.mark.parametrize("method", ["fastmem", "cad", "fastmem+cd", "fastmem+dola"])
@pytest.mark.parametrize("layers", [(-1,), (-2,)])
def test_methods_equal_the_reference_on_both_sides(llm, method, layers):
    """`reference.py` runs the whole sequence again for every token, so it never mixes the two."""
    memory = llm.memorize(Tokens(prompt(50, 30)), Recipe(learning_rate=3e-3, steps=3, layers=layers))
    tuned = reference.memorized(llm.model, memory.weights(llm.split_model.parameters(layers)))
    without = prompt(51, 12)
    scores = {
        "fastmem": lambda ids: reference.base(tuned, ids),
        "cad": lambda ids: reference.cad(llm.model, ids, without.tolist()),
        "fastmem+cd": lambda ids: reference.fastmem_cd(tuned, copy.deepcopy(llm.model), ids),
        "fastmem+dola": lambda ids: reference.dola(tuned, ids),
    }[method]
    some = PROMPTS[:3]
    expected = [tuple(reference.decode(scores(ids.tolist()), max_new_tokens=NEW).tokens) for ids in some]
    options = {"max_new_tokens": NEW, "without_context": Tokens(without) if method == "cad" else None}
    found = llm.generate([Tokens(ids) for ids in some], None if method == "cad" else memory, method, **options)
    assert [answer.token_ids for answer in found] == expected


def test_no_prefix_passes_the_switch(llm):
    """A short prompt that begins like a long one, and a long one that begins like a short one, are read whole."""
    long, short = PROMPTS[2], PROMPTS[2][:40]
    llm.prefixes.clear()
    expected = [generated(llm.model, ids) for ids in (long, short)]
    for order in ((long, short), (short, long)):
        llm.prefixes.clear()
        answers = {len(ids): llm.generate(Tokens(ids), max_new_tokens=NEW) for ids in order}
        assert [answers[len(ids)].token_ids for ids in (long, short)] == expected
        assert all(answer.cached_tokens == 0 for answer in answers.values())
    again = llm.generate(Tokens(PROMPTS[2][:44]), max_new_tokens=NEW)
    assert again.cached_tokens == 40  # among short prompts, what was read is used
    assert again.token_ids == generated(llm.model, PROMPTS[2][:44])


def test_a_long_document_is_memorized_with_its_own_frequencies(llm):
    """Whatever was read before: the memory of a long document is that of a fresh model."""
    document = Tokens(prompt(60, 90))
    recipe = Recipe(learning_rate=3e-3, steps=3)
    llm.logits(prompt(61, 20))
    memory = llm.memorize(document, recipe)
    fresh = FastMem(build_longrope()).memorize(document, recipe)
    assert all(torch.equal(tensor, fresh.tensors[name]) for name, tensor in memory.tensors.items())
    assert memory.trace[0].loss == pytest.approx(
        torch.nn.functional.cross_entropy(
            copy.deepcopy(llm.model)(document.ids[None], use_cache=False).logits[0, :-1], document.ids[1:]
        ).item(),
        rel=1e-5,
    )
