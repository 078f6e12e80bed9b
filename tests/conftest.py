"""What every test shares: no network, one thread per worker, the tiny doubles, and the way to the shared data."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from command_line import Runner
from tiny_tokenizer import build_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT / "examples"))  # naive.py is the truth of the numeric tests

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers are the parallelism


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests, and the processes that they start, keep automatic recipes: not in the user's folder."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["FASTMEM_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded runs, real rows and small checkpoints beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data in {SHARED.name}/ beside the checkout, which is absent")
    return SHARED


@pytest.fixture
def fastmem(capsys: pytest.CaptureFixture[str]) -> Runner:
    """The command line: `fastmem("ask", "Who?", "--text", "...")`."""
    return Runner(capsys)


@pytest.fixture
def llama() -> PreTrainedModel:
    """A fresh 3-layer Llama, vocabulary of the tiny tokenizer."""
    from families import build

    return build("llama")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, Llama-3-style chat template, pads left."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """The same tokenizer without a chat template."""
    return build_tokenizer(chat_template=None)
