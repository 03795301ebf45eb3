"""What makes a command a source of suggestions while a person types."""

from __future__ import annotations

import msgspec


class Typeahead(msgspec.Struct, frozen=True, kw_only=True):
    """The `typeahead` of a command. `prefix` and `limit` name parameters of it."""

    category: str
    """What is suggested; callers ask for it by this name."""
    prefix: str
    """Takes what was typed so far."""
    limit: str | None = None
    """Takes how many are wanted; without it a longer answer is cut."""
