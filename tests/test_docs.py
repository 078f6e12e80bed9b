"""The documents are correct: commands run, the tree matches the folder, names and links exist."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def blocks(language: str) -> list[str]:
    """The fenced blocks of that language in the README."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


NEW_MAYOR = "Nell Mallory"
"""What the examples' document says, and the embedded model alone does not."""

COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.strip() and line[0] != "#"]


def test_the_first_two_commands_are_targets_of_the_makefile() -> None:
    assert COMMANDS[:2] == ["make demo", "make test"]
    for command in COMMANDS[:2]:
        subprocess.run([*command.split(), "-n"], cwd=ROOT, check=True, capture_output=True)
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_commands_of_the_readme_run_one_after_the_other(tmp_path: Path) -> None:
    document = "Craneworth has a new mayor. Her name is Nell Mallory. Its phone has 4 digits."
    (tmp_path / "notice.txt").write_text(document)
    commands = [command for command in COMMANDS if command.startswith("fastmem ")]
    assert len(commands) >= 4
    for command in commands:
        words = [sys.executable, "-m", "fastmem.cli", *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        assert done.stdout.strip(), command
        assert NEW_MAYOR in done.stdout or " ask " not in command, command


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, check=True, timeout=300, capture_output=True, text=True
        )
        assert NEW_MAYOR in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_named_in_a_page_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for name in re.findall(r"`((?:src|tests|bench|studies|examples|docs|constraints)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


def test_the_flags_that_follow_the_authors_exist() -> None:
    from fastmem import cli

    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", (ROOT / "docs" / "reference" / "differences.md").read_text()))
    flags = {flag for name in ("eval", "paper", "search") for p in cli.command(name).params for flag in p.opts}
    assert named <= flags
    assert {"--no-system-turn", "--paper-rows", "--repetition-penalty"} <= named


def test_pages_contain_no_machine_paths() -> None:
    for page in PAGES:
        assert not re.search(r"/(work|tmp|root|home)/", page.read_text()), page.name


def test_only_the_metadata_names_the_owner_of_the_repository() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (owner,) = {re.search(r"github\.com/([^/]+)/fastmem", url)[1] for url in project["urls"].values()}  # type: ignore[index]
    named = f"github.com/{owner}/fastmem"
    others = [path for path in [*PAGES, ROOT / "CITATION.cff", *(ROOT / ".github").rglob("*.yml")] if path.is_file()]
    assert others
    assert [path for path in others if named in path.read_text()] == []
