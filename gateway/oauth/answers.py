"""What a provider answers at its token URL: a little JSON, or a form, whatever it says that it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec

if TYPE_CHECKING:
    import httpx2

LARGEST = 64 << 10  # bytes

_FORM = "application/x-www-form-urlencoded"


class TokenRefused(Exception):
    """There is no token; the message is for people, and holds neither secret nor code."""


def check(response: httpx2.Response) -> None:
    """Refuse what is not worth reading.

    Raises:
        TokenRefused: it leads elsewhere, or would have to be unpacked, to who knows how much.
    """
    if response.is_redirect:
        raise TokenRefused(f"token_url answered {response.status_code}, a redirect, which is not followed")
    encodings = response.headers.get_list("content-encoding", split_commas=True)
    if any(one.strip().lower() not in {"", "identity"} for one in encodings):
        raise TokenRefused("token_url answered something compressed, which it was not asked for")


def in_json(response: httpx2.Response) -> httpx2.Response:
    """Return the answer as Authlib reads it: JSON, and `error` only where there is one.

    Raises:
        ValueError: it has a form's type, and is none.
        RecursionError: its JSON is too deep.
    """
    token = _object(response)
    if token is None:
        return response
    if not token.get("error"):
        token.pop("error", None)
    return type(response)(response.status_code, content=msgspec.json.encode(token), request=response.request)


def _object(response: httpx2.Response) -> dict[str, Any] | None:
    try:
        token = response.json()
    except ValueError:
        return _form(response)
    return token if isinstance(token, dict) else None


def _form(response: httpx2.Response) -> dict[str, Any] | None:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in {_FORM, "text/plain"}:
        return None
    form: dict[str, Any] = dict(parse_qsl(response.content.decode(), errors="strict"))
    if kind != _FORM and "access_token" not in form:
        return None
    if "expires_in" in form:
        form["expires_in"] = int(form["expires_in"])  # a number, as in JSON
    return form
