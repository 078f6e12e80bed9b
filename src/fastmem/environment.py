"""Where a run took place: versions, git state, device; and how much memory a piece of work needed at its peak."""

import contextlib
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import fastmem

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "datasets", "optuna")
_RESET_PEAK = Path("/proc/self/clear_refs")  # Linux: writing 5 sets the peak to what is used now
_STATUS = Path("/proc/self/status")


def environment(device: str) -> dict[str, Any]:
    """Versions, git state, machine and device, for the summary of a run."""
    return {
        "fastmem": fastmem.__version__,
        "git": git_state(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "platform": platform.platform(terse=True),
        "device": device_name(device),
    }


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout the package runs from, and whether it was changed; None where it is no checkout."""
    folder = Path(fastmem.__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.strip()

    try:
        # An installed package inside somebody else's repository is not a checkout of this one.
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: str) -> str:
    """ "cpu", or the name of the GPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


class PeakBytes:
    """The most memory used since `reset`: of the GPU's allocator, or of the whole process on a CPU.

    Where the operating system cannot reset its mark (not Linux), the process's peak since its start.
    """

    def __init__(self, device: str):
        self._device = device

    def reset(self) -> None:
        """Begin anew."""
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with contextlib.suppress(OSError):
            _RESET_PEAK.write_text("5")

    def read(self) -> int:
        """Bytes."""
        if self._device.startswith("cuda"):
            import torch

            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        except (OSError, StopIteration):
            scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
