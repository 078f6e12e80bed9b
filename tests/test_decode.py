"""Decoding: every method against a slow two-model reference, batch against single, cache against none."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import reference
from families import OWN_POSITIONS, build
from fastmem import FastMem, InputError, Recipe, Tokens
from fastmem.answer.batch import Batch
from fastmem.answer.contrast import METHODS, candidate_layers, divergence, dola
from fastmem.answer.request import Request

# RoPE, ALiBi, learned absolute positions, parallel residual, soft caps, flattened FFN inputs, a tuple-returning MoE,
# positions that the model counts.
FAMILIES = (
    "llama",
    "gpt2",
    "opt",
    "bloom",
    "mpt",
    "gpt_neox",
    "gemma2",
    "falcon_alibi",
    "gpt_oss",
    "mixtral",
    "cohere2",
    *OWN_POSITIONS,
)
STEPS = 5
# Scores may differ by rounding only: kernels see other shapes with a cache or in a batch.
ROUNDING = 2e-5


class Case:
    """A family with prompts of different lengths, their versions without the document, and a memory for each."""

    def __init__(self, family: str, model: PreTrainedModel | None = None):
        self.model = model or build(family)
        self.llm = FastMem(self.model)
        generator = torch.Generator().manual_seed(7)

        def ids(count: int) -> torch.Tensor:
            return torch.randint(5, self.llm.split_model.vocabulary_size, (count,), generator=generator)

        self.prompts = [ids(9), ids(14), ids(11)]
        self.without = [ids(5), ids(4), ids(8)]
        recipes = [Recipe(learning_rate=3e-3, steps=4, layers=layers) for layers in ((-1,), (-2,), (-1,))]
        self.memories = [self.llm.memorize(Tokens(ids(20)), recipe) for recipe in recipes]

    def request(self, i: int, method: str, **options: object) -> Request:
        memory = self.memories[i] if METHODS[method].memorized else None
        if METHODS[method].kind == "cad":
            options["without_context"] = Tokens(self.without[i])
        return self.llm.request(Tokens(self.prompts[i]), memory, method, max_new_tokens=STEPS, **options)

    def truth(self, i: int, method: str, final_norm: bool = False) -> reference.Decoded:
        prompt, without = self.prompts[i].tolist(), self.without[i].tolist()
        memory = self.memories[i]
        originals = self.llm.split_model.parameters(memory.recipe.layers)
        tuned = reference.memorized(self.model, memory.weights(originals))
        scores = {
            "base": lambda: reference.base(self.model, prompt),
            "fastmem": lambda: reference.base(tuned, prompt),
            "cad": lambda: reference.cad(self.model, prompt, without),
            "dola": lambda: reference.dola(self.model, prompt, final_norm=final_norm),
            "fastmem+cd": lambda: reference.fastmem_cd(tuned, self.model, prompt),
            "fastmem+cad": lambda: reference.fastmem_cad(tuned, self.model, prompt, without),
            "fastmem+dola": lambda: reference.dola(tuned, prompt, final_norm=final_norm),
        }[method]()
        return reference.decode(scores, max_new_tokens=STEPS)


def run(llm: FastMem, requests: list[Request]) -> list[tuple[list[int], torch.Tensor]]:
    """(tokens, scores [T, V]) of each request, decoded together; the scores are what tokens were chosen from."""
    batch, scores = Batch(llm.split_model), {}
    own = batch._scores

    def watched(states: list) -> torch.Tensor:
        found = own(states)
        for row, row_scores in zip(batch.rows, found, strict=True):
            scores.setdefault(id(row), []).append(row_scores)
        return found

    batch._scores = watched
    rows = batch.join(requests)
    while batch.rows:
        batch.step()
    return [(row.token_ids, torch.stack(scores[id(row)])) for row in rows]


def assert_close(found: torch.Tensor, truth: torch.Tensor) -> None:
    finite = truth.isfinite()
    assert torch.equal(finite, found.isfinite())
    scale = truth[finite].abs().max().clamp(min=1)
    assert (found[finite] - truth[finite]).abs().max() <= ROUNDING * scale


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


# Early states go through the whole head, with its scale, cap or layers; the reference applies the bare matrix to them.
LARGER_HEADS = ("gemma2", "cohere2", "roberta", "roformer")


@pytest.mark.parametrize("method", ["base", "fastmem", "cad", "dola", "fastmem+cd", "fastmem+cad", "fastmem+dola"])
def test_equals_two_models_without_cache(case: Case, method: str) -> None:
    if METHODS[method].kind == "dola" and case.llm.split_model.family in LARGER_HEADS:
        pytest.skip("the reference's early states skip the scale, cap or layers of this family's head")
    for i in range(2):  # a memory of the last layer, and one of the layer before
        ((tokens, scores),) = run(case.llm, [case.request(i, method)])
        truth = case.truth(i, method)
        assert_close(scores, truth.logits)
        assert tokens == truth.tokens


def test_batch_equals_single_whatever_the_method(case: Case) -> None:
    """Different lengths, memories and methods in one batch: padding, lanes and neighbours change nothing."""
    requests = [case.request(i % 3, method) for i, method in enumerate(METHODS)]
    together = run(case.llm, requests)
    for i, method in enumerate(METHODS):
        ((tokens, scores),) = run(case.llm, [case.request(i % 3, method)])
        assert_close(together[i][1], scores)
        assert together[i][0] == tokens, method


def test_rows_join_and_leave_between_steps(case: Case) -> None:
    alone = [run(case.llm, [case.request(i, "fastmem+cd")])[0][0] for i in range(3)]
    batch = Batch(case.llm.split_model)
    (first,) = batch.join([case.request(0, "fastmem+cd")])
    batch.step()
    (second, gone) = batch.join([case.request(1, "fastmem+cd"), case.request(2, "fastmem")])
    batch.step()
    batch.leave([gone])
    batch.step()
    (third,) = batch.join([case.request(2, "fastmem+cd")])
    while batch.rows:
        batch.step()
    assert [first.token_ids, second.token_ids, third.token_ids] == alone
    assert len(gone.token_ids) == 1


@pytest.mark.parametrize("method", ["fastmem", "cad", "fastmem+cd"])
def test_rows_that_pause_go_on_as_if_they_had_not(case: Case, method: str) -> None:
    alone = [run(case.llm, [case.request(i, method)])[0][0] for i in range(3)]
    batch = Batch(case.llm.split_model)
    rows = batch.join([case.request(i, method) for i in range(3)])
    batch.pause(rows[1:])  # before anything was read
    batch.step()
    assert [len(row.token_ids) for row in rows] == [1, 0, 0]
    batch.go_on(rows[1:2])
    batch.step()
    batch.pause(rows[:2])
    batch.go_on(rows[2:])
    batch.step()
    assert [len(row.token_ids) for row in rows] == [2, 1, 1]
    batch.go_on(rows[:2])
    while batch.rows:
        batch.step()
    assert [row.token_ids for row in rows] == alone


def test_a_row_that_leaves_before_it_is_read_changes_nothing(case: Case) -> None:
    alone = [run(case.llm, [case.request(i, "base")])[0] for i in range(3)]
    for gone in range(3):
        batch, scores = Batch(case.llm.split_model), []
        own = batch._scores
        batch._scores = lambda states, own=own, scores=scores: scores.append(own(states)) or scores[-1]
        rows = batch.join([case.request(i, "base") for i in range(3)])
        batch.leave([rows[gone]])
        batch.step()
        for place, i in enumerate(i for i in range(3) if i != gone):
            assert_close(scores[0][place], alone[i][1][0])


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("method", ["dola", "fastmem+dola"])
def test_dola_chooses_among_layers_with_and_without_the_final_norm(method: str, final_norm: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=9, num_attention_heads=4
    )
    case = Case("llama", LlamaForCausalLM(config).eval())
    assert candidate_layers(9) == (4, 6, 8)
    for i in range(2):
        ((tokens, scores),) = run(case.llm, [case.request(i, method, final_norm=final_norm)])
        truth = case.truth(i, method, final_norm)
        assert_close(scores, truth.logits)
        assert tokens == truth.tokens


def test_dola_takes_the_candidate_that_diverges_most_row_by_row() -> None:
    """The published code averages the divergence over the batch, which makes an answer depend on its neighbours."""
    generator = torch.Generator().manual_seed(2)
    final, near = torch.randn(2, 50, generator=generator), torch.randn(2, 50, generator=generator)
    far = -3 * final
    early = torch.stack([torch.stack([near[0], far[1]]), torch.stack([far[0], near[1]])])
    scores = dola(final, early, relative_top=1e-30)
    assert torch.allclose(scores, final.log_softmax(-1) - far.log_softmax(-1), atol=1e-5)
    masked = dola(final, early, relative_top=0.5)
    assert torch.equal(masked.isfinite(), final.softmax(-1) >= 0.5 * final.softmax(-1).amax(-1, keepdim=True))


@pytest.mark.parametrize("method", ["fastmem+cd", "cad"])
def test_a_contrast_chooses_among_plausible_tokens_only_where_asked(method: str) -> None:
    case = Case("llama")
    ((_, open_scores),) = run(case.llm, [case.request(0, method, alpha=20.0)])
    ((tokens, scores),) = run(case.llm, [case.request(0, method, alpha=20.0, relative_top=0.9)])
    memory = case.memories[0] if METHODS[method].memorized else None
    plain = case.llm.logits(case.prompts[0], memory)[-1].softmax(-1)
    kept = plain >= 0.9 * plain.max()
    assert 1 <= kept.sum() < len(kept)
    assert open_scores[0].isfinite().all()
    assert torch.equal(scores[0].isfinite(), kept)
    assert_close(scores[0][kept], open_scores[0][kept])
    assert kept[tokens[0]]


# RoBERTa counts its positions from 2 and is told positions from 0; the decoders of BART and Pegasus raise an error.
GENERATE_DIFFERS = ("roberta", "bart", "pegasus")


def test_base_equals_transformers_generate(case: Case) -> None:
    if case.llm.split_model.family in GENERATE_DIFFERS:
        pytest.skip("`generate` of transformers 5.24 does not give what the model's forward pass gives")
    for prompt in case.prompts:
        ids = prompt[None]
        own = case.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS, do_sample=False, pad_token_id=0
        )
        out = case.llm.generate(Tokens(prompt), max_new_tokens=STEPS)
        assert list(out.token_ids) == own[0, len(prompt) :].tolist()


def test_cad_equals_transformers_guidance() -> None:
    case = Case("llama")
    for i in range(3):
        ids, without = case.prompts[i][None], case.without[i][None]
        own = case.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            guidance_scale=1.5,
            negative_prompt_ids=without,
            max_new_tokens=STEPS,
            do_sample=False,
            pad_token_id=0,
        )
        ((tokens, _),) = run(case.llm, [case.request(i, "cad", alpha=0.5)])
        assert tokens == own[0, ids.shape[1] :].tolist()


def test_decoding_equals_scoring_all_at_once(case: Case) -> None:
    for i in (0, 1):
        ((tokens, scores),) = run(case.llm, [case.request(i, "fastmem")])
        whole = torch.cat([case.prompts[i], torch.tensor(tokens)])
        assert_close(scores, case.llm.logits(whole, case.memories[i])[len(case.prompts[i]) - 1 : -1])


def test_a_prefix_read_before_changes_nothing(case: Case) -> None:
    if not case.llm.split_model.joins_sequences:
        pytest.skip("sequences of this family do not share a cache")
    batch = Batch(case.llm.split_model)
    (row,) = batch.join([case.request(0, "base")])
    batch.step()
    prefix = batch.prefix(row, len(case.prompts[0]))
    assert prefix is not None
    longer = torch.cat([case.prompts[0], case.prompts[1]])
    for memory in (None, case.memories[0]):
        requests = [case.llm.request(Tokens(longer), memory, max_new_tokens=STEPS, prefix=p) for p in (None, prefix)]
        (cold, cold_scores), (warm, warm_scores) = (run(case.llm, [request])[0] for request in requests)
        assert cold == warm
        assert_close(warm_scores, cold_scores)
    batch.join([case.llm.request(Tokens(longer), None, max_new_tokens=STEPS, prefix=prefix)])
    joined = batch.rows[-1]
    assert joined.cached_tokens == len(case.prompts[0])
    while batch.rows:
        batch.step()
    assert joined.token_ids == cold_tokens(case, longer)
    assert len(prefix.ids) == prefix.cache.get_seq_length() == len(case.prompts[0])


def cold_tokens(case: Case, ids: torch.Tensor) -> list[int]:
    return list(case.llm.generate(Tokens(ids), max_new_tokens=STEPS).token_ids)


def test_adaptive_weight_is_the_divergence_of_the_two_sides() -> None:
    case = Case("llama")
    ((_, base),) = run(case.llm, [case.request(0, "base")])
    ((_, tuned),) = run(case.llm, [case.request(0, "fastmem")])
    ((_, scores),) = run(case.llm, [case.request(0, "fastmem+adacd")])
    alpha = divergence(tuned[:1], base[:1])[:, None]
    assert 0 < alpha < 1
    assert_close(scores[:1], (1 + alpha) * tuned[:1] - alpha * base[:1])
    p, q = tuned[0].softmax(-1), base[0].softmax(-1)
    middle = (p + q) / 2
    bits = 0.5 * ((p * (p / middle).log2()).sum() + (q * (q / middle).log2()).sum())
    assert torch.allclose(alpha[0, 0], bits, atol=1e-6)


def test_alpha_zero_and_identical_sides_are_plain_decoding() -> None:
    case = Case("llama")
    ((_, plain),) = run(case.llm, [case.request(0, "fastmem")])
    ((_, weightless),) = run(case.llm, [case.request(0, "fastmem+cd", alpha=0.0)])
    assert_close(weightless, plain)
    nothing = case.llm.memorize(Tokens(case.prompts[0]), Recipe(steps=0))
    request = case.llm.request(Tokens(case.prompts[0]), nothing, "fastmem+cd", max_new_tokens=STEPS)
    ((_, same),) = run(case.llm, [request])
    ((_, base),) = run(case.llm, [case.request(0, "base")])
    assert_close(same, base)


SAMPLING = (
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "min_p": 0.4},
    {"temperature": 1.0, "repetition_penalty": 1.7},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.4},
)


@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_sampling_scores_are_those_of_transformers(options: dict) -> None:
    from fastmem.answer.sampling import Sampling, penalized, warped

    generator = torch.Generator().manual_seed(3)
    seen = torch.randint(0, 300, (12,), generator=generator)
    logits = torch.randn(300, generator=generator) * 4
    truth = reference.sampling_scores(logits, seen.tolist(), **options)
    sampling = Sampling(**options)
    found = warped(penalized(logits, seen, sampling.repetition_penalty), sampling)
    assert torch.equal(found.isfinite(), truth.isfinite())
    assert torch.allclose(found[truth.isfinite()], truth[truth.isfinite()])


def test_samples_follow_their_distribution_and_their_seed() -> None:
    case = Case("llama")
    ((_, scores),) = run(case.llm, [case.request(0, "base")])
    expected = scores[0].double().softmax(-1)
    counts = torch.zeros_like(expected)
    requests = [
        case.llm.request(Tokens(case.prompts[0]), max_new_tokens=1, temperature=1.0, seed=seed) for seed in range(2000)
    ]
    batch = Batch(case.llm.split_model)
    rows = batch.join(requests)
    batch.step()
    for row in rows:
        counts[row.token_ids[0]] += 1
    likely = expected > 0.01
    apart = (counts / 2000 - expected)[likely].abs()
    assert (apart <= 5 * (expected * (1 - expected) / 2000).sqrt()[likely]).all()
    again = case.llm.generate(Tokens(case.prompts[0]), max_new_tokens=1, temperature=1.0, seed=17)
    assert again.token_ids[0] == rows[17].token_ids[0], "a seeded answer does not depend on its neighbours"


def test_repetition_penalty_equals_transformers_generate() -> None:
    case = Case("llama")
    ids = case.prompts[1][None]
    own = case.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=STEPS,
        do_sample=False,
        repetition_penalty=1.5,
        pad_token_id=0,
    )
    out = case.llm.generate(Tokens(case.prompts[1]), max_new_tokens=STEPS, repetition_penalty=1.5)
    assert list(out.token_ids) == own[0, ids.shape[1] :].tolist()


def test_bias_and_least_length_equal_transformers_generate() -> None:
    case = Case("llama")
    ids = case.prompts[1][None]
    free = case.llm.generate(Tokens(case.prompts[1]), max_new_tokens=STEPS).token_ids
    end, wanted = free[0], 17  # the first token would end the answer
    own = case.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=STEPS,
        min_new_tokens=3,
        eos_token_id=end,
        sequence_bias={(wanted,): 2.5, (free[1],): -100.0},
        do_sample=False,
        pad_token_id=0,
    )
    out = case.llm.generate(
        Tokens(case.prompts[1]),
        max_new_tokens=STEPS,
        min_new_tokens=3,
        stop_token_ids=[end],
        ignore_eos=True,
        logit_bias={wanted: 2.5, free[1]: -100.0},
    )
    assert list(out.token_ids) == own[0, ids.shape[1] :].tolist()
    assert free[1] not in out.token_ids
    assert end not in out.token_ids[:3]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("method", ["dola", "cad"])
def test_a_contrast_chooses_among_the_tokens_that_may_follow(method: str, temperature: float) -> None:
    case = Case("llama")
    other = {"without_context": Tokens(case.prompts[0])} if method == "cad" else {}
    ends = case.llm.generate(Tokens(case.prompts[1]), max_new_tokens=1, ignore_eos=True).token_ids
    out = case.llm.generate(
        Tokens(case.prompts[1]),
        method=method,
        relative_top=0.99,  # the constraint leaves the likeliest token alone, which would end the answer
        min_new_tokens=2,
        max_new_tokens=3,
        stop_token_ids=list(ends),
        temperature=temperature,
        seed=0,
        top_logprobs=1,
        **other,
    )
    assert ends[0] not in out.token_ids[:2]
    assert all(math.isfinite(value) for value, _ in out.logprobs)


def test_presence_and_frequency_penalties_count_the_answer() -> None:
    from fastmem.answer.sampling import Sampling, adjusted

    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    prompt, answer = [3, 3, 9], [7, 7, 7, 2]
    options = {"presence_penalty": 0.5, "frequency_penalty": -0.25, "repetition_penalty": 1.5, "logit_bias": {9: 4}}
    found = adjusted(logits, Sampling(**options), torch.tensor(prompt), torch.tensor(answer), [5])
    for token, logit in enumerate(logits.tolist()):
        expected = logit + (4 if token == 9 else 0)
        if token in prompt + answer:
            expected = expected * 1.5 if expected < 0 else expected / 1.5
        if token in answer:
            expected -= 0.5 - 0.25 * answer.count(token)
        assert found[token].item() == pytest.approx(-math.inf if token == 5 else expected, rel=1e-6)


def test_a_model_s_own_end_tokens_can_be_ignored() -> None:
    case = Case("llama")
    prompt = Tokens(case.prompts[0])
    free = case.llm.generate(prompt, max_new_tokens=STEPS, ignore_eos=True).token_ids
    case.model.generation_config.eos_token_id = free[1]
    assert case.llm.generate(prompt, max_new_tokens=STEPS).token_ids == free[: free.index(free[1]) + 1]
    assert case.llm.generate(prompt, max_new_tokens=STEPS, ignore_eos=True).token_ids == free
    stopped = case.llm.generate(prompt, max_new_tokens=STEPS, ignore_eos=True, stop_token_ids=[free[2]])
    assert stopped.token_ids == free[: free.index(free[2]) + 1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stop_token_ids": [10**6]}, "stop_token_ids has token 1000000: the model has"),
        ({"stop_token_ids": ["a"]}, "a list of token ids"),
        ({"logit_bias": {10**6: 1}}, "logit_bias has token 1000000"),
        ({"logit_bias": {1: 200}}, "token ids with numbers from -100 to 100"),
        ({"presence_penalty": 3}, "presence_penalty is 3: give a number, -2 to 2"),
    ],
)
def test_tokens_and_numbers_that_do_not_exist_are_refused(options: dict, text: str) -> None:
    case = Case("llama")
    with pytest.raises(InputError, match=text):
        case.llm.generate(Tokens(case.prompts[0]), **options)


def test_several_end_tokens_stop_an_answer() -> None:
    case = Case("llama")
    tokens = list(case.llm.generate(Tokens(case.prompts[0]), max_new_tokens=8).token_ids)
    end = next(i for i, token in enumerate(tokens) if token not in tokens[:i] and i > 0)
    case.model.generation_config.eos_token_id = [259, tokens[end]]
    out = case.llm.generate(Tokens(case.prompts[0]), max_new_tokens=8)
    assert list(out.token_ids) == tokens[: end + 1]
    assert out.reason == "stop"


def test_logprobs_are_those_of_the_scores() -> None:
    case = Case("llama")
    ((tokens, scores),) = run(case.llm, [case.request(0, "fastmem+cd", top_logprobs=3)])
    out = case.llm.generate(
        Tokens(case.prompts[0]), case.memories[0], "fastmem+cd", max_new_tokens=STEPS, top_logprobs=3
    )
    for token, row, (chosen, top) in zip(tokens, scores, out.logprobs, strict=True):
        log_probabilities = row.log_softmax(-1)
        assert chosen == pytest.approx(log_probabilities[token].item(), abs=1e-5)
        assert [i for i, _ in top] == log_probabilities.topk(3).indices.tolist()


def test_lists_longer_than_the_batch_keep_their_order() -> None:
    case = Case("llama")
    prompts = [Tokens(case.prompts[i % 3][: 4 + i]) for i in range(9)]
    answers = case.llm.generate(prompts, max_new_tokens=STEPS, batch_size=2)
    assert [a.token_ids for a in answers] == [case.llm.generate(p, max_new_tokens=STEPS).token_ids for p in prompts]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("fastmem",), "method 'fastmem' needs a memory: give memory=llm.memorize(context)"),
        (("cad",), "method 'cad' needs the prompt without the document: give without_context=..."),
        (("fastmen",), "unknown method 'fastmen'. Did you mean 'fastmem'?"),
    ],
)
def test_requests_that_cannot_be_answered(arguments: tuple, text: str) -> None:
    case = Case("llama")
    with pytest.raises(InputError) as error:
        case.llm.generate(Tokens(case.prompts[0]), None, *arguments)
    assert text in str(error.value)


def test_unknown_and_impossible_options_are_refused() -> None:
    case = Case("llama")
    for options, text in (
        ({"temprature": 1.0}, "unknown option 'temprature'. Did you mean 'temperature'?"),
        ({"temperature": -1.0}, "temperature is -1.0: give a number, 0 or more."),
        ({"top_p": 0.0}, "top_p is 0.0: give a number above 0, at most 1."),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: give a whole number, 1 or more."),
    ):
        with pytest.raises(InputError) as error:
            case.llm.generate(Tokens(case.prompts[0]), **options)
        assert text in str(error.value)


def test_left_padding_is_right_for_absolute_positions_where_guidance_is_not() -> None:
    """transformers' own guidance passes no position ids, so its left-padded batches go wrong on GPT-2; ours do not."""
    case = Case("gpt2")
    together = run(case.llm, [case.request(i, "cad") for i in range(3)])
    for i in range(3):
        assert_close(together[i][1], case.truth(i, "cad").logits)
