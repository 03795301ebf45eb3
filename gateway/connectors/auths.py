"""Authentications of a connector: what it tells of them, what an operator says on top, and which can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.application import Application, overlaid
from gateway.connectors import signatures
from gateway.connectors.parameters import NotAName, Signature
from gateway.errors import Quarantine
from gateway.observe.telling import secrets_in
from gateway.sections import AuthEntry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gateway.protocol.description import DescribedAuth
    from gateway.yaml_document import YamlNode


class Auth(msgspec.Struct, frozen=True, kw_only=True):
    """One authentication. `signature` None: nobody has said what its class takes."""

    name: str
    description: str | None = None
    signature: Signature | None = None
    application: Application = Application()
    problem: str | None = None
    """Why the connector could not tell all of it."""

    @property
    def flaw(self) -> str | None:
        """Why it cannot be used, None when it can."""
        faults, missing = list(self.application.faults()), self.application.missing()
        if faults:
            return "; ".join(faults)
        if not missing:
            return None
        verb = "is" if len(missing) == 1 else "are"
        return self.problem or f"{' and '.join(missing)} {verb} missing"

    def over(self, under: Auth) -> Auth:
        """Return it on top of what the connector itself tells."""
        return Auth(
            name=self.name,
            description=self.description or under.description,
            signature=self.signature or under.signature,
            application=overlaid(under.application, self.application),
            problem=under.problem,
        )


def declared(node: YamlNode) -> dict[str, Auth]:
    """Read `auths` in YAML.

    Raises:
        ConfigError: one cannot be used; file, line and key are named.
    """
    return {name: _declared(name, below) for name, below in node.items()}


def told(auths: Iterable[DescribedAuth]) -> dict[str, Auth]:
    """Take what an answer to `describe` says; of two with one name the last counts.

    Raises:
        Quarantine: a name or a parameter cannot be used.
    """
    return {one.name: _told(one) for one in auths}


def merged(under: Mapping[str, Auth], over: Mapping[str, Auth]) -> dict[str, Auth]:
    """Return what connectors tell with what operators say on top."""
    both = {name: auth.over(under[name]) if name in under else auth for name, auth in over.items()}
    return {**under, **both}


def notices(auths: Mapping[str, Auth]) -> tuple[str, ...]:
    """Say which cannot be used, and why."""
    return tuple(f"auths/{name} is left out: {auth.flaw}" for name, auth in auths.items() if auth.flaw)


def secrets(auths: Mapping[str, Auth]) -> Iterator[str]:
    """Return what must not be shown."""
    for auth in auths.values():
        if auth.application.client_secret:
            yield auth.application.client_secret
        yield from secrets_in(auth.application.extra)


def _declared(name: str, node: YamlNode) -> Auth:
    if not name or "/" in name:
        raise node.error("an authentication's name has no /")
    if node.data is None:
        node = node.holding({})
    entry = node.decode(AuthEntry)
    return Auth(
        name=name,
        description=entry.description,
        signature=signatures.declared(node) if entry.parameters else None,
        application=overlaid(Application(), entry),
    )


def _told(one: DescribedAuth) -> Auth:
    if not one.name or "/" in one.name:
        raise Quarantine(f"describe names an authentication {one.name!r}: a name is not empty and has no /")
    signature, problem = None, one.problem
    try:
        signature = signatures.told(f"authentication {one.name}", one.parameters)
    except NotAName as fault:
        problem = f"parameters.{fault.name}: {fault}"
    return Auth(
        name=one.name,
        description=one.description,
        signature=signature,
        application=overlaid(Application(), one),
        problem=problem,
    )
