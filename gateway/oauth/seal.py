"""Turns text into what only a holder of the key can read or make, and back. The key is a setting, or a file."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import zlib
from typing import TYPE_CHECKING

from gateway.files import read_text
from gateway.sealing import Broken, Keyring

if TYPE_CHECKING:
    from pathlib import Path

FILE = "oauth.key"
LARGEST = 1 << 16  # bytes that a seal opens to


class Seal:
    """Seals with one key. Nothing is read, made or imported before it is needed."""

    def __init__(self, key: str | None, folder: Path, purpose: str = "sign-ins") -> None:
        """Without a `key`, a file in `folder` holds one; who comes first makes it.

        What was sealed for one `purpose` is broken for another.
        """
        self._purpose = purpose
        self._key = key
        self._folder = folder
        self._made: Keyring | None = None

    def close(self, plain: bytes) -> str:
        """Seal; the result is made of letters, digits, - and _.

        Raises:
            OSError: the file can neither be read nor made.
        """
        return base64.urlsafe_b64encode(self._keyring.close(zlib.compress(plain))).decode().rstrip("=")

    def open(self, sealed: str) -> bytes:
        """Open what was sealed.

        Raises:
            Broken: it was not sealed with this key.
            OSError: the file can neither be read nor made.
        """
        padded = sealed + "=" * (-len(sealed) % 4)
        try:
            coded = base64.b64decode(padded, altchars=b"-_", validate=True)
            return zlib.decompressobj().decompress(self._keyring.open(coded), LARGEST)
        except (ValueError, zlib.error) as problem:
            raise Broken from problem

    @property
    def _keyring(self) -> Keyring:
        if self._made is None:
            key = self._key if self._key is not None else _kept(self._folder / FILE)
            self._made = Keyring([key], self._purpose)
        return self._made


def _kept(file: Path) -> str:
    """Return the text of the file, which is never there without its text."""
    with contextlib.suppress(FileNotFoundError):
        return _read(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as stream:
        stream.write(secrets.token_urlsafe(32))
        stream.flush()
        os.fsync(stream.fileno())
    try:
        with contextlib.suppress(FileExistsError):  # another one came first
            os.link(draft, file)
    finally:
        os.unlink(draft)
    return _read(file)


def _read(file: Path) -> str:
    try:
        text = read_text(file).strip()
    except UnicodeDecodeError as problem:
        raise OSError(0, "it is no text", str(file)) from problem
    if not text:
        raise OSError(0, "it is empty", str(file))
    return text
