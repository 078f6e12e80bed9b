"""Load a model and its tokenizer from a folder or a hub id, with errors that say what to do next."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from fastmem.errors import InputError, ResourceError, one_of
from fastmem.home_path import expanded
from fastmem.split.unsupported import unsupported

log = logging.getLogger("fastmem")

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
# Arguments of `from_pretrained` that locate the files, so configuration and tokenizer need them, too.
LOCATION_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "subfolder")
REMEDY = "give a causal language model such as Llama, Qwen, Mistral or Gemma, or an encoder-decoder such as T5 or BART"


def load(
    name: str | Path, dtype: str | torch.dtype | None, device: str | torch.device | None, **kwargs: Any
) -> tuple[Any, Any]:
    """(model, tokenizer). `kwargs` go to transformers' `from_pretrained`; see `FastMem.from_pretrained`."""
    source = _folder(str(name))
    if isinstance(dtype, str):
        one_of(dtype, DTYPES, "dtype", field="dtype")
    if device is None and "device_map" not in kwargs:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    target = None if device is None else _checked_device(device)
    location = {key: kwargs[key] for key in LOCATION_ARGUMENTS if key in kwargs}
    with _explained_errors(source, "configuration"):
        config = transformers.AutoConfig.from_pretrained(source, **location)
    auto_class = _auto_class(config)
    with _explained_errors(source, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **location)
    with _explained_errors(source, "weights"):
        model, info = auto_class.from_pretrained(source, dtype=dtype or "auto", output_loading_info=True, **kwargs)
        model = model if target is None else model.to(target)
    if missing := sorted(info["missing_keys"]):
        log.warning("model %r: %d weights are not in the checkpoint and were drawn at random, the first is %s.",
                    source, len(missing), missing[0])  # fmt: skip
    return model, tokenizer


def require_loaded(model: Any, tokenizer: Any) -> None:
    """Errors: `InputError` for a name where a loaded model or a loaded tokenizer is needed."""
    for part, given, fits in (
        ("model", model, isinstance(model, torch.nn.Module)),
        ("tokenizer", tokenizer, tokenizer is None or callable(tokenizer)),
    ):
        if not fits:
            raise InputError(
                f"{part} is {given!r}: give a loaded {part}, or use FastMem.from_pretrained with a hub id "
                "or a folder.",
                field=part,
            )


def quieten() -> None:
    """Let transformers log only errors from now on, and draw no progress bars."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _folder(source: str) -> str:
    """The folder or hub id. A path that is not a model folder is refused before transformers asks the hub for it."""
    path = expanded(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model folder {source!r} has no config.json: give the folder a model was saved to.")
        return str(path)
    if path.exists():
        raise InputError(f"model {source!r} is a file: give the folder a model was saved to, or a hub id.")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"model folder {source!r} does not exist: give a folder with a config.json, or a hub id.")
    return source


def _auto_class(config: Any) -> Any:
    """The class that loads the model. Refuses one that writes no text, before any weight is read."""
    auto_class, known = transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if getattr(config, "is_encoder_decoder", False):
        auto_class, known = transformers.AutoModelForSeq2SeqLM, transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    remote = auto_class.__name__ in (getattr(config, "auto_map", None) or {})
    if not remote and type(config) not in known:
        raise unsupported(config.model_type, "transformers has no language model of this family", REMEDY)
    return auto_class


def _checked_device(device: str | torch.device) -> torch.device:
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError) as error:
        accepted = f"cpu, cuda:0 to cuda:{torch.cuda.device_count() - 1}" if torch.cuda.is_available() else "cpu"
        raise InputError(
            f"device {str(device)!r} is not available on this machine: give one of {accepted}.", field="device"
        ) from error
    return checked


@contextmanager
def _explained_errors(source: str, what: str) -> Iterator[None]:
    """Turn an error while `what` is loaded into one of FastMem's."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(
            f"out of memory while loading {source!r}: use a smaller type such as bfloat16, another device, or a "
            "smaller model.",
            options=("dtype", "device"),
        ) from error
    except SafetensorError as error:
        raise InputError(f"model {source!r} has damaged weights ({error}): download or save it again.") from error
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise InputError(f"model {source!r}: no {what} could be loaded: {_reason(error)} {_remedy(source)}") from error


def _reason(error: Exception) -> str:
    """The first sentence of transformers' message."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    line = line.split(". ")[0].removesuffix(":")  # what follows is for developers
    return line if line.endswith(".") else f"{line}."


def _remedy(source: str) -> str:
    if Path(source).is_dir():
        return "Give a folder to which a causal language model and its tokenizer were saved."
    return "Check the name and the network, or give a folder that contains a model."
