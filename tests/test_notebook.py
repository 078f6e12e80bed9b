"""The notebook runs from top to bottom, and prints what it shows."""

from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tour.ipynb"


def shown(book: Any) -> list[list[Any]]:
    """Of every code cell: its texts, and the kinds of its pictures."""
    return [
        [
            output.get("text") or sorted(set(output["data"]) - {"text/plain"}) or output["data"]
            for output in cell.outputs
        ]
        for cell in book.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.slow
def test_the_notebook_prints_what_it_shows() -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra notebook")
    pytest.importorskip("nbclient", reason="needs the extra notebook")
    from tools.notebook_output import executed

    printed = shown(executed(NOTEBOOK))
    assert len(printed) >= 7
    assert printed == shown(nbformat.read(NOTEBOOK, as_version=4))
