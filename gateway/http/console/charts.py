"""Small charts as SVG, made here, without a style or a script: their colours are classes of the style sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup, escape

from gateway.observe.events import ANSWERED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Line = Sequence[float | None]
    """Values, the latest last; None where there is none."""

WIDTH, HEIGHT = 160, 12
LINE = 320  # of a waterfall
TREND, HIGH = 240, 40  # of lines over time


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
    good, answered = outcomes.get("ok", 0), sum(outcomes.get(one, 0) for one in ANSWERED)
    parts = [
        _Stripe("good", "ok", good),
        _Stripe("told", "told an error", answered - good),
        _Stripe("bad", "failed", total - answered),
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


def of_lines(lines: Mapping[str, Line], points: int, said: str) -> Markup:
    """Return values over time, as many as there are room for `points`, the latest at the right; the highest fills it.

    `lines` are by their kind, a class of the style sheet; `said` tells what there is to see to those who do not see.
    """
    most = max((value for line in lines.values() for value in line if value is not None), default=0.0)
    drawn = Markup("")
    for kind, line in lines.items():
        for run in _unbroken(line, points, most):
            bottom = Markup("{},{} {} {},{}").format(run[0][0], HIGH, _joined(run), run[-1][0], HIGH)
            drawn += Markup('<polygon class="{}" points="{}"></polygon>').format(kind, bottom)
            drawn += Markup('<polyline class="{}" points="{}"></polyline>').format(kind, _joined(run))
    frame = Markup(
        '<svg class="chart trend" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" height="{}">{}</svg>'
    )
    return frame.format(said, TREND, HIGH, TREND, HIGH, drawn)


def _unbroken(line: Line, points: int, most: float) -> Iterator[list[tuple[str, str]]]:
    """Yield the parts of a line without a gap, as places in the chart; a single value is as long as half a step."""
    step, run = TREND / max(1, points - 1), list[tuple[str, str]]()
    for number, value in enumerate([*line, None]):
        if value is not None:
            x = TREND - step * (len(line) - 1 - number)
            run.append((f"{x:.1f}", f"{HIGH - 1 - (HIGH - 2) * (value / most if most else 0.0):.1f}"))
        elif run:
            yield run if len(run) > 1 else [(f"{float(run[0][0]) - step / 2:.1f}", run[0][1]), *run]
            run = []


def _joined(places: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)
