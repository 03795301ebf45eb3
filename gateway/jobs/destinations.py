"""Where callbacks go: a caller's URL as this gateway reaches it, and the credentials for its host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.identity import DEFAULT
from gateway.jobs.settings import Nowhere
from gateway.jobs.targets import HostKey, Refused, Targets, host_key, host_of, read_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.connectors.clients import Client
    from gateway.jobs.settings import CallbacksSection, Credentials
    from gateway.protocol.request import Caller


class Destinations:
    """What the section `callbacks` says of URLs. Asks nobody."""

    def __init__(self, section: CallbacksSection) -> None:
        self.section = section
        self.targets = Targets.parse(section.allow)
        self._rewrite = {prefix.rstrip("/"): to.rstrip("/") for prefix, to in section.rewrite.items()}
        self._hosts = {host_key(name): credentials for name, credentials in section.hosts.items()}
        known = bool(section.headers) or section.oauth2 is not None
        self._everywhere = section.everywhere if known else None

    def rewritten(self, url: str) -> str:
        """Return the URL under which this gateway reaches what a caller calls by another name."""
        for prefix, to in self._rewrite.items():
            if url == prefix or url.startswith((f"{prefix}/", f"{prefix}?")):
                return to + url[len(prefix) :]
        return url

    def credentials(self, url: str) -> Credentials | None:
        """Return what is sent to a (rewritten) URL's host; None when nothing is known of it."""
        try:
            read = read_url(url)
        except Refused:
            return None
        return _found(self._hosts, host_of(read), read.port) or self._everywhere

    def refusal(self, url: str) -> Refused | None:
        """Tell why nothing may be sent there, as far as that shows without asking DNS."""
        try:
            self.targets.check_url(self.rewritten(url))
        except Refused as refusal:
            return refusal
        return None

    def deliverable(self, url: str) -> bool:
        """Tell whether a callback to a caller's URL has credentials, and may be sent."""
        return self.credentials(self.rewritten(url)) is not None and self.refusal(url) is None

    @property
    def any_credentials(self) -> bool:
        """Whether there are credentials for anybody."""
        return self._everywhere is not None or bool(self._hosts)


class Directory:
    """What each client says of callbacks: its own section, or else the common one."""

    def __init__(self, common: CallbacksSection, clients: Callable[[], Mapping[str, Client] | None]) -> None:
        """`clients` returns those of this moment."""
        self._common = Destinations(common)
        self._nowhere = Destinations(Nowhere(allow=[]))
        self._clients = clients
        self._made: dict[str, Destinations] = {}

    def section(self, client: str | None) -> CallbacksSection:
        """Return what a client has said."""
        return self.of(client).section

    def of(self, client: str | None) -> Destinations:
        """Return where a client's callbacks go; nowhere while nobody knows what it has said of them."""
        clients = self._clients()
        if clients is None:
            return self._common
        known = clients.get(client or DEFAULT)
        if known is None or not known.understood:
            return self._nowhere
        if known.callbacks is None:
            return self._common
        made = self._made.get(known.name)
        if made is None or made.section != known.callbacks:
            made = self._made[known.name] = Destinations(known.callbacks)
        return made

    def rewritten(self, caller: Caller) -> str | None:
        """Return a caller's callback URL as this gateway reaches it."""
        url = caller.callback_url
        return None if url is None else self.of(caller.client).rewritten(url)

    def any_credentials(self) -> bool:
        """Tell whether there are credentials for anybody."""
        sections = [self.of(name) for name in self._clients() or ()]
        return any(one.any_credentials for one in (self._common, *sections))


def _found(hosts: Mapping[HostKey, Credentials], host: str, port: int | None) -> Credentials | None:
    """Look for the host with its port, the host, and then the domains around it, the closest first."""
    labels = host.split(".")
    domains = [f"*.{'.'.join(labels[start:])}" for start in range(1, len(labels))]
    for key in ((host, port), (host, None), *((domain, None) for domain in domains)):
        if key in hosts:
            return hosts[key]
    return None
