"""The house holds: who imports whom, one door per outside library, and files that fit in a head."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "fastmem"
FILES = sorted(path for path in SOURCE.rglob("*.py"))

# room -> rooms it may import from. `errors` and the package's version are open to everybody.
ARROWS = {
    "errors": set(),
    "core": {"core"},
    "prompts": set(),
    "tiny": {"tiny"},
    "loading": {"core"},
    "streaming": set(),
    "generation": {"core", "prompts", "streaming"},
    "model": {"core", "prompts", "generation", "loading", "streaming", "tiny"},
    "cost": {"core", "model"},
    "lab": {"lab", "core", "prompts", "model", "generation", "tiny"},
    "serve": {"serve", "core", "prompts", "model", "generation", "streaming", "tiny"},
    "cli": {"cli", "lab", "serve", "core", "prompts", "loading", "model", "generation", "streaming", "tiny", "cost"},
}
# outside library -> files and folders it may be imported in.
DOORS = {
    "transformers": ("core/trunk.py", "core/anatomy.py", "core/cache.py", "loading.py", "tiny/", "lab/metrics.py"),
    "safetensors": ("core/files.py", "loading.py", "serve/export.py", "tiny/"),
    "datasets": ("lab/tasks/",),
    "optuna": ("lab/search.py",),
    "fastapi": ("serve/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
}


def room(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py") if relative.parts[0] != "__init__.py" else "package"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{alias.name}" if node.module == "fastmem" else node.module for alias in node.names
            }
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    own = room(path)
    if own == "package":
        return
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("fastmem.")}
    allowed = ARROWS[own] | {"errors", "__version__"}
    assert inside <= allowed, f"{own} may import {sorted(allowed)}, imports {sorted(inside - allowed)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_outside_libraries_have_their_doors(path: Path) -> None:
    relative = path.relative_to(SOURCE).as_posix()
    for name in imports(path):
        library = name.split(".")[0]
        doors = DOORS.get(library)
        assert doors is None or relative.startswith(doors), f"{library} belongs into {doors}, not into {relative}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_fits_in_a_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350, "one idea per file: split it"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, fastmem; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_are_pinned() -> None:
    import fastmem

    for name in ("FastMem", "Memory", "Recipe", "Tokens", "Answer"):
        assert getattr(fastmem, name).__module__.startswith("fastmem")
    assert {"fastmem", "cad", "dola", "fastmem+cd", "fastmem+cad", "fastmem+dola"} <= set(fastmem.METHODS)
    with pytest.raises(AttributeError, match="no attribute 'Fastmem'"):
        _ = fastmem.Fastmem
