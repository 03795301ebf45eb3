"""What a scenario hands back, shown as rich tables and written into docs/performance.md."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from bench.harness import key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bench.harness import Figures


class Goal(NamedTuple):
    """What a figure should be."""

    text: str
    figure: str
    met: bool


class Table(NamedTuple):
    """Rows of cells."""

    title: str
    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]


class Report:
    """The tables, goals and notes of one scenario."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        self.name = name
        self.tables: list[Table] = []
        self.goals: list[Goal] = []
        self.notes: list[str] = []
        self._console = console or Console()

    def progress(self, line: str) -> None:
        """Show that something goes on."""
        self._console.print(f"[dim]{self.name}: {line}[/]", highlight=False)

    def note(self, line: str) -> None:
        """Say something that belongs to the figures: what was skipped, what failed."""
        if line not in self.notes:
            self.notes.append(line)
            self._console.print(f"{self.name}: {line}", style="yellow", highlight=False, markup=False)

    def table(self, title: str, headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        """Add a table."""
        self.tables.append(Table(title, headers, rows))

    def at_least(self, text: str, value: float, bound: float, unit: str = " x") -> None:
        """Add a goal that the value must not fall below."""
        self.goals.append(Goal(text, f"{value:.3g}{unit}", value >= bound))

    def at_most(self, text: str, value: float, bound: float, unit: str = " x") -> None:
        """Add a goal that the value must not exceed."""
        self.goals.append(Goal(text, f"{value:.3g}{unit}", value <= bound))

    def show(self) -> None:
        """Print the tables."""
        for one in self.tables:
            shown = RichTable(title=one.title, title_justify="left")
            for index, header in enumerate(one.headers):
                shown.add_column(header, justify="right" if index else "left", overflow="fold")
            for row in one.rows:
                shown.add_row(*row)
            self._console.print(shown)
        for goal in self.goals:
            verdict = "[green]met   [/]" if goal.met else "[red]missed[/]"
            self._console.print(f"{verdict} {goal.text}: {goal.figure}", highlight=False)

    def markdown(self, machine: str) -> str:
        """Return the section's text."""
        tables = [f"**{one.title}**\n\n{_markdown_table(one.headers, one.rows)}" for one in self.tables]
        parts = [machine, *tables]
        if self.goals:
            rows = [(goal.text, goal.figure, "met" if goal.met else "**missed**") for goal in self.goals]
            parts.append(_markdown_table(("goal", "figure", ""), rows))
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts)


def load_table(report: Report, title: str, names: list[str], connections: tuple[int, ...], figures: Figures) -> None:
    """Add a table of rates, latencies and CPU: a row a name, three columns a number of connections."""
    headers = ["", *(head for count in connections for head in (f"/s @{count}", "p50 ms", "p99 ms")), "CPU ms/call"]
    rows = []
    for name in names:
        cells = [name]
        for count in connections:
            cells += [
                f"{figures.median(key(name, count), 'rate'):,.0f}",
                milliseconds(figures.median(key(name, count), "p50")),
                milliseconds(figures.median(key(name, count), "p99")),
            ]
        cells.append(milliseconds(figures.median(key(name, connections[-1]), "cpu")))
        rows.append(tuple(cells))
    report.table(f"{title} (@N: connections)", tuple(headers), rows)


def milliseconds(seconds: float) -> str:
    """Write a time in milliseconds, three digits of it."""
    value = seconds * 1000
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def lacking(document: Path, names: Iterable[str]) -> list[str]:
    """Return the names of those scenarios whose markers the document lacks."""
    text = document.read_text() if document.exists() else ""
    return [name for name in names if not re.search(_between(name), text, flags=re.DOTALL)]


def write_section(document: Path, name: str, text: str) -> None:
    """Replace what stands between a scenario's markers.

    Raises:
        ValueError: the document has no such markers.
    """
    before = document.read_text()
    after, count = re.subn(
        _between(name), lambda found: f"{found[1]}\n{text}\n\n{found[2]}", before, count=1, flags=re.DOTALL
    )
    if not count:
        raise ValueError(f"{document} has no markers for {name}")
    document.write_text(after)


def _between(name: str) -> str:
    return rf"(<!-- bench: {re.escape(name)} -->\n).*?(<!-- end: {re.escape(name)} -->)"


def _markdown_table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [headers, tuple("---" if not index else "---:" for index in range(len(headers))), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
