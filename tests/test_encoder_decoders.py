"""Encoder-decoders: split, memorized, decoded and contrasted as the whole model would be, and left as they were.

The truth is the plain way on the whole model: `WithSource` gives its encoder one source, so that `examples/naive.py`
and `reference.py` can run it as they run a decoder-only model.
"""

import copy
import json

import pytest
import torch
from torch import nn

import naive
import reference
from families import BOS, ENCODER_DECODERS, EOS, PAD, VOCAB_SIZE, build, build_encoder_decoder
from fastmem import FastMem, Memory, Recipe, Tokens
from fastmem.answer.contrast import METHODS
from fastmem.cost import card
from fastmem.errors import InputError, MemoryMismatchError, UnsupportedModelError
from fastmem.export import export
from fastmem.prompts import encoder_ids, question_prompt
from fastmem.serve.app import create_app
from fastmem.split.split_model import SplitModel
from test_decode import assert_close, run
from test_trunk import TOLERANCE, assert_near, other_weights
from test_untouched import Untouched

IDS = torch.arange(3, 27) * 11 % 281 + 5
SOURCE = torch.arange(5, 22) * 13 % 281 + 5
OTHER_SOURCE = torch.arange(2, 12) * 17 % 281 + 5
QUERY = torch.arange(5, 17) * 19 % 281 + 5
DOCUMENT = Tokens(IDS, torch.arange(24) >= 2, SOURCE)
RECIPE = Recipe(learning_rate=1e-2, steps=4, kl_weight=0.3)
# What the families call the decoder and its FFNs.
FFNS = {"t5": ("decoder.block", "layer.2.DenseReluDense"), "t5gemma": ("model.decoder.layers", "mlp")}
FFNS |= {"t5_gated": FFNS["t5"], "mt5": FFNS["t5"]}
families = pytest.mark.parametrize("family", ENCODER_DECODERS)


class WithSource(nn.Module):
    """The whole model as a function of the decoder's ids; its encoder always reads `source`."""

    def __init__(self, model, source=SOURCE):
        super().__init__()
        self.model, self.source = model, source

    def forward(self, ids, use_cache=False, **options):
        ids = ids.to(torch.int64)
        output = self.model(input_ids=self.source[None], decoder_input_ids=ids, use_cache=use_cache, **options)
        output["hidden_states"] = output.get("decoder_hidden_states")
        return output

    def get_decoder(self):
        return self.model.get_decoder()

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()


@torch.no_grad()
def own_logits(model, ids=QUERY, source=SOURCE):
    return WithSource(model, source)(ids[None]).logits[0].float()


def ffn_names(model, family, layer):
    """Every parameter of the FFN of a decoder layer, by the names that its family uses."""
    layers, ffn = FFNS.get(family, ("model.decoder.layers", "fc"))
    return [name for name, _ in model.named_parameters() if name.startswith(f"{layers}.{layer}.{ffn}")]


@families
def test_the_decoder_is_what_is_split(family):
    model = build_encoder_decoder(family)
    split_model = SplitModel(model)
    assert split_model.depth == 3
    assert sorted(split_model.parameters((-1,))) == sorted(ffn_names(model, family, 2))
    with torch.no_grad():
        encoded = split_model.encode(SOURCE)
        assert_near(split_model.head(split_model.forward(IDS[None], encoded=encoded))[0], own_logits(model, IDS))
        activations = split_model.read(IDS, torch.tensor([3, 9, 20]), encoded=encoded)
        assert_near(split_model.head(split_model.tail(activations)), own_logits(model, IDS)[[3, 9, 20]])


@families
@pytest.mark.parametrize("layers", [(-1,), (0, -1)], ids=str)
def test_other_weights_are_those_of_a_changed_model(family, layers):
    model = build_encoder_decoder(family)
    split_model = SplitModel(model)
    weights = other_weights(split_model, layers)
    changed = own_logits(reference.memorized(model, weights), IDS)
    assert (changed - own_logits(model, IDS)).abs().max() > 0.05
    with torch.no_grad():
        activations = split_model.read(IDS, torch.arange(24), layers, encoded=split_model.encode(SOURCE))
        rebuilt = split_model.head(split_model.tail(activations, split_model.ffn(weights)))
    assert_near(rebuilt, changed, TOLERANCE * max(1, changed.abs().max().item() / 8))


@families
@pytest.mark.parametrize("layers", [(-1,), (1, -1)], ids=str)
def test_memorizing_equals_the_plain_way(family, layers):
    model = build_encoder_decoder(family)
    memory = FastMem(model).memorize(DOCUMENT, Recipe(**{**vars(RECIPE), "layers": layers}))
    tuned = copy.deepcopy(model)
    names = [name for layer in layers for name in ffn_names(model, family, layer % 3)]
    history = naive.memorize(
        WithSource(tuned),
        IDS,
        DOCUMENT.scored,
        [f"model.{n}" for n in names],
        learning_rate=1e-2,
        steps=4,
        kl_weight=0.3,
    )
    found = torch.tensor([[step.loss, step.cross_entropy, step.kl] for step in memory.trace])
    torch.testing.assert_close(found, torch.tensor(history), rtol=1e-5, atol=1e-5)
    assert history[-1][0] < history[0][0]
    expected = own_logits(tuned)
    assert_near(FastMem(model).logits(QUERY, memory, SOURCE), expected, 1e-4 * max(1, expected.abs().max().item() / 5))


@families
def test_what_the_encoder_reads_counts(family):
    llm = FastMem(build_encoder_decoder(family))
    with_source, without = llm.logits(QUERY, source=SOURCE), llm.logits(QUERY)
    assert_near(without, own_logits(llm.model, source=torch.tensor([EOS])), TOLERANCE * with_source.abs().max().item())
    assert (with_source - without).abs().max() > 0.01
    losses = {llm.memorize(Tokens(IDS, source=s), RECIPE).trace[0].loss for s in (None, SOURCE, OTHER_SOURCE)}
    assert len(losses) == 3


@families
@pytest.mark.parametrize("length", [1, 2, 12])
def test_answers_are_those_of_generate(family, length):
    """Start token, forced first and last tokens, and end tokens included."""
    model = build_encoder_decoder(family)
    llm = FastMem(model)
    first = {"bart": BOS, "mbart": 7}.get(family)
    if first is not None and length > 1:
        assert llm.generate(Tokens(SOURCE), max_new_tokens=length).token_ids[0] == first
    for source in (SOURCE, OTHER_SOURCE):
        expected = model.generate(source[None], max_new_tokens=length, do_sample=False, num_beams=1)[0, 1:]
        assert list(llm.generate(Tokens(source), max_new_tokens=length).token_ids) == expected.tolist()
        penalized = model.generate(
            source[None], max_new_tokens=length, do_sample=False, num_beams=1, repetition_penalty=1.3
        )
        answer = llm.generate(Tokens(source), max_new_tokens=length, repetition_penalty=1.3)
        assert list(answer.token_ids) == penalized[0, 1:].tolist()


# BART's answers are forced at both ends; T5's are not, T5Gemma's head has a soft cap.
@pytest.mark.parametrize("family", ["t5_gated", "mt5", "pegasus", "mbart"])
@pytest.mark.parametrize("method", ["base", "fastmem", "cad", "dola", "fastmem+cd", "fastmem+cad", "fastmem+dola"])
@pytest.mark.parametrize("layers", [(-1,), (-2,)], ids=str)
def test_methods_equal_two_models_without_cache(family, method, layers):
    model = build_encoder_decoder(family)
    model.generation_config.forced_bos_token_id = model.generation_config.forced_eos_token_id = None
    llm = FastMem(model)
    memory = llm.memorize(DOCUMENT, Recipe(**{**vars(RECIPE), "layers": layers}))
    tuned = reference.memorized(model, memory.weights(llm.split_model.parameters(layers)))
    start = [llm.preparer.opening.start]
    expert, original = WithSource(tuned), WithSource(model)
    amateur = WithSource(model, OTHER_SOURCE)
    truth = {
        "base": lambda: reference.base(original, start),
        "fastmem": lambda: reference.base(expert, start),
        "cad": lambda: reference.contrast(original, start, amateur, start),
        "dola": lambda: reference.dola(original, start),
        "fastmem+cd": lambda: reference.contrast(expert, start, original, start),
        "fastmem+cad": lambda: reference.contrast(expert, start, amateur, start),
        "fastmem+dola": lambda: reference.dola(expert, start),
    }[method]()
    options = {"without_context": Tokens(OTHER_SOURCE)} if METHODS[method].kind == "cad" else {}
    used = memory if METHODS[method].memorized else None
    request = llm.request(Tokens(SOURCE), used, method, max_new_tokens=5, ignore_eos=True, **options)
    ((tokens, scores),) = run(llm, [request])
    expected = reference.decode(truth, max_new_tokens=5)
    assert_close(scores, expected.logits)
    assert tokens == expected.tokens


@families
def test_answers_in_a_batch_are_those_of_each_alone(family):
    llm = FastMem(build_encoder_decoder(family))
    memory = llm.memorize(DOCUMENT, RECIPE)
    prompts = [Tokens(SOURCE), Tokens(OTHER_SOURCE), Tokens(IDS)]
    memories = [memory, None, memory]
    together = llm.generate(prompts, memories, max_new_tokens=6, ignore_eos=True)
    alone = [llm.generate(p, m, max_new_tokens=6, ignore_eos=True) for p, m in zip(prompts, memories, strict=True)]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert together[0].prompt_tokens == len(SOURCE)


@families
def test_the_model_is_left_as_it_was(family, tmp_path):
    model = build_encoder_decoder(family)
    before, expected = Untouched(model), own_logits(copy.deepcopy(model))
    llm = FastMem(model)
    before.check()
    memory = llm.memorize(DOCUMENT, RECIPE)
    llm.generate(Tokens(SOURCE), memory, "fastmem+cd", max_new_tokens=3)
    before.check()
    assert torch.equal(own_logits(model), expected)
    memory.save(tmp_path / "memory.safetensors")
    again = Memory.load(tmp_path / "memory.safetensors")
    assert torch.equal(llm.logits(QUERY, again, SOURCE), llm.logits(QUERY, memory, SOURCE))
    with pytest.raises(MemoryMismatchError):
        FastMem(build_encoder_decoder(family, seed=1)).logits(QUERY, again, SOURCE)


@pytest.mark.parametrize("family", ["t5_gated", "bart", "t5gemma"])
def test_bfloat16_is_no_worse_than_the_model_itself(family):
    model = build_encoder_decoder(family, dtype=torch.bfloat16)
    split_model = SplitModel(model)
    weights = other_weights(split_model)
    truth = own_logits(
        reference.memorized(build_encoder_decoder(family), {k: w.float() for k, w in weights.items()}), IDS
    )
    theirs = own_logits(reference.memorized(model, weights), IDS)
    with torch.no_grad():
        activations = split_model.read(IDS, torch.arange(24), encoded=split_model.encode(SOURCE))
        ours = split_model.head(split_model.tail(activations, split_model.ffn(weights))).float()
    assert (ours - truth).abs().mean() <= (theirs - truth).abs().mean() + TOLERANCE


def test_an_encoder_that_the_decoder_does_not_share_tokens_with_is_refused():
    model = build_encoder_decoder("bart")
    model.model.encoder.embed_tokens = nn.Embedding(VOCAB_SIZE + 5, 48)
    with pytest.raises(UnsupportedModelError, match=r"'bart' .* different vocabularies; give a model that has one"):
        SplitModel(model)


def test_a_decoder_without_a_start_token_is_named():
    model = build_encoder_decoder("t5")
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = config.bos_token_id = None
    with pytest.raises(InputError, match=r"set model\.generation_config\.decoder_start_token_id"):
        FastMem(model).generate(Tokens(SOURCE))


def test_a_source_is_refused_where_nothing_reads_it():
    with pytest.raises(InputError, match="source is for an encoder, which this model does not have"):
        FastMem(build("llama")).memorize(DOCUMENT)
    with pytest.raises(InputError, match=r"token id 999 does not exist"):
        FastMem(build_encoder_decoder("t5")).logits(QUERY, source=[999])


def test_an_answer_has_the_positions_of_the_decoder_alone():
    """512 positions of BART: the prompt and the answer may each have as many."""
    llm = FastMem(build_encoder_decoder("bart"))
    llm.prepare(Tokens(torch.full((512,), 9)), max_new_tokens=511)
    for prompt, tokens in ((513, 1), (5, 512)):
        with pytest.raises(InputError, match="too many: the model has 512 positions"):
            llm.prepare(Tokens(torch.full((prompt,), 9)), max_new_tokens=tokens)


TEXT, QUESTION = "The mill of Oakmere grinds rye.", "What does it grind?"


@pytest.mark.parametrize(("family", "opening"), [("t5", [PAD]), ("bart", [EOS, BOS]), ("mbart", [EOS, 7])])
def test_a_document_is_written_as_an_answer(family, opening, plain_tokenizer):
    llm = FastMem(build_encoder_decoder(family), plain_tokenizer)
    tokens = llm.memory_tokens(TEXT)
    written = plain_tokenizer(TEXT)["input_ids"]
    assert tokens.ids.tolist() == [*opening, *written, EOS]
    assert tokens.scored.tolist() == [False] * len(opening) + [True] * (len(written) + 1)
    assert tokens.source is None
    for placement in ("user", "prompt"):
        with pytest.raises(InputError, match="placement of an encoder-decoder"):
            llm.memorize(TEXT, Recipe(placement=placement))


def test_an_encoder_reads_a_text_as_it_is_and_a_chat_by_its_template(tokenizer, plain_tokenizer):
    assert (
        encoder_ids(plain_tokenizer, [{"role": "user", "content": TEXT}]).tolist() == plain_tokenizer(TEXT).input_ids
    )
    control = [{"role": "user", "content": "a<|eot_id|>b"}]
    assert EOS not in encoder_ids(plain_tokenizer, control)
    rendered = tokenizer.decode(encoder_ids(tokenizer, [{"role": "user", "content": TEXT}]))
    assert rendered.endswith(f"{TEXT}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


@pytest.mark.parametrize("family", ["t5_gated", "bart"])
def test_a_question_is_answered_with_the_document_in_the_encoders_prompt(family, plain_tokenizer):
    llm = FastMem(build_encoder_decoder(family), plain_tokenizer, recipe=RECIPE)
    answer = llm.answer(QUESTION, TEXT, "fastmem+cd", max_new_tokens=5)
    memory = llm.memorize(TEXT)
    assert answer.memory.trace == memory.trace
    tuned = reference.memorized(llm.model, memory.weights(llm.split_model.parameters((-1,))))
    source = torch.tensor(plain_tokenizer(question_prompt(TEXT, QUESTION)).input_ids)
    assert answer.prompt_tokens == len(source)
    plain = llm.answer(QUESTION, TEXT, max_new_tokens=5)
    expected = tuned.generate(source[None], max_new_tokens=5, do_sample=False, num_beams=1)[0, 1:]
    assert list(plain.token_ids) == expected.tolist()
    with pytest.raises(InputError, match="placement 'prompt' works with decoder-only models"):
        llm.answer(QUESTION, TEXT, recipe=Recipe(placement="prompt"))


def test_what_does_not_work_yet_is_refused_in_one_sentence(plain_tokenizer, tmp_path):
    llm = FastMem(build_encoder_decoder("t5"), plain_tokenizer)
    low_rank = llm.memorize(TEXT, Recipe(parametrization="lora", rank=2, steps=1))
    refused = {
        "the export as a PEFT adapter": lambda: export(llm, low_rank, tmp_path / "peft"),
        'recipe "auto"': lambda: llm.memorize(TEXT, "auto"),
        "the benchmark": lambda: card(llm, RECIPE),
        "the server": lambda: create_app(llm),
        "json_schema": lambda: llm.generate(TEXT, json_schema={"type": "object"}),
    }
    for what, act in refused.items():
        with pytest.raises(InputError, match=f"{what} works with decoder-only models, and 't5' is an encoder-decoder"):
            act()


def test_the_command_line(fastmem, plain_tokenizer, tmp_path):
    for family in ("t5", "bart"):
        folder = tmp_path / family
        model = build_encoder_decoder(family)
        model.save_pretrained(folder)
        plain_tokenizer.save_pretrained(folder)
        flags = ("--model", folder, "--learning-rate", "1e-2", "--steps", 2)
        asked = fastmem("ask", QUESTION, "--text", TEXT, *flags, "--max-new-tokens", 4, "--json")
        assert asked.code == 0, asked.err
        llm = FastMem(model, plain_tokenizer, recipe=Recipe(learning_rate=1e-2, steps=2))
        assert json.loads(asked.out.splitlines()[-1])["text"] == llm.answer(QUESTION, TEXT, max_new_tokens=4).text
        (tmp_path / "document.txt").write_text(TEXT)
        memorized = fastmem("memorize", tmp_path / "document.txt", *flags, "--output", tmp_path / f"{family} memories")
        assert memorized.code == 0, memorized.err
        [saved] = (tmp_path / f"{family} memories").rglob("*.safetensors")
        assert Memory.load(saved).base.family == family
        rows = tmp_path / "rows.jsonl"
        rows.write_text(json.dumps({"question": QUESTION, "context": TEXT, "answer": "rye"}) + "\n")
        task = ("--task", "qa", "--data", rows, "--methods", "base,fastmem", "--max-new-tokens", 4)
        measured = fastmem("eval", *task, *flags, "--output", tmp_path / f"{family} run", "--json")
        assert measured.code == 0, measured.err
        written = [
            json.loads(line) for path in (tmp_path / f"{family} run").rglob("rows.jsonl") for line in path.open()
        ]
        assert [row["error"] for row in written] == [None, None]


@pytest.mark.parametrize("template", ["tokenizer", "plain_tokenizer"])
def test_half_a_character_is_refused(template, request):
    llm = FastMem(build_encoder_decoder("t5"), request.getfixturevalue(template))
    for call in (lambda: llm.answer("who \ud800", TEXT, recipe=RECIPE), lambda: llm.generate("who \ud800")):
        with pytest.raises(InputError, match="is not text: character 4 is half of a surrogate pair"):
            call()
