"""Connectors that are broken in five ways, as operators meet them, beside one that works; and the calls that show it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support import Server, Site

WAYS = {
    "ledger": "what it needs is not installed: run gateway install ledger",
    "crm": "a service refuses it, perhaps for a wrong secret",
    "fax": "it crashes, or cannot be started, again and again",
    "archive": "slow",  # on a machine that is busy it may be cut: then it is "too slow"
    "reports": "it runs out of memory",
}
"""By name, what is said of each."""
CALLS = 5  # of each
CONNECTORS = """
ledger: {runtime: python, requirements: [six], module: six}
crm: {run: [./crm.sh], env: {CRM_KEY: expired}, commands: {Find: {description: Looks a customer up}}}
fax: {run: [./fax.sh], commands: {Send: {description: Sends a page}}}
archive: {run: [./archive.sh], timeout: 2s, commands: {Fetch: {description: Fetches a document}}}
reports: {run: [./reports.py], max_memory: 64MiB, commands: {Make: {description: Makes the report of a month}}}
mail: {run: [./mail.sh], commands: {Send: {description: Sends a message}}}
"""
_COMMANDS = {"crm": "Find", "fax": "Send", "archive": "Fetch", "reports": "Make", "mail": "Send"}


def write(site: Site) -> str:
    """Write their programs, and return their entries."""
    site.script(
        "crm.sh",
        """
        [ "$CRM_KEY" = right ] && { echo '{"name": "Ada"}'; exit; }
        echo "the CRM answered: 401" >&2
        echo '{"error": {"error_code": "401", "message": "invalid API key"}}'
        """,
    )
    site.script("fax.sh", 'echo "fatal: cannot open /dev/modem: no such device" >&2; kill -SEGV $$')
    site.script("archive.sh", 'echo "waiting for a tape" >&2; sleep 1.2; echo \'{"pages": 3}\'')
    site.python("reports.py", "rows = b'x' * (400 << 20)\nprint(1)\n")
    site.script("mail.sh", 'echo "250 queued" >&2; echo \'{"queued": true}\'')
    return CONNECTORS


async def call(server: Server, headers: Mapping[str, str] | None = None) -> None:
    """Call each as often as it takes."""
    for name, command in _COMMANDS.items():
        await asyncio.gather(*(server.do(f"{name}/{command}", headers=headers or {}) for _ in range(CALLS)))
