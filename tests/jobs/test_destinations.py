"""Which URL a callback goes to, and with which credentials."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.jobs.destinations import Destinations
from gateway.jobs.settings import CallbacksSection


def destinations(**section: Any) -> Destinations:
    return Destinations(msgspec.convert(section, CallbacksSection, strict=False))


def key(told: Destinations, url: str) -> str | None:
    """Return the header that is sent; "" for none, None where nothing is known."""
    found = told.credentials(url)
    return found.headers.get("K", "") if found is not None else None


HOSTS = {
    "backend": {"headers": {"K": "name"}},
    "backend:8000": {"headers": {"K": "port"}},
    "*.example.com": {"headers": {"K": "domain"}},
    "*.deep.example.com": {"headers": {"K": "deep"}},
    "[::1]": {"headers": {"K": "six"}},
    "0:0:0:0:0:0:0:2": {"headers": {"K": "long"}},
    "open.lan.": {},
}


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://backend/x", "name"), ("http://BACKEND.:9/x", "name"), ("http://backend:8000/x", "port"),
        ("https://backend:8000/x", "port"), ("http://backend:80001/x", None), ("http://backend.evil/x", "all"),
        ("http://a.example.com/x", "domain"), ("http://a.deep.example.com/x", "deep"), ("http://example.com/x", "all"),
        ("http://evilexample.com/x", "all"), ("http://[::1]:7/x", "six"), ("http://[::2]/x", "long"),
        ("http://open.lan/x", ""), ("http://user@backend/x", None), ("http://\uff42ackend/x", "name"),
        ("ftp://backend/x", None), ("nonsense", None), ("http://[", None),
    ],
)  # fmt: skip
def test_the_closest_name_counts_alone(url: str, sent: str | None) -> None:
    assert key(destinations(headers={"K": "all"}, hosts=HOSTS), url) == sent


def test_without_credentials_for_everybody_other_hosts_are_unknown() -> None:
    told = destinations(hosts={"backend": {}})
    assert (key(told, "http://backend/x"), key(told, "http://other/x")) == ("", None)
    assert told.deliverable("http://backend/x")
    assert not told.deliverable("http://other/x")
    assert not destinations().any_credentials


REWRITE = {"http://localhost:8000": "http://backend:9000/base/", "https://out.example/app": "http://in"}


@pytest.mark.parametrize(
    ("url", "becomes"),
    [
        ("http://localhost:8000/v1.0/x?y=1", "http://backend:9000/base/v1.0/x?y=1"),
        ("http://localhost:8000", "http://backend:9000/base"), ("http://localhost:8000?a", "http://backend:9000/base?a"),
        ("https://out.example/app/x", "http://in/x"), ("https://out.example/apple", "https://out.example/apple"),
        ("http://localhost:80001/x", "http://localhost:80001/x"),
        ("http://localhost:8000.evil/x", "http://localhost:8000.evil/x"),
        ("http://localhost:8000@evil/x", "http://localhost:8000@evil/x"),
    ],
)  # fmt: skip
def test_a_url_is_rewritten_at_its_boundaries_only(url: str, becomes: str) -> None:
    assert destinations(rewrite=REWRITE).rewritten(url) == becomes


@pytest.mark.parametrize(
    "section",
    [
        {"hosts": {"http://backend": {}}}, {"hosts": {"a/b": {}}}, {"hosts": {"user@h": {}}}, {"hosts": {"h:99999": {}}},
        {"hosts": {"*.127.0.0.1": {}}}, {"hosts": {"": {}}}, {"hosts": {"*.h:80": {}}},
        {"rewrite": {"localhost:8000": "http://x"}}, {"rewrite": {"http://x": "http://[x"}},
        {"rewrite": {"http://x:99999": "http://y"}}, {"rewrite": {"http://x?q": "http://y"}},
        {"headers": {"Bad Name": "x"}}, {"headers": {"K": "line\n"}}, {"hosts": {"h": {"headers": {"K": "a\x00"}}}},
        {"oauth2": {"token_url": "file:///x", "client_id": "a", "client_secret": "b"}},
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_at_the_start(section: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        destinations(**section)
