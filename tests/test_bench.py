"""The bench reads wrk rightly and computes ratios rightly. What it measures is no test's business."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench import console
from bench.__main__ import DOCUMENT, SCENARIOS
from bench.harness import Figures, Load, parse_wrk, percentile
from bench.report import Report, lacking, write_section
from gateway.journal.file import RunsFile
from gateway.journal.records import Wanted
from gateway.sealing import Keyring
from gateway.sections import JournalSection
from tests.support import Site

if TYPE_CHECKING:
    from pathlib import Path

WRK = """\
Running 3s test @ http://127.0.0.1:7004/v1/do/filter/Go
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   264.54ms  326.38ms   1.09s    79.83%
    Req/Sec    68.82     35.87   140.00     72.73%
  Latency Distribution
     50%  670.00us
     75%  488.17ms
     90%  833.83ms
     99%    1.03s 
  76 requests in 1.11s, 25.98KB read
{more}Requests/sec:     68.75
Transfer/sec:     23.50KB
"""  # noqa: W291 - wrk pads so


def test_wrks_output_is_read_with_its_units() -> None:
    assert parse_wrk(WRK.format(more="")) == Load(requests=76, rate=68.75, p50=0.00067, p99=1.03, bad=0)


def test_errors_and_refusals_count_as_bad() -> None:
    more = "  Socket errors: connect 0, read 2, write 0, timeout 1\n  Non-2xx or 3xx responses: 4\n"
    assert parse_wrk(WRK.format(more=more)).bad == 7


@pytest.mark.parametrize("output", ["", "unable to connect to 127.0.0.1:1 Connection refused\n", WRK[:300]])
def test_anything_else_is_refused(output: str) -> None:
    with pytest.raises(ValueError, match="not what wrk"):
        parse_wrk(output)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    figures = Figures()
    for ours, theirs in ((10, 5), (4, 8), (30, 10)):
        figures.add("ours", "rate", ours)
        figures.add("theirs", "rate", theirs)
    assert figures.median("ours", "rate") == 10
    assert figures.ratio("ours", "theirs", "rate") == 2.0
    assert figures.spread("ours", "rate") == 2.6


def test_a_ratio_of_unequal_rounds_is_refused() -> None:
    figures = Figures()
    figures.add("ours", "rate", 1)
    with pytest.raises(ValueError, match="zip"):
        figures.ratio("ours", "theirs", "rate")


def test_a_ratio_to_nothing_is_infinite() -> None:
    figures = Figures()
    figures.add("ours", "rate", 1)
    figures.add("theirs", "rate", 0)
    assert figures.ratio("ours", "theirs", "rate") == float("inf")


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_percentile_is_one_of_the_values(share: float, value: int) -> None:
    assert percentile(range(100, 0, -1), share) == value


def test_goals_are_met_at_their_bounds() -> None:
    report = Report("none")
    report.at_least("rate", 1.0, 1.0)
    report.at_least("rate", 0.99, 1.0)
    report.at_most("time", 5.0, 5.0, " ms")
    report.at_most("time", 5.1, 5.0, " ms")
    assert [goal.met for goal in report.goals] == [True, False, True, False]


def test_a_section_is_replaced_between_its_markers_alone(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("a\n<!-- bench: x -->\nold\n<!-- end: x -->\nb\n<!-- bench: y -->\n<!-- end: y -->\n")
    write_section(document, "x", r"new \1")
    write_section(document, "x", r"newer \1")
    assert document.read_text() == (
        "a\n<!-- bench: x -->\n\nnewer \\1\n\n<!-- end: x -->\nb\n<!-- bench: y -->\n<!-- end: y -->\n"
    )
    with pytest.raises(ValueError, match="no markers for z"):
        write_section(document, "z", "")


def test_every_scenario_has_a_place_in_the_document(tmp_path: Path) -> None:
    assert lacking(DOCUMENT, SCENARIOS) == []
    assert lacking(DOCUMENT, ["spawn", "nothing"]) == ["nothing"]
    assert lacking(tmp_path / "absent.md", ["spawn"]) == ["spawn"]


def test_the_journal_of_the_bench_is_one_that_the_gateway_reads(tmp_path: Path) -> None:
    site = Site(tmp_path)
    console._fill(site, 30, 2)
    file = RunsFile(site.state / "journal" / "runs.sqlite", JournalSection(), Keyring((), "journal"))
    try:
        assert len(file.select(Wanted(), limit=100, offset=0)) == 30
    finally:
        file.close()
