"""The commands of the guides print what stands below them."""

import re
from pathlib import Path

import pytest
from tools.guide_output import run, steps_of_page

GUIDES = sorted(
    page for page in (Path(__file__).parents[1] / "docs" / "guides").glob("*.md") if steps_of_page(page.read_text())
)
# The others take 19 to 40 s each; the default run has ten minutes on two cores and has needed 577 s with all of them.
QUICK = ("quickstart", "your-model", "serving")


def comparable(output: str) -> list[str]:
    """An output without what differs from run to run or from machine to machine: numbers, bars, widths of columns."""
    return re.sub(r"[-+]?\d[\d.,e-]*|[▁-█]+|\s+|-{2,}", " ", output).replace("- ", " ").split()


def test_there_are_guides_with_commands() -> None:
    assert {page.name for page in GUIDES} >= {"quickstart.md"}


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem not in QUICK)) for page in GUIDES]
)
def test_commands_of_a_guide_print_what_it_shows(page: Path) -> None:
    text = page.read_text()
    shown = steps_of_page(text)
    printed = run(text)
    assert len(printed) == len(shown)
    for step, output in zip(shown, printed, strict=True):
        assert comparable(output) == comparable(step.output), step.command
