"""Every option has a range: the ends are accepted, what is beyond is refused with the option's name, and so is any
other kind of value. A field that is added without a range fails here."""

import json
import math
from dataclasses import asdict, fields
from decimal import Decimal

import numpy as np
import pytest
import torch

from families import build
from fastmem import FastMem, InputError, Recipe, Tokens
from fastmem.answer.contrast import Contrast
from fastmem.answer.request import Decoding
from fastmem.answer.sampling import Sampling
from fastmem.memory import low_rank
from fastmem.ranges import RANGE, Number

OPTIONS = [(cls, f) for cls in (Recipe, Decoding, Sampling, Contrast) for f in fields(cls)]
NUMBERS = [(cls, f) for cls, f in OPTIONS if isinstance(f.metadata.get(RANGE), Number)]


def named(pair):
    return f"{pair[0].__name__}.{pair[1].name}"


def made(cls, name, value):
    return cls(**({"kind": "cd"} if cls is Contrast else {}) | {name: value})


def refused(cls, name, value):
    with pytest.raises(InputError) as error:
        made(cls, name, value)
    assert error.value.field == ("recipe.seed" if (cls, name) == (Recipe, "seed") else name)
    assert name in error.value.text
    assert len(error.value.text) < 300
    assert "\n" not in error.value.text


@pytest.mark.parametrize("option", OPTIONS, ids=named)
def test_every_option_has_a_range(option):
    cls, f = option
    assert f.metadata.get(RANGE), f"declare {f.name} with ranges.ranged"
    for value in (
        object(),
        1j,
        b"bytes",
        [object()],
        {"a": object()},
        torch.zeros(3, 3),
        np.zeros((2, 2)),
        Decimal(1),
    ):
        refused(cls, f.name, value)
    if f.default is None:
        assert getattr(made(cls, f.name, None), f.name) is None
    else:
        refused(cls, f.name, None)


@pytest.mark.parametrize("option", NUMBERS, ids=named)
def test_numbers_end_where_they_are_said_to_end(option):
    cls, f = option
    accepted = f.metadata[RANGE]
    step = 1 if accepted.whole else 1e-9
    inside = [accepted.least + step, *([] if accepted.above else [accepted.least])]
    outside = [accepted.least - step, *([accepted.least] if accepted.above else [])]
    if math.isfinite(accepted.greatest):
        inside.append(accepted.greatest)
        outside.append(accepted.greatest + (1 if accepted.whole else 1e-9))
    for value in inside:
        assert getattr(made(cls, f.name, value), f.name) == value
    for value in (*outside, math.nan, math.inf, -math.inf, True, np.True_, torch.tensor(True), "1", [1], (1,)):
        refused(cls, f.name, value)
    if accepted.whole:
        for value in (1.5, 2.0, np.float32(2), torch.tensor(2.0)):
            refused(cls, f.name, value)
    else:
        refused(cls, f.name, 10**400)


@pytest.mark.parametrize("option", NUMBERS, ids=named)
def test_numbers_of_numpy_and_torch_become_pythons(option):
    cls, f = option
    for value in (np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), torch.tensor(1, dtype=torch.int8)):
        assert type(getattr(made(cls, f.name, value), f.name)) is int
    if not f.metadata[RANGE].whole:
        for value in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor(0.5, dtype=torch.bfloat16)):
            found = getattr(made(cls, f.name, value), f.name)
            assert (type(found), found) == (float, 0.5)


def test_a_recipe_of_numpy_numbers_is_written_and_read(tmp_path, llama):
    recipe = Recipe(learning_rate=np.float32(0.5), steps=np.int64(0), layers=np.array([-1]), seed=torch.tensor(3))
    assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe
    FastMem(llama).memorize(Tokens([1, 2, 3]), recipe).save(tmp_path / "memory.safetensors")


@pytest.mark.parametrize("given", [-1, (-1,), [-1], range(-1, 0), np.int64(-1), np.array([-1]), torch.tensor([-1])])
def test_layers_are_one_number_or_several(given):
    recipe = Recipe(layers=given)
    assert recipe.layers == (-1,)
    assert type(recipe.layers[0]) is int


@pytest.mark.parametrize("given", [(), "-1", ("-1",), 1.0, (1.5,), True, (True,), None, (None,), ((-1,),), math.nan])
def test_layers_that_are_none(given):
    with pytest.raises(InputError, match=r"recipe layers is .*: give layer numbers such as \(-1,\)\.") as error:
        Recipe(layers=given)
    assert error.value.field == "layers"


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_seeds_of_a_recipe_are_those_of_torch(seed):
    recipe = Recipe(parametrization="lora", seed=seed)
    assert low_rank.start({"a.weight": torch.zeros(4, 3)}, recipe.rank, recipe.seed)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**64 - 1, None])
def test_seeds_of_an_answer_are_those_of_torch(seed):
    assert 0 <= torch.rand(1, generator=Sampling(seed=seed).generator()).item() < 1


def test_the_two_seeds_are_told_apart():
    for make, field, text in (
        (
            lambda: Recipe(seed=2**70),
            "recipe.seed",
            "recipe seed is 1180591620717411303424: give a whole number, 0 to 1",
        ),
        (
            lambda: Sampling(seed=2**70),
            "seed",
            "seed is 1180591620717411303424: give a whole number, -9223372036854775",
        ),
    ):
        with pytest.raises(InputError) as error:
            make()
        assert (error.value.field, error.value.text.startswith(text)) == (field, True)


@pytest.mark.parametrize("stop", ["a", ("a",), ["a", ""], ()])
def test_stops_are_texts(stop):
    assert Decoding(stop=stop).stop_strings() in (("a",), ())


@pytest.mark.parametrize("stop", [None, 1, ("a", 1), [b"a"]])
def test_stops_that_are_none(stop):
    with pytest.raises(InputError, match=r"stop is .*: give a text or a list of texts") as error:
        Decoding(stop=stop)
    assert error.value.field == "stop"


@pytest.mark.parametrize("given", [0, 1, "no", None, 1.0])
def test_a_switch_is_on_or_off(given):
    with pytest.raises(InputError, match=r"final_norm is .*: give True or False"):
        Decoding(final_norm=given)
    assert Decoding(final_norm=np.True_).final_norm is True


# Options that are no fields.


@pytest.fixture(scope="module")
def llm() -> FastMem:
    return FastMem(build("llama"))


PROMPT = Tokens([5, 6, 7])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"top_logprobs": 289}, "top_logprobs is 289: the model has 288 tokens; give at most as many."),
        ({"top_logprobs": -1}, "top_logprobs is -1: give a whole number, 0 or more."),
        ({"batch_size": 0}, "batch_size is 0: give a whole number, 1 or more."),
        ({"alpha": math.nan, "method": "dola"}, "alpha is nan: give a number, 0 to 1000."),
    ],
)
def test_options_of_generate(llm, options, text):
    for prompt in (PROMPT, [PROMPT, PROMPT]):
        with pytest.raises(InputError) as error:
            llm.generate(prompt, max_new_tokens=1, **options)
        assert (error.value.text, error.value.field) == (text, next(iter(options)))


def test_as_many_logprobs_as_there_are_tokens(llm):
    ((_, others),) = llm.generate(PROMPT, max_new_tokens=1, top_logprobs=288).logprobs
    assert sorted(token for token, _ in others) == list(range(288))


@pytest.mark.parametrize("given", [-1, 1.5, "1", None, math.nan, True])
def test_bytes_of_prefixes(llama, given):
    with pytest.raises(InputError, match=r"prefix_bytes is .*: give a whole number, 0 or more") as error:
        FastMem(llama, prefix_bytes=given)
    assert error.value.field == "prefix_bytes"


@pytest.mark.parametrize(
    "ids",
    [
        *([], [[1]], 3, [1.5], [1.0], torch.tensor([1.0]), np.array([1.5]), ["1"], "12", [True, False], [None], None),
        *([-1], [2**63], [5, -(2**70)], [math.nan], 1j),
    ],
    ids=repr,
)
def test_ids_that_are_no_tokens(ids):
    with pytest.raises(InputError, match="Tokens takes a non-empty list of token ids, 0 or more; given") as error:
        Tokens(ids)
    assert error.value.field == "ids"


@pytest.mark.parametrize(
    "ids", [[5, 6], (5, 6), range(5, 7), np.array([5, 6], dtype=np.uint8), torch.tensor([5, 6]).int()]
)
def test_ids_of_any_whole_type(ids):
    tokens = Tokens(ids)
    assert (tokens.ids.dtype, tokens.ids.tolist()) == (torch.int64, [5, 6])


@pytest.mark.parametrize("scored", [[True], [[True, True]], ["a", "b"], [0.5, 1.0], 1, [None, True], 1j], ids=repr)
def test_scored_is_a_flag_per_id(scored):
    with pytest.raises(InputError, match="Tokens takes one `scored` flag per id; given") as error:
        Tokens([5, 6], scored)
    assert error.value.field == "scored"


def test_ids_beyond_the_vocabulary(llm):
    beyond, memory = Tokens([5, 288, 6]), llm.memorize(PROMPT, Recipe(steps=0))
    for call in (
        lambda: llm.memorize(beyond),
        lambda: llm.memorize([PROMPT, beyond]),
        lambda: llm.generate(beyond),
        lambda: llm.generate(PROMPT, memory, "fastmem+cad", without_context=beyond),
        lambda: llm.logits(beyond.ids),
        lambda: llm.logits([5, 288]),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert error.value.text == (
            "token id 288 does not exist: the model has 288 tokens, 0 to 287. Give ids of the model's own tokenizer."
        )
        assert error.value.field == "ids"
    assert llm.logits([0, 287]).shape == (2, 288)
    with pytest.raises(InputError, match="Tokens takes a non-empty list"):
        llm.logits([5, -1])


@pytest.mark.parametrize("tokens", [Tokens([1]), Tokens([1, 2, 3], [True, False, False])], ids=["one", "none scored"])
@pytest.mark.parametrize(
    "changes", [{}, {"shortlist": 64}, {"steps": 0}, {"layers": (0, -1)}, {"parametrization": "lora"}]
)
def test_a_document_without_a_target_is_refused(llm, tokens, changes):
    for call in (lambda: llm.memorize(tokens, Recipe(**changes)), lambda: llm.memorize([tokens], Recipe(**changes))):
        with pytest.raises(InputError) as error:
            call()
        assert (
            error.value.text == "no token is scored: mark at least one token after the first as a target of the loss."
        )
        assert error.value.field == "scored"
