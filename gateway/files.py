"""Reads files of operators and of this gateway: a name may stand for anything, and nothing of it is waited for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

_KINDS = {
    stat.S_IFIFO: "is a named pipe, not a file",
    stat.S_IFSOCK: "is a socket, not a file",
    stat.S_IFCHR: "is a device, not a file",
    stat.S_IFBLK: "is a device, not a file",
    stat.S_IFDIR: "is a folder, not a file",
}

Name = str | os.PathLike[str]


def open_file(name: Name) -> BufferedReader:
    """Open a file to be read. Links are followed.

    Raises:
        OSError: it cannot be read, or is no file; `strerror` and `filename` tell.
    """
    check_file(name)  # before it is opened: to open a device may do something
    handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check(os.fstat(handle), name)
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(name: Name, *, most: int | None = None) -> bytes:
    """Return what a file holds.

    Raises:
        OSError: it cannot be read, is no file, or is larger than `most` bytes; `strerror` and `filename` tell.
    """
    with open_file(name) as file:
        if most is None:
            return file.read()
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"is larger than {most >> 20} MiB", os.fspath(name))
    return data


def read_text(name: Name, errors: str = "strict") -> str:
    """Return the text that a file holds, with line breaks as they are written here.

    Raises:
        OSError: it cannot be read, or is no file; `strerror` and `filename` tell.
        UnicodeDecodeError: it holds no UTF-8.
    """
    return read_file(name).decode(errors=errors).replace("\r\n", "\n")


def walk(folder: Name, is_left_out: Callable[[str], bool]) -> Iterator[str]:
    """Yield the paths of what is below a folder and is no folder; of any depth, and what cannot be read is passed over.

    Links to folders are not entered, nor are folders that are left out by their name.
    """
    folders = [os.fspath(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as listing:
                entries = list(listing)
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not is_left_out(entry.name):
                    folders.append(entry.path)
            elif not entry.is_dir():
                yield entry.path


def identity(name: Name) -> tuple[object, ...]:
    """Return what tells one state of a file from another; it follows links."""
    try:
        facts = os.stat(name)
    except OSError:
        return (os.fspath(name), None)
    return (os.fspath(name), facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_mode)


def check_file(name: Name) -> None:
    """Look what a name stands for, without opening it.

    Raises:
        OSError: it is not there, or no file; `strerror` and `filename` tell.
    """
    _check(os.stat(name), name)


def unusable(problem: OSError) -> str:
    """Say why a file or folder cannot be used, and what to do where it is closed to the gateway's user."""
    said = f"{problem.filename}: {problem.strerror}"
    if not isinstance(problem, PermissionError) or problem.filename is None:
        return said
    real, user = Path(os.path.realpath(problem.filename)), os.geteuid()
    closed = next((one for one in reversed(real.parents) if not os.access(one, os.X_OK)), None)
    if closed is not None:
        return f"{said} for the gateway's user, {user}: chmod a+x {closed}, or keep it elsewhere"
    bits = "rx" if real.is_dir() else "r"
    return f"{said} for the gateway's user, {user}: chmod a+{bits} {real}, or chown {user} {real}"


def _check(facts: os.stat_result, name: Name) -> None:
    kind = stat.S_IFMT(facts.st_mode)
    if kind != stat.S_IFREG:
        raise OSError(0, _KINDS.get(kind, "is no file"), os.fspath(name))


def printable(text: str) -> str:
    """Return what a file is called, or what is said of it, as text: a name need not be UTF-8."""
    return text.encode(errors="backslashreplace").decode()
