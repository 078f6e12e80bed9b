"""What comes back is known to a type checker: the overloads of the public methods, under `mypy --strict`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

USER_CODE = ROOT / "tests" / "typing" / "user_code.py"


def strict(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mypy", reason="type checks need mypy: pip install 'fastmem[dev]'")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.slow
def test_a_users_code_is_checked_strictly(tmp_path: Path) -> None:
    copy = Path(shutil.copy(USER_CODE, tmp_path))
    done = strict(copy, tmp_path)
    assert done.returncode == 0, done.stdout
    copy.write_text(
        copy.read_text().replace('llm.memorize("a document"), Memory)', 'llm.memorize("a document"), int)')
    )
    assert "Expression is of type" in strict(copy, tmp_path).stdout
