"""The cases of `data/memories-0.1.0.safetensors`: memories that version 0.1.0 (commit f23b68b) made on these models.

The file holds every memory's tensors as `case/parameter`, float32, and in its metadata, as JSON by case, the losses of
every step and why memorizing stopped. It was written with torch 2.13.0 on a CPU, one thread.
"""

import torch

from fastmem import Tokens

DOCUMENT = Tokens(torch.arange(53) * 11 % 288, torch.arange(53) >= 4)

# case: (family of families.py, fields of the recipe)
BASIC = {"learning_rate": 1e-4, "steps": 5, "kl_weight": 0.3}
CASES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", BASIC),
    "lora": ("llama", BASIC | {"parametrization": "lora", "rank": 4}),
    "shortlist": ("llama", BASIC | {"shortlist": 96}),
    "two_layers": ("llama", BASIC | {"layers": (0, -1)}),
    "adaptive_kl": ("llama", BASIC | {"adaptive_kl": 0.00001}),
    "clipped": ("llama", BASIC | {"max_grad_norm": 0.01, "weight_decay": 0.5}),
    "target_loss": ("llama", BASIC | {"steps": 12, "target_loss": 6.15}),
    "max_kl": ("llama", BASIC | {"steps": 12, "max_kl": 0.0001}),
    "gemma2": ("gemma2", BASIC),
    "gpt2": ("gpt2", BASIC),
    "opt": ("opt", BASIC),
    "gpt_neox": ("gpt_neox", BASIC),
    "mixtral": ("mixtral", BASIC),
    "lfm2": ("lfm2", BASIC),
}
