"""Turns bytes into what only a holder of a key can read or make, and back: AES-256 in GCM, from `cryptography`."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY = 32  # bytes
MARK = 4  # bytes by which a key is found again
NONCE = 12  # bytes


class Broken(Exception):
    """Nobody who has one of the keys made this."""


class Keyring:
    """Keys, each a text of any length: the first seals, and all of them open. Nothing is imported before it is used."""

    def __init__(self, keys: Sequence[str], purpose: str) -> None:
        """What was sealed for one `purpose` is broken for another, with the same key."""
        self._keys = tuple(keys)
        self._purpose = purpose.encode()

    def __bool__(self) -> bool:
        """Tell whether there is a key."""
        return bool(self._keys)

    def close(self, plain: bytes, about: bytes = b"") -> bytes:
        """Seal. `about` is no part of it, and has to be the same when it is opened."""
        first, nonce = self._derived[0], os.urandom(NONCE)
        return first.mark + nonce + first.cipher.encrypt(nonce, plain, about)

    def open(self, sealed: bytes, about: bytes = b"") -> bytes:
        """Open what was sealed.

        Raises:
            Broken: it was not sealed with one of the keys, or about something else.
        """
        mark, nonce, rest = sealed[:MARK], sealed[MARK : MARK + NONCE], sealed[MARK + NONCE :]
        for one in self._derived:
            if one.mark == mark and len(nonce) == NONCE:
                plain = one.opened(nonce, rest, about)
                if plain is not None:
                    return plain
        raise Broken

    @functools.cached_property
    def _derived(self) -> list[_Cipher]:
        # Who never seals pays nothing.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

        made = []
        for text in self._keys:
            derived = HKDF(SHA256(), KEY + MARK, None, self._purpose).derive(text.encode(errors="surrogatepass"))
            made.append(_Cipher(derived[KEY:], AESGCM(derived[:KEY])))
        return made


class _Cipher(NamedTuple):
    mark: bytes
    cipher: AESGCM

    def opened(self, nonce: bytes, sealed: bytes, about: bytes) -> bytes | None:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415

        try:
            return self.cipher.decrypt(nonce, sealed, about)
        except InvalidTag:
            return None
