"""One sign-in: where the browser is sent, what has to be remembered meanwhile, and the code's way to a token."""

from __future__ import annotations

import asyncio
import hmac
import importlib
import re
import secrets
import ssl
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.oauth.answers import TokenRefused, in_json

if TYPE_CHECKING:
    from authlib.integrations.httpx_client import AsyncOAuth2Client

    from gateway.application import Application

LIFE = 600  # seconds from the first request to the callback
PATIENCE = 15.0  # seconds for a provider to turn a code into a token

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")


class SignIn(msgspec.Struct, frozen=True, kw_only=True):
    """What the callback has to know of the first request."""

    client: str | None = None
    """Whose world it is of."""
    connector: str
    auth: str
    application: str
    """Its digest: what was begun at one provider never ends at another one."""
    redirect_url: str
    """Where the browser goes with the token."""
    redirect_uri: str
    """Our callback, as the provider knows it."""
    expires: float
    """Seconds since 1970."""
    state: str = msgspec.field(default_factory=lambda: secrets.token_urlsafe(24))
    verifier: str = msgspec.field(default_factory=lambda: secrets.token_urlsafe(48))

    def belongs(self, asked: tuple[str | None, str, str], application: Application, state: str, now: float) -> bool:
        """Tell whether a callback is this one's: `asked` are client, connector and auth."""
        same = hmac.compare_digest(self.state.encode(), state.encode(errors="replace"))
        begun = (self.client, self.connector, self.auth, self.application)
        return same and begun == (*asked, application.digest) and now < self.expires


def authorize_url(application: Application, sign_in: SignIn) -> str:
    """Return where the browser goes to say yes."""
    from authlib.common.urls import add_params_to_uri  # noqa: PLC0415 - who never signs in pays nothing
    from authlib.oauth2.client import OAuth2Client  # noqa: PLC0415

    client = OAuth2Client(
        None,
        application.client_id,
        scope=_scope(application),
        redirect_uri=sign_in.redirect_uri,
        code_challenge_method="S256",
    )
    verifier = None if application.pkce is False else sign_in.verifier
    url, _ = client.create_authorization_url(application.authorize_url, state=sign_in.state, code_verifier=verifier)
    return str(add_params_to_uri(url, list(application.extra.items())))


async def fetch_token(application: Application, sign_in: SignIn, code: str) -> bytes:
    """Turn a code into what the provider answers: JSON, with `scope` as a list and `expires_at` (seconds since 1970).

    Raises:
        TokenRefused: it answered no token, or nothing.
    """
    await asyncio.to_thread(importlib.import_module, "authlib.integrations.httpx_client")  # it takes a while, once
    import httpx2  # noqa: PLC0415 - who never signs in pays nothing
    from authlib.integrations.base_client import OAuthError  # noqa: PLC0415

    try:
        async with asyncio.timeout(PATIENCE), _client(application, sign_in) as client:
            client.register_compliance_hook("access_token_response", in_json)
            proof = {} if application.pkce is False else {"code_verifier": sign_in.verifier}
            token = await client.fetch_token(application.token_url, grant_type="authorization_code", code=code, **proof)
            return msgspec.json.encode(_told(dict(token), application))
    except TimeoutError as problem:
        raise TokenRefused(f"token_url did not answer within {PATIENCE:g} s") from problem
    except OAuthError as problem:
        hidden = [one for one in (code, application.client_secret) if one and one in str(problem.error)]
        shown = problem.error if is_code(problem.error) and not hidden else "(one that is no code)"
        raise TokenRefused(f"token_url answered the error {shown}") from problem
    except httpx2.HTTPStatusError as problem:
        raise TokenRefused(f"token_url answered {problem.response.status_code}") from problem
    except (httpx2.HTTPError, OSError) as problem:
        raise TokenRefused(f"token_url could not be reached ({type(problem).__name__})") from problem
    except (
        ValueError,
        TypeError,
        LookupError,
        OverflowError,
        RecursionError,
        httpx2.InvalidURL,
    ) as problem:  # whatever else a provider makes up
        raise TokenRefused("token_url answered something that is no token") from problem


def is_code(text: object) -> bool:
    """Tell whether it looks like the code of an error, rather than like something that is not to be shown."""
    return isinstance(text, str) and _CODE.fullmatch(text) is not None


def _client(application: Application, sign_in: SignIn) -> AsyncOAuth2Client:
    from authlib.integrations.httpx_client import AsyncOAuth2Client  # noqa: PLC0415 - who never signs in pays nothing

    from gateway.oauth.transport import BoundedTransport  # noqa: PLC0415

    return AsyncOAuth2Client(
        application.client_id,
        application.client_secret,
        token_endpoint_auth_method="client_secret_post" if application.client_secret else "none",
        scope=_scope(application),
        redirect_uri=sign_in.redirect_uri,
        transport=BoundedTransport(
            verify=ssl.create_default_context(),  # the system's authorities, as everywhere in the gateway
            trust_env=False,
        ),
        headers={"Accept-Encoding": "identity"},
        timeout=PATIENCE,
        follow_redirects=False,
        trust_env=False,
    )


def _scope(application: Application) -> str | None:
    return " ".join(application.scopes) or None


def _told(token: dict[str, Any], application: Application) -> dict[str, Any]:
    if not isinstance(token.get("access_token"), str):
        raise TokenRefused("token_url answered no access_token")
    scope = token.get("scope")
    if isinstance(scope, str):
        token["scope"] = scope.split()
    elif not isinstance(scope, list):
        token["scope"] = application.scopes
    return token
