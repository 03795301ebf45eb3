"""The OAuth application that a class of `auths` describes, in the words of the protocol.

Packages of the Spiff convention describe it in the words of flask-oauthlib's client.
"""

from __future__ import annotations

from typing import Any, Dict

from . import errors

DESCRIBES = "app_description"

_KEYS = {
    "authorization_url": "authorize_url",
    "access_token_url": "token_url",
    "client_id": "client_id",
    "client_secret": "client_secret",
    "scope": "scope",
}


def describe(value: Any, config: Dict[str, Any]) -> Dict[str, Any]:
    """Give the keys of the application, or the `problem` that keeps them from being known."""
    if not callable(getattr(value, DESCRIBES, None)):
        return {"problem": f"it has no {DESCRIBES}"}
    try:
        told = value().app_description(config)
        return _translated(told) if isinstance(told, dict) else {"problem": f"{DESCRIBES} gave no dict"}
    except KeyError as missing:
        return {"problem": f"{errors.one_line(missing)} (set it under config:)"}
    except (Exception, SystemExit) as raised:  # noqa: BLE001  (the class runs any code; it hides only itself)
        return {"problem": errors.one_line(raised)}


def _translated(told: Dict[str, Any]) -> Dict[str, Any]:
    if str(told.get("version")).startswith("1"):
        return {"problem": "it speaks OAuth 1, which no gateway does"}
    known = {ours: told[theirs] for theirs, ours in _KEYS.items() if told.get(theirs)}
    scope = known.get("scope")
    if isinstance(scope, (list, tuple, set, frozenset)):
        known["scope"] = [str(one) for one in scope]
    wrong = [name for name, one in known.items() if not isinstance(one, (str, list) if name == "scope" else str)]
    return {"problem": f"{', '.join(wrong)}: not text"} if wrong else known
