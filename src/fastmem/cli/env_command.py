"""`fastmem env` and `fastmem version`: installed versions and hardware, for bug reports."""

from fastmem.cli.flags import OutputFlags, with_flags
from fastmem.cli.output import emit

# Packages whose versions are reported besides torch's.
PACKAGES = (
    "transformers", "tokenizers", "safetensors", "huggingface_hub", "datasets", "torchmetrics", "rouge_score",
    "optuna", "fastapi", "peft", "lm_eval",
)  # fmt: skip


def version() -> None:
    """Print the version."""
    from fastmem import __version__

    print(__version__)


@with_flags
def env(output: OutputFlags) -> None:
    """Print versions, device and threads, for a bug report."""
    import platform

    import torch

    from fastmem import __version__
    from fastmem.environment import device_name, installed

    versions = {
        "fastmem": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "device": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "cpu_threads": torch.get_num_threads(),
    } | {name: installed(name) for name in PACKAGES}
    if output.json:
        return emit(versions)
    for name, value in versions.items():
        print(f"{name:<18}{'not installed' if value is None else value}")
