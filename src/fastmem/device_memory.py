"""Memory of the device: what is free, what a piece of work needs at its peak, and what to do when it runs out."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastmem.errors import ResourceError

MEMINFO, STATUS, CGROUP = Path("/proc/meminfo"), Path("/proc/self/status"), Path("/sys/fs/cgroup")
CLEAR_PEAK = Path("/proc/self/clear_refs")  # Linux: writing "5" sets the high-water mark to the present size


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None if the system does not say."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type != "cpu":
        return None
    found = []
    if MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        stat = CGROUP / "memory.stat"
        counts = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
        # What was read from files counts as used, such as the checkpoint, but is given back when needed.
        found.append(int(limit.read_text()) - int(used.read_text()) + int(counts.get("inactive_file", 0)))
    return min(found, default=None)


class PeakMemory:
    """The most memory in use since `reset`: of the GPU's allocator, or of the whole process on a CPU.

    Systems other than Linux cannot reset the mark of a process; there it is the peak since the process started.
    """

    def __init__(self, device: torch.device):
        self.device, self.start_bytes = device, 0
        self.reset()

    def reset(self) -> None:
        """Start measuring anew."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start_bytes = torch.cuda.memory_allocated(self.device)
            return
        if CLEAR_PEAK.exists():
            CLEAR_PEAK.write_text("5")
        self.start_bytes = _resident_bytes("VmRSS")

    @property
    def bytes(self) -> int:
        """The peak."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return _resident_bytes("VmHWM")

    @property
    def added_bytes(self) -> int:
        """The peak above what was in use at the last reset."""
        return max(0, self.bytes - self.start_bytes)


def _resident_bytes(field: str) -> int:
    if STATUS.exists():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        return int(lines[field].split()[0]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


@contextmanager
def explained_out_of_memory() -> Iterator[None]:
    """Turn an allocation failure within the block into a `ResourceError` that says what to reduce."""
    try:
        yield
    except ResourceError:
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        allocator = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not allocator and "allocate memory" not in text and "not enough memory" not in text:
            raise
        line = text.splitlines()[0] if text else type(error).__name__
        raise ResourceError(
            f"out of memory ({line}): shorten the context, decode fewer or shorter answers at once, or load the model "
            "in a smaller type such as bfloat16.",
            options=("truncate", "batch_size", "max_new_tokens", "dtype"),
        ) from error
