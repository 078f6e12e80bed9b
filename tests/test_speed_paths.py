"""Every fast path gives what the plain path beside it gives. Nothing here measures time."""

import pytest
import torch
from transformers import DynamicCache

from families import build
from fastmem import FastMem, Tokens
from fastmem.answer.cache import Prefix, PrefixCache
from fastmem.errors import InputError, MemoryMismatchError, ResourceError, UnsupportedModelError
from fastmem.learn import budget, optimize
from test_memorize import LOGIT, LOSS_RELATIVE, QUERY, losses, recipe
from test_trunk import assert_near


def documents(*lengths, unscored=2):
    """Token ids of so many documents, the first two of each not scored."""
    ids = [torch.arange(length) * (11 + 2 * n) % 288 for n, length in enumerate(lengths)]
    return [Tokens(one, torch.arange(len(one)) >= unscored) for one in ids]


def assert_same_memories(llm, found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(losses(one), losses(other), rtol=LOSS_RELATIVE, atol=LOSS_RELATIVE)
        assert_near(llm.logits(QUERY, one), llm.logits(QUERY, other), LOGIT)


def test_many_with_a_stop_rule_equal_one_by_one(llama):
    llm = FastMem(llama, None)
    texts = documents(24, 7, 21)
    full = [llm.memorize(text, recipe(steps=8)) for text in texts]
    rule = recipe(steps=8, target_loss=full[0].trace[4].loss)
    alone = [llm.memorize(text, rule) for text in texts]
    assert len(alone[0].trace) < 8
    assert [m.stopped for m in llm.memorize(texts, rule)] == [m.stopped for m in alone]


def test_one_that_diverges_leaves_the_others_alone():
    llm = FastMem(build("llama", dtype=torch.float16), None)
    texts = documents(24, 7)
    high = recipe(learning_rate=10.0, steps=10)
    alone = [llm.memorize(text, high) for text in texts]
    assert any(memory.stopped for memory in alone)
    together = llm.memorize(texts, high)
    assert [m.stopped for m in together] == [m.stopped for m in alone]
    assert all(t.isfinite().all() for memory in together for t in memory.tensors.values())


def test_a_document_without_a_scored_token_is_refused_among_others(llama):
    texts = [*documents(24), Tokens(QUERY, torch.zeros(len(QUERY), dtype=torch.bool))]
    with pytest.raises(InputError, match="no token is scored"):
        FastMem(llama, None).memorize(texts, recipe())


@pytest.mark.parametrize("layers", [(-1,), (0, -1)], ids=str)
@pytest.mark.parametrize(
    ("chunk", "piece", "kept"), [(7, 16, 0), (16, 7, 10**9), (5, 1000, 5 * 2 * 288 * 4), (1000, 1000, 0)], ids=str
)
def test_cutting_changes_nothing(monkeypatch, layers, chunk, piece, kept):
    """Pieces through the FFN, chunks through the head, base logits kept, partly kept or computed again."""
    llm = FastMem(build("llama"), None)
    (text,) = documents(53)
    whole = llm.memorize(text, recipe(layers=layers))
    monkeypatch.setattr(budget, "CHUNK_POSITIONS", chunk)
    monkeypatch.setattr(budget, "PIECE_POSITIONS", piece)
    monkeypatch.setattr(budget, "KEPT_LOGITS_BYTES", kept)
    cut = llm.memorize(text, recipe(layers=layers))
    assert cut.trace[0].kl == 0
    assert_same_memories(llm, [cut], [whole])


def test_base_logits_are_kept_as_far_as_there_is_room(monkeypatch, llama):
    llm = FastMem(llama, None)
    (text,) = documents(53)
    reading = llm.read(text)
    monkeypatch.setattr(budget, "CHUNK_POSITIONS", 10)
    for kept, expected in ((0, 0), (10 * 288 * 4, 1), (25 * 288 * 4, 2), (10**9, 6)):
        monkeypatch.setattr(budget, "KEPT_LOGITS_BYTES", kept)
        (piece,) = optimize.Optimization(llm.split_model, reading, recipe()).pieces
        assert [chunk.base_logits is not None for chunk in piece.chunks] == [i < expected for i in range(6)]


def test_the_plan_shrinks_before_it_refuses(llama):
    split_model = FastMem(llama, None).split_model
    roomy = budget.plan(split_model, recipe(), 4000, free=10**12)
    assert (roomy.chunk_positions, roomy.piece_positions) == (budget.CHUNK_POSITIONS, budget.PIECE_POSITIONS)
    assert roomy.kept_logits_bytes == 4000 * 288 * 4
    needs = roomy.need_bytes
    tight = budget.plan(split_model, recipe(), 4000, free=int(0.8 * needs))
    assert tight.kept_logits_bytes == 0
    assert tight.need_bytes <= 0.8 * needs
    tighter = budget.plan(split_model, recipe(), 4000, free=int(0.9 * tight.need_bytes))
    assert tighter.piece_positions < tight.piece_positions


def test_what_cannot_fit_is_refused_with_what_would(monkeypatch, llama):
    llm = FastMem(llama, None)
    (text,) = documents(400)
    monkeypatch.setattr(budget, "free_bytes", lambda device: 800_000)
    with pytest.raises(
        ResourceError, match=r"398 scored tokens needs 0.00 GB .* at most (\d+) scored tokens would fit"
    ) as e:
        llm.memorize(text, recipe())
    fitting = int(str(e.value).split("at most ")[1].split()[0])
    assert 0 < fitting < 398
    llm.memorize(Tokens(text.ids[: fitting + 2], text.scored[: fitting + 2]), recipe(steps=1))
    monkeypatch.setattr(budget, "free_bytes", lambda device: 1000)
    with pytest.raises(ResourceError, match="not even one token would fit"):
        llm.memorize(text, recipe())


def prefix_of(*ids):
    """A prefix whose keys and values are 32 bytes per token."""
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, len(ids), 4), torch.zeros(1, 1, len(ids), 4), 0)
    return Prefix(torch.tensor(ids), cache)


def test_the_prefix_that_saves_most_is_found():
    held = PrefixCache(limit_bytes=10_000)
    short, long = prefix_of(1, 2, 9), prefix_of(1, 2, 3, 4)
    held.add(short)
    held.add(long)
    assert held.longest(torch.tensor([1, 2, 3, 5])) is long
    assert held.longest(torch.tensor([1, 2, 9, 5])) is short
    assert held.longest(torch.tensor([7, 2, 3, 5])) is None
    assert held.longest(torch.tensor([1])) is None  # one token is always left to read


def test_prefixes_are_not_found_under_another_salt():
    held = PrefixCache(limit_bytes=10_000)
    held.add(prefix_of(1, 2, 3), salt="alice")
    assert held.longest(torch.tensor([1, 2, 3, 4]), salt="bob") is None
    assert held.longest(torch.tensor([1, 2, 3, 4])) is None
    assert held.longest(torch.tensor([1, 2, 3, 4]), salt="alice") is not None


def test_the_least_recently_used_prefix_goes_first():
    held = PrefixCache(limit_bytes=3 * 64)
    for first in (10, 20, 30):
        held.add(prefix_of(first, 1))
    assert held.longest(torch.tensor([10, 1, 5])) is not None
    held.add(prefix_of(40, 1))
    assert held.longest(torch.tensor([20, 1, 5])) is None
    assert held.longest(torch.tensor([10, 1, 5])) is not None
    assert held.size_bytes == 3 * 64
    held.add(prefix_of(*range(50, 60)))  # larger than the limit
    assert held.longest(torch.tensor([50, 51, 52])) is None
    assert held.size_bytes == 3 * 64


def test_a_longer_prefix_replaces_what_it_goes_on_from():
    held = PrefixCache(limit_bytes=10_000)
    held.add(prefix_of(1, 2, 3))
    held.add(prefix_of(1, 2, 3, 4))
    assert held.size_bytes == 4 * 32
    held.add(prefix_of(1, 2, 3), salt="other")
    assert held.size_bytes == 7 * 32


class Int8Linear(torch.nn.Module):
    """Codes and scales in buffers, no parameter: how a quantized linear looks from outside."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, states):
        return torch.nn.functional.linear(states, self.codes * self.scale, self.bias)


def quantized(family):
    """(a model whose decoder layers have quantized linears, the same model with what they stand for as floats)."""
    model, same = build(family), build(family)
    for name, linear in list(model.named_modules()):
        if isinstance(linear, torch.nn.Linear) and ".layers." in name:
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, Int8Linear(linear))
            same.get_submodule(name).weight.data = model.get_submodule(name).codes * model.get_submodule(name).scale
    return model, same


@pytest.mark.parametrize("family", ["llama", "gemma2", "starcoder2"])
def test_a_quantized_model_tunes_a_float_copy_of_its_last_ffn(family):
    model, same = quantized(family)
    llm, floats = FastMem(model, None), FastMem(same, None)
    (text,) = documents(24)
    memory, expected = llm.memorize(text, recipe()), floats.memorize(text, recipe())
    assert memory.trace[0].kl == 0
    assert set(memory.tensors) == set(expected.tensors)
    torch.testing.assert_close(losses(memory), losses(expected), rtol=LOSS_RELATIVE, atol=LOSS_RELATIVE)
    assert_near(llm.logits(QUERY, memory), floats.logits(QUERY, expected), LOGIT)
    ffn = model.get_submodule(llm.split_model.structure.layers[-1].ffn[0])
    assert any(isinstance(part, Int8Linear) for part in ffn.children())  # the model keeps its codes


def test_a_memory_is_not_written_into_a_quantized_model():
    model, _ = quantized("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    memory = FastMem(model, None).memorize(documents(24)[0], recipe(steps=1))
    with (
        pytest.raises(InputError, match=r"keeps model.layers.2.mlp.* quantized, in Int8Linear: .*generate\(prompt"),
        memory.applied(model),
    ):
        pass
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(MemoryMismatchError, match="this memory belongs to"), memory.applied(build("gpt2")):
        pass


def spread(model, tmp_path, **elsewhere):
    """Dispatched by accelerate's hooks, all of it on the one device there is but what is named."""
    accelerate = pytest.importorskip("accelerate")
    parts = [
        "model.embed_tokens",
        "model.norm",
        "model.rotary_emb",
        "lm_head",
        *(f"model.layers.{i}" for i in range(3)),
    ]
    places = dict.fromkeys(parts, "cpu") | {name.replace("_in_", "."): place for name, place in elsewhere.items()}
    accelerate.dispatch_model(
        model, places, main_device="cpu", offload_dir=tmp_path / "-".join(elsewhere), force_hooks=True
    )
    return model


@pytest.mark.parametrize("place", ["model_in_layers_in_0", "lm_head"])
def test_what_is_offloaded_to_disk_is_read_when_it_is_needed(tmp_path, place):
    model = spread(build("llama"), tmp_path, **{place: "disk"})
    assert any(p.device.type == "meta" for p in model.parameters())
    (text,) = documents(24)
    plain, llm = FastMem(build("llama"), None), FastMem(model, None)
    expected, memory = plain.memorize(text, recipe()), llm.memorize(text, recipe())
    torch.testing.assert_close(losses(memory), losses(expected), rtol=LOSS_RELATIVE, atol=LOSS_RELATIVE)
    assert_near(llm.logits(QUERY, memory), plain.logits(QUERY, expected), LOGIT)


def test_what_is_tuned_must_not_be_offloaded(tmp_path):
    (text,) = documents(24)
    reason = r"layer {} are offloaded \(on the meta device between calls\); keep that layer on a device: device_map"
    with pytest.raises(UnsupportedModelError, match=reason.format(2)):
        FastMem(spread(build("llama"), tmp_path, model_in_layers_in_2="disk"), None)
    llm = FastMem(spread(build("llama"), tmp_path, model_in_layers_in_0="disk"), None)
    with pytest.raises(UnsupportedModelError, match=reason.format(0)):
        llm.memorize(text, recipe(layers=(0, -1)))
    llm = FastMem(spread(build("llama"), tmp_path, lm_head="disk"), None)
    with pytest.raises(InputError, match="'llama' has Linear that is offloaded"):
        llm.memorize(text, recipe(shortlist=40))


@pytest.mark.parametrize("layers", [(-1,), (0, -1)], ids=str)
def test_a_model_spread_over_devices_by_hooks(layers, tmp_path):
    """accelerate's hooks on every layer, all of them on the one device a machine without GPU has."""
    model = spread(build("llama"), tmp_path)
    assert hasattr(model.model.layers[1], "_hf_hook")
    (text,) = documents(24)
    plain = FastMem(build("llama"), None)
    expected = plain.memorize(text, recipe(layers=layers))
    llm = FastMem(model, None)
    memory = llm.memorize(text, recipe(layers=layers))
    torch.testing.assert_close(losses(memory), losses(expected), rtol=LOSS_RELATIVE, atol=LOSS_RELATIVE)
    assert_near(llm.logits(QUERY, memory), plain.logits(QUERY, expected), LOGIT)


@pytest.mark.parametrize("method", ["base", "fastmem", "fastmem+cd", "cad"])
def test_a_second_question_reads_only_what_is_new(llama, method):
    """The second prompt shares 20 of its 26 tokens with the first."""
    plain, kept = FastMem(llama, None), FastMem(llama, None, prefix_bytes=10**7)
    (text,) = documents(24)
    memory = plain.memorize(text, recipe()) if "fastmem" in method else None
    start = torch.arange(20) * 5 % 288
    questions = [Tokens(torch.cat([start, torch.arange(6) * step + step])) for step in (3, 7)]
    options = {"max_new_tokens": 6, "without_context": Tokens(torch.arange(9) * 2)} | {"memory": memory}
    expected = [plain.generate(question, method=method, **options) for question in questions]
    answers = [kept.generate(question, method=method, **options) for question in questions]
    assert [a.token_ids for a in answers] == [a.token_ids for a in expected]
    assert [a.cached_tokens for a in answers] == [0, 20]
    assert [a.cached_tokens for a in expected] == [0, 0]
    assert kept.prefixes.size_bytes > 0
