"""What is wrong, in words."""

from __future__ import annotations

import datetime
import inspect
import re
from typing import Any

import msgspec
import pytest

from gateway import health
from gateway.health import ClientFacts, Concern, ConnectorFacts, GatewayFacts, Severity, concerns
from gateway.observe.outcomes import PastRun

NOW = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


def of_gateway(**facts: Any) -> list[Concern]:
    return concerns(GatewayFacts(now=NOW, **facts), [])


def of_connector(**facts: Any) -> list[Concern]:
    return concerns(GatewayFacts(now=NOW), [ConnectorFacts(name="fax", **facts)])


def past(*outcomes: str, code: str | None = None, ago: float = 60) -> list[PastRun]:
    """Return runs, the newest first."""
    at = NOW - datetime.timedelta(seconds=ago)
    return [
        PastRun(at=at, command="Go", outcome=one, error_code=code, wall=0.1, request_id=f"r{number}")
        for number, one in enumerate(outcomes)
    ]


def test_nothing_is_wrong_where_all_is_right() -> None:
    quiet = ConnectorFacts(name="fax", queue=32, queued=3, in_flight=8, last=past("ok", "error", "ok", "cancelled"))
    assert concerns(GatewayFacts(now=NOW, processes=(8, 64), connections=(9, 4096), held=(1, 100)), [quiet]) == []


@pytest.mark.parametrize(
    ("facts", "severity", "kind", "words"),
    [
        ({"state": "draining"}, "warning", "draining", "takes no new work"),
        ({"registry_problem": "a.yaml:3: no"}, "error", "registry", "a.yaml:3: no"),
        ({"log_problem": "No space left"}, "error", "log", "No space left"),
        ({"log_dropped": 4}, "notice", "log_dropped", "4 lines"),
        ({"audit_problem": "gone"}, "error", "audit", "calls go on without it: gone"),
        ({"audit_problem": "gone", "audit_required": True}, "error", "audit", "every call is refused: gone"),
        ({"journal_problem": "gone"}, "warning", "journal", "will be missing in it: gone"),
        ({"jobs_problem": "the database does not answer"}, "error", "jobs_away", "the database does not answer"),
        ({"dead_letters": 1}, "warning", "dead_letters", "1 outcome could not"),
        ({"bare": ["other machines reach 10.0.0.1: set gateway.tls"]}, "warning", "no_tls", "reach 10.0.0.1"),
        ({"tls_problem": "no PEM"}, "warning", "tls_files", "no PEM"),
        ({"tls_ends": NOW + 3 * DAY}, "warning", "tls_ending", "ends in 3 days (2026-01-05)"),
        ({"tls_ends": NOW - DAY}, "error", "tls_ending", "has ended (2026-01-01)"),
        ({"connections": (3300, 4096)}, "warning", "connections_full", "3300 of 4096"),
        ({"held": (90 << 20, 100 << 20)}, "warning", "held_full", "90MiB of 100MiB"),
        ({"exposed": ["others can write run.sh"]}, "warning", "exposed", "others can write run.sh"),
        ({"clients": [ClientFacts(name="acme", problem="acme.yaml:2: no")]}, "error", "client_refused", "acme.yaml:2"),
        ({"clients": [ClientFacts(name="acme", keys={"k1": NOW + DAY})]}, "warning", "key_ending", "k1 ends in 1 day"),
        ({"clients": [ClientFacts(name="acme", notices=["key k1 is over"])]}, "notice", "client_notice", "is over"),
    ],
)
def test_each_trouble_of_the_gateway_is_told(facts: dict[str, Any], severity: str, kind: str, words: str) -> None:
    [one] = of_gateway(**facts)
    assert (one.severity.value, one.kind) == (severity, kind)
    assert words in one.text
    assert one.remedy or one.severity is Severity.NOTICE or "set gateway.tls" in one.text


@pytest.mark.parametrize(
    "facts",
    [
        {"tls_ends": NOW + 15 * DAY},
        {"clients": [ClientFacts(name="acme", keys={"k1": NOW + 15 * DAY, "k2": NOW - DAY})]},
        {"connections": (3000, 4096)},
        {"processes": (64, 64)},
    ],
)
def test_what_is_near_no_end_is_not_told(facts: dict[str, Any]) -> None:
    assert of_gateway(**facts) == []


@pytest.mark.parametrize(
    ("facts", "kind", "words"),
    [
        ({"state": "quarantined", "reason": "x not found"}, "quarantined", "cannot be served: x not found"),
        ({"circuit": "died of SIGSEGV"}, "circuit_open", "died of SIGSEGV"),
        (
            {"queue": 10, "queued": 10, "in_flight": 1},
            "queue_full",
            "10 of 10 places in its queue are taken; at work: 1: more get 429",
        ),
        ({"queue": 10, "queued": 8}, "queue_full", "8 of 10"),
        ({"notices": ["built by an earlier version"]}, "connector_notice", "earlier version"),
    ],
)
def test_each_trouble_of_a_connector_is_told(facts: dict[str, Any], kind: str, words: str) -> None:
    [one] = of_connector(**facts)
    assert (one.subject, one.kind) == ("fax", kind)
    assert words in one.text


def test_a_build_that_is_missing_is_told_with_its_command() -> None:
    [one] = of_connector(state="quarantined", reason="not installed: run gateway install fax")
    assert "gateway install fax" in one.text
    assert one.remedy.startswith("run that command")


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        (
            ["connector_out_of_memory"] * 3,
            "it runs out of memory: 3 of its latest 3 calls ended with connector_out_of_memory, the last 1m ago",
        ),
        (["connector_timeout", "ok", "connector_timeout", "ok", "connector_timeout", "ok"], "3 of its latest 6"),
        (["connector_timeout", "ok", "ok", "ok", "connector_timeout", "ok", "connector_timeout"], None),
        (["connector_timeout"] * 2, "it is too slow: 2 of its latest 2 calls ended with connector_timeout"),
        (["connector_failed"], "it fails: its latest call ended with connector_failed"),
        (["connector_timeout", "ok"], None),
        (["error"] * 2, None),
        (["error"] * 3, "3 of its latest 3 calls ended with error (401)"),
        (["error"] * 3 + ["ok"], None),
        (["raised", "raised", "error"], "2 of its latest 3 calls ended with raised (401)"),
        (["invalid_parameters"] * 5, None),
        (["cancelled", "connector_failed", "connector_failed", "connector_failed"], "3 of its latest 3"),
    ],
)
def test_a_connector_that_fails_is_told_by_what_it_mostly_ends_with(outcomes: list[str], told: str | None) -> None:
    found = of_connector(last=past(*outcomes, code="401"))
    assert [one.kind for one in found] == (["failing"] if told else [])
    assert told is None or told in found[0].text


def test_few_calls_that_fail_are_a_warning_and_more_of_them_an_error() -> None:
    assert [of_connector(last=past(*["connector_failed"] * number))[0].severity for number in (1, 2, 3)] == [
        Severity.WARNING,
        Severity.WARNING,
        Severity.ERROR,
    ]


def test_what_the_latest_one_said_is_told_and_what_it_tells_of_the_cause() -> None:
    said = "fax/Go failed with exit status 1; stderr: Traceback\nModuleNotFoundError: No module named 'six'"
    last = [msgspec.structs.replace(one, message=said) for one in past(*["connector_failed"] * 3)]
    [one] = of_connector(last=last)
    assert one.text.startswith("it lacks a package or program, six: 3 of its latest 3 calls")
    assert one.text.endswith("exit status 1: ModuleNotFoundError: No module named 'six' (request r0)")
    assert one.remedy.startswith("add six to")
    broken = [msgspec.structs.replace(one, outcome="connector_crashed") for one in last]
    [one] = of_connector(circuit="died of SIGABRT", last=[*past("connector_unavailable"), *broken])
    assert one.text.startswith("it lacks a package or program, six; it crashes")
    assert "died of SIGABRT: ModuleNotFoundError" in one.text
    assert one.remedy.startswith("add six to")


@pytest.mark.parametrize(
    ("walls", "outcome", "told"),
    [
        (
            [6.0, 5.0, 9.04],
            "ok",
            "it is slow: 3 of its latest 3 calls took more than half of their timeout: Go up to 9s of 10s",
        ),
        ([6.0, 5.0, 9.0, 1.0, 1.0, 1.0, 1.0], "ok", None),
        ([6.0, 5.0], "ok", None),
        ([4.9, 4.9, 4.9, 4.9], "ok", None),
        ([60.0, 50.0, 90.0], "ok", None),  # runs of jobs
        ([6.0, 5.0, 9.0], "cancelled", None),
    ],
)
def test_a_slow_connector_is_told_before_its_calls_are_cut(walls: list[float], outcome: str, told: str | None) -> None:
    [one] = past(outcome)
    last = [msgspec.structs.replace(one, wall=wall) for wall in walls]
    found = of_connector(last=last, timeouts={"Go": 10.0})
    assert [(one.kind, one.severity.value) for one in found] == ([("slow", "warning")] if told else [])
    assert told is None or found[0].text.startswith(told)


def test_what_failed_long_ago_is_not_told() -> None:
    assert of_connector(last=past(*["connector_timeout"] * 5, ago=3700)) == []


def test_what_a_sandbox_lacks_is_told_once_for_all_who_lack_it() -> None:
    connectors = [ConnectorFacts(name=f"c{number}", missing=["no filter"]) for number in range(7)]
    [one] = concerns(GatewayFacts(now=NOW), connectors)
    assert (one.kind, one.subject) == ("sandbox_weaker", "sandbox")
    assert one.text.startswith("c0, c1, c2, c3, c4 and 2 more run with less")


def test_full_places_are_told_where_somebody_waits() -> None:
    waiting = ConnectorFacts(name="fax", queue=32, queued=1)
    [one] = concerns(GatewayFacts(now=NOW, processes=(64, 64)), [waiting])
    assert (one.kind, one.text) == ("processes_full", "all 64 processes are taken, and for them wait: 1 call")


def test_the_worst_comes_first() -> None:
    facts = GatewayFacts(now=NOW, log_dropped=1, dead_letters=1)
    found = concerns(facts, [ConnectorFacts(name="fax", circuit="x")])
    assert [one.severity.value for one in found] == ["error", "warning", "notice"]


def test_the_kinds_whose_subject_is_a_connector_are_those_that_tell_of_one() -> None:
    source = inspect.getsource(health)
    told = source[source.index("def _of_connector(") : source.index("def _of_sandboxes(")]
    assert set(re.findall(r'kind="(\w+)"', told)) == health.OF_CONNECTORS
