"""The face of the library: text in and out, streams, stops, lengths, threads, and a model never written to."""

import itertools
import threading
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

import fastmem.memory.memory_modules
from families import build
from fastmem import METHODS, FastMem, InputError, Memory, MemoryMismatchError, Recipe, ResourceError, Tokens
from fastmem.answer.detokenize import Detokenizer
from fastmem.errors import UnsupportedModelError
from fastmem.memory.memory_modules import MemoryModules
from fastmem.prompts import question_alone, question_prompt
from fastmem.surprisal_report import surprisal_report
from tiny_tokenizer import build_tokenizer

CONTEXT = "The river Ilm rises in Tarn and ends in the sea of Quoll."
QUESTION = "where does the Ilm end"
RECIPE = Recipe(learning_rate=3e-3, steps=4)


@pytest.fixture(scope="module")
def llm() -> FastMem:
    return FastMem(build("llama"), build_tokenizer(), recipe=RECIPE)


def state(llm: FastMem) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in llm.model.state_dict().items()}


def same(llm: FastMem, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(before[name], tensor) for name, tensor in llm.model.state_dict().items())


@pytest.mark.parametrize("method", ["base", "fastmem", "cad", "fastmem+cd", "fastmem+cad", "fastmem+dola"])
def test_answer_is_memorize_and_generate_with_the_papers_prompt(llm: FastMem, method: str) -> None:
    before = state(llm)
    out = llm.answer(QUESTION, CONTEXT, method=method, max_new_tokens=6)
    memory = llm.memorize(CONTEXT) if "fastmem" in method else None
    options = {"without_context": question_alone(QUESTION)} if "cad" in method else {}
    prompt = question_prompt(CONTEXT, QUESTION)
    by_hand = llm.generate(prompt, memory, method, max_new_tokens=6, **options)
    chat = llm.generate([{"role": "user", "content": prompt}], memory, method, max_new_tokens=6, **options)
    assert out.token_ids == by_hand.token_ids == chat.token_ids
    assert out.text == by_hand.text == llm.tokenizer.decode(out.token_ids, skip_special_tokens=True)
    assert (out.method, out.memory is None) == (method, memory is None)
    assert same(llm, before)


def test_in_place_reads_the_prompt_once_and_answers_alike(llm: FastMem) -> None:
    recipe = Recipe(learning_rate=3e-3, steps=4, placement="prompt")
    out = llm.answer(QUESTION, CONTEXT, recipe=recipe, max_new_tokens=6)
    assert out.cached_tokens == out.prompt_tokens - 1, "only the last token is read again"
    cold = llm.generate(question_prompt(CONTEXT, QUESTION), out.memory, "fastmem", max_new_tokens=6)
    assert out.token_ids == cold.token_ids
    assert out.memory.details["scored_tokens"] == len(CONTEXT.encode())


def test_in_place_memorizes_the_document_and_not_the_questions_copy(llm: FastMem) -> None:
    recipe = Recipe(learning_rate=3e-3, steps=1, placement="prompt")
    asked = [
        llm.answer(f"{a} or {b}", "Ilm", recipe=recipe, max_new_tokens=1) for a, b in (("Ilm", "Ulm"), ("Ulm", "Ulm"))
    ]
    first, second = (out.memory.trace[0].cross_entropy for out in asked)
    assert first == pytest.approx(second, abs=1e-6), "what follows the document does not change its loss"


def test_a_memory_of_another_document_is_noted(llm: FastMem, caplog: pytest.LogCaptureFixture) -> None:
    memory = llm.memorize(CONTEXT)
    llm.answer(QUESTION, f"  {CONTEXT}\n", memory=memory, max_new_tokens=1)
    llm.answer(QUESTION, "Another text.", memory=llm.memorize(Tokens([5, 6, 7])), max_new_tokens=1)  # of no known text
    assert "another text" not in caplog.text
    llm.answer(QUESTION, "Another text.", memory=memory, max_new_tokens=1)
    assert "the memory was made from another text than this context" in caplog.text


def test_answer_takes_one_question(llm: FastMem) -> None:
    for question, context in ((["a", "b"], [CONTEXT, CONTEXT]), (QUESTION, [CONTEXT])):
        with pytest.raises(InputError) as error:
            llm.answer(question, context)  # type: ignore[arg-type]
        assert "call answer once for each question, or generate with a list of prompts" in str(error.value)


def test_a_stream_says_what_generate_says(llm: FastMem) -> None:
    whole = llm.generate("Say something.", max_new_tokens=30)
    stream = llm.stream("Say something.", max_new_tokens=30)
    pieces = list(stream)
    assert "".join(pieces) == whole.text
    assert len(pieces) > 3
    assert stream.answer.token_ids == whole.token_ids


def test_stop_strings_end_an_answer_and_are_not_part_of_it(llm: FastMem) -> None:
    whole = llm.generate("Say something.", max_new_tokens=40).text
    stop = whole[10:13]
    out = llm.generate("Say something.", max_new_tokens=40, stop=["never said", stop])
    assert out.text == whole[: whole.index(stop)]
    assert out.reason == "stop"
    assert len(out.token_ids) < 40
    stream = llm.stream("Say something.", max_new_tokens=40, stop=stop)
    assert "".join(stream) == out.text, "no part of a stop string is handed out before it is complete"


class Pieces:
    """A tokenizer as far as a detokenizer sees one: one token is one byte string."""

    def __init__(self, *tokens: bytes):
        self.tokens = tokens

    def decode(self, ids: list[int], **_: object) -> str:
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", errors="replace")


# Twelve draws of two characters, one character to a token.
TWELVE = {"max_new_tokens": 12, "ignore_eos": True, "logit_bias": {97: 100, 98: 100}, "temperature": 9, "seed": 2}


def test_a_stop_string_counts_after_the_least_length(llm: FastMem) -> None:
    free = llm.generate(QUESTION, **TWELVE)
    stop, ends = free.text[2:4], set()
    for least in range(10):
        out = llm.generate(QUESTION, **TWELVE, min_new_tokens=least, stop=stop)
        at = free.text.find(stop, least)
        ends.add(at)
        assert (out.text, out.reason) == ((free.text[:at], "stop") if at >= 0 else (free.text, "length"))
    assert len(free.text) == 12
    assert len(ends) > 2, "the stop string comes more than once"


def test_a_stop_string_that_the_last_token_completes_is_the_reason(llm: FastMem) -> None:
    text = llm.generate(QUESTION, **TWELVE).text
    out = llm.generate(QUESTION, **TWELVE | {"max_new_tokens": 3}, stop=text[:3])
    assert (out.text, out.reason, len(out.token_ids)) == ("", "stop", 3)


def test_unfinished_characters_and_beginnings_of_stop_strings_are_held_back() -> None:
    euro = "€".encode()
    text = Detokenizer(Pieces(b"a", euro[:1], euro[1:2], euro[2:], b"ST", b"OX", b"STO", b"P!"), stop=["STOP"])
    assert [text.add(i) for i in range(7)] == ["a", "", "", "€", "", "STOX", ""]
    assert text.add(7) == ""
    assert (text.stopped, text.text) == (True, "a€STOX")
    ending = Detokenizer(Pieces(b"x", b"ST"), stop=["STOP"])
    assert [ending.add(0), ending.add(1), ending.finish()] == ["x", "", "ST"]


def test_prompts_and_memories_of_a_list_belong_together(llm: FastMem) -> None:
    contexts = [CONTEXT, "Nim sells salt.", "The tower of Ost is blue and very old."]
    memories = llm.memorize(contexts)
    prompts = [question_prompt(c, QUESTION) for c in contexts]
    together = llm.generate(prompts, memories, "fastmem+cd", max_new_tokens=5)
    alone = [llm.generate(p, m, "fastmem+cd", max_new_tokens=5) for p, m in zip(prompts, memories, strict=True)]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert [a.memory for a in together] == memories
    with pytest.raises(InputError, match="memory: 2 given for 3 prompts; give one for each"):
        llm.generate(prompts, memories[:2])


def short(positions: int = 160) -> FastMem:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=261,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
    )
    return FastMem(LlamaForCausalLM(config).eval(), build_tokenizer(), recipe=Recipe(learning_rate=1e-3, steps=2))


def test_what_is_too_long_says_by_how_much_and_is_cut_on_request(caplog: pytest.LogCaptureFixture) -> None:
    llm = short()
    long = "words" * 60
    tokens = len(llm.tokenizer(long)["input_ids"]) + len("assistant\n\n") + 4
    over = tokens - 160
    with pytest.raises(InputError) as error:
        llm.memorize(long)
    assert f"{tokens} tokens are {over} too many: the model has 160 positions." in str(error.value)
    assert error.value.options == ("truncate",)
    assert str(error.value).endswith("Options that help: truncate.")
    assert llm.memorize(long, truncate=True).details["tokens"] == 160
    llm = short(400)
    with pytest.raises(InputError, match=r"\d+ tokens and 20 for the answer are \d+ too many"):
        llm.answer(QUESTION, long, max_new_tokens=20)
    out = llm.answer(QUESTION, long, max_new_tokens=20, truncate=True)
    assert out.prompt_tokens + 20 <= 400
    ids = llm.ids(question_prompt("C", QUESTION))
    assert out.prompt_tokens > len(ids), "some of the context is left, and all of the question"
    llm.answer(QUESTION, long, memory=out.memory, max_new_tokens=20, truncate=True)
    assert "another text" not in caplog.text, "it is the same text, cut alike"


def test_threads_with_their_own_memories_do_not_mix(llm: FastMem) -> None:
    contexts = ["Ab is red.", "The moon of Ost is made of glass, they say."]
    alone = [llm.answer(QUESTION, c, "fastmem+cd", max_new_tokens=8).token_ids for c in contexts]
    before, found = state(llm), {0: [], 1: []}

    def work(i: int) -> None:
        for _ in range(4):
            found[i].append(llm.answer(QUESTION, contexts[i], "fastmem+cd", max_new_tokens=8).token_ids)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [alone[0]] * 4, 1: [alone[1]] * 4}
    assert same(llm, before)


def test_applied_gives_transformers_generate_the_memory_and_takes_it_back(llm: FastMem) -> None:
    memory, before = llm.memorize(CONTEXT), state(llm)
    ids = llm.ids(question_prompt(CONTEXT, QUESTION))[None]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    with memory.applied(llm.model) as model:
        own = model.generate(ids, **options)[0, ids.shape[1] :].tolist()
    assert own == list(llm.generate(question_prompt(CONTEXT, QUESTION), memory, max_new_tokens=6).token_ids)
    with pytest.raises(KeyboardInterrupt), memory.applied(llm.model):
        raise KeyboardInterrupt
    assert same(llm, before)
    assert all(p.requires_grad for p in llm.model.parameters())


def test_a_memory_of_another_base_is_refused_with_both_named(llm: FastMem) -> None:
    other = FastMem(build("llama", seed=1), build_tokenizer())
    with pytest.raises(MemoryMismatchError, match=r"this memory was made on .* this model is .*: load the base"):
        other.generate("Hello?", llm.memorize(CONTEXT))


@pytest.mark.parametrize("layers", [(-5,), (3,), (0, 4)])
def test_a_memory_of_layers_that_the_model_lacks_is_a_mismatch(llm: FastMem, layers: tuple, tmp_path) -> None:
    deep = FastMem(build("llama", layers=6), build_tokenizer(), recipe=RECIPE)
    memory = deep.memorize(CONTEXT, Recipe(steps=1, layers=layers))
    memory.save(tmp_path / "memory.safetensors")
    for call in (
        lambda: llm.require(memory),
        lambda: llm.generate("Hello?", memory),
        lambda: llm.logits([1, 2], memory),
        lambda: Memory.load(tmp_path / "memory.safetensors", model=llm),
        lambda: surprisal_report(llm, llm.memory_tokens(CONTEXT), memory),
    ):
        with pytest.raises(MemoryMismatchError) as error:
            call()
        assert str(error.value).startswith("this memory was made on LlamaForCausalLM (llama, FFN ")
        reason = f"), in this model layer {layers[-1]} does not exist: load the base it was made for."
        assert str(error.value).endswith(reason)


METHODS_WITH_MEMORY = {"base": "fastmem", "cad": "fastmem+cad", "dola": "fastmem+dola", "adacad": "fastmem+adacad"}


def test_the_digests_of_few_sets_of_layers_are_kept(llm: FastMem, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are as many sets as subsets, and a digest takes a pass over all weights of its set."""
    read, real = [], fastmem.memory.memory_modules.digest
    monkeypatch.setattr(fastmem.memory.memory_modules, "digest", lambda tensors: read.append(1) or real(tensors))
    modules = MemoryModules(llm.split_model)
    sets = [layers for n in (1, 2, 3) for layers in itertools.combinations(range(3), n)]
    found = [modules.digest(layers) for layers in sets]
    assert [modules.digest(layers) for layers in sets[-2:]] == found[-2:]
    assert len(read) == len(sets)
    assert found == [real(llm.split_model.parameters(layers)) for layers in sets] == [modules.digest(s) for s in sets]
    assert len(read) > len(sets)


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_with_a_memory_names_the_method_that_was_used(llm: FastMem, method: str) -> None:
    memory, options = llm.memorize(CONTEXT), {"max_new_tokens": 4, "without_context": "Who?"}
    expected = METHODS_WITH_MEMORY.get(method, method)
    out = llm.generate("Hello?", memory, method, **options)
    assert (out.method, out.memory) == (expected, memory)
    assert out.token_ids == llm.generate("Hello?", memory, expected, **options).token_ids
    (listed, alone) = llm.generate(["Hello?", "Hello?"], [memory, memory], method, **options)
    assert listed.method == alone.method == expected
    if not METHODS[method].memorized:
        (listed, alone) = llm.generate(["Hello?", "Hello?"], [memory, None], method, **options)
        assert (listed.method, alone.method) == (expected, method)


@pytest.mark.parametrize("method", ["base", "cad", "dola"])
def test_answer_refuses_a_memory_that_its_method_would_not_use(llm: FastMem, method: str) -> None:
    memory = llm.memorize(CONTEXT)
    with pytest.raises(InputError) as error:
        llm.answer(QUESTION, CONTEXT, method, memory=memory)
    better = METHODS_WITH_MEMORY[method]
    assert error.value.text == f"method {method!r} uses no memory: leave memory out, or use method {better!r}."
    assert error.value.field == "memory"


def test_the_callers_prompt_without_context_is_used(llm: FastMem) -> None:
    prompt, own = question_prompt(CONTEXT, QUESTION), "Answer in one word: where does the river end?"
    for method in ("cad", "fastmem+cad"):
        memory = llm.memorize(CONTEXT) if "fastmem" in method else None
        asked = {"max_new_tokens": 6, "alpha": 3.0, "top_logprobs": 0}
        found = llm.answer(QUESTION, CONTEXT, method, without_context=own, **asked)
        expected = llm.generate(prompt, memory, method, without_context=own, **asked)
        usual = llm.answer(QUESTION, CONTEXT, method, **asked)
        assert (found.token_ids, found.logprobs) == (expected.token_ids, expected.logprobs)
        assert found.logprobs != usual.logprobs


def test_running_out_of_memory_says_what_to_lower(llm: FastMem, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(llm.split_model, "head", full)
    for call in (lambda: llm.memorize(CONTEXT), lambda: llm.generate("Hello?")):
        with pytest.raises(ResourceError, match=r"out of memory .*: shorten the context, decode fewer") as error:
            call()
        assert "Options that help: truncate, batch_size" in str(error.value)


def test_without_a_tokenizer_only_tokens_come() -> None:
    llm = FastMem(build("llama"))
    assert llm.generate(Tokens([1, 2, 3]), max_new_tokens=2).text == ""
    for call in (lambda: llm.memorize("text"), lambda: llm.generate("text"), lambda: llm.answer("q", "text")):
        with pytest.raises(InputError, match="there is no tokenizer to read text with: give Tokens, or"):
            call()
    with pytest.raises(InputError, match="stop strings need a tokenizer"):
        llm.generate(Tokens([1, 2, 3]), stop="x")


IDS = torch.arange(5, 14)


@pytest.mark.parametrize(
    "prompt", [IDS, IDS[None], IDS.numpy(), {"input_ids": IDS}, None, 3, b"text", [IDS], ["a", None]]
)
def test_what_is_no_prompt_is_refused_with_what_to_give(llm: FastMem, prompt: object) -> None:
    with pytest.raises(InputError, match=r"give a text, chat messages, or token ids as Tokens\(ids\)") as refused:
        llm.generate(prompt)  # type: ignore[call-overload]
    assert refused.value.field == "prompt"


@pytest.mark.parametrize("document", [IDS, None, 3, b"text", ["a", 3]])
def test_a_document_that_is_not_one_text_is_refused(llm: FastMem, document: object) -> None:
    with pytest.raises(InputError, match="the context must be one text"):
        llm.memorize(document)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", ["policy.safetensors", Path("policy.safetensors"), 3])
def test_what_is_no_memory_is_refused_with_how_to_get_one(llm: FastMem, memory: object) -> None:
    calls = (
        lambda: llm.generate(QUESTION, memory=memory),  # type: ignore[call-overload]
        lambda: llm.generate([QUESTION], memory=[memory]),  # type: ignore[list-item]
        lambda: llm.answer(QUESTION, CONTEXT, memory=memory),  # type: ignore[arg-type]
    )
    for call in calls:
        with pytest.raises(
            InputError, match=r"give a Memory, as memorize returns it and Memory\.load reads it"
        ) as refused:
            call()
        assert refused.value.field == "memory"


def test_several_memories_for_one_prompt_are_refused(llm: FastMem) -> None:
    with pytest.raises(InputError, match="give a Memory"):
        llm.generate(QUESTION, memory=[llm.memorize(CONTEXT)])  # type: ignore[call-overload]


def test_names_in_place_of_a_model_and_a_tokenizer_are_refused(llm: FastMem) -> None:
    for call, field in (
        (lambda: FastMem("Qwen/Qwen3-0.6B"), "model"),
        (lambda: FastMem(None), "model"),
        (lambda: FastMem(llm.model, "Qwen/Qwen3-0.6B"), "tokenizer"),
    ):
        with pytest.raises(InputError, match=r"use FastMem\.from_pretrained with a hub id or a folder") as refused:
            call()
        assert refused.value.field == field


def test_a_module_that_is_no_language_model_is_refused(llm: FastMem) -> None:
    images = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    for module in (torch.nn.Linear(3, 3), torch.nn.Sequential(torch.nn.Embedding(5, 3)), images):
        with pytest.raises(UnsupportedModelError, match=r"it is no language model of transformers .*; give a causal"):
            FastMem(module, llm.tokenizer)


def test_a_module_and_a_fastmem_are_not_taken_for_each_other(llm: FastMem, tmp_path: Path) -> None:
    memory = llm.memorize(CONTEXT)
    memory.save(tmp_path / "m")
    for model in (llm.model, "folder"):
        with pytest.raises(InputError, match=r"model is .*: give the FastMem that will use the memory") as refused:
            Memory.load(tmp_path / "m", model=model)
        assert refused.value.field == "model"
    for model in (llm, None):
        with (
            pytest.raises(InputError, match=r"model is .*: give the transformers model itself"),
            memory.applied(model),
        ):
            pass


@pytest.mark.parametrize("rank", [0, 1.5, "2", None])
def test_a_memory_is_truncated_to_a_whole_rank(llm: FastMem, rank: object) -> None:
    with pytest.raises(InputError, match=r"^rank is .*: give a whole number, 1 or more\.$"):
        llm.memorize(CONTEXT).truncated(rank)  # type: ignore[arg-type]


def test_what_a_prompt_of_python_shows_of_a_model_and_a_memory_is_short(llm: FastMem) -> None:
    memory = llm.memorize(CONTEXT)
    assert repr(memory).startswith(f"Memory(layers [-1] of '{llm.name}', {memory.size_bytes:,} bytes, ")
    assert f"cross entropy {memory.trace[0].cross_entropy:.3g} to " in repr(memory)
    assert len(repr(memory)) < 200
    assert repr(llm) == f"FastMem('{llm.name}', {llm.split_model.depth} layers, cpu)"


def test_empty_questions_and_prompts(llm: FastMem) -> None:
    with pytest.raises(InputError, match="the question is empty"):
        llm.answer(" ", CONTEXT)
    with pytest.raises(InputError, match="the prompt is empty"):
        llm.generate("  ")
    with pytest.raises(InputError, match="the context is empty"):
        llm.answer(QUESTION, "\n")


HALF = r"the {} is not text: character 4 is half of a surrogate pair; decode it anew\."


@pytest.mark.parametrize("placement", ["assistant", "prompt"])
def test_half_a_character_is_refused(llm: FastMem, placement: str) -> None:
    for call, what in (
        (lambda: llm.answer("who \ud800", CONTEXT, recipe=Recipe(steps=1, placement=placement)), "question"),
        (lambda: llm.answer(QUESTION, "the \udfff", recipe=Recipe(steps=1, placement=placement)), "context"),
        (lambda: llm.generate("who \ud800"), "prompt"),
        (lambda: llm.generate([{"role": "user", "content": "who \ud800"}]), "prompt"),
        (lambda: llm.answer(QUESTION, CONTEXT, "cad", without_context="who \ud800"), "prompt"),
    ):
        with pytest.raises(InputError, match=HALF.format(what)):
            call()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"steps": -1}, "recipe steps is -1: give a whole number, 0 or more."),
        ({"learning_rate": float("nan")}, "recipe learning_rate is nan: give a number, 0 to 10."),
        ({"kl_weight": -0.1}, "recipe kl_weight is -0.1: give a number, 0 to 1000000."),
        ({"layers": ()}, "recipe layers is (): give layer numbers such as (-1,)."),
    ],
)
def test_recipes_out_of_range(changes: dict, text: str) -> None:
    with pytest.raises(InputError) as error:
        Recipe(**changes)
    assert text in str(error.value)
    assert [error.value.field] == list(changes)
