"""The slow references of the decoding methods against transformers' own `generate`, where it has the method."""

import pytest
import torch

import reference
from families import build

PROMPT = [3, 40, 77, 9, 120, 33, 201, 8]
SHORT = [3, 40, 51]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_base_is_greedy_generate(family):
    model = build(family)
    tokens = reference.decode(reference.base(model, PROMPT), max_new_tokens=6).tokens
    assert (
        tokens == model.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=6)[0, len(PROMPT) :].tolist()
    )


def test_cad_is_guidance_scale(llama):
    tokens = reference.decode(reference.cad(llama, PROMPT, SHORT, alpha=0.7), max_new_tokens=6).tokens
    theirs = llama.generate(
        torch.tensor([PROMPT]),
        negative_prompt_ids=torch.tensor([SHORT]),
        guidance_scale=1.7,
        do_sample=False,
        max_new_tokens=6,
    )
    assert tokens == theirs[0, len(PROMPT) :].tolist()
    assert tokens != reference.decode(reference.base(llama, PROMPT), max_new_tokens=6).tokens


def test_sampling_scores_are_those_of_generate(llama):
    options = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.3}
    theirs = llama.generate(
        torch.tensor([PROMPT]),
        do_sample=True,
        max_new_tokens=1,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    ours = reference.sampling_scores(reference.next_logits(llama, PROMPT), PROMPT, **options)
    torch.testing.assert_close(ours, theirs.scores[0][0])
    assert 1 < torch.isfinite(ours).sum() < 20


@pytest.mark.parametrize("final_norm", [False, True])
def test_dola_takes_the_farthest_candidate(final_norm):
    """Eight layers: the candidates are layers 4 and 6."""
    model = build("llama", layers=8)
    scores = reference.dola_scores(model, PROMPT, final_norm, relative_top=0.1)
    with torch.no_grad():
        output = model(torch.tensor([PROMPT]), output_hidden_states=True)
        final = output.logits[0, -1].log_softmax(-1)
        states = [output.hidden_states[layer][0, -1] for layer in (4, 6)]
        by_layer = [model.lm_head(model.model.norm(s) if final_norm else s).log_softmax(-1) for s in states]
    divergences = [reference.jensen_shannon(final, early) for early in by_layer]
    kept = torch.isfinite(scores)
    expected = final - by_layer[divergences.index(max(divergences))]
    torch.testing.assert_close(scores[kept], expected[kept])
    assert torch.equal(kept, final.exp() >= 0.1 * final.exp().max())


def test_identical_models_contrast_to_the_base(llama):
    contrasted = reference.fastmem_cd(reference.memorized(llama, {}), llama, PROMPT)([])
    torch.testing.assert_close(contrasted, reference.next_logits(llama, PROMPT))
