"""The one loop that decodes and the one that memorizes: what they emit, share, and survive."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastmem.answer.batch
import fastmem.answer.running_batch
import fastmem.answer.sequence_group
from families import build
from fastmem import FastMem, Recipe, Tokens
from fastmem.answer.cache import PrefixCache
from fastmem.answer.running_batch import Answer, PieceError, RunningBatch, answers, decode
from fastmem.learn.memorize import drain

RECIPE = Recipe(learning_rate=1e-2, steps=3)
PROMPTS = ["first question", "a second, longer question", "third"]


@pytest.fixture
def llm(tokenizer):
    return FastMem(build("llama"), tokenizer, recipe=RECIPE)


def requests_of(llm, **options):
    memory = llm.memorize("The ferry leaves at nine.")
    options = {"max_new_tokens": 12} | options
    plain = llm.request(PROMPTS[0], **options)
    return [
        plain,
        llm.request(PROMPTS[1], memory, "fastmem+cd", **options),
        llm.request(PROMPTS[2], memory, **options),
    ]


def test_a_stream_that_is_left_at_its_last_text_has_an_answer(llm):
    whole = llm.generate(PROMPTS[0], max_new_tokens=5, ignore_eos=True)
    stream, text = llm.stream(PROMPTS[0], max_new_tokens=5, ignore_eos=True), ""
    for piece in stream:
        text += piece
        if text == whole.text:
            break
    assert stream.run().token_ids == whole.token_ids


def test_pieces_add_up_to_the_answer(llm):
    ended: dict[int, Answer] = {}
    texts: dict[int, str] = {}
    for row, piece in decode(llm.batch(), requests_of(llm, top_logprobs=2), 2):
        texts[id(row.request)] = texts.get(id(row.request), "") + piece.text
        assert piece.token == row.token_ids[-1]
        assert (piece.logprob is None) == (piece.token in row.request.stop_ids)
        if piece.answer is not None:
            ended[id(row.request)] = piece.answer
    assert len(ended) == 3
    for key, answer in ended.items():
        assert answer.text == texts[key]
        assert len(answer.logprobs) == len(answer.token_ids)


def test_a_stop_string_ends_one_answer_and_leaves_the_others(llm):
    long = llm.generate(PROMPTS[0], max_new_tokens=12)
    stop = long.text[3:6]
    first, second = (llm.request(PROMPTS[0], max_new_tokens=12, stop=stop if one else ()) for one in (True, False))
    stopped, whole = answers(llm.batch(), [first, second], 2)
    assert (stopped.text, stopped.reason) == (long.text[: long.text.index(stop)], "stop")
    assert whole.text == long.text


@pytest.mark.parametrize("failing", ["forward", "head", "choose"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_step_that_fails_costs_no_token(llm, monkeypatch, temperature, failing):
    """After a restart every answer goes on where it was, with the draws it would have made."""
    expected = answers(llm.batch(), requests_of(llm, temperature=temperature, seed=5), 3)
    batch = llm.batch()
    rows = batch.join(requests_of(llm, temperature=temperature, seed=5))
    for _ in range(4):
        batch.step()
    before = [list(row.token_ids) for row in rows]
    owner = fastmem.answer.batch if failing == "choose" else llm.split_model
    whole, calls = getattr(owner, failing), []

    def broken(*args, **kwargs):
        calls.append(1)
        if failing == "choose" and len(calls) < 3:  # two rows have drawn when the third fails
            return whole(*args, **kwargs)
        raise RuntimeError("broken")

    monkeypatch.setattr(owner, failing, broken)
    with pytest.raises(RuntimeError, match="broken"):
        batch.step()
    monkeypatch.setattr(owner, failing, whole)
    assert [row.token_ids for row in rows] == before
    batch.restart(batch.rows)
    while batch.rows:
        batch.step()
    assert [tuple(row.token_ids) for row in rows] == [answer.token_ids for answer in expected]


def test_an_alternative_beyond_the_vocabulary_fails_before_any_row_moves(llm):
    batch = llm.batch()
    unchecked = replace(llm.request("b", max_new_tokens=4), top_logprobs=10**6)
    good, bad = batch.join([llm.request("a", max_new_tokens=4), unchecked])
    with pytest.raises(RuntimeError):
        batch.step()
    assert good.token_ids == bad.token_ids == []


def test_answers_that_go_on_from_one_prefix_are_read_together(llm, monkeypatch):
    """One reading of the prompt serves all, and their first token comes from one pass over one token each."""
    batch = RunningBatch(llm.split_model, llm.tokenizer, PrefixCache(2**20))
    request = llm.request(PROMPTS[1], max_new_tokens=3)
    (alone,) = answers(batch, [request], 1)
    shapes = []
    whole = llm.split_model.forward
    monkeypatch.setattr(llm.split_model, "forward", lambda ids, **more: shapes.append(ids.shape) or whole(ids, **more))
    again = answers(batch, [replace(request) for _ in range(3)], 3)
    assert shapes[0] == (3, 1)
    assert [one.token_ids for one in again] == [alone.token_ids] * 3
    assert {one.cached_tokens for one in again} == {len(request.prompt) - 1}


class NoNewNumbers(TorchDispatchMode):
    """No room for floating-point numbers: views of those that exist are all that can be had."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        held, storages = ({t.untyped_storage().data_ptr() for t in floats(values)} for values in (args, made))
        if not storages <= held:
            raise torch.OutOfMemoryError(f"no room for {func}")
        return made


def floats(values):
    """The tensors with floating-point numbers in nested values."""
    tensors = [value for value in tree_leaves(values) if torch.is_tensor(value)]
    return [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]


def test_only_steps_need_room_for_keys_and_values(llm):
    """Whoever joins, pauses, goes on or leaves cannot fail for lack of memory, and so harms no other answer."""
    prefixes, requests = PrefixCache(2**20), requests_of(llm)
    expected = answers(RunningBatch(llm.split_model, llm.tokenizer, prefixes), requests, 3)
    batch = RunningBatch(llm.split_model, llm.tokenizer, prefixes)
    rows = batch.join([replace(request) for request in requests])
    for _ in range(3):
        batch.step()
    with NoNewNumbers():
        batch.pause(rows[:1])
        several = batch.join([replace(request) for request in requests[:1] * 4])
        batch.leave(several[:1])
    assert {row.cached_tokens for row in several} == {len(rows[0].request.prompt) - 1}
    batch.step()
    with NoNewNumbers():
        batch.leave(several[1:2])
        batch.go_on(rows[:1])
        batch.pause(rows[1:2])
    batch.step()
    with NoNewNumbers():
        batch.go_on(rows[1:2])
    while batch.rows:
        batch.step()
    assert [tuple(row.token_ids) for row in rows] == [answer.token_ids for answer in expected]
    assert [tuple(row.token_ids) for row in several[2:]] == [expected[0].token_ids] * 2


def test_an_answer_that_leaves_and_returns_before_a_step_is_read_once(llm, monkeypatch):
    """The server does this to an answer whose place is wanted and, before anything is decoded, free again."""
    requests = requests_of(llm, max_new_tokens=8, ignore_eos=True)
    expected = [answer.token_ids for answer in answers(llm.batch(), [replace(one) for one in requests], 3)]
    batch = llm.batch()
    rows = batch.join(requests)
    batch.step()
    batch.leave(rows[:1])
    batch.resume(rows[:1])
    whole, read = llm.split_model.forward, []
    monkeypatch.setattr(llm.split_model, "forward", lambda ids, **more: read.append(len(ids)) or whole(ids, **more))
    for _ in range(2):
        read.clear()
        batch.step()
        assert sum(read) == len(requests)
    while batch.rows:
        batch.step()
    assert [tuple(row.token_ids) for row in rows] == expected


def test_a_prefix_is_kept_only_as_far_as_it_may_be_shared(llm):
    prefixes = PrefixCache(2**20)
    for shared, salt, found in ((0, "a", 0), (9, "a", 0), (9, "a", 9), (9, "b", 0)):
        request = replace(llm.request(PROMPTS[1], max_new_tokens=2), shared_tokens=shared, salt=salt)
        (answer,) = answers(RunningBatch(llm.split_model, llm.tokenizer, prefixes), [request], 1)
        assert answer.cached_tokens == found


def test_a_prefix_holds_no_more_memory_than_is_counted(llm):
    """What is kept of a long prompt does not keep the keys and values of the rest."""
    prefixes = PrefixCache(2**20)
    request = replace(llm.request(Tokens(torch.arange(200) % 50), max_new_tokens=2), shared_tokens=3)
    answers(RunningBatch(llm.split_model, llm.tokenizer, prefixes), [request], 1)
    prefix = prefixes.longest(request.prompt)
    assert prefix is not None
    assert len(prefix.ids) == 3
    storages = [t.untyped_storage() for layer in prefix.cache.layers for t in (layer.keys, layer.values)]
    assert sum(storage.nbytes() for storage in storages) == prefix.size_bytes


def test_one_long_prompt_does_not_pad_many_short_ones(llm, monkeypatch):
    """The caches hold at most two positions for a token; the answers are those that each prompt gets alone."""
    monkeypatch.setattr(fastmem.answer.sequence_group, "FREE_PADDING", 0)
    lengths = [200, 190, 20, 19, 18, 17, 16, 15, 14]
    requests = [llm.request(Tokens(torch.arange(n) % 50), max_new_tokens=6, ignore_eos=True) for n in lengths]
    expected = [answers(llm.batch(), [replace(request)], 1)[0].token_ids for request in requests]
    batches, whole = [], llm.split_model.forward
    monkeypatch.setattr(
        llm.split_model,
        "forward",
        lambda ids, **more: batches.append((len(ids), more["cache"].get_seq_length())) or whole(ids, **more),
    )
    found = answers(llm.batch(), requests, len(requests))
    assert [answer.token_ids for answer in found] == expected
    last = batches[-2:]
    assert sorted(rows for rows, _ in last) == [2, 7]
    assert sum(rows * positions for rows, positions in last) < 2 * (sum(lengths) + 6 * len(lengths))


def test_memorizing_yields_after_reading_and_before_every_update(llm):
    tokens = llm.memory_tokens("The ferry leaves at nine.")
    run = llm.memorizing(tokens)
    assert next(run) is None
    steps = [next(run) for _ in range(3)]
    with pytest.raises(StopIteration) as end:
        next(run)
    (memory,) = end.value.value
    assert tuple(steps) == memory.trace
    assert memory.details["tokens"] == len(tokens)
    assert memory.details["tokenizer_sha256"] == llm.reader["tokenizer_sha256"]
    unwatched = list(llm.memorizing(tokens, watch=False))
    assert unwatched == [None] * 4


def test_one_reading_serves_several_runs(llm, monkeypatch):
    tokens = Tokens(torch.arange(3, 27))
    expected = [llm.memorize(tokens, replace(RECIPE, steps=steps)) for steps in (2, 3)]
    reading = llm.read(tokens)
    monkeypatch.setattr(llm.split_model, "read", None)  # no further trunk pass
    found = drain(llm.memorizing(reading, RECIPE, at=(2, 3)))
    for memory, wanted in zip(found, expected, strict=True):
        assert memory.recipe == wanted.recipe
        assert memory.trace == wanted.trace
        assert all(torch.equal(memory.tensors[name], tensor) for name, tensor in wanted.tensors.items())


@pytest.mark.parametrize(("method", "encodings"), [("base", 1), ("fastmem", 2), ("cad", 2), ("fastmem+cad", 3)])
def test_every_text_is_tokenized_once(llm, monkeypatch, method, encodings):
    """The prompt, the document as it is memorized, and the prompt without it: each once, and nothing else."""
    calls = []
    backend = type(llm.tokenizer)._encode_plus
    monkeypatch.setattr(
        type(llm.tokenizer),
        "_encode_plus",
        lambda self, text, *a, **k: calls.append(text) or backend(self, text, *a, **k),
    )
    llm.answer("When?", "The ferry leaves at nine.", method, max_new_tokens=2)
    assert len(calls) == encodings, calls


def test_a_prefix_that_cannot_be_kept_costs_no_text(llm, monkeypatch, caplog):
    """Caching is only for later requests: without room for it the answers go on, whole."""
    requests = requests_of(llm)
    expected = [answer.text for answer in answers(llm.batch(), requests, 3)]

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("no room for keys and values")

    monkeypatch.setattr(fastmem.answer.batch, "selected", full)
    batch = RunningBatch(llm.split_model, llm.tokenizer, PrefixCache(2**20))
    found = [answers(batch, [replace(request)], 1)[0].text for request in requests]
    assert found == expected
    assert "was not cached: no room for keys and values" in caplog.text


def test_a_failure_after_the_tokens_is_told_from_one_before(llm, monkeypatch):
    """The rows have moved then, so going on would lose text: who restarts a batch has to know."""
    batch = llm.batch()
    batch.join(requests_of(llm))

    def broken(self, token):
        raise ValueError("no text for this token")

    monkeypatch.setattr(fastmem.answer.running_batch.Detokenizer, "add", broken)
    with pytest.raises(PieceError, match="no text for this token"):
        batch.step()
