"""The `gateway` command, and `python -m gateway`."""

import gc
import mimetypes
import sys

from gateway import signals


def main() -> None:
    """Run the command; what it needs is read first, and may take a second in which signals come."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb == "serve":
        signals.hold()
    mimetypes.init([])  # Python's own: aiohttp would read the machine's, for files that nobody serves
    gc.disable()  # what is imported stays: to look for what could go takes a tenth of the time
    from gateway.cli.main import main as command  # noqa: PLC0415

    command.commands.get(verb)
    gc.freeze()
    gc.enable()
    command()


if __name__ == "__main__":
    main()
