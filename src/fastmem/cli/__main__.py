"""`python -m fastmem.cli`, and `python -m fastmem.cli --write-docs FILE`."""

from fastmem.cli import main

main()
