"""Small charts as SVG, made here, without a style or a script: their colours are classes of the style sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH, HEIGHT = 160, 12
LINE = 320  # of a waterfall
TOLD = frozenset({"error", "raised"})
"""Outcomes that a connector tells itself."""


class _Stripe(NamedTuple):
    kind: str
    """A class of the style sheet."""
    word: str
    calls: int


def of_outcomes(outcomes: Mapping[str, int]) -> Markup:
    """Return a bar of how calls ended: what went well, what a connector told as an error, and what failed."""
    total = sum(outcomes.values())
    if not total:
        return Markup('<span class="quiet">none yet</span>')
    good, told = outcomes.get("ok", 0), sum(outcomes.get(one, 0) for one in TOLD)
    parts = [
        _Stripe("good", "ok", good),
        _Stripe("told", "told an error", told),
        _Stripe("bad", "failed", total - good - told),
    ]
    said = ", ".join(f"{one.calls} {one.word}" for one in parts if one.calls)
    at, drawn = 0.0, Markup("")
    for one in parts:
        width = WIDTH * one.calls / total
        if one.calls:
            rect = Markup('<rect class="{}" x="{}" y="0" width="{}" height="{}"></rect>')
            drawn += rect.format(one.kind, f"{at:.1f}", f"{max(width, 2):.1f}", HEIGHT)
        at += width
    frame = Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" height="{}">{}</svg>')
    return frame.format(escape(said), WIDTH, HEIGHT, WIDTH, HEIGHT, drawn) + Markup(
        ' <span class="said">{}</span>'
    ).format(said)


def of_step(begin: float, took: float, whole: float, kind: str) -> Markup:
    """Return one line of a waterfall: a bar as long as what it `took`, as far right as it has begun.

    All are seconds, `begin` since the beginning of the `whole`; `kind` is a class of the style sheet.
    """
    scale = LINE / whole if whole > 0 else 0.0
    width = max(took * scale, 2.0)
    at = min(begin * scale, LINE - width)
    frame = Markup('<svg class="chart" aria-hidden="true" viewBox="0 0 {} {}" width="{}" height="{}">{}</svg>')
    rect = Markup('<rect class="{}" x="{}" y="0" width="{}" height="{}"></rect>')
    return frame.format(LINE, HEIGHT, LINE, HEIGHT, rect.format(kind, f"{at:.1f}", f"{width:.1f}", HEIGHT))
