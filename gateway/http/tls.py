"""TLS: the certificate that callers see, made anew when its files change, and the certificates that callers show."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import socket
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.errors import ConfigError
from gateway.files import identity, read_file, unusable
from gateway.observe.events import TlsExpiring, TlsFailed, TlsLoaded
from gateway.origins import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from aiohttp import web
    from cryptography.x509 import Certificate

    from gateway.observe.events import Event
    from gateway.settings import Settings, Tls

POLL = 0.5  # seconds between two looks at the files; a change counts when it is still there at the next look
EARLY = datetime.timedelta(days=14)  # before a certificate ends, when that is told
MOST = 1 << 20  # bytes of a file


class Encryption:
    """Whether what goes between callers and the gateway is encrypted, and with what."""

    def __init__(self, settings: Settings) -> None:
        """Read the files.

        Raises:
            ConfigError: they cannot be used; the file is named.
        """
        self.problem: str | None = None
        """Why the files, as they are now, could not be taken: what they were before serves on."""
        self._hosts: list[str] = []
        """Those that other machines reach."""
        self._is_plain = settings.plain
        self._files = settings.tls
        self._seen = self._look()
        self._made = make(self._files) if self._files is not None else None
        self._told: object = None
        self._reloading = asyncio.Lock()

    @property
    def context(self) -> ssl.SSLContext | None:
        """What new connections are encrypted with; None: they are not."""
        return self._made.context if self._made is not None else None

    @property
    def ends(self) -> datetime.datetime | None:
        """When the certificate ends."""
        return self._made.ends if self._made is not None else None

    def facts(self) -> dict[str, Any] | None:
        """Return what people are told of it."""
        if self._made is None or self._files is None:
            return None
        clients = "required" if self._files.required else "optional"
        return {
            "cert": str(self._files.cert),
            "not_after": self._made.ends.isoformat(),
            "client_certificates": clients if self._files.client_ca is not None else None,
            "problem": self.problem,
        }

    def summary(self) -> str:
        """Say in a few words what connections are encrypted with."""
        if self._made is None or self._files is None:
            return "none"
        return f"{self._files.cert}, until {self._made.ends.isoformat()}"

    def take(self, sockets: Iterable[socket.socket]) -> None:
        """Know where it is listened."""
        hosts = dict.fromkeys(str(one.getsockname()[0]) for one in sockets if one.family != socket.AF_UNIX)
        self._hosts = [one for one in hosts if not is_loopback(one)]

    def bare(self) -> list[str]:
        """Return what is to be said of addresses that other machines reach without TLS."""
        if self._made is not None or self._is_plain or not self._hosts:
            return []
        hosts = ", ".join(self._hosts)
        said = (
            f"other machines reach {hosts} without TLS, and whoever is on the way reads keys and data:"
            " set gateway.tls, or say gateway.tls: false where a proxy or the network sees to that"
        )
        return [said]

    def notices(self) -> list[str]:
        """Return what an operator should know."""
        found = self.bare()
        if self._made is not None and self._made.ends - _now() < EARLY:
            found.append(f"the certificate {self._made.said}: {self._made.ends.isoformat()} (gateway.tls.cert)")
        return found

    async def watch(self, publish: Callable[[Event], None]) -> None:
        """Look at the files again and again."""
        last = self._seen
        while self._files is not None:
            try:
                self._warn(publish)
                await asyncio.sleep(POLL)
                seen = await asyncio.to_thread(self._look)
                if seen == last and (seen != self._seen or self.problem is not None):
                    await self.reload(publish)
                last = seen
            except Exception as problem:  # noqa: BLE001 - whatever it is, a gateway that stops watching is worse
                publish(TlsFailed(reason=f"{type(problem).__name__}: {problem}"))

    async def reload(self, publish: Callable[[Event], None]) -> None:
        """Take the files as they are now; when they cannot be used, keep what there is and say so."""
        before, files = self._made, self._files
        if before is None or files is None:
            return
        async with self._reloading:
            seen = await asyncio.to_thread(self._look)
            try:
                made = await asyncio.to_thread(_newer, files, before)
            except ConfigError as problem:
                if self.problem != str(problem):
                    publish(TlsFailed(reason=str(problem)))
                self.problem = str(problem)
                return
            finally:
                self._seen = seen
            self.problem = None
            if made.digest != before.digest:
                self._made = made
                publish(TlsLoaded(cert=str(files.cert), not_after=made.ends.isoformat()))

    def _look(self) -> object:
        files = self._files
        return [identity(one) for one in (files.cert, files.key, files.client_ca) if one] if files is not None else []

    def _warn(self, publish: Callable[[Event], None]) -> None:
        made = self._made
        if made is not None and made.said != self._told and made.ends - _now() < EARLY:
            self._told = made.said
            publish(TlsExpiring(not_after=made.ends.isoformat(), message=f"the certificate {made.said}"))


class _Loaded(NamedTuple):
    """What the files come to."""

    context: ssl.SSLContext
    ends: datetime.datetime
    digest: bytes
    """Of all that the files hold."""

    @property
    def said(self) -> str:
        return "ends soon" if _now() < self.ends else "has ended"


def make(files: Tls) -> _Loaded:
    """Make the context of connections from now on.

    Raises:
        ConfigError: a file cannot be read or used; it is named.
    """
    cert, key = _read("cert", files.cert), _read("key", files.key)
    [first, *_] = _certificates("cert", files.cert, cert)
    _check_key(files.key, key, first)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    held = cert + key
    try:
        context.load_cert_chain(files.cert, files.key, password=_nothing)
    except (ssl.SSLError, OSError) as problem:
        raise ConfigError(f"gateway.tls.cert: {files.cert}: it cannot be used: {problem}") from problem
    if files.client_ca is not None:
        authorities = _read("client_ca", files.client_ca)
        _certificates("client_ca", files.client_ca, authorities)
        held += authorities
        context.load_verify_locations(cadata=authorities.decode("ascii", errors="replace"))
        context.verify_mode = ssl.CERT_REQUIRED if files.required else ssl.CERT_OPTIONAL
    return _Loaded(context, first.not_valid_after_utc, hashlib.sha256(held).digest())


def _newer(files: Tls, before: _Loaded) -> _Loaded:
    """Make the context anew; one that has ended does not take the place of one that has not.

    Raises:
        ConfigError: a file cannot be read or used; it is named.
    """
    made = make(files)
    if made.ends <= _now() < before.ends:
        raise ConfigError(f"gateway.tls.cert: {files.cert}: it ended at {made.ends.isoformat()}")
    return made


def fingerprint(files: Tls) -> bytes:
    """Return the SHA-256 of the certificate, for whoever calls from beside its file.

    Raises:
        ConfigError: the file cannot be read or used; it is named.
    """
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - who has no TLS pays nothing

    return _certificates("cert", files.cert, _read("cert", files.cert))[0].fingerprint(SHA256())


def certified(request: web.BaseRequest) -> str | None:
    """Return whom the caller's certificate names, as its subject's common name; None when none was shown.

    It was verified before the first request. One that names nobody, or more than one, names the empty text.
    """
    transport = request.transport
    shown = transport.get_extra_info("peercert") if transport is not None else None
    if not shown:
        return None
    names = [value for part in shown.get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 else ""


def _read(name: str, file: Path) -> bytes:
    try:
        return read_file(file, most=MOST)
    except OSError as problem:
        raise ConfigError(f"gateway.tls.{name}: {unusable(problem)}") from problem


def _certificates(name: str, file: Path, data: bytes) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415

    try:
        return load_pem_x509_certificates(data)
    except ValueError as problem:
        raise ConfigError(f"gateway.tls.{name}: {file}: it holds no certificate in PEM") from problem


def _check_key(file: Path, data: bytes, certificate: Certificate) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    where = f"gateway.tls.key: {file}"
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as problem:
        how = f"openssl pkey -in {file} -out FILE writes one without"
        raise ConfigError(f"{where}: it has a passphrase, which nobody can enter here: {how}") from problem
    except (ValueError, UnsupportedAlgorithm) as problem:
        raise ConfigError(f"{where}: it holds no private key in PEM") from problem
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"{where}: it is not the key of the certificate in gateway.tls.cert")


def _nothing() -> bytes:
    """Have no passphrase: without this, OpenSSL would ask the terminal for one."""
    return b""


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
