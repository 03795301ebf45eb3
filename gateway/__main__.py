"""The `gateway` command, and `python -m gateway`."""

import mimetypes
import sys

from gateway import signals


def main() -> None:
    """Run the command; what it needs is read first, and may take a second in which signals come."""
    if sys.argv[1:2] == ["serve"]:
        signals.hold()
    mimetypes.init([])  # Python's own: aiohttp would read the machine's, for files that nobody serves
    from gateway.cli.main import main as command  # noqa: PLC0415

    command()


if __name__ == "__main__":
    main()
