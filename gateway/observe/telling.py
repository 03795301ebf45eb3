"""Which values are secret: those below a key that says so, and those that stand within a text as passwords do."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCANNED = 1 << 16  # characters of a text that are looked through
LONGEST_NAME = 100  # characters of a name that can tell anything


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+|[^\W\d_a-zA-Z]+")

_TELLING = _words(
    """
    password passwords passwd passwort passord pass passphrase passphrases passcode passcodes pwd pw kennwort senha
    secret secrets token tokens credential credentials creds cred authorization bearer jwt otp totp pin pins pincode
    cookie cookies csrf xsrf salt pepper webhook sshpass dbpass smtppass userpass ftppass pat
    """
)
"""Words of a key that make its value a secret."""
_ENDINGS = (
    "password", "passwd", "passphrase", "passcode", "secret", "secrets", "token", "apikey", "authkey", "privatekey",
    "secretkey", "accesskey", "signingkey", "encryptionkey", "masterkey", "credentials", "pwd",
)  # fmt: skip
"""Ends of words that are written together: `dbpassword`, `authtoken`, `apikey`."""
_PLAIN_KEYS = _words(
    """
    public primary foreign sort partition hash cache row object bucket map dict index group order unique routing natural
    range lookup header column field json hot shift up down left right enter business correlation idempotency dedup
    message event record item entry document answer config configuration setting root translation label any compare
    no on by of for per is has
    """
)
"""Words before `key` that make it no secret. What else stands there (`api_key`, `stripe_key`) makes it one."""
_SECRET_KEYS = _words(
    """
    api access private secret signing encryption decryption master account shared auth service ssh license licence
    subscription webhook deploy client consumer
    """
)
"""Words before `keys` that make them secrets."""
_ABOUT = _words(
    """
    path paths file files filename dir directory folder url urls uri uris endpoint endpoints host port type types kind
    name names ttl timeout expiry expires expiration lifetime age length size limit count policy rotation algorithm alg
    format encoding header field fields param params parameter parameters prefix suffix required enabled disabled
    optional allowed label title description placeholder env var arn version issuer audience scope scopes method mode
    strategy provider manager store location source column attempts retries minutes seconds days budget usage window
    """
)
"""Last words that only say something about a secret: `token_url`, `password_min_length`, `private_key_path`."""
_AMOUNTS = frozenset(("max", "min", "num", "number", "total", "prompt", "completion", "input", "output", "used"))
"""Words with which `tokens` are counted."""
_PAIRS = frozenset((("access", "key"), ("session", "id")))
_FOLDERS = frozenset(("PWD", "OLDPWD"))
"""Variables of a shell that are no passwords."""
_SCHEMES = ("basic ", "bearer ", "token ", "apikey ", "digest ", "negotiate ")

_WORTH_A_LOOK = re.compile(r"[@=:;{\[]|-[A-Za-z]|PRIVATE KEY|[Bb](?:earer|asic) ")
_PAIR = re.compile(r"""(?<![\w$.\-])-{0,2}(?P<name>[A-Za-z][\w.\-]{0,60})["']?\s{0,9}(?:=>|=|:)\s{0,9}""")
_VALUE = re.compile(
    r"""(?:(?:basic|bearer|token|apikey|digest)[ ]+)?"""
    r"""(?:"[^"]{0,2000}"|'[^']{0,2000}'|\{[^}]{0,500}\}|[^\s;&,"']{1,2000})""",
    re.IGNORECASE,
)
_NAME = re.compile(r"\s*-{0,2}[A-Za-z][\w.\- ]{0,60}")
_WORDS = re.compile(r"[^\s;&,]{1,2000}")
_QUERY = re.compile(r"""[?&;](?P<name>[\w.\-\[\]]{1,60})=(?P<value>[^&#\s"'<>]{1,2000})""")
_FLAG = re.compile(r"""(?<![\w-])--?(?P<name>[A-Za-z][\w-]{0,60})[ ]+(?P<value>"[^"]*"|'[^']*'|[^\s"'-]\S*)""")
_LOGIN = re.compile(r"(?<![\w+.\-])(?P<scheme>[A-Za-z][\w+.\-]{0,30})://(?P<login>[^\s/]{0,1000})@")
_MORE_LOGINS = (
    re.compile(r"jdbc:oracle:[^\s@/]{1,100}/([^\s@]{1,200})@"),
    re.compile(r"^[\w.\-]+:(\S+)@(?:(?:tcp|udp|unix)?\(|/)"),  # Go's drivers
)
_SCHEMED = re.compile(r"(?<![\w-])[Bb](?:earer|asic) (?=\S{0,200}\d)[\w.~+/=-]{16,2000}")
"""A header's value alone: what looks like a token behind its scheme, and not like a word."""
_PRIVATE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_IN_QUERY = frozenset(("key", "sig", "signature", "code"))
"""Names in the query of a URL that tell there."""
_QUOTES = ("'", '"')
_NO_PASSWORD = frozenset(("", "x-oauth-basic"))
"""Passwords that stand beside a user who is the secret."""


def tells(name: str) -> bool:
    """Tell whether the name of a key, variable, header or parameter says that its value is a secret."""
    return len(name) <= LONGEST_NAME and _tells(name)


def tells_plainly(name: str) -> bool:
    """Tell the same where `key` alone may be anything: among parameters, in the middle of a text."""
    if not tells(name):
        return False
    *before, last = _WORD.findall(name.lower() if name.isupper() else name)
    return last.lower() != "key" or (bool(before) and before[-1].lower() in _SECRET_KEYS)


@functools.lru_cache(4096)
def _tells(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or name in _FOLDERS:
        return False
    *before, last = words
    if before and last in _ABOUT:
        return "webhook" in before and last in {"url", "uri"}  # who knows it may use it
    if last == "tokens" and not _AMOUNTS.isdisjoint(before):
        return False
    if last == "key" and (not before or before[-1] not in _PLAIN_KEYS):
        return True
    if not _PAIRS.isdisjoint(itertools.pairwise(words)) or (
        last == "keys" and not _SECRET_KEYS.isdisjoint(before[-1:])
    ):
        return True
    return last != "key" and any(word in _TELLING or word.endswith(_ENDINGS) for word in words)


def secrets_in(settings: object, *, secret: bool = False, telling: Callable[[str], bool] = tells) -> Iterator[str]:
    """Yield the secret values in settings, at any depth. What stands below a key that is `telling` is secret.

    `secret`: all of it is. True, false and null are no secrets.
    """
    todo: list[tuple[Any, bool]] = [(settings, secret)]
    while todo:
        value, secret = todo.pop()
        if isinstance(value, dict):
            todo += ((key, False) for key in value)
            todo += ((one, secret or (isinstance(key, str) and telling(key))) for key, one in value.items())
        elif isinstance(value, list | tuple):
            todo += ((one, secret or _is_told(value[:place])) for place, one in enumerate(value))
        elif isinstance(value, str):
            if secret:
                yield from _parts(value)
            elif _WORTH_A_LOOK.search(value):
                yield from secrets_within(value)
        elif secret and isinstance(value, int | float) and not isinstance(value, bool):
            yield str(value)
            if isinstance(value, float) and value.is_integer():
                yield str(int(value))


def secrets_within(text: str) -> Iterator[str]:
    """Yield the secrets that stand within a text: in a URL, a connection string, a header, a command line, JSON."""
    text = text[:SCANNED]
    if _PRIVATE.search(text):
        yield from _parts(text)
    if "@" in text:
        yield from _logins(text)
    if text.lstrip()[:1] in {"{", "["}:
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            yield from secrets_in(msgspec.json.decode(text))
    if "=" in text or ":" in text:
        yield from _assigned(text)
    if "-" in text:
        yield from _flagged(text)
    for found in _SCHEMED.finditer(text):
        yield from _parts(found[0])


def _assigned(text: str) -> Iterator[str]:
    """Yield what stands behind a name that tells: `password=x`, `Authorization: x`, `Password=x y;`, `?sig=x`."""
    for found in _PAIR.finditer(text):
        if tells_plainly(found["name"]) and (value := _VALUE.match(text, found.end())):
            yield from _parts(_unquoted(value[0]))
            if text[value.end() : value.end() + 1] in _QUOTES and (more := _WORDS.match(text, found.end())):
                yield more[0]
    for part in text.split(";"):  # there are spaces in names and values
        name, _, words = part.partition("=")
        if words and _NAME.fullmatch(name) and tells_plainly(name):
            yield from _parts(_unquoted(words.strip()))
    for found in _QUERY.finditer(text) if "://" in text else ():
        if tells(found["name"]) or found["name"].lower() in _IN_QUERY:
            yield from _parts(found["value"])


def _flagged(text: str) -> Iterator[str]:
    """Yield what stands behind an option that tells: `--password x`, `-u name:x`."""
    for found in _FLAG.finditer(text):
        if tells_plainly(found["name"]):
            yield from _parts(_unquoted(found["value"]))
        elif found["name"] in {"u", "user"}:
            yield _unquoted(found["value"]).partition(":")[2]


def _is_told(before: list[Any] | tuple[Any, ...]) -> bool:
    """Tell whether what stands before a word of a command line says that this one is secret: `--password`."""
    flag = before[-1] if before else None
    return isinstance(flag, str) and flag.startswith("-") and "=" not in flag and " " not in flag and tells(flag)


def _parts(value: str) -> Iterator[str]:
    """Yield a secret, and what of it may be shown alone: the token behind its scheme, the password of a login."""
    yield value
    if "%" in value:
        yield unquote(value)
    if value.lower().startswith(_SCHEMES):
        scheme, _, token = value.partition(" ")
        yield token.strip()
        if scheme.lower() == "basic":
            with contextlib.suppress(ValueError):
                yield base64.b64decode(token.strip(), validate=True).decode().partition(":")[2]
    if "@" in value:
        yield from _logins(value)


def _logins(text: str) -> Iterator[str]:
    for found in _LOGIN.finditer(text):
        user, _, password = found["login"].partition(":")
        alone = password in _NO_PASSWORD and found["scheme"].lower().endswith(("http", "https"))
        secret = user if alone else password
        yield secret
        yield unquote(secret)
    for pattern in _MORE_LOGINS:
        for match in pattern.finditer(text):
            yield match[1]


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] in "\"'{" and value[-1] in "\"'}" else value
