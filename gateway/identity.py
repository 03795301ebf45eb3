"""Who asks: a client, with one of its keys, in a role; and whose a connector is."""

from __future__ import annotations

import enum

import msgspec

DEFAULT = "default"
"""The client of the single key, and of whoever needs none."""

OWNER = "@"
"""Stands between a connector's name and whose it is: no name in a file has it."""


def called(name: str) -> str:
    """Return what callers call a connector that is registered under a name."""
    return name.partition(OWNER)[0]


def owner_of(name: str) -> str:
    """Return whose a registered connector is; empty for a common one."""
    return name.partition(OWNER)[2]


def registered(name: str, client: str) -> str:
    """Return the name under which a client's own connector is registered."""
    return f"{name}{OWNER}{client}"


class Role(enum.Enum):
    """What a key lets do."""

    CALLER = "caller"
    """Calls what its client may call, and sees what is its client's."""
    VIEWER = "viewer"
    """Sees what is its client's, and calls nothing."""
    OPERATOR = "operator"
    """Does everything, for all clients."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever sends a request."""

    client: str = DEFAULT
    """For whom it is sent."""
    holder: str | None = None
    """Whose key it has, where that is another client's: an operator's, who calls for one."""
    key: str = ""
    """The key's id, which is no secret; empty where none is needed."""
    role: Role = Role.OPERATOR

    @property
    def sees_all(self) -> bool:
        """Whether it sees what is other clients', too: operators do, and whoever needs no key to look."""
        visits = self.role is Role.VIEWER and self.client == DEFAULT and not self.key
        return self.role is Role.OPERATOR or visits
