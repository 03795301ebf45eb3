"""One PUT, and what its answer leads to."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from yarl import URL

from gateway.jobs.callbacks import Begun, Callbacks, CallerAnswer, Policy
from gateway.jobs.contract import Attempt, Outcome, Verdict
from gateway.jobs.settings import CallbacksSection, OAuth2
from gateway.jobs.targets import Targets
from gateway.units import Duration
from tests.jobs.support import Backend, answering, caller, envelope, job
from tests.support import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POLICY = Policy(attempts=5, max_age=100.0, first_delay=1.0)
RACING = CallerAnswer(400, body=b'{"error_code": "not_waiting_for_callback"}')


def at_age(age: float) -> Begun:
    """A try that begins then; the clock goes back by an hour with each second."""
    return Begun(at=1e9 - 3600 * age, age=age)


def judged(answer: CallerAnswer, tried: tuple[Attempt, ...] = (), age: float = 0.0) -> Attempt:
    return POLICY.judge(answer, tried, at_age(age), 0.1)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_success_is_done(status: int) -> None:
    assert judged(CallerAnswer(status, body=b"whatever")).verdict is Verdict.DONE


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    attempt = judged(CallerAnswer(status))
    assert attempt.verdict is Verdict.AGAIN
    assert 0.5 <= attempt.wait <= 1


def test_no_connection_is_tried_again() -> None:
    assert judged(CallerAnswer(None, "refused")).verdict is Verdict.AGAIN


@pytest.mark.parametrize("status", [400, 404, 410, 422])
def test_other_refusals_are_final(status: int) -> None:
    attempt = judged(CallerAnswer(status, body=b'{"error_code": "task_gone"}'))
    assert attempt.verdict is Verdict.DEAD
    assert "task_gone" in attempt.reason


@pytest.mark.parametrize("status", [401, 403])
def test_wrong_credentials_are_named(status: int) -> None:
    attempt = judged(CallerAnswer(status))
    assert attempt.verdict is Verdict.DEAD
    assert "credentials" in attempt.reason
    assert "kept" in attempt.reason


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_is_final(status: int) -> None:
    attempt = judged(CallerAnswer(status))
    assert attempt.verdict is Verdict.DEAD
    assert "redirect" in attempt.reason


def test_a_caller_that_does_not_wait_yet_is_given_thirty_seconds() -> None:
    first = judged(RACING, age=0.0)
    assert first.verdict is Verdict.AGAIN
    assert first.wait <= 5
    assert judged(RACING, (first,), age=29.0).verdict is Verdict.AGAIN
    last = judged(RACING, (first,), age=30.0)
    assert last.verdict is Verdict.DEAD
    assert "not_waiting_for_callback" in last.reason


def test_a_race_is_counted_from_its_own_first_try() -> None:
    down = judged(CallerAnswer(503), age=0.0)
    assert judged(RACING, (down,), age=90.0).verdict is Verdict.AGAIN


def test_a_race_is_not_ended_by_the_number_of_tries() -> None:
    tried = tuple(judged(RACING, age=0.0) for _ in range(20))
    assert judged(RACING, tried, age=10.0).verdict is Verdict.AGAIN


def test_tries_are_bounded_by_number_and_by_age() -> None:
    tried = tuple(judged(CallerAnswer(503), age=0.0) for _ in range(4))
    last = judged(CallerAnswer(503), tried, age=1.0)
    assert last.verdict is Verdict.DEAD
    assert "5 tries" in last.reason
    assert judged(CallerAnswer(503), tried[:1], age=100.0).verdict is Verdict.DEAD


def test_waits_double_up_to_five_minutes_with_jitter() -> None:
    patient = Policy(attempts=10_000, max_age=1e9, first_delay=1.0)
    tried: tuple[Attempt, ...] = ()
    for expected in (1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300):
        attempt = patient.judge(CallerAnswer(503), tried, at_age(0.0), 0.1)
        assert expected / 2 <= attempt.wait <= expected
        tried = (*tried, attempt)


def test_a_backend_that_may_be_locked_is_asked_again_soon() -> None:
    patient = Policy(attempts=10_000, max_age=1e9, first_delay=1.0)
    tried = tuple(patient.judge(CallerAnswer(500), (), at_age(0.0), 0.1) for _ in range(9))
    assert 5 <= patient.judge(CallerAnswer(500), tried, at_age(500.0), 0.1).wait <= 10
    assert 150 <= patient.judge(CallerAnswer(500), tried, at_age(1000.0), 0.1).wait <= 300


NOT_WAITING = CallerAnswer(400, body=b'{"error_code": "not_waiting_for_callback"}')
DROPPED = CallerAnswer(None, "the caller did not answer in time", unsure=True)


def tries(*answers: CallerAnswer) -> list[Attempt]:
    """Judge answers that come a second after one another."""
    tried: list[Attempt] = []
    for age, answer in enumerate(answers):
        tried.append(POLICY.judge(answer, tried, at_age(float(age)), 0.1))
    return tried


@pytest.mark.parametrize("lost", [DROPPED, CallerAnswer(504), CallerAnswer(502)])
def test_nobody_waits_a_second_time_after_a_try_without_an_answer_means_that_it_was_taken(lost: CallerAnswer) -> None:
    *_, first, second = tries(lost, NOT_WAITING, NOT_WAITING)
    assert (first.verdict, second.verdict) == (Verdict.AGAIN, Verdict.DONE)
    assert "was taken" in second.reason


@pytest.mark.parametrize("lost", [CallerAnswer(None, "could not be reached"), CallerAnswer(503), CallerAnswer(500)])
def test_a_try_that_never_arrived_or_was_refused_proves_nothing(lost: CallerAnswer) -> None:
    assert tries(lost, NOT_WAITING, NOT_WAITING)[-1].verdict is Verdict.AGAIN


def test_a_process_that_failed_after_it_took_the_callback_has_taken_it() -> None:
    body = b'{"error_code": "unexpected_workflow_exception", "message": "line 1\\n  said no", "task_data": {"s": 1}}'
    one = POLICY.judge(CallerAnswer(400, body=body), (), at_age(0.0), 0.1)
    assert one.verdict is Verdict.DONE
    assert one.reason.endswith("it was taken, and its process failed: line 1 said no")


def test_retry_after_is_honoured_within_reason() -> None:
    assert 7 <= judged(CallerAnswer(503, retry_after=7.0)).wait <= 8
    assert judged(CallerAnswer(503, retry_after=1e9)).wait <= 3601


# --- over HTTP


@contextlib.asynccontextmanager
async def sending(section: CallbacksSection | None = None) -> AsyncIterator[Callbacks]:
    callbacks = Callbacks(section or CallbacksSection(timeout=Duration(2)))
    callbacks.open()
    try:
        yield callbacks
    finally:
        await callbacks.close()


OUTCOME = Outcome(status=200, body=envelope("x"))


async def test_operators_headers_are_sent() -> None:
    async with caller() as backend, sending(CallbacksSection(headers={"X-Key": "s3cret"})) as callbacks:
        attempt = await callbacks.deliver(job(callback=backend.url), OUTCOME, ())
        assert attempt.verdict is Verdict.DONE
        assert backend.seen[0][0]["X-Key"] == "s3cret"


async def test_a_redirect_is_not_followed() -> None:
    async def elsewhere(_request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with caller() as backend, sending() as callbacks:
        backend.answers = [elsewhere]
        attempt = await callbacks.deliver(job(callback=backend.url), OUTCOME, ())
        assert attempt.verdict is Verdict.DEAD
        assert len(backend.seen) == 1


async def test_retry_after_is_read_in_seconds_and_as_a_date() -> None:
    async def seconds(_request: web.Request) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": "9"})

    async def date(_request: web.Request) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"})

    async def nonsense(_request: web.Request) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": "soon"})

    async with caller() as backend, sending() as callbacks:
        backend.answers = [seconds, date, nonsense]
        waits = [(await callbacks.deliver(job(callback=backend.url), OUTCOME, ())).wait for _ in range(3)]
    assert 9 <= waits[0] <= 10
    assert 0 <= waits[1] <= 1
    assert 0.5 <= waits[2] <= 1


async def test_a_time_of_day_is_read_by_the_clock_that_told_it() -> None:
    """Ours may be days ahead: then each try would come at once, until none is left."""

    async def busy(_request: web.Request) -> web.Response:
        told = {"Date": "Thu, 01 Jan 2015 00:00:00 GMT", "Retry-After": "Thu, 01 Jan 2015 00:00:09 GMT"}
        return web.Response(status=503, headers=told)

    async def confused(_request: web.Request) -> web.Response:
        return web.Response(status=503, headers={"Date": "today", "Retry-After": "Thu, 01 Jan 2015 00:00:09 GMT"})

    async with caller() as backend, sending() as callbacks:
        backend.answers = [busy, confused]
        waits = [(await callbacks.deliver(job(callback=backend.url), OUTCOME, ())).wait for _ in range(2)]
    assert 9 <= waits[0] <= 10
    assert 0.5 <= waits[1] <= 1


async def test_no_answer_tells_no_url() -> None:
    async with sending() as callbacks:
        attempt = await callbacks.deliver(job(callback="http://127.0.0.1:1/token-in-path"), OUTCOME, ())
    assert attempt.verdict is Verdict.AGAIN
    assert attempt.status is None
    assert "token-in-path" not in attempt.reason


async def test_a_metadata_address_is_refused_for_good() -> None:
    async with sending() as callbacks:
        attempt = await callbacks.deliver(job(callback="http://169.254.169.254/latest"), OUTCOME, ())
    assert attempt.verdict is Verdict.DEAD
    assert "metadata" in attempt.reason


async def test_a_name_that_resolves_to_a_metadata_address_is_refused_at_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.jobs.resolver._lookup", answering("169.254.169.254"))
    async with sending() as callbacks:
        attempt = await callbacks.deliver(job(callback="http://innocent.example/x"), OUTCOME, ())
    assert attempt.verdict is Verdict.DEAD
    assert "metadata" in attempt.reason


@pytest.mark.parametrize(
    ("allow", "verdict"),
    [(["10.0.0.0/8"], Verdict.DEAD), (["backend.example"], Verdict.DEAD), (["127.0.0.1"], Verdict.DONE)],
)
async def test_an_address_that_is_written_out_is_judged_when_it_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, allow: list[str], verdict: Verdict
) -> None:
    monkeypatch.setattr(Targets, "check_url", lambda _, url: URL(url))  # whatever a text may look like to it
    async with caller() as backend, sending(CallbacksSection(allow=allow, headers={"X-Key": "s3cret"})) as callbacks:
        attempt = await callbacks.deliver(job(callback=backend.url), OUTCOME, ())
        assert attempt.verdict is verdict
        assert len(backend.seen) == (1 if verdict is Verdict.DONE else 0)
        assert ("callbacks.allow" in attempt.reason) == (not backend.seen)


async def test_what_one_name_may_reach_is_no_place_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.resolver._lookup", answering("127.0.0.1", "127.0.0.1"))
    async with caller() as backend, sending(CallbacksSection(allow=["backend.example", "10.0.0.0/8"])) as callbacks:
        verdicts = [
            (await callbacks.deliver(job(callback=backend.url.replace("127.0.0.1", name)), OUTCOME, ())).verdict
            for name in ("backend.example", "other.example", "127.0.0.1")
        ]
        assert verdicts == [Verdict.DONE, Verdict.DEAD, Verdict.DEAD]
        assert len(backend.seen) == 1


async def test_a_token_url_that_leads_to_a_metadata_address_is_asked_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.jobs.resolver._lookup", answering("169.254.169.254"))
    for url in ("http://login.example/token", "http://169.254.169.254/token"):
        section = CallbacksSection(
            allow=["127.0.0.1"], oauth2=OAuth2(token_url=url, client_id="me", client_secret="hush")
        )
        async with caller() as backend, sending(section) as callbacks:
            attempt = await callbacks.deliver(job(callback=backend.url), OUTCOME, ())
            assert attempt.verdict is Verdict.AGAIN
            assert "token_url: " in attempt.reason
            assert "metadata" in attempt.reason
            assert backend.seen == []


class Tokens:
    """An authorization server."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.status = 200

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append({**dict(await request.post()), "login": request.headers["Authorization"]})  # type: ignore[arg-type]
        return web.json_response({"access_token": f"t{len(self.asked)}", "expires_in": 300}, status=self.status)


@contextlib.asynccontextmanager
async def authorized() -> AsyncIterator[tuple[Tokens, Callbacks, Backend]]:
    tokens = Tokens()
    app = web.Application()
    app.router.add_post("/token", tokens.handle)
    async with listening(app) as url, caller() as backend:
        section = CallbacksSection(oauth2=OAuth2(token_url=f"{url}/token", client_id="me", client_secret="hush"))
        async with sending(section) as callbacks:
            yield tokens, callbacks, backend


async def test_a_clock_that_is_set_ends_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    async with authorized() as (tokens, callbacks, backend):
        real = time.time
        for days in (0, 30, -30):
            monkeypatch.setattr(time, "time", lambda days=days: real() + 86_400 * days)
            await callbacks.deliver(job(callback=backend.url), OUTCOME, ())
        assert len(tokens.asked) == 1


async def test_a_token_is_asked_for_once_and_used_again() -> None:
    async with authorized() as (tokens, callbacks, backend):
        for _ in range(3):
            await callbacks.deliver(job(callback=backend.url), OUTCOME, ())
        assert len(tokens.asked) == 1
        assert tokens.asked[0]["grant_type"] == "client_credentials"
        assert {headers["Authorization"] for headers, _ in backend.seen} == {"Bearer t1"}


async def test_a_token_that_is_refused_is_renewed_once() -> None:
    async with authorized() as (tokens, callbacks, backend):
        backend.answers = [401, 200]
        assert (await callbacks.deliver(job(callback=backend.url), OUTCOME, ())).verdict is Verdict.DONE
        assert [headers["Authorization"] for headers, _ in backend.seen] == ["Bearer t1", "Bearer t2"]
        backend.answers = [401]
        assert (await callbacks.deliver(job(callback=backend.url), OUTCOME, ())).verdict is Verdict.DEAD
        assert len(tokens.asked) == 3


async def test_no_token_is_tried_again_and_tells_no_secret() -> None:
    async with authorized() as (tokens, callbacks, backend):
        tokens.status = 500
        attempt = await callbacks.deliver(job(callback=backend.url), OUTCOME, ())
        assert attempt.verdict is Verdict.AGAIN
        assert "token_url answered 500" in attempt.reason
        assert "hush" not in attempt.reason
        assert backend.seen == []


async def test_a_try_that_breaks_off_is_one_try_also_on_a_connection_that_was_used_before() -> None:
    async def dropped(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with caller() as backend, sending() as callbacks:
        backend.answers = [200, dropped, 200]
        one = job(callback=backend.url)
        first, second = [await callbacks.deliver(one, OUTCOME, ()) for _ in range(2)]
    assert (first.verdict, second.verdict, second.unsure) == (Verdict.DONE, Verdict.AGAIN, True)
    assert len(backend.seen) == 2


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"error_code":' + b"[" * 8000, {}),
        (b"", {"Retry-After": "Mon, 01 Jan 2020 00:00:00 +99999999999999999"}),
        (b"\xff\xfe", {"Retry-After": "nonsense"}),
    ],
)
async def test_no_answer_of_a_caller_is_too_odd_to_be_judged(body: bytes, headers: dict[str, str]) -> None:
    async def odd(_request: web.Request) -> web.Response:
        return web.Response(status=503, body=body, headers=headers)

    async with caller() as backend, sending() as callbacks:
        backend.answers = [odd]
        attempt = await callbacks.deliver(job(callback=backend.url), OUTCOME, ())
    assert (attempt.verdict, attempt.status) == (Verdict.AGAIN, 503)
