"""What failed programs say of the cause, each in its language: that a package is missing, or a password refused."""

from __future__ import annotations

import re
from typing import NamedTuple

SAID = 200  # characters of a line of a log
WORDS = 500  # of a message of the gateway's own
STDERR = "; stderr: "
"""What messages have before the end of a run's log."""
_NAME = r"['\"\u2018]?(?P<name>[^\s'\"\u2019:;,]+)"
_PACKAGES = [
    re.compile(pattern)
    for pattern in (
        rf"ModuleNotFoundError: No module named {_NAME}",  # Python
        rf"\b[Cc]annot find (?:module|package) {_NAME}",  # Node
        rf"(?:ClassNotFoundException|NoClassDefFoundError): {_NAME}",  # Java
        rf"error while loading shared libraries: {_NAME}",  # the loader
        rf"Can't locate {_NAME} in @INC",  # Perl
        rf"cannot load such file -- {_NAME}",  # Ruby
        r"(?:^|: )(?P<name>[\w./+-]+): (?:command )?not found$",  # shells
        r"env: ['\u2018]?(?P<name>[^'\u2019:\n]+)['\u2019]?: No such file",  # the first line of a script
    )
]
_REFUSED = re.compile(
    r"^\W*40[13]\b|\b(?:HTTP|status|code|error)\W{0,3}40[13]\b"
    r"|\bunauthori[sz]ed\b|\bnot authenticated\b|\baccess ?denied\b|\binvalid_(?:auth|client|grant|token)\b"
    r"|\bauth(?:entication|orization)?[ _](?:has )?(?:failed|failure|required|error)\b"
    r"|\b(?:invalid|bad|wrong|incorrect|expired)[ _](?:api[ _-]?|access[ _-]?|client[ _-]?)?"
    r"(?:key|token|secret|password|credentials?|login)\b"
    r"|InvalidClientTokenId|InvalidAccessKeyId|SignatureDoesNotMatch",
    re.IGNORECASE,
)
_TELLS = re.compile(
    r"error|exception|fatal|panic|cannot|can't|could not|denied|not found|refused|failed", re.IGNORECASE
)


class Cause(NamedTuple):
    """Why something fails, as far as its words tell."""

    text: str
    remedy: str


def cause_of(said: str) -> Cause | None:
    """Return what a program's words, or an error's code, tell of the cause; None: they are not known here."""
    lines = said.splitlines()
    for line in lines:
        for pattern in _PACKAGES:
            if found := pattern.search(line):
                name = found["name"][:SAID]
                return Cause(
                    f"it lacks a package or program, {name}",
                    f"add {name} to what it is built from (requirements, packages, maven) and run gateway install,"
                    " or install it on this machine",
                )
    if any(_REFUSED.search(line) for line in lines):
        return Cause(
            "a service refuses it, perhaps for a wrong secret",
            "see which secret it uses (its settings, gateway secrets), and whether the service still takes it",
        )
    return None


def log_of(message: str) -> str:
    """Return the end of a run's log, as far as a message has it."""
    return message.partition(STDERR)[2]


def telling(log: str) -> str:
    """Return the line of a log that tells most: the last one that speaks of an error, else the last one."""
    lines = [one.strip() for one in log.splitlines() if one.strip()]
    return _short(next((one for one in reversed(lines) if _TELLS.search(one)), lines[-1]), SAID) if lines else ""


def gist(message: str) -> str:
    """Return a message in one line: what has ended how, and the line of its log that tells most."""
    head, _, log = message.partition(STDERR)
    parts = (_short(" ".join(head.split()), WORDS), telling(log))
    return ": ".join(one for one in parts if one)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
