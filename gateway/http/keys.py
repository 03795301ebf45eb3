"""Who sends a request: the key in it, known by its digest, and for which client."""

from __future__ import annotations

import hmac
import os
import time
from typing import TYPE_CHECKING

from gateway.connectors.clients import digest_of
from gateway.http.routes import KEY_HEADER
from gateway.http.tls import certified
from gateway.identity import DEFAULT, Identity, Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aiohttp import web

    from gateway.connectors.clients import Client, Key
    from gateway.connectors.registry import Registry

NOBODY = Identity(client="", role=Role.CALLER)
"""Who has no key where one is needed: no client is called so."""
SINGLE = "api_key"
"""The id of the single key."""
ANYBODY = Identity()
"""Who needs none."""
CLIENT = "client"
"""The part of a path that names a client."""


class Unauthorized(Exception):
    """The key is missing, or nobody's."""


class Authenticator:
    """All keys of all clients.

    A key is found by the HMAC of its digest, with a secret of this process, so that how long it takes says nothing of
    any key; and then compared in constant time.
    """

    def __init__(self, registry: Registry, api_key: str | None) -> None:
        """`api_key` is the single key, which is an operator's."""
        self._registry = registry
        self._single = digest_of(api_key) if api_key is not None else None
        self._secret = os.urandom(32)
        self._clients: Mapping[str, Client] | None = None
        self._known: dict[bytes, tuple[bytes, Identity, float | None]] = {}
        self._fill()

    @property
    def needed(self) -> bool:
        """Whether nothing is served without a key."""
        return self._single is not None or self._registry.clients is not None

    def identify(self, request: web.Request) -> Identity:
        """Return who sends a request: whoever has its key, or the client that its certificate names.

        Raises:
            Unauthorized: it has neither, or one that is nobody's, or not any more; or the two, or its path, are
                different clients'.
        """
        if self._clients is not self._registry.clients:
            self._fill()
        named, given = certified(request) if self._clients is not None else None, given_in(request)
        identity = self._of_key(given) if given or named is None else self._of_certificate(named)
        if named is not None and named != identity.client:
            raise Unauthorized
        client = request.match_info.get(CLIENT, identity.client)
        if client != identity.client:
            if identity.role is not Role.OPERATOR:
                raise Unauthorized
            identity = Identity(client=client, holder=identity.client, key=identity.key, role=identity.role)
        return identity

    def identify_session(self, request: web.Request, digest: bytes) -> Identity:
        """Return who has logged in with the key of a digest, as long as it counts.

        Raises:
            Unauthorized: it does not any more, or the certificate names another client.
        """
        if self._clients is not self._registry.clients:
            self._fill()
        named, identity = certified(request) if self._clients is not None else None, self._of_digest(digest)
        if named not in {None, identity.client}:
            raise Unauthorized
        return identity

    def _of_key(self, key: str) -> Identity:
        if not key:
            raise Unauthorized
        return self._of_digest(digest_of(key))

    def _of_digest(self, given: bytes) -> Identity:
        digest, identity, until = self._known.get(self._mark(given), (b"", NOBODY, None))
        if not hmac.compare_digest(given, digest) or (until is not None and time.time() >= until):
            raise Unauthorized
        return identity

    def _of_certificate(self, client: str) -> Identity:
        if client not in (self._clients or {}):
            raise Unauthorized
        return Identity(client=client, key="certificate", role=Role.CALLER)

    def _mark(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")

    def _fill(self) -> None:
        self._clients = self._registry.clients
        known: dict[bytes, tuple[bytes, Identity, float | None]] = {}
        for client, key in self._keys(self._clients or {}):
            identity = Identity(client=client, key=key.id, role=key.role)
            known[self._mark(key.digest)] = key.digest, identity, key.until
        if self._single is not None:
            mark = self._mark(self._single)
            taken = known.pop(mark, None)
            if taken is None or taken[1].client == DEFAULT:  # what two have is nobody's
                known[mark] = self._single, Identity(key=SINGLE), None
        self._known = known

    @staticmethod
    def _keys(clients: Mapping[str, Client]) -> Iterator[tuple[str, Key]]:
        for name, client in clients.items():
            for key in client.keys:
                yield name, key


def given_in(request: web.Request) -> str:
    """Return the key that a request brings, empty where it brings none."""
    given = request.headers.get(KEY_HEADER)
    if given is None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else ""
    return given


def identity_of(request: web.Request) -> Identity:
    """Return who sends a request, as the middleware has found out."""
    identity: Identity = request["identity"]
    return identity


def client_of(request: web.Request) -> str | None:
    """Return whose world a request sees; None where there are no clients, and all is everybody's."""
    client: str | None = request["client"]
    return client
