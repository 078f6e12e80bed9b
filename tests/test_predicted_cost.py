"""Predicted costs against independent counts: torch's FLOP counter, dispatched kernels, the tensors themselves."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from bench import random_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from fastmem import Recipe, predicted_cost
from fastmem.answer.batch import Batch
from fastmem.cost import document, request
from fastmem.errors import InputError
from fastmem.learn import budget
from fastmem.learn.memorize import drain
from fastmem.memory.compression import quantized
from fastmem.predicted_cost import Machine, ModelShape, Work, disk_bytes, peak_bytes

UNSCORED = 5


def model(layers=3, tied=False, dtype=torch.float32, vocabulary=300):
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    return random_model(config, "random", "cpu", dtype)


@pytest.fixture(scope="module")
def llm():
    return model()


@pytest.fixture(scope="module")
def shape(llm):
    return ModelShape.of(llm.model.config, 4)


def counted(work):
    """(operations of matrix products that torch counts, what `work` returns). Attention on a CPU is not counted."""
    with FlopCounterMode(display=False) as counter:
        result = work()
    return counter.get_total_flops(), result


def attention(shape, rows, past):
    """Operations of scores and sums of values: every token attends to those before it and to itself."""
    pairs = sum(past + number + 1 for number in range(rows))
    return shape.layers * pairs * 4 * shape.heads * shape.head_width


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_model(tied):
    llm = model(tied=tied)
    shape = ModelShape.of(llm.model.config, 4)
    assert shape.parameters == sum(weight.numel() for weight in llm.model.parameters())
    assert shape.tuned == sum(weight.numel() for weight in llm.split_model.parameters((-1,)).values())


@pytest.mark.parametrize(("scored", "steps"), [(20, 1), (20, 3), (300, 2), (1100, 1)])
@pytest.mark.parametrize("kept", [budget.KEPT_LOGITS_BYTES, 300 * 4 * 200])
def test_operations_of_memorizing_are_what_torch_counts(llm, shape, monkeypatch, scored, steps, kept):
    """With one piece and several, and with kept logits for all positions or for 200 of them."""
    monkeypatch.setattr(budget, "KEPT_LOGITS_BYTES", kept)
    recipe = Recipe(steps=steps)
    run = llm.memorizing(document(llm.split_model, scored, UNSCORED), recipe, watch=False)
    read, _ = counted(lambda: next(run))
    tokens = scored + UNSCORED
    assert predicted_cost.read_work(shape, tokens).products == read + attention(shape, tokens, 0)
    steps_count, _ = counted(lambda: drain(run))
    assert predicted_cost.steps_work(shape, scored, recipe).products == steps_count


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("own", [False, True])
def test_operations_of_a_token_are_what_torch_counts(llm, shape, rows, own):
    recipe = Recipe(steps=1)
    memories = [llm.memorize(document(llm.split_model, 9), recipe) for _ in range(rows if own else 1)]
    ids, batch = document(llm.split_model, 12, 0).ids, Batch(llm.split_model)
    batch.join([request(llm, ids, memories[i if own else 0], "fastmem", 4) for i in range(rows)])
    prompt, _ = counted(batch.step)
    if rows == 1:
        assert predicted_cost.prompt_work(shape, 12).products == prompt + attention(shape, 12, 0)
    token, _ = counted(batch.step)
    expected = predicted_cost.token_work(shape, rows, 12, own).products
    assert expected == token + rows * attention(shape, 1, 12)


def test_a_token_reads_every_matrix_once(llm, shape):
    """And what it writes and moves beside them, counted by hand for D=32, F=48, V=300, 4 and 2 heads of 8."""
    matrices = sum(w.numel() for name, w in llm.model.named_parameters() if w.ndim == 2 and "embed" not in name)
    results = 3 * (32 + 16 + 16 + 32 + 48 + 48 + 32) + 300  # of the products
    passes = 3 * (20 * 32 + 12 * (32 + 16) + 5 * 48)
    cache = 3 * 10 * 3 * 2 * 16  # read by attention, then read and written anew; 10 tokens
    work = predicted_cost.token_work(shape, 1, 10)
    assert work.row_bytes == 4 * (matrices + results + passes + cache) + 300 * 16
    assert work.rows_bytes == 0
    several = predicted_cost.token_work(shape, 2, 10, own_memories=False)
    assert several.rows_bytes == 4 * matrices
    own = predicted_cost.token_work(shape, 2, 10)
    assert own.rows_bytes == 4 * (matrices - shape.tuned)


class Launches(TorchDispatchMode):
    """Counts kernels; views launch none."""

    VIEWS = ("view", "t", "transpose", "unsqueeze", "slice", "detach", "alias", "expand", "split", "select", "unbind")

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function._schema.name.removeprefix("aten::")] += 1
        return function(*args, **(kwargs or {}))

    @property
    def total(self):
        views = {*self.VIEWS, "_unsafe_view", "lift_fresh"}
        return sum(count for name, count in self.names.items() if name not in views)


def launches(llm, work):
    with Launches() as counter:
        work()
    return counter.total


def test_launches_are_those_of_the_model(llm):
    """The passes' constants within a tenth: transformers changes a mask or a cast now and then."""
    deeper = model(layers=5)
    tokens, ids = document(llm.split_model, 9), document(llm.split_model, 9, 0).ids
    assert llm.reader.keys() == deeper.reader.keys()  # its digests are computed once, not in every pass
    read, deep_read = (launches(one, lambda: one.read(tokens)) for one in (llm, deeper))  # noqa: B023
    layer = (deep_read - read) / 2
    assert layer == pytest.approx(predicted_cost.LAYER_LAUNCHES, rel=0.1)
    assert read - 3 * layer == pytest.approx(predicted_cost.PASS_LAUNCHES, rel=0.3)
    found = []
    memories = [llm.memorize(tokens, Recipe(steps=1)) for _ in range(4)]
    for used in (memories[:1], memories[:1] * 4, memories):
        batch = Batch(llm.split_model)
        batch.join([request(llm, ids, memory, "fastmem", 4) for memory in used])
        batch.step()
        found.append(launches(llm, batch.step) - 3 * layer)
    per_row = (found[1] - found[0]) / 3
    assert (found[2] - found[1]) / 4 == pytest.approx(predicted_cost.FFN_LAUNCHES, rel=0.3)
    assert per_row == pytest.approx(predicted_cost.ROW_LAUNCHES, rel=0.3)
    assert found[0] - per_row == pytest.approx(predicted_cost.TOKEN_LAUNCHES, rel=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_is_what_memorizing_plans(dtype):
    llm, recipe = model(dtype=dtype), Recipe()
    shape = ModelShape.of(llm.model.config, dtype.itemsize)
    for scored in (9, 400):
        assert peak_bytes(shape, scored, recipe) == budget.plan(llm.split_model, recipe, scored, 10**12).need_bytes


def test_files_hold_the_tensors_of_a_memory(llm, shape):
    tokens = document(llm.split_model, 9)
    memory = llm.memorize(tokens, Recipe(steps=1))
    assert disk_bytes(shape) == memory.size_bytes
    assert disk_bytes(shape, "bfloat16") == memory.size_bytes / 2
    codes = quantized(memory.tensors).values()
    assert disk_bytes(shape, "int8") == sum(t.numel() * t.element_size() for t in codes)
    low_rank = llm.memorize(tokens, Recipe(steps=1, parametrization="lora", rank=4))
    assert disk_bytes(shape, rank=4) == low_rank.size_bytes


def test_seconds_are_work_by_rates():
    work = Work(products=8, row_bytes=6, layer=3, run=1)
    machine = Machine(products=4, row_bytes=2, rows_bytes=1, new_bytes=1, objective=1, layer=0.5, step=1, run=2)
    none = dict.fromkeys(("rows_bytes", "new_bytes", "objective", "step"), 0)
    assert work.parts(machine) == {"products": 2, "row_bytes": 3, "layer": 1.5, "run": 2} | none
    assert work.seconds(machine) == 2 + 3 + 1.5 + 2
    assert (work + work * 2).seconds(machine) == 3 * work.seconds(machine)


def test_large_results_are_new_memory():
    """Logits of 150 positions and 128,256 tokens take 77 MB, which glibc maps anew; of 32,000 tokens 19 MB."""
    large = ModelShape(256, 704, 2, 4, 4, 64, 128256, False, 4)
    small = replace(large, vocabulary=32000)
    one, none = (predicted_cost.steps_work(s, 150, Recipe(steps=1)).new_bytes for s in (large, small))
    # Logits: in the setup to keep them, in the step, when the last update is checked (32 positions: too few).
    assert (one, none) == (2 * 150 * 128256 * 4, 0)


@pytest.mark.parametrize("changed", [{"layers": (0,)}, {"parametrization": "lora"}, {"shortlist": 100}])
def test_recipes_that_the_formula_does_not_know_are_refused(shape, changed):
    with pytest.raises(InputError, match="whole last FFN over the whole vocabulary"):
        predicted_cost.steps_work(shape, 9, replace(Recipe(), **changed))


def test_configurations_without_a_shape_are_refused(llm):
    with pytest.raises(InputError, match=r"states no shape of a decoder.*give that of a Llama"):
        ModelShape.of(object(), 4)
    with pytest.raises(InputError, match="itemsize is 3: give one of"):
        ModelShape.of(llm.model.config, 3)
