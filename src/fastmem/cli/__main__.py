"""`python -m fastmem.cli ...`; and `python -m fastmem.cli --write-docs FILE`, which writes `docs/cli.md`."""

import sys
from pathlib import Path

from fastmem.cli import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["--write-docs"]:
        from tools.command_reference import write

        write(Path(sys.argv[2]))
    else:
        main()
