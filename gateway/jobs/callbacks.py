"""Delivers an outcome: one PUT a try, and what its answer leads to."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import aiohttp
import msgspec

from gateway.backoff import wait
from gateway.jobs.content import content
from gateway.jobs.contract import Attempt, Job, Outcome, Verdict
from gateway.jobs.destinations import Destinations
from gateway.jobs.resolver import GuardedConnector
from gateway.jobs.settings import Credentials, Nowhere
from gateway.jobs.targets import Refused
from gateway.observe.redact import Redactor
from gateway.observe.telling import secrets_in
from gateway.protocol.envelope import JSON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from yarl import URL

    from gateway.jobs.settings import CallbacksSection, OAuth2
    from gateway.jobs.targets import Targets

RACE = 30.0  # seconds that a caller may take to commit that it waits
LONGEST = 300.0  # seconds between tries
LOCKED = 500
PROMPT = 600.0  # seconds for which one that may be locked is asked more often
LONGEST_PROMPT = 10.0  # seconds between tries meanwhile
LONGEST_ASKED = 3600.0  # seconds that a Retry-After is honoured for
ANSWER = 16 << 10  # bytes of an answer that are looked at
MESSAGE = 500  # characters of what a caller says that are kept
NOT_WAITING = "not_waiting_for_callback"
TAKEN = "unexpected_workflow_exception"
"""The backend has taken the callback, and a task of the process failed, be it the one that waited."""
UNSURE = frozenset({502, 504})
"""What proxies answer whose own wait for the caller has ended."""
RETRIED = frozenset({408, 409, 423, 425, 429})


class CallerAnswer(NamedTuple):
    """What came back; `status` None: nothing did, and `reason` says why."""

    status: int | None
    reason: str = ""
    body: bytes = b""
    retry_after: float | None = None
    refused: bool = False
    """The URL may not be called at all."""
    unsure: bool = False
    """Nothing came back, and it may have been taken all the same."""


class Begun(NamedTuple):
    """When a try began: `at` is seconds since 1970, for people; `age` is as in `Attempt`."""

    at: float
    age: float


class Policy(NamedTuple):
    """When to give up, and how long to wait."""

    attempts: int
    max_age: float
    first_delay: float

    def judge(self, answer: CallerAnswer, tried: Sequence[Attempt], begun: Begun, took: float) -> Attempt:
        """Return the record of a try that comes after those in `tried`."""
        at, age = begun
        race = answer.status == 400 and _code(answer.body) == NOT_WAITING
        verdict, reason = self._meaning(answer, race=race)
        wait = 0.0
        if race and _was_taken(tried):
            verdict, reason = Verdict.DONE, f"{reason}: an earlier try, which had no answer, was taken"
        if verdict is Verdict.AGAIN:
            lasted = age - next((one.age for one in tried if one.race), age) if race else age
            longest = RACE if race else self.max_age
            wait = self._wait(answer, len(tried), lasted)
            if race:
                wait = min(wait, RACE / 6)
            if lasted >= longest or (not race and len(tried) + 1 >= self.attempts):
                verdict, wait = Verdict.DEAD, 0.0
                gave_up = "nobody waits for it" if race else "gave up"
                reason = f"{gave_up} after {len(tried) + 1} tries in {lasted:.0f} s: {reason}"
        return Attempt(
            at=at, took=took, age=age, verdict=verdict, status=answer.status, reason=reason, wait=wait, race=race,
            unsure=answer.unsure or answer.status in UNSURE,
        )  # fmt: skip

    def _meaning(self, answer: CallerAnswer, *, race: bool) -> tuple[Verdict, str]:  # noqa: PLR0911 - a table
        status = answer.status
        if status is None:
            return (Verdict.DEAD if answer.refused else Verdict.AGAIN), answer.reason
        if 200 <= status < 300:
            return Verdict.DONE, ""
        shown = f"the caller answered {status}"
        code = _code(answer.body)
        if code:
            shown += f" ({code})"
        if status == 400 and code == TAKEN:
            return Verdict.DONE, f"{shown}: it was taken, and its process failed: {_message(answer.body)}"
        if race or status in RETRIED or status >= 500:
            return Verdict.AGAIN, shown
        if status in {401, 403}:
            return Verdict.DEAD, f"{shown}: the credentials of the callbacks are wrong; the outcome is kept"
        if 300 <= status < 400:
            return Verdict.DEAD, f"{shown}, a redirect, which is not followed"
        return Verdict.DEAD, shown

    def _wait(self, answer: CallerAnswer, tried: int, age: float) -> float:
        if answer.retry_after is not None:
            return min(LONGEST_ASKED, answer.retry_after) + random.uniform(0, 1)  # noqa: S311 - spreads load
        # A backend answers 500 while another request has its instance, or all of its database.
        longest = LONGEST_PROMPT if answer.status == LOCKED and age < PROMPT else LONGEST
        return wait(tried, self.first_delay, longest, spread=0.5)


class Callbacks:
    """Sends callbacks. To be opened, used and closed in one event loop."""

    def __init__(self, section: CallbacksSection) -> None:
        self.destinations = Destinations(section)
        self.policy = Policy(section.attempts, float(section.max_age), float(section.first_delay))
        self.section = section
        self._idle = asyncio.Event()
        self._idle.set()
        self._under_way = 0
        self._tokens: dict[OAuth2, _Token] = {}
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Make ready to send."""
        self._session = aiohttp.ClientSession(
            connector=GuardedConnector(self.destinations.targets),
            timeout=aiohttp.ClientTimeout(total=float(self.section.timeout)),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        # A PUT whose connection breaks is repeated without a word, and is a try that nobody knows of.
        self._session._retry_connection = False  # noqa: SLF001 - there is no public way

    async def close(self) -> None:
        """Drop the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def close_when_idle(self) -> None:
        """Drop the connections when nothing is under way any more."""
        await self._idle.wait()
        await self.close()

    def url(self, job: Job) -> str:
        """Return where a job's callback goes."""
        return self.destinations.rewritten(job.context.callback_url or "")

    async def deliver(self, job: Job, outcome: Outcome, tried: Sequence[Attempt], age: float = 0.0) -> Attempt:
        """Try once; whatever happens is in the record. `age` is as in `Attempt`."""
        begun, since = Begun(time.time(), age), time.monotonic()
        self._under_way += 1
        self._idle.clear()
        try:
            answer = await self._send(job, outcome)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        return self.policy.judge(answer, tried, begun, time.monotonic() - since)

    async def _send(self, job: Job, outcome: Outcome) -> CallerAnswer:
        if isinstance(self.section, Nowhere):
            return CallerAnswer(None, "its client is not there, or its file cannot be used")
        url = self.url(job)
        known = self.destinations.credentials(url) or Credentials()
        token = self._token(known.oauth2)
        try:
            body = content(job, outcome)
            target = self.destinations.targets.check_url(url)
            headers = {**known.headers, "Content-Type": JSON, "Idempotency-Key": job.id}
            if job.context.traceparent is not None:
                headers["traceparent"] = job.context.traceparent
                if job.context.tracestate is not None:
                    headers["tracestate"] = job.context.tracestate
            redact = Redactor(secrets_in(known.headers, secret=True))
            answer = await self._put(target, headers, body, token, redact)
            if answer.status == 401 and token is not None:  # it may have been revoked before its time
                token.forget()
                answer = await self._put(target, headers, body, token, redact)
        except Refused as problem:
            return CallerAnswer(None, str(problem), refused=True)
        except aiohttp.InvalidURL:
            return CallerAnswer(None, "the callback URL is not valid", refused=True)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, ArithmeticError, RecursionError) as problem:
            refusal = _refusal(problem)
            if refusal is not None:
                return CallerAnswer(None, str(refusal), refused=True)
            return CallerAnswer(None, _unreachable(problem), unsure=_may_have_arrived(problem))
        return answer

    def _token(self, credentials: OAuth2 | None) -> _Token | None:
        if credentials is None:
            return None
        return self._tokens.setdefault(credentials, _Token(credentials, self.destinations.targets.of_operators()))

    async def _put(
        self, url: URL, headers: dict[str, str], body: bytes, token: _Token | None, redact: Redactor
    ) -> CallerAnswer:
        assert self._session is not None
        if token is not None:
            value = await token.get()
            headers = {**headers, "Authorization": f"Bearer {value}"}
            redact = redact.plus([value])
        async with self._session.put(url, data=body, headers=headers, allow_redirects=False) as response:
            if 200 <= response.status < 300:
                return CallerAnswer(response.status)
            told = redact.masked(await _beginning(response))  # it may quote what it was sent
            asked = _retry_after(response.headers.get("Retry-After"), response.headers.get("Date"))
            return CallerAnswer(response.status, body=told, retry_after=asked)


class _Token:
    """A bearer token, asked for when it is needed and used until shortly before its end."""

    def __init__(self, credentials: OAuth2, targets: Targets) -> None:
        """`targets` is where tokens may be asked for."""
        self._credentials = credentials
        self._targets = targets
        self._value = ""
        self._until = 0.0
        """A moment of `time.monotonic`."""
        self._asking = asyncio.Lock()

    def forget(self) -> None:
        self._until = 0.0

    async def get(self) -> str:
        async with self._asking:
            if time.monotonic() >= self._until:
                try:
                    await self._ask()
                except CredentialsRefused:
                    raise
                except (aiohttp.ClientError, OSError, ValueError) as problem:
                    why = _refusal(problem) or "could not be reached"
                    raise CredentialsRefused(f"callbacks.oauth2.token_url: {why}") from None
            return self._value

    async def _ask(self) -> None:
        form = {"grant_type": "client_credentials"}
        if self._credentials.scope is not None:
            form["scope"] = self._credentials.scope
        login = f"{quote(self._credentials.client_id, '')}:{quote(self._credentials.client_secret, '')}"
        headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
        timeout = aiohttp.ClientTimeout(total=20)
        async with (
            aiohttp.ClientSession(
                connector=GuardedConnector(self._targets), timeout=timeout, trust_env=False
            ) as session,
            session.post(
                self._targets.check_url(self._credentials.token_url), data=form, headers=headers, allow_redirects=False
            ) as response,
        ):
            if response.status != 200:
                raise CredentialsRefused(f"callbacks.oauth2.token_url answered {response.status}")
            try:
                answer = msgspec.json.decode(await _beginning(response), type=_TokenAnswer, strict=False)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
                raise CredentialsRefused("callbacks.oauth2.token_url answered no token") from problem
        self._value = answer.access_token
        self._until = time.monotonic() + max(0.0, (answer.expires_in or 300) - 30)


class _TokenAnswer(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: float | None = None


class CredentialsRefused(aiohttp.ClientError):
    """There is no token for callbacks."""


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """Read what is looked at of an answer."""
    told = bytearray()
    while len(told) < ANSWER and (more := await response.content.read(ANSWER - len(told))):
        told += more
    return bytes(told)


def _was_taken(tried: Sequence[Attempt]) -> bool:
    """Tell whether an answer that nobody waits proves that the caller took an earlier try.

    The first such answer after a try without one may still come from a caller that has not committed that it waits.
    """
    unsure = next((number for number, one in enumerate(tried) if one.unsure), len(tried))
    return any(one.race for one in tried[unsure:])


def _may_have_arrived(problem: Exception) -> bool:
    never = (CredentialsRefused, aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
    return not isinstance(problem, never) and isinstance(problem, aiohttp.ClientError | OSError | TimeoutError)


def _code(body: bytes) -> str:
    """Return the error code in an answer, if it tells one."""
    code = _member(body, "error_code")[:60]
    return code if code.isprintable() else ""


def _message(body: bytes) -> str:
    return " ".join(_member(body, "message").split())[:MESSAGE]


def _member(body: bytes, name: str) -> str:
    try:
        told = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        return msgspec.json.decode(told[name], type=str)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, RecursionError):
        return ""


def _retry_after(text: str | None, date: str | None) -> float | None:
    """Return the seconds; of a time of day those from `date` on, when the answer was sent: by one clock, not two."""
    if text is None:
        return None
    if text.strip().isascii() and text.strip().isdigit():
        return float(text)
    try:
        now = time.time() if date is None else parsedate_to_datetime(date).timestamp()
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _refusal(problem: BaseException | None) -> Refused | None:
    """Find the refusal that the HTTP client wrapped."""
    while problem is not None:
        if isinstance(problem, Refused):
            return problem
        problem = getattr(problem, "os_error", None) or problem.__cause__
    return None


def _unreachable(problem: Exception) -> str:
    """Say what happened without the URL, which may hold a secret."""
    if isinstance(problem, CredentialsRefused):
        return str(problem)
    if isinstance(problem, TimeoutError):
        return "the caller did not answer in time"
    inner = getattr(problem, "os_error", None)
    said = getattr(inner, "strerror", None) if inner is not None else None
    return f"the caller could not be reached: {said or type(problem).__name__}"
