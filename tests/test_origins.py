"""Which addresses a browser may be sent back to."""

from __future__ import annotations

import pytest

from gateway.origins import Origin, is_plain, read, rule, rules


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://localhost:8000/v1.0/cb?token=a.b-c_d&x=http://e", ("http", "localhost", 8000, "/v1.0/cb")),
        ("HTTPS://Example.ORG", ("https", "example.org", 443, "")),
        ("http://example.org:80/", ("http", "example.org", 80, "")),
        ("https://example.org:0443/a/", ("https", "example.org", 443, "/a")),
        ("http://[::1]:8000/cb", ("http", "[::1]", 8000, "/cb")),
        ("http://[0:0:0:0:0:0:0:1]/cb", ("http", "[::1]", 80, "/cb")),
        ("http://localhost:8000?token=x", ("http", "localhost", 8000, "")),
    ],
)
def test_an_address_is_read_as_browsers_read_it(url: str, origin: tuple[object, ...]) -> None:
    assert read(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/cb",
        "//localhost:8000/cb",
        "localhost:8000/cb",
        "javascript://localhost:8000/%0aalert(1)",
        "ftp://localhost/cb",
        "http:/localhost:8000/cb",
        "http:localhost:8000",
        "http:///localhost:8000",
        "http://",
        "http://localhost:8000@evil.example/cb",
        "http://localhost:8000:pw@evil.example/cb",
        "http://user@localhost:8000/cb",
        "http://localhost:8000.evil.example/cb",
        "http://localhost:8000\\@evil.example/cb",
        "http://evil.example\\.localhost:8000/cb",
        "http://evil.example\\@localhost:8000/cb",
        "http:\\\\localhost:8000/cb",
        "http://localhost:8000/\\evil.example",
        "http://localhost:8000#@evil.example/",
        "http://localhost:8000/cb#x",
        "http://localhost:8000/cb\r\nSet-Cookie: a=b",
        "http://localhost:8000/cb\n",
        "http://localhost:8000/c\tb",
        "http://local\thost:8000/cb",
        "\x01http://localhost:8000/cb",
        " http://localhost:8000/cb",
        "http://localhost:8000/cb ",
        "http://localhost:8000/\u2028",
        "http://lo\u0441alhost:8000/cb",
        "http\u017f://localhost:8000/cb",
        "http://localho\u017ft:8000/cb",
        "http://\u212aube:8000/cb",
        "http://localhost\uff0eevil.example:8000/cb",
        "http://localhost%2eevil.example/cb",
        "http://localhost:/cb",
        "http://localhost:0/cb",
        "http://localhost:65536/cb",
        "http://localhost:800000/cb",
        "http://localhost:8o00/cb",
        "http://[::1/cb",
        "http://[::g]/cb",
        "http://[]/cb",
        "http://localhost:8000/app/../cb",
        "http://localhost:8000/app/%2e%2E/cb",
        "http://localhost:8000/app/..%2fcb",
        "http://localhost:8000/app/%2e",
        "http://localhost:8000/app/..%5ccb",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(it is not a plain http|its (host|port|path) )"):
        read(url)


@pytest.mark.parametrize(
    ("allowed", "url", "passes"),
    [
        ("http://localhost:8000", "http://localhost:8000/cb", True),
        ("http://localhost:8000/", "http://LOCALHOST:8000", True),
        ("http://Localhost:8000", "http://localhost:8000/cb", True),
        ("http://localhost", "http://localhost:80/cb", True),
        ("https://localhost:443", "https://localhost/cb", True),
        ("http://localhost:8000", "https://localhost:8000/cb", False),
        ("http://localhost:8000", "http://localhost:8001/cb", False),
        ("http://localhost:8000", "http://localhost/cb", False),
        ("http://localhost", "http://localhost.evil.example/cb", False),
        ("http://localhost", "http://evil.localhost/cb", False),
        ("http://localhost", "http://localhost./cb", False),
        ("http://127.0.0.1", "http://0x7f000001/cb", False),
        ("http://h/app", "http://h/app", True),
        ("http://h/app", "http://h/app?token=x", True),
        ("http://h/app/", "http://h/app/cb", True),
        ("http://h/app", "http://h/application", False),
        ("http://h/app", "http://h/", False),
        ("http://h/app", "http://h/APP/cb", False),
    ],
)
def test_scheme_host_port_and_path_have_to_be_those_of_the_rule(allowed: str, url: str, passes: bool) -> None:
    assert rule(allowed).covers(read(url)) is passes


@pytest.mark.parametrize("text", ["localhost:8000", "http://h?x=1", "*", "http://*.h", "http://u@h", "ftp://h"])
def test_a_rule_that_is_no_origin_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="is no origin, such as http://localhost:8000"):
        rules([text])


def test_an_origin_alone_has_no_path() -> None:
    assert is_plain("http://h:1")
    assert not [one for one in ("http://h/", "http://h/x", "http://h?x", "http://a@b", "http://a:b") if is_plain(one)]


def test_what_the_operator_says_is_all_that_counts() -> None:
    said = rules(["https://h"], rewrite=["http://old"], hosts=["a"], allow=["b"])
    assert said == (Origin("https", "h", 443),)
    assert rules([], allow=["b"]) == ()


def test_without_a_word_the_settings_of_callbacks_tell() -> None:
    found = rules(
        None,
        rewrite=["http://b\u00fccher.example", "http://localhost:8000", "http://localhost:99999", "http://h?x=1"],
        hosts=["api.example:8443", "Plain.example.", "*.wild.example", "[::1]:9"],
        allow=["backend", "*.example.org", "10.0.0.0/8", "127.0.0.1", "fd00::/8", "::1", "a:b:c:d"],
    )
    assert found == (
        Origin("http", "localhost", 8000),
        Origin(None, "api.example", 8443),
        Origin(None, "plain.example", None),
        Origin(None, "[::1]", 9),
        Origin(None, "backend", None),
        Origin(None, "127.0.0.1", None),
        Origin(None, "[::1]", None),
    )


def test_a_name_with_letters_that_only_look_like_ours_tells_of_no_backend() -> None:
    assert rules(None, hosts=["\u212aube:8000"], allow=["localho\u017ft"]) == ()


def test_a_name_without_a_port_is_that_host_alone() -> None:
    (allowed,) = rules(None, allow=["backend"])
    assert allowed.covers(read("http://backend:8000/cb"))
    assert allowed.covers(read("https://backend/cb"))
    assert not allowed.covers(read("http://backend.evil.example/cb"))
    (allowed,) = rules(None, hosts=["backend:8000"])
    assert not allowed.covers(read("http://backend/cb"))
