"""Removes folders that may hold anything: of any size and depth, without permission, with links to everywhere.

The cell does it, `cell --empty`: it goes by descriptors, follows nothing, and a tree of any depth costs it two of them.
"""

from __future__ import annotations

import os
import subprocess
import time

from gateway.cells import program

SECONDS = 10.0  # for one folder; some million files, unless the disk is slow
ROUNDS = 8  # one of them gets through 100,000 folders


def remove(folder: str | os.PathLike[str], seconds: float = SECONDS) -> bool:
    """Remove a folder with what is in it, or what can be removed of it in so many seconds; tell whether it is gone.

    What is no folder stays. To be called in a thread: it takes as long as it takes.
    """
    deadline = time.monotonic() + seconds
    for _ in range(ROUNDS):
        try:
            os.rmdir(folder)  # as a rule it is empty
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            return False
        except OSError:
            left = deadline - time.monotonic()
            if left <= 0 or not _emptied(folder, left):
                break
        else:
            return True
    return not os.path.lexists(folder)


def _emptied(folder: str | os.PathLike[str], seconds: float) -> bool:
    """Have it emptied; tell whether there is a point in going on."""
    try:
        subprocess.run(
            [program.path(), "--empty", os.fspath(folder)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, program.NoCell):
        return False
    return True
