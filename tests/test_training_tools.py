"""The tools that train models: the optimizer against torch's own, and a training that was interrupted."""

import pytest
import torch
from tools import train_embedded_model, training_stages
from tools.adapted_encoder_decoder import adapted, block_sizes
from tools.batched_muon import BatchedMuon, orthogonal
from tools.encoder_decoder_batches import for_encoder_decoder
from tools.model_shapes import FAMILIES, Shape, new_model, train_tokenizer
from tools.training_batches import Batch, Stage, batches, render
from tools.training_mixture import Document

TEXTS = ["The ship of Oakmere carries wool and salt.", "Who sails it? Clara does, and she sails alone."] * 20


def matrices(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((8, 20), (20, 8), (8, 20))]


def test_batched_muon_updates_as_torchs_own_but_for_its_rounding():
    ours, theirs = matrices(0), matrices(0)
    one = BatchedMuon(ours, lr=0.02, weight_decay=0.02)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for a, b, gradient in zip(ours, theirs, matrices(step + 1), strict=True):
            a.grad, b.grad = gradient.detach().clone(), gradient.detach().clone()
        one.step()
        other.step()
    for start, a, b in zip(matrices(0), ours, theirs, strict=True):
        moved = (b - start).norm()
        assert (a - b).norm() < 0.02 * moved  # torch's iteration runs in bfloat16, which has 8 bits
        assert moved > 0.1


def test_orthogonal_brings_every_singular_value_near_one():
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 12, 30, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_shape_gives_a_model_of_its_family(family):
    shape = Shape(family, 300, 32, 48, 2, 4)
    tokenizer = train_tokenizer(TEXTS, shape)
    model = new_model(tokenizer, 0, shape)
    assert model.config.model_type == family
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    given = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    assert model(**given).logits.shape == (1, ids.shape[1], 300)
    assert torch.equal(model(**given).logits, new_model(tokenizer, 0, shape)(**given).logits)


class Scaled(torch.nn.Module):
    """In place of a norm: its input times a number."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.factor * hidden


def test_an_adapted_encoder_decoder_is_the_llama_but_for_the_norms_behind_its_blocks():
    """Without these norms, and with nothing from across, the decoder gives the Llama's logits."""
    shape = Shape("llama", 300, 32, 48, 2, 4)
    tokenizer = train_tokenizer(TEXTS, shape)
    llama = new_model(tokenizer, 0, shape)
    for name, weight in llama.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    llama.model.embed_tokens.weight.data.mul_(50)  # so that the epsilon of a norm, which is not scaled, is nothing
    model = adapted(llama, tokenizer, TEXTS[:2])
    for layer, (attention, ffn) in zip(
        model.model.decoder.layers, block_sizes(llama, tokenizer, TEXTS[:2]), strict=True
    ):
        for name, size in (("self_attn", attention), ("feedforward", ffn), ("cross_attn", attention)):
            weight = getattr(layer, f"post_{name}_layernorm").weight
            torch.testing.assert_close(weight, torch.full_like(weight, size * 32**0.5 - 1))
            setattr(layer, f"post_{name}_layernorm", Scaled(0.0 if name == "cross_attn" else 32**0.5))
    ids = tokenizer(TEXTS[1], return_tensors="pt").input_ids
    expected = llama(ids).logits
    torch.testing.assert_close(model(input_ids=ids, decoder_input_ids=ids).logits, expected)
    for layer in model.model.encoder.layers:
        for name in ("self_attn", "feedforward"):
            setattr(layer, f"post_{name}_layernorm", Scaled(32**0.5))
    one = ids[:, :1]  # read in both directions is read as the Llama reads
    read = model.model.encoder(input_ids=one).last_hidden_state
    torch.testing.assert_close(read, llama.model(one).last_hidden_state)


def test_a_llamas_folder_starts_an_encoder_decoder(tmp_path):
    shape = Shape("llama", 300, 32, 48, 2, 4)
    tokenizer = train_tokenizer(TEXTS, shape)
    new_model(tokenizer, 0, shape).save_pretrained(tmp_path)
    args = train_embedded_model.options(
        ["--output", "unused", "--family", "t5gemma", "--start", str(tmp_path), "--stages", "5"]
    )
    model = train_embedded_model.first_model(tokenizer, args, shape._replace(family="t5gemma"))
    assert model.config.model_type == "t5gemma"
    llama = new_model(tokenizer, 0, shape)
    for half in (model.model.encoder, model.model.decoder):
        assert torch.equal(half.layers[1].mlp.up_proj.weight, llama.model.layers[1].mlp.up_proj.weight)


def test_an_encoder_reads_up_to_the_first_answer_and_the_decoder_writes_the_rest():
    documents = [
        Document("recall", "Who sails it?", "Clara does.", (("And who else?", "Nobody."),)),
        *[Document("statements", None, "The ship of Oakmere carries wool and salt.")] * 8,
    ]
    tokenizer = train_tokenizer(["user assistant", *map(render, documents)] * 20, Shape("mbart", 400, 32, 48, 1, 2))
    rows = tokenizer(
        [render(document) for document in documents], padding=True, padding_side="right", return_tensors="pt"
    )
    weights = torch.arange(rows.input_ids.numel()).view(rows.input_ids.shape) + 1.0
    batch = for_encoder_decoder(Batch(rows.input_ids, weights), tokenizer, torch.Generator().manual_seed(0))
    start, end = tokenizer.bos_token, tokenizer.eos_token
    written = [tokenizer.decode(ids[ids != tokenizer.pad_token_id]) for ids in batch.ids]
    assert written[0].startswith(f"{start}Clara does.{end}")
    assert written[0].endswith(f"Nobody.{end}")
    assert set(written[1:]) == {f"{start}{documents[1].assistant}{end}"}
    lengths = batch.source_mask.sum(1).tolist()
    sources = [tokenizer.decode(source[:length]) for source, length in zip(batch.source, lengths, strict=True)]
    assert sources[0] == render(documents[0]).partition("Clara")[0]
    assert min(lengths[1:]) == 1  # an end token alone
    assert len(set(lengths[1:])) > 2
    moved = rows.input_ids[0].tolist().index(batch.ids[0, 1].item(), lengths[0])
    assert batch.weights[0, :2].tolist() == [0, weights[0, moved]]


def test_contexts_are_learned_in_the_share_that_a_stage_asks_for():
    """Answers always count; of the documents with a user turn, only that share has a weight in front of them."""
    document = Document("recall", "Who is the captain of the Heron?", "Clara Whitfield")
    tokenizer = train_tokenizer([render(document)], Shape("llama", 400, 8, 8, 1, 1))
    learned = []
    for share in (0.0, 0.3, 1.0):
        stage = Stage(0, {}, 10**6, (1.0, 1.0), user_weight=0.25, user_share=share)
        batch = next(batches(tokenizer, stage, [document] * 2048, 0, 10**6))
        assert (batch.weights == 1).any(dim=1).all()
        assert set(batch.weights.unique().tolist()) <= {0, 0.25, 1}
        learned.append((batch.weights == 0.25).any(dim=1).float().mean().item())
    assert learned == pytest.approx([0.0, 0.3, 1.0], abs=0.04)


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    from tools import train_embedded_model as tool

    monkeypatch.setattr(tool, "STAGES", tuple(stage._replace(tokens=6000) for stage in tool.STAGES[:2]))
    monkeypatch.setattr(training_stages, "TOKENIZER_DOCUMENTS", 200)
    monkeypatch.setattr(tool, "CHECKPOINT_STEPS", 2)
    small = (
        "--vocabulary 400 --hidden-size 32 --intermediate-size 48 --layers 1 --heads 2 --batch-tokens 1024 --rows 1"
    )
    options = [*small.split(), "--precision", "float32"]
    tool.main(["--output", str(tmp_path / "whole"), *options])
    write, written = tool.Checkpoint.write, []

    def interrupted(checkpoint, folder):
        write(checkpoint, folder)
        written.append(checkpoint)
        if [one.stage for one in written[-2:]] == [0, 1]:  # the first one of the second stage
            raise KeyboardInterrupt

    monkeypatch.setattr(tool.Checkpoint, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tool.main(["--output", str(tmp_path / "cut"), *options])
    assert written[-1].stage == 1
    tool.main(["--output", str(tmp_path / "cut"), *options])
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert not (tmp_path / "cut" / tool.CHECKPOINT).exists()
