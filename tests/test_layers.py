"""The structure holds: who imports whom, where outside libraries are used, names, and files of a readable length."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "fastmem"
FILES = sorted(path for path in SOURCE.rglob("*.py"))

# room or file -> rooms and files it may import from. `errors` and the package's version are open to all.
CORE = {"split", "learn", "memory", "answer", "prompts", "chat_template", "encoding", "ranges", "device_memory"}
CORE |= {"torch_modes"}
LIBRARY = CORE | {"model", "timing", "system_turn", "home_path"}
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "extras": set(),
    "encoding": set(),
    "chat_template": {"encoding"},
    "ranges": set(),
    "home_path": set(),
    "torch_modes": set(),
    "atomic_write": set(),
    "timing": set(),
    "environment": set(),
    "device_memory": set(),
    "split": {"split", "torch_modes"},
    "memory": {"memory", "split", "ranges", "torch_modes", "atomic_write"},
    "learn": {"learn", "memory", "split", "device_memory", "torch_modes"},
    "prompts": {"memory", "ranges", "encoding", "chat_template"},
    "system_turn": {"chat_template"},
    "answer": {"answer", "memory", "split", "prompts", "ranges", "device_memory", "torch_modes", "extras"},
    "loading": {"split", "home_path"},
    "documents": {"documents", "extras", "home_path"},
    "tiny": {"tiny"},
    "model": CORE | {"loading", "tiny", "auto_recipe"},
    "surprisal_report": LIBRARY,
    "export": LIBRARY,
    "cost": LIBRARY,
    "predicted_cost": {"learn", "memory"},
    "calibrate": LIBRARY,
    "auto_recipe": LIBRARY | {"calibrate", "atomic_write"},
    "model_identity": {"model", "memory", "system_turn"},
    "lab": LIBRARY | {"lab", "model_identity", "tiny", "environment", "atomic_write", "extras", "documents"},
    "serve": LIBRARY | {"serve", "tiny", "surprisal_report", "atomic_write", "export"},
    "cli": LIBRARY
    | {"cli", "lab", "serve", "tiny", "loading", "cost", "calibrate", "auto_recipe", "export", "environment"}
    | {"surprisal_report", "atomic_write", "extras", "documents", "model_identity"},
}
# outside library -> files and folders in which it may be imported.
PLACES = {
    "transformers": (
        "split/",
        "answer/cache.py",
        "answer/prepare.py",
        "model.py",
        "loading.py",
        "tiny/",
        "lab/scores/summary.py",
    ),
    "safetensors": ("memory/memory_file.py", "loading.py", "export.py", "tiny/"),
    "datasets": ("lab/tasks/", "lab/harness/"),
    "optuna": ("lab/search/",),
    "ray": ("lab/workers/ray_workers.py",),
    "jinja2": ("lab/report/",),
    "fastapi": ("serve/",),
    "platformdirs": ("auto_recipe.py",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "lxml": ("documents/html_text.py", "documents/word_xml.py"),
    "mammoth": ("documents/docx_text.py",),
    "pypdfium2": ("documents/pdf_text.py",),
}


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


MODULES = {"fastmem." + relative(p).removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in FILES}


def room(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "package" if first == "__init__" else first


def imports(path: Path, typing_only: bool = True) -> set[str]:
    """Full names of what a file imports; with typing_only=False without imports for type checkers and in functions."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if typing_only else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= parts if parts <= MODULES.keys() else parts | {node.module}
    return found


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_follow_the_arrows(path: Path) -> None:
    own = room(path)
    if own == "package":
        return
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("fastmem.")}
    allowed = ARROWS[own] | {"errors", "__version__"}
    assert inside <= allowed, f"{own} may import {sorted(allowed)}, imports {sorted(inside - allowed)}"


def test_imports_make_no_circle() -> None:
    needs = {name: imports(path, typing_only=False) & MODULES.keys() for name, path in MODULES.items()}
    left = dict(needs)
    while free := [name for name, needed in left.items() if not needed & left.keys() - {name}]:
        for name in free:
            del left[name]
    assert not left, f"these files import each other: {sorted(left)}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_outside_libraries_have_their_places(path: Path) -> None:
    for name in imports(path):
        library = name.split(".")[0]
        places = PLACES.get(library)
        assert places is None or relative(path).startswith(places), f"{library} belongs in {places}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_has_a_readable_length(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350, "one idea per file: split it"


def test_no_two_files_have_one_name() -> None:
    names = Counter(path.name for path in FILES if not path.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_map_names_every_file_once() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    listed = re.findall(r"^ *(\S+\.py) ", text.partition("## Every file")[2].partition("\n## ")[0], re.MULTILINE)
    assert sorted(listed) == sorted(relative(path) for path in FILES if path.name != "__init__.py")


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in CORE | {"model", "loading", "errors"}], ids=relative)
def test_the_core_names_no_command_line_flag(path: Path) -> None:
    assert re.findall(r"(?<![\w-])--[a-z][\w-]*", path.read_text()) == []


def public_functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    scopes = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))]
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [n for scope in scopes for n in scope.body if isinstance(n, kinds) and not n.name.startswith("_")]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_public_function_returns_any(path: Path) -> None:
    for function in public_functions(path):
        returns = ast.unparse(function.returns) if function.returns else "nothing stated"
        assert returns not in ("Any", "nothing stated", "Any | None"), f"{function.name} returns {returns}"


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
