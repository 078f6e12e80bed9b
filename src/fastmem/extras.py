"""Packages that are not part of the core install: a check, before work starts, that they are there."""

from collections.abc import Iterable
from importlib.util import find_spec

from fastmem.errors import MissingPackageError


def require(*packages: str, extra: str, purpose: str, options: Iterable[str] = ()) -> None:
    """Check that packages are installed.

    packages: their import names. extra: the extra of FastMem that installs them. purpose: what needs them. options: as
    in `FastMemError`. Errors: `MissingPackageError`.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        text = f"{purpose} needs {', '.join(missing)}: pip install 'fastmem[{extra}]'."
        raise MissingPackageError(text, options=options)
