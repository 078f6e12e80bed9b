"""A model and its tokenizer from a folder or a hub id, with errors that say what to type next."""

from pathlib import Path
from typing import Any

import torch

from fastmem.errors import InputError, UnsupportedModelError


def load(
    name: str | Path, dtype: str | torch.dtype | None, device: str | torch.device | None, **kwargs: Any
) -> tuple[Any, Any]:
    """(model, tokenizer). `kwargs` go to transformers' `from_pretrained`; see `FastMem.from_pretrained`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _folder(str(name))
    if device is None and "device_map" not in kwargs:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto", **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (ValueError, KeyError) as error:
        if "Unrecognized configuration class" in str(error) or "model_type" in str(error):
            raise UnsupportedModelError(
                f"{source!r} is not a causal language model that transformers knows ({_reason(error)}): "
                "give a decoder-only model such as Llama, Qwen, Mistral or Gemma."
            ) from error
        raise InputError(f"model {source!r} cannot be loaded: {_reason(error)}") from error
    except OSError as error:
        raise InputError(
            f"model {source!r} cannot be loaded: {_reason(error)} Give a folder that holds a model, or a hub id."
        ) from error
    return (model if device is None else model.to(device)), tokenizer


def _folder(source: str) -> str:
    """The folder or hub id; a path that is not a model folder is refused before transformers asks the hub for it."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model folder {source!r} has no config.json: give the folder a model was saved to.")
        return str(path)
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"model folder {source!r} does not exist: give a folder with a config.json, or a hub id.")
    return source


def _reason(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if line.endswith(".") else f"{line}."
