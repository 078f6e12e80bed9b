"""`Detokenizer` against decoding all tokens at once, with a tokenizer that writes rare characters as bytes."""

from random import Random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from fastmem.answer.detokenize import Detokenizer

SPECIAL = ("<unk>", "<s>", "</s>")


@pytest.fixture(scope="module")
def tokenizer():
    """The normalizer and the decoder of Llama 2: a word begins with ▁, and what has no token is written in bytes."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz."]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def check(tokenizer, ids):
    found = Detokenizer(tokenizer)
    pieces = [found.add(token) for token in ids] + [found.finish()]
    assert "".join(pieces) == found.text == tokenizer.decode(ids, skip_special_tokens=True)
    return pieces


@pytest.mark.parametrize("text", ["ab 你好 c", "hi 😀😀 there", "é\nx", "a\nb", "你\n好", "  a", "\n\n"])
def test_characters_that_are_written_in_bytes(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert not any("\ufffd" in piece for piece in check(tokenizer, ids))


def test_random_texts_with_skipped_tokens_between_words(tokenizer):
    random = Random(0)
    for _ in range(200):
        words = ["".join(random.choices("ab.é你😀\n ", k=random.randint(1, 6))) for _ in range(4)]
        ids = [
            token
            for word in words
            for token in (*tokenizer(word, add_special_tokens=False)["input_ids"], *random.choices([1, 2], k=1))
        ]
        check(tokenizer, ids)


def test_an_unfinished_character_is_held_back_until_the_end(tokenizer):
    ids = tokenizer("a😀", add_special_tokens=False)["input_ids"]
    pieces = check(tokenizer, ids[:-1])
    assert pieces[-2] == ""
    assert "\ufffd" in pieces[-1]
