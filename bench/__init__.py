"""What it costs, with what bounds it stated first.

    python -m bench.memorize        a document of 150 tokens, against the plain way of examples/naive.py
    python -m bench.decode          one token of every method, against transformers' generate
    python -m bench.length          memorizing 512 to 8,192 tokens: seconds and bytes
    python -m bench.batch           many documents, many memories, and a second question about the same document
    python -m bench.gpu             all of it at the shape of Llama-3-8B, on a GPU
    python -m bench.charts          the charts of docs/results/performance.md
    python -m bench.serving         50 clients of a server, their answers compared with those computed without one
    python -m bench.serving_attacked  the same beside two clients that attack
    python -m bench.serving_health  how long /health takes meanwhile
    python -m bench.serving_memories  a server with 5,000 memories

Every program prints a table for people and one JSON document on the last line. Models are random: time depends on the
shape. `--shape` takes a name of `SHAPES`; `embedded` finishes in seconds everywhere.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fastmem import FastMem

# hidden, FFN width, layers, heads, key-value heads, vocabulary, type
SHAPES: dict[str, tuple[int, int, int, int, int, int, torch.dtype]] = {
    "embedded": (256, 704, 6, 8, 8, 2048, torch.float32),
    "1.5b": (2048, 8192, 16, 32, 8, 128256, torch.bfloat16),
    "8b": (4096, 14336, 32, 32, 8, 128256, torch.bfloat16),
}


def random_llama(
    shape: str, device: str = "cpu", positions: int = 131072, dtype: torch.dtype | None = None
) -> FastMem:
    """A Llama of this shape, filled with noise. dtype: None takes that of the shape."""
    hidden, ffn, layers, heads, kv_heads, vocabulary, usual = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        rope_theta=500000.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return random_model(config, f"random-llama-{shape}", device, dtype or usual)


def random_model(config: LlamaConfig, name: str, device: str, dtype: torch.dtype) -> FastMem:
    """A Llama filled from one tile of noise: seconds instead of the minutes of an initialization."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # its frequencies are no parameters
    tile = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            flat = parameter.view(-1)
            if parameter.ndim == 1:
                flat.fill_(1)
                continue
            scaled = (tile * parameter.shape[1] ** -0.5).roll(i)
            for n, part in enumerate(flat.split(len(tile))):
                part.copy_(scaled.roll(n)[: len(part)])
    llm = FastMem(model, None)
    llm.name = name
    return llm


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].split(":", 1)[1].strip() if named else cpu
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu,
        "cpu_threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def naive_module() -> Any:
    """examples/naive.py, the plain way."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    import naive  # type: ignore[import-not-found]

    return naive


def say(text: str = "") -> None:
    """A line of the table."""
    print(text, flush=True)


def finish(**document: Any) -> None:
    """The JSON document, on the last line."""
    print(json.dumps(document, default=float), flush=True)
