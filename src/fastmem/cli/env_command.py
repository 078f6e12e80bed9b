"""`fastmem env` and `fastmem version`: what is installed, for people and for bug reports."""

from fastmem.cli.flags import OutputFlags, with_flags
from fastmem.cli.output import emit


def version() -> None:
    """Print the version."""
    from fastmem import __version__

    print(__version__)


@with_flags
def env(output: OutputFlags) -> None:
    """Print what a bug report needs: versions, device, threads."""
    import platform

    import torch

    from fastmem import __version__
    from fastmem.environment import device_name, installed

    found = {
        "fastmem": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "device": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "cpu_threads": torch.get_num_threads(),
    } | {name: installed(name) for name in PACKAGES}
    if output.json:
        return emit(found)
    for name, value in found.items():
        print(f"{name:<18}{'not installed' if value is None else value}")


# What the extras bring.
PACKAGES = (
    "transformers", "tokenizers", "safetensors", "huggingface_hub", "datasets", "torchmetrics", "rouge_score",
    "optuna", "fastapi", "peft", "lm_eval",
)  # fmt: skip
