"""A document that is cut to fit: for any text it ends, what is left fits, begins the text and is about as long as it
can be."""

from functools import partial
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer

from families import build
from fastmem import FastMem, InputError, Recipe, Tokens
from fastmem.answer import prepare
from fastmem.answer.request import Decoding
from fastmem.prompts import chat_ids, in_place, memory_tokens, question_prompt
from fastmem.tiny import MODEL_DIR
from tiny_tokenizer import LLAMA3_TEMPLATE, build_tokenizer

# One token per byte; merged tokens; and a tokenizer in Python, which reports no offsets.
TOKENIZERS = {
    "bytes": build_tokenizer(),
    "merges": AutoTokenizer.from_pretrained(MODEL_DIR),
    "python": ByT5Tokenizer(chat_template=LLAMA3_TEMPLATE.replace("bos_token", "''")),
}
PIECES = ["word ", "  ", "été ", "漢字", "👩‍🚀", "<|eot_id|>", "</s>", "e\u0301", "﷽", "\n"]
TEXTS = st.one_of(
    st.text(min_size=1, max_size=300), st.lists(st.sampled_from(PIECES), min_size=1, max_size=60).map("".join)
).filter(str.strip)
QUESTION = "where does the Ilm end"
# With so many characters more, blanks aside, it must not fit. Fewer may: what ends a word can merge into one token.
SLACK = 16


def preparer(name: str) -> prepare.Preparer:
    split_model = SimpleNamespace(max_positions=None, vocabulary_size=10**6, has_encoder=False)
    return prepare.Preparer(split_model, TOKENIZERS[name])


def as_document(name: str):
    return partial(memory_tokens, TOKENIZERS[name])


def as_prompt(name: str):
    def encode(context: str) -> Tokens:
        turn = question_prompt(context, QUESTION)
        return Tokens(chat_ids(TOKENIZERS[name], [{"role": "user", "content": turn}]))

    return encode


def as_part_of_a_prompt(name: str):
    return lambda context: in_place(TOKENIZERS[name], question_prompt(context, QUESTION), context)


@pytest.mark.parametrize("encoding", [as_document, as_prompt, as_part_of_a_prompt])
@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS, room=st.integers(1, 200))
@example("x" + "é" * 2000, 450)
@example("<|eot_id|>" * 100, 150)
@example("a" + " " * 500 + "b", 150)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_any_text_is_cut_to_fit(name, encoding, text, room):
    encode, text = encoding(name), text.strip()
    room += len(encode("x")) - 1
    if len(encode(text[:1])) > room:
        with pytest.raises(InputError, match="nothing of the document is left after truncation"):
            preparer(name).fitting(text, encode, room)
        return
    context, tokens = preparer(name).fitting(text, encode, room)
    assert tokens.ids.tolist() == encode(context).ids.tolist()
    assert len(tokens) <= room
    assert text.startswith(context)
    rest = text[len(context) :]
    blanks = len(rest) - len(rest.lstrip())
    assert not rest or len(encode(context + rest[: blanks + SLACK])) > room


def short(positions: int) -> FastMem:
    model = build("llama")
    model.config.max_position_embeddings = positions
    return FastMem(model, TOKENIZERS["bytes"])


@pytest.mark.parametrize("placement", ["assistant", "prompt"])
def test_memorize_and_answer_cut_between_characters(placement):
    text, recipe = "x" + "é" * 1000, Recipe(steps=1, placement=placement)
    llm = short(400)
    if placement == "assistant":
        memory = llm.memorize(text, recipe, truncate=True)
        assert memory.details["tokens"] == 400
    out = llm.answer(QUESTION, text, recipe=recipe, truncate=True, max_new_tokens=20)
    assert 380 - 2 <= out.prompt_tokens <= 380
    assert "\ufffd" not in llm.preparer.question(QUESTION, text, "base", Decoding(), None, truncate=True).context
    with pytest.raises(InputError, match="nothing of the document is left after truncation"):
        short(200).answer(QUESTION, text, recipe=recipe, truncate=True)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_half_a_surrogate_pair_is_refused(name):
    with pytest.raises(InputError) as error:
        preparer(name).document("ab\ud83d", "assistant")
    assert str(error.value) == "the context is not text: character 2 is half of a surrogate pair; decode it anew."
