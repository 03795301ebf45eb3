"""Where callbacks go: a caller's URL as this gateway reaches it, and the credentials for its host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.jobs.targets import HostKey, Refused, Targets, host_key, host_of, read_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.jobs.settings import CallbacksSection, Credentials


class Destinations:
    """What the section `callbacks` says of URLs. Asks nobody."""

    def __init__(self, section: CallbacksSection) -> None:
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


def _found(hosts: Mapping[HostKey, Credentials], host: str, port: int | None) -> Credentials | None:
    """Look for the host with its port, the host, and then the domains around it, the closest first."""
    labels = host.split(".")
    domains = [f"*.{'.'.join(labels[start:])}" for start in range(1, len(labels))]
    for key in ((host, port), (host, None), *((domain, None) for domain in domains)):
        if key in hosts:
            return hosts[key]
    return None
