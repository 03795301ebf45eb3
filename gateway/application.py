"""What the gateway is at an OAuth provider: an application that was registered there."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = frozenset(
    {
        "response_type", "client_id", "client_secret", "redirect_uri", "scope", "state", "code_challenge",
        "code_challenge_method",
    }
)  # fmt: skip
"""Names that `extra` cannot have."""
REQUIRED = ("authorize_url", "token_url", "client_id")

_URL = re.compile(r"(?ai:https?)://[^\s/?#\\@]+(?:[/?][^\s#\\]*)?")


class Application(msgspec.Struct, frozen=True, kw_only=True):
    """Where its users are sent, and how it proves itself; each key may be told by a connector or by an operator."""

    authorize_url: str | None = None
    """Where users say yes."""
    token_url: str | None = None
    """Where their code is turned into a token."""
    client_id: str | None = None
    client_secret: str | None = None
    """Without one it is a public client."""
    scope: str | list[str] | None = None
    """What is asked for: text with spaces between, or a list."""
    pkce: bool | None = None
    """Whether a code is bound to who asked for it (RFC 7636); absent: it is."""
    extra: dict[str, str] = {}
    """More query parameters for `authorize_url`."""

    @property
    def scopes(self) -> list[str]:
        """What is asked for, one by one."""
        return self.scope.split() if isinstance(self.scope, str) else list(self.scope or ())

    @property
    def digest(self) -> str:
        """Which application this is, and at which provider."""
        told = msgspec.json.encode((self.authorize_url, self.token_url, self.client_id))
        return hashlib.sha256(told).hexdigest()

    def missing(self) -> list[str]:
        """Return the keys without which nobody can be sent anywhere."""
        return [name for name in REQUIRED if not getattr(self, name)]

    def faults(self) -> Iterator[str]:
        """Return what is wrong with the keys that are given."""
        for name in ("authorize_url", "token_url"):
            url = getattr(self, name)
            if url and not _usable(url):
                yield f"{name}: not an http or https URL without user and fragment"
        for name in self.extra:
            if not name or name in OURS:
                yield f"extra: {name!r} is not for others to say"


def _usable(url: str) -> bool:
    if _URL.fullmatch(url) is None or not url.isprintable():
        return False
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, or a port that is none
        return False


def overlaid(under: Application, over: Application) -> Application:
    """Return an application with the keys of another one on top."""
    said = {name: getattr(over, name) for name in Application.__struct_fields__}
    merged = {name: value if value is not None else getattr(under, name) for name, value in said.items()}
    return Application(**{**merged, "extra": {**under.extra, **over.extra}})
