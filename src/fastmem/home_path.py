"""Paths that begin with the home folder of a user."""

import os
from pathlib import Path


def expanded(path: Path | str) -> Path:
    """The path with ~ and ~user replaced. `Path.expanduser` raises for an unknown user; here ~name stays a name."""
    return Path(os.path.expanduser(path))
