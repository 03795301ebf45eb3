"""What is sealed of a job where it is kept: its parameters, its task's data, and what it came to.

Each is bound to its job and its column, so that none can be put in the place of another.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.jobs.contract import SEALED, told
from gateway.jobs.records import text_of
from gateway.sealing import Broken, Keyring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gateway.jobs.contract import Outcome
    from gateway.jobs.records import Row

T = TypeVar("T")

PREFIX = "sealed:"
"""How a text begins that is sealed; none of those that are kept begins so by itself, since they are JSON objects."""
LONG = 1 << 17  # characters; to seal them takes some milliseconds
COLUMNS = ("params", "task_data", "outcome")
NO_KEY = "what is stored of it is sealed, and no key of gateway.jobs.encrypt opens it"


class Sealing:
    """Seals what goes into the store, if there are keys, and opens what comes out of it."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._keys = Keyring(keys, "jobs")

    async def values(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values of a job's columns as they are kept."""
        if not self._keys:
            return values
        return await _where_it_fits(self._values, values, [values.get(name) for name in COLUMNS])

    async def opened(self, row: Row) -> Row:
        """Return a row as it was before it was sealed; what no key opens is left out, and is named in `unreadable`."""
        texts = [getattr(row, name) for name in COLUMNS]
        if not any(text is not None and text.startswith(PREFIX) for text in texts):
            return row
        return await _where_it_fits(self._opened, row, texts)

    def _values(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: self._closed(values["id"], name, value) for name, value in values.items()}

    def _opened(self, row: Row) -> Row:
        found: dict[str, Any] = {}
        unreadable = []
        for name in COLUMNS:
            text = getattr(row, name)
            if text is None or not text.startswith(PREFIX):
                continue
            try:
                sealed = b64decode(text[len(PREFIX) :], validate=True)
                found[name] = self._keys.open(sealed, _about(row.id, name)).decode()
            except (Broken, ValueError):
                found[name] = text_of(unopened()) if name == "outcome" else "{}"
                unreadable.append(name)
        return row._replace(**found, unreadable=tuple(unreadable))

    def _closed(self, job: str, name: str, value: Any) -> Any:
        if name not in COLUMNS or value is None:
            return value
        return PREFIX + b64encode(self._keys.close(value.encode(), _about(job, name))).decode()


async def _where_it_fits(work: Callable[[T], T], what: T, texts: Iterable[str | None]) -> T:
    """Do something here, or in a thread where the texts are so long that everybody would wait."""
    if sum(len(text) for text in texts if text is not None) > LONG:
        return await asyncio.to_thread(work, what)
    return work(what)


def unopened() -> Outcome:
    """Return the outcome of a job that cannot be read."""
    return told(SEALED, f"the job cannot go on: {NO_KEY}", 500)


def _about(job: str, column: str) -> bytes:
    return f"{job}/{column}".encode()
