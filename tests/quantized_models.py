"""The tiny Llama of families.py quantized by the libraries themselves. Where a library is absent, the test skips."""

import tempfile

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from families import build


def bitsandbytes_llama(**config: object) -> PreTrainedModel:
    """Quantized while it is loaded, and not run yet. config: fields of `BitsAndBytesConfig`."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    with tempfile.TemporaryDirectory() as folder:
        build("llama").save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(**config), device_map="cpu"
        ).eval()


def torchao_llama(config: str, dtype: torch.dtype = torch.float32, head: bool = False) -> PreTrainedModel:
    """The linears of its layers quantized. config: name of a class of `torchao.quantization`. head: the head, too."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = build("llama", dtype=dtype)
    quantization.quantize_(
        model,
        getattr(quantization, config)(),
        filter_fn=lambda module, name: isinstance(module, nn.Linear) and (head or "layers" in name),
    )
    return model
