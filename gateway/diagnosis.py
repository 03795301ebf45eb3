"""What failed programs say of the cause, each in its language: that a package is missing, or a password refused."""

from __future__ import annotations

import re
from typing import NamedTuple

SAID = 200  # characters of a line of a log
WORDS = 500  # of a message of the gateway's own
STDERR = "; stderr: "
"""What messages have before the end of a run's log."""
_NAME = r"['\"\u2018]?(?P<name>[^\s'\"\u2019:;,]+)"
_PACKAGES = {
    hint: re.compile(pattern)
    for hint, pattern in {
        "No module named ": rf"ModuleNotFoundError: No module named {_NAME}",  # Python
        "annot find ": rf"\b[Cc]annot find (?:module|package) {_NAME}",  # Node
        "ClassNotFoundException": rf"ClassNotFoundException: {_NAME}",  # Java
        "NoClassDefFoundError": rf"NoClassDefFoundError: {_NAME}",
        "shared libraries": rf"error while loading shared libraries: {_NAME}",  # the loader
        "@INC": rf"Can't locate {_NAME} in @INC",  # Perl
        "cannot load": rf"cannot load such file -- {_NAME}",  # Ruby
        "not found": r"(?:^|: )(?P<name>[\w./+-]+): (?:command )?not found$",  # shells
        "env: ": r"env: ['\u2018]?(?P<name>[^'\u2019:\n]+)['\u2019]?: No such file",  # the first line of a script
    }.items()
}
"""By words that are there where they match: to look for those takes a hundredth of the time."""
_REFUSED = re.compile(
    r"^\W*40[13]\b|\b(?:HTTP|status|code|error)\W{0,3}40[13]\b"
    r"|\bunauthori[sz]ed\b|\bnot authenticated\b|\baccess ?denied\b|\binvalid_(?:auth|client|grant|token)\b"
    r"|\bauth(?:entication|orization)?[ _](?:has )?(?:failed|failure|required|error)\b"
    r"|\b(?:invalid|bad|wrong|incorrect|expired)[ _](?:api[ _-]?|access[ _-]?|client[ _-]?)?"
    r"(?:key|token|secret|password|credentials?|login)\b"
    r"|InvalidClientTokenId|InvalidAccessKeyId|SignatureDoesNotMatch",
    re.IGNORECASE | re.MULTILINE,
)
_HINTS = (
    "401", "403", "auth", "denied", "credential", "key", "token", "secret", "password", "login", "invalid", "signature",
)  # fmt: skip
"""Some of these is in all that it matches."""
_MEMORY = re.compile(r"\bMemoryError\b|\bOutOfMemoryError\b|heap out of memory|Cannot allocate memory")
_FRAME = re.compile(r"\s*at \S+ ?\(|\s*File \".*\", line \d+|.*\bline \d+,? in \S+$")
"""A line of a traceback that says where, and not what."""
_TELLS = (
    "error",
    "exception",
    "fatal",
    "panic",
    "cannot",
    "can't",
    "could not",
    "denied",
    "not found",
    "refused",
    "failed",
)
"""What a line that speaks of an error has."""


class Cause(NamedTuple):
    """Why something fails, as far as its words tell."""

    text: str
    remedy: str


def lack_of(said: str) -> Cause | None:
    """Return which package or program is missing, where a program's words name one."""
    patterns = [pattern for hint, pattern in _PACKAGES.items() if hint in said]
    for line in said.splitlines() if patterns else ():
        for pattern in patterns:
            if found := pattern.search(line):
                name = found["name"][:SAID]
                return Cause(
                    f"it lacks a package or program, {name}",
                    f"add {name} to what it is built from (requirements, packages, maven) and run gateway install,"
                    " or install it on this machine",
                )
    return None


def cause_of(said: str) -> Cause | None:
    """Return what a program's words, an error's code before them, tell of the cause; None: they are not known here."""
    lack, lower = lack_of(said), said.lower()
    if lack is not None:
        return lack
    if "emory" in said and _MEMORY.search(said):
        return Cause("it runs out of memory", "raise its max_memory, or have it take less")
    if any(hint in lower for hint in _HINTS) and _REFUSED.search(said):
        return Cause(
            "a service refuses it, perhaps for a wrong secret",
            "see which secret it uses (its settings, gateway secrets), and whether the service still takes it",
        )
    return None


def log_of(message: str) -> str:
    """Return the end of a run's log, as far as a message has it."""
    return message.partition(STDERR)[2]


def telling(log: str) -> str:
    """Return the line of a log that tells most: the last that speaks of an error, else the last that is no frame."""
    lines = [one.strip() for one in log.splitlines() if one.strip() and not _FRAME.match(one)]
    return _short(next((one for one in reversed(lines) if _tells(one)), lines[-1]), SAID) if lines else ""


def gist(message: str) -> str:
    """Return a message in one line: what has ended how, and the line of its log that tells most."""
    head, _, log = message.partition(STDERR)
    parts = (_short(" ".join(head.split()), WORDS), telling(log))
    return ": ".join(one for one in parts if one)


def _tells(line: str) -> bool:
    lower = line.lower()
    return any(word in lower for word in _TELLS)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
