"""How a model is called, decoder-only or encoder-decoder, and what its configuration says of its inputs.

Of an encoder-decoder (T5, BART, T5Gemma) the decoder is split. The output of the encoder is one more input of the
decoder, which the cross attention of every layer reads; cross attention is a mixer like any other. Nothing after the
last FFN of the decoder feeds the encoder, so its output is the same with and without a memory, too.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

# What the encoder reads while a model is observed and probed: of another length than what the decoder reads.
PROBE_SOURCE = torch.arange(7) * 3 + 2


def is_encoder_decoder(model: Any) -> bool:
    """Whether the model has an encoder beside its decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def embedding_weight(model: Any) -> Tensor:
    """[V, D]: the embeddings of the tokens that the model predicts; of an encoder-decoder, the decoder's."""
    weight: Tensor = (model.get_decoder() if is_encoder_decoder(model) else model).get_input_embeddings().weight
    return weight


def vocabulary_size(model: Any) -> int:
    """Number of token ids in the input embedding."""
    return embedding_weight(model).shape[0]


def longrope_switch(config: Any) -> int | None:
    """The longest sequence that a longrope model reads with its short rotary frequencies; None for other models."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    for parameters in (rope, *rope.values()):  # some configurations have them for every kind of layer
        if isinstance(parameters, dict) and parameters.get("rope_type", parameters.get("type")) == "longrope":
            return int(parameters["original_max_position_embeddings"])
    return None


def input_device(model: Any) -> torch.device:
    """The device of the input embedding, which may differ from that of the last layer."""
    device = embedding_weight(model).device
    return torch.device("cpu") if device.type == "meta" else device


def probe_inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """The arguments of a plain forward pass over ids [S]."""
    if not is_encoder_decoder(model):
        return {"input_ids": ids[None]}
    source = PROBE_SOURCE.to(ids.device) % vocabulary_size(model)
    return {"input_ids": source[None], "decoder_input_ids": ids[None]}


def head_inputs(
    model: Any,
    hidden: Tensor,  # [1, N, D]
) -> dict[str, Any]:
    """The arguments with which a model whose body returns its input maps last hidden states to logits."""
    if not is_encoder_decoder(model):
        return {"inputs_embeds": hidden}
    return {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden), "decoder_inputs_embeds": hidden}
