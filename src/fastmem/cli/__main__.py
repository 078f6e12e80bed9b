"""`python -m fastmem.cli ...` is `fastmem ...`."""

from fastmem.cli import main

if __name__ == "__main__":
    main()
