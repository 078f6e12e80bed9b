"""Draw what `fastmem demo` prints: `python -m tools.demo_picture docs/images/demo.svg`, in the repository root.

The demo runs as it does for everybody; the picture is drawn from its JSON.
"""

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from fastmem.cli.demo_view import Conflict, print_accuracies, print_conflicts


def drawn(found: dict[str, object]) -> str:
    """The picture as SVG. found: the JSON of the demo."""
    page = Console(
        record=True, file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor", highlight=False
    )
    print_conflicts(page, [Conflict(**one) for one in found["conflicts"]])
    accuracy = found["accuracy"]
    print_accuracies(page, found["rows"], accuracy["base"], accuracy["fastmem"])
    svg = page.export_svg(title="fastmem demo", theme=MONOKAI)
    # Without the fonts that rich would load from the network; the browser's own monospace takes their place.
    start, end = svg.index("@font-face"), svg.rindex("@font-face")
    end = svg.index("}", end) + 1
    return svg[:start].rstrip() + svg[end:]


def main(arguments: list[str] | None = None) -> None:
    """Run the demo and write its picture."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_picture", description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="an SVG file")
    args = parser.parse_args(arguments)
    command = [sys.executable, "-m", "fastmem.cli", "demo", "--json", "-q"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    args.output.write_text(drawn(found), encoding="utf-8")


if __name__ == "__main__":
    main()
