"""Where that lies what runs on the other side of the pipe."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
RUNNERS = _PACKAGE / "_runners" if (_PACKAGE / "_runners").exists() else _PACKAGE.parent / "runners"
"""The hosts of the runtimes, and the cell: inside the wheel, or beside the package in a checkout."""
