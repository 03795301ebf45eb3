"""Jobs and runs are clients': who may see which, and what is said of those of others."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from gateway.errors import Forbidden
from gateway.http.keys import client_of, identity_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

    from gateway.errors import GatewayError


class Owned:
    """Things of one kind, of which each client sees its own and an operator all."""

    def __init__(self, one: str) -> None:
        """`one` is what one of them is called, such as "job"."""
        self._others = f"no {one} of this client's: {one}s of others are for keys with the role operator"

    def wanted(self, request: web.Request, client: str | None) -> str | None:
        """Return whose are to be listed where those of a `client` are asked for, or nobody's; None is everybody's.

        Raises:
            Forbidden: another client's, and who asks is no operator.
        """
        identity = identity_of(request)
        if identity.sees_all:
            return client
        if client is not None and client != identity.client:
            raise Forbidden(self._others)
        return client_of(request)

    def check(self, request: web.Request, owner: str | None) -> None:
        """Raise Forbidden where one is not of the client for whom is asked, and who asks does not see all."""
        if not identity_of(request).sees_all and owner != client_of(request):
            raise Forbidden(self._others)

    @contextlib.contextmanager
    def hidden(self, request: web.Request, missing: type[GatewayError]) -> Iterator[None]:
        """Say that one is `missing` to those alone who see all: others are told what they are told of others'."""
        try:
            yield
        except missing:
            if not identity_of(request).sees_all:
                raise Forbidden(self._others) from None
            raise
