"""Memories are what version 0.1.0 made of the same documents, to 1e-6 in every weight and loss."""

import json

import pytest
import torch
from safetensors import safe_open

from conftest import ROOT
from families import build
from fastmem import FastMem, Recipe
from recorded_memories import CASES, DOCUMENT

RECORD = ROOT / "tests" / "data" / "memories-0.1.0.safetensors"


@pytest.mark.parametrize("case", CASES)
def test_a_memory_is_the_recorded_one(case: str) -> None:
    family, changes = CASES[case]
    memory = FastMem(build(family), None).memorize(DOCUMENT, Recipe(**changes))
    with safe_open(RECORD, "pt") as file:
        names = [name for name in file.keys() if name.startswith(f"{case}/")]  # noqa: SIM118
        recorded = {name.partition("/")[2]: file.get_tensor(name) for name in names}
        about = json.loads(file.metadata()[case])
    assert memory.tensors.keys() == recorded.keys()
    for name, wanted in recorded.items():
        torch.testing.assert_close(memory.tensors[name], wanted, rtol=0, atol=1e-6)
    found = torch.tensor([[step.loss, step.cross_entropy, step.kl] for step in memory.trace])
    torch.testing.assert_close(found, torch.tensor(about["trace"]), rtol=1e-6, atol=1e-6)
    assert memory.stopped == about["stopped"]


def test_the_record_is_of_memories_that_learnt_something() -> None:
    with safe_open(RECORD, "pt") as file:
        for case in CASES:
            names = [name for name in file.keys() if name.startswith(f"{case}/")]  # noqa: SIM118
            assert max(file.get_tensor(name).abs().max().item() for name in names) > 1e-4
