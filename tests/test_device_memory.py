"""Free and peak memory, from files and figures as Linux and macOS write them."""

import resource
import sys
from types import SimpleNamespace

import pytest
import torch

from fastmem import device_memory
from fastmem.device_memory import PeakMemory, free_bytes

CPU = torch.device("cpu")
GB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """machine(file, ...): a machine that has only these files."""
    monkeypatch.setattr(device_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(device_memory, "CGROUP", tmp_path)
    monkeypatch.setattr(device_memory, "STATUS", tmp_path / "status")
    monkeypatch.setattr(device_memory, "CLEAR_PEAK", tmp_path / "clear_refs")

    def write(**files):
        for name, text in files.items():
            (tmp_path / name.replace("memory_", "memory.")).write_text(text)

    return write


def test_free_is_what_the_system_has_available(machine):
    assert free_bytes(CPU) is None
    machine(meminfo=f"MemTotal: {8 * GB // 1024} kB\nMemAvailable: {3 * GB // 1024} kB\n")
    assert free_bytes(CPU) == 3 * GB
    machine(memory_max="max\n", memory_current=f"{2 * GB}\n", memory_stat="anon 5\n")
    assert free_bytes(CPU) == 3 * GB


def test_files_that_a_container_has_read_do_not_count_as_used(machine):
    """A checkpoint of 5 GB in the page cache of a container with 6 GB: the kernel gives it back when asked."""
    machine(
        meminfo=f"MemAvailable: {64 * GB // 1024} kB\n",
        memory_max=f"{6 * GB}\n",
        memory_current=f"{5 * GB + 1000}\n",
        memory_stat=f"anon 1000\nfile {5 * GB}\nactive_file 0\ninactive_file {5 * GB}\nkernel 0\n",
    )
    assert free_bytes(CPU) == 6 * GB - 1000
    machine(memory_stat=f"anon {5 * GB}\nfile 1000\ninactive_file 600\n")
    assert free_bytes(CPU) == GB - 400


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("linux", 1024)])
def test_the_peak_without_proc_is_in_the_units_of_the_system(machine, monkeypatch, platform, unit):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=GB // unit))
    assert PeakMemory(CPU).bytes == GB


def test_the_peak_is_the_mark_of_the_process(machine):
    machine(status="Name: x\nVmRSS: 1000 kB\nVmHWM: 1000 kB\n")
    peak = PeakMemory(CPU)
    machine(status="Name: x\nVmRSS: 1000 kB\nVmHWM: 3000 kB\n")
    assert (peak.bytes, peak.added_bytes) == (3000 * 1024, 2000 * 1024)
