"""An encoder-decoder that begins with the weights of a decoder-only Llama, as T5Gemma begins with those of Gemma 2.

Both halves take the Llama's layers, and cross attention those of self attention (arXiv 2504.06225, section 3). Where
Llama adds the output of a block as it is, T5Gemma normalizes it first. So the scale of each such norm is set to the
mean size that the output has in the Llama. What is left to learn is to read in both directions and across.
"""

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, T5GemmaForConditionalGeneration

from tools.model_shapes import Shape, new_model


def adapted(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> T5GemmaForConditionalGeneration:
    """A T5Gemma in float32 with the Llama's weights. texts: some that the Llama knows, to measure its blocks on."""
    config = llama.config
    shape = Shape(
        "t5gemma",
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.max_position_embeddings,
    )
    model = new_model(tokenizer, 0, shape)
    sizes = block_sizes(llama, tokenizer, texts)
    for half in (model.model.encoder, model.model.decoder):
        half.embed_tokens.weight.data.copy_(llama.model.embed_tokens.weight)
        half.norm.weight.data.copy_(llama.model.norm.weight - 1)  # T5Gemma multiplies by 1 + weight
        for layer, source, (attention, ffn) in zip(half.layers, llama.model.layers, sizes, strict=True):
            take(layer.self_attn, source.self_attn)
            take(layer.mlp, source.mlp)
            norms = [
                ("self_attn", source.input_layernorm, attention),
                ("feedforward", source.post_attention_layernorm, ffn),
            ]
            if half is model.model.decoder:
                take(layer.cross_attn, source.self_attn)
                norms.append(("cross_attn", source.input_layernorm, attention))
            for name, norm, size in norms:
                getattr(layer, f"pre_{name}_layernorm").weight.data.copy_(norm.weight - 1)
                # The embeddings, and with them all that is added to them, are larger by sqrt(hidden_size).
                getattr(layer, f"post_{name}_layernorm").weight.data.fill_(size * config.hidden_size**0.5 - 1)
    return model


def take(block: nn.Module, source: nn.Module) -> None:
    """Copy the weights of a block from one with the same names."""
    block.load_state_dict(source.state_dict())


@torch.no_grad()
def block_sizes(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> list[tuple[float, float]]:
    """By layer, the root mean square of what attention and the FFN add, averaged over the tokens behind the first."""
    found: list[list[Tensor]] = [[] for _ in range(2 * len(llama.model.layers))]

    def kept(into: list[Tensor]) -> None:
        def hook(block: nn.Module, given: object, output: Tensor | tuple[Tensor, ...]) -> None:
            added = output if isinstance(output, Tensor) else output[0]
            into.append(added[0, 1:].square().mean(-1).sqrt())

        return hook

    blocks = [block for layer in llama.model.layers for block in (layer.self_attn, layer.mlp)]
    hooks = [block.register_forward_hook(kept(into)) for block, into in zip(blocks, found, strict=True)]
    for text in texts:
        llama(**tokenizer(text, return_tensors="pt"))
    for hook in hooks:
        hook.remove()
    sizes = [torch.cat(each).mean().item() for each in found]
    return list(zip(sizes[::2], sizes[1::2], strict=True))
