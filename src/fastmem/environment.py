"""The environment of a run: versions, git state, machine and device."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import fastmem

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "datasets", "optuna")


def environment(device: str) -> dict[str, Any]:
    """What the summary of a run records about its environment."""
    return {
        "fastmem": fastmem.__version__,
        "git": git_state(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
        "platform": platform.platform(terse=True),
        "device": device_name(device),
    }


def git_state() -> dict[str, Any] | None:
    """The commit of the package's checkout, and whether it has changes; None if there is no checkout."""
    folder = Path(fastmem.__file__).parent

    def git(*arguments: str) -> str:
        process = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
        return process.stdout.strip()

    try:
        # A package installed inside another repository is not a checkout of this one.
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: str) -> str:
    """ "cpu", or the name of the GPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def installed(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
