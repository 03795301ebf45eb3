"""Who has called, and by which URL, where proxies stand between."""

from __future__ import annotations

import json
from http.cookies import SimpleCookie
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from gateway.http.proxies import PROXIES, Proxies, address_of, base_of
from gateway.settings import TrustedProxies
from tests.support import served

if TYPE_CHECKING:
    from tests.support import Server, Site

TRUSTED = TrustedProxies((ip_network("10.0.0.0/8"), ip_network("fd00::/8")), unix=False)
FOR = "X-Forwarded-For"


def request(peer: Any, *headers: tuple[str, str], trusted: TrustedProxies = TRUSTED) -> web.Request:
    """Return a request from a peer, as a socket names it."""
    app = web.Application()
    app[PROXIES] = Proxies(trusted)
    transport = Mock()
    transport.get_extra_info = {"peername": peer}.get
    told = CIMultiDict([("Host", "gateway:7004"), *headers])
    return make_mocked_request("GET", "/", headers=told, app=app, transport=transport)


@pytest.mark.parametrize(
    ("peer", "headers", "address"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", [(FOR, "198.51.100.7")], "192.0.2.1"),  # nobody has asked a stranger
        ("192.0.2.1", [("Forwarded", "for=198.51.100.7")], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [(FOR, "198.51.100.7")], "198.51.100.7"),
        ("10.0.0.1", [(FOR, "203.0.113.9, 198.51.100.7")], "198.51.100.7"),  # what stands before it is the caller's own
        ("10.0.0.1", [(FOR, "127.0.0.1,198.51.100.7 , 10.0.0.2")], "198.51.100.7"),
        ("10.0.0.1", [(FOR, "203.0.113.9"), (FOR, "198.51.100.7")], "198.51.100.7"),
        ("10.0.0.1", [(FOR, "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
        ("10.0.0.1", [(FOR, "198.51.100.7:1234")], "198.51.100.7"),
        ("10.0.0.1", [(FOR, "2001:DB8:0::7")], "2001:db8::7"),
        ("10.0.0.1", [(FOR, "[2001:db8::7]:1234")], "2001:db8::7"),
        ("10.0.0.1", [(FOR, "::ffff:198.51.100.7")], "198.51.100.7"),
        ("10.0.0.1", [(FOR, "")], "10.0.0.1"),
        ("10.0.0.1", [(FOR, "203.0.113.9, unknown")], "10.0.0.1"),
        ("10.0.0.1", [(FOR, "203.0.113.9, rubbish, 10.0.0.2")], "10.0.0.2"),
        ("10.0.0.1", [(FOR, "203.0.113.9,")], "10.0.0.1"),
        ("10.0.0.1", [(FOR, "1"), ("Forwarded", "for=203.0.113.9")], "10.0.0.1"),
        ("10.0.0.1", [(FOR, "198.51.100.7"), ("Forwarded", "for=203.0.113.9")], "198.51.100.7"),
        ("10.0.0.1", [("Forwarded", "for=198.51.100.7")], "198.51.100.7"),
        ("10.0.0.1", [("Forwarded", 'For="[2001:db8::7]:99";proto=https;by=10.0.0.1')], "2001:db8::7"),
        ("10.0.0.1", [("Forwarded", 'for=203.0.113.9, for="198.51.100.7", for=10.0.0.2')], "198.51.100.7"),
        ("10.0.0.1", [("Forwarded", "for=203.0.113.9"), ("Forwarded", "for=198.51.100.7")], "198.51.100.7"),
        ("10.0.0.1", [("Forwarded", "for=203.0.113.9, for=_hidden")], "10.0.0.1"),
        ("10.0.0.1", [("Forwarded", "for=203.0.113.9, by=10.0.0.1")], "10.0.0.1"),
        ("10.0.0.1", [("Forwarded", 'for=203.0.113.9, for="198.51.100.7')], "10.0.0.1"),
        ("10.0.0.1", [("Forwarded", 'for="203.0.113.9, for=198.51.100.7"')], "10.0.0.1"),
        ("10.0.0.1", [("Forwarded", "for=203.0.113.9 for=198.51.100.7")], "10.0.0.1"),
        ("10.0.0.1", [("Forwarded", ";;,=,")], "10.0.0.1"),
        ("::ffff:10.0.0.1", [(FOR, "198.51.100.7")], "198.51.100.7"),
        ("fd00::1", [(FOR, "198.51.100.7")], "198.51.100.7"),
        ("fe80::1%eth0", [(FOR, "198.51.100.7")], "fe80::1"),
    ],
)
def test_the_nearest_address_that_is_no_trusted_proxys_is_the_callers(
    peer: str, headers: list[tuple[str, str]], address: str
) -> None:
    assert address_of(request((peer, 1234), *headers)) == address
    assert address_of(request((peer, 1234), *headers, trusted=TrustedProxies())) == address_of(request((peer, 1234)))


@pytest.mark.parametrize("peer", ["", b"", None])
def test_who_comes_by_a_unix_socket_is_believed_where_that_is_said(peer: Any) -> None:
    said = FOR, "203.0.113.9, 198.51.100.7"
    assert address_of(request(peer, said)) == "unix"
    assert address_of(request(peer, trusted=TrustedProxies(unix=True))) == "unix"
    assert address_of(request(peer, said, trusted=TrustedProxies(unix=True))) == "198.51.100.7"
    assert address_of(request(("10.0.0.1", 1), said, trusted=TrustedProxies(unix=True))) == "10.0.0.1"


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ([], "http://gateway:7004"),
        ([("X-Forwarded-Proto", "https")], "https://gateway:7004"),
        ([("X-Forwarded-Proto", "HTTPS"), ("X-Forwarded-Host", "gate.example")], "https://gate.example"),
        ([("X-Forwarded-Host", "forged.example, gate.example")], "http://gate.example"),
        ([("X-Forwarded-Host", "forged.example"), ("X-Forwarded-Host", "gate.example")], "http://gate.example"),
        (
            [("Forwarded", 'for=1;host="forged:1", for=1;proto=https;host="gate.example:8443"')],
            "https://gate.example:8443",
        ),
        ([(FOR, "192.0.2.1"), ("Forwarded", "host=forged.example")], "http://gateway:7004"),
    ],
)
def test_trusted_proxies_say_by_which_url_a_browser_has_called(headers: list[tuple[str, str]], base: str) -> None:
    assert base_of(request(("10.0.0.1", 1), *headers)) == base
    assert base_of(request(("192.0.2.1", 1), *headers)) == "http://gateway:7004"


def test_what_is_long_and_senseless_is_read_in_no_time() -> None:
    for text in ("for=1," * 5000, '"' * 30000, "a;" * 15000, 'for="' + "\\a" * 15000, " " * 30000):
        assert address_of(request(("10.0.0.1", 1), ("Forwarded", text))) == "10.0.0.1"


AUTH = """
crm:
  run: [cat]
  commands: {Go: {}}
  auths:
    OAuth:
      authorize_url: https://provider.example/authorize
      token_url: https://provider.example/token
      client_id: gate
      client_secret: hidden
"""
SAID = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "gate.example", FOR: "198.51.100.7"}


async def begun(server: Server, **headers: str) -> tuple[str, bool]:
    """Begin to sign in; return where the provider is to send the browser, and whether its cookie is `Secure`."""
    path = "/v1/auth/crm/OAuth?redirect_url=http://localhost:8000/back"
    answer = await server.get(path, headers=headers, allow_redirects=False)
    assert answer.status == 302
    [cookie] = SimpleCookie(answer.headers["Set-Cookie"]).values()
    [uri] = parse_qs(urlsplit(answer.headers["Location"]).query)["redirect_uri"]
    return uri, bool(cookie["secure"])


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_sign_in_goes_by_the_url_of_a_trusted_proxy_and_of_no_other(site: Site, trusted: bool) -> None:
    proxies = "['127.0.0.1']" if trusted else "[192.0.2.0/24]"
    site.configure(AUTH, gateway=f"oauth: {{redirects: ['http://localhost:8000']}}\ntrusted_proxies: {proxies}")
    async with served(site) as server:
        direct = f"{server.url}/v1/auth/crm/OAuth/callback", False
        proxied = "https://gate.example/v1/auth/crm/OAuth/callback", True
        assert await begun(server) == direct
        assert await begun(server, **SAID) == (proxied if trusted else direct)


@pytest.mark.parametrize("trusted", ["[]", "['127.0.0.1', '::1', unix]"])
async def test_the_audit_has_the_address_of_whoever_has_called(short_site: Site, trusted: str) -> None:
    site = short_site
    path, audit = site.folder / "gw.sock", site.folder / "audit.log"
    site.configure(
        "echo: {run: [cat], commands: {Go: {}}}", gateway=f"audit: {{file: audit.log}}\ntrusted_proxies: {trusted}"
    )
    audit.unlink(missing_ok=True)
    async with served(site, "--listen", "[::1]:0", "--listen", f"unix:{path}") as server:
        [six] = server.events("listening", host="::1")
        said = {FOR: "203.0.113.9, 198.51.100.7"}
        seen = []
        for url, socket in ((server.url, None), (f"http://[::1]:{six['port']}", None), ("http://localhost", str(path))):
            connector = aiohttp.UnixConnector(socket) if socket is not None else aiohttp.TCPConnector()
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.post(f"{url}/v1/do/echo/Go", json={}, headers=said) as answer,
            ):
                assert answer.status == 200
            seen.append(json.loads(audit.read_text().splitlines()[-1])["address"])
        assert seen == (["127.0.0.1", "::1", "unix"] if trusted == "[]" else ["198.51.100.7"] * 3)
