"""The pages of the console, and what their forms do."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import aiohttp_jinja2
from aiohttp import hdrs, web
from jinja2 import FileSystemLoader

from gateway.calls.call import Call
from gateway.errors import CommandNotFound, GatewayError
from gateway.http.audited import note
from gateway.http.calls import CallHandlers
from gateway.http.console import files, forms, views
from gateway.http.console.answers import page, sent_to, wants_part
from gateway.http.console.attempts import Attempts
from gateway.http.console.live import AT_ONCE, Follower, LiveLogs, SharedTexts, Streams
from gateway.http.console.posted import read_form
from gateway.http.console.sessions import TOKEN
from gateway.http.jobs import JobHandlers, told
from gateway.http.keys import Unauthorized, client_of, identity_of
from gateway.http.routes import CONSOLE, Access, Route
from gateway.http.runs import RunHandlers, told_of_run
from gateway.http.traced import trace_of
from gateway.identity import Role
from gateway.jobs.background import is_run
from gateway.jobs.contract import ENDS, OPEN, JobState
from gateway.observe.events import ConnectorLine, RunFinished
from gateway.protocol.request import Caller
from gateway.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from gateway.connectors.definition import Command
    from gateway.connectors.snapshot import Status
    from gateway.gateway import Gateway
    from gateway.http.connections import Connections
    from gateway.http.console.sessions import Sessions
    from gateway.jobs.contract import Attempt
    from gateway.journal.records import RunSummary

LOG_IN = 8 << 10  # bytes of the form to log in
PAGE = 50  # jobs, or runs
MOMENT = 0.0001  # seconds: as exact as it is kept when a run has ended
LATEST = 10  # runs of a connector
COUNTED = 10_000  # jobs to be removed; what is beyond is more
EVERY = 2.0  # seconds between two looks at the numbers of an overview that somebody follows
_FILTERS = ("state", "connector", "process_instance", "task", "client")
_OF_RUNS = ("connector", "command", "outcome", "process_instance", "task", "job", "since", "until", "client")
_COMMAND = f"{CONSOLE}/connectors/{{connector}}/commands/{{command}}"
_JOB = f"{CONSOLE}/jobs/{{id}}"
_RUN = f"{CONSOLE}/runs/{{run}}"


class Console:
    """The pages below /console."""

    def __init__(self, gateway: Gateway, shown: views.Views, sessions: Sessions, connections: Connections) -> None:
        self._gateway = gateway
        self._sessions = sessions
        self._budget = connections.budget
        self._views = shown
        self._jobs = JobHandlers(gateway)
        self._runs = RunHandlers(gateway, CallHandlers(gateway, connections.budget))
        self._logs = LiveLogs(gateway.bus)
        self._attempts = Attempts(gateway, self._logs)
        self._streams = Streams(gateway.admission, self._still)
        self._numbers = SharedTexts(views.KEPT)
        self._compiled = False

    def routes(self) -> list[Route]:
        """Return the table of routes; where the console is off, nothing is there."""
        routes = [
            Route("GET", CONSOLE, self.overview, Access.CONSOLE),
            Route("GET", f"{CONSOLE}/", self.home, Access.OPEN),
            Route("GET", f"{CONSOLE}/live", self.live, Access.CONSOLE, head=False),
            Route("GET", f"{CONSOLE}/login", self.ask, Access.OPEN),
            Route("POST", f"{CONSOLE}/login", self.log_in, Access.OPEN, event="log_in"),
            Route("POST", f"{CONSOLE}/logout", self.log_out, Access.CONSOLE, event="log_out"),
            Route("GET", f"{CONSOLE}/static/{{file}}", self.static, Access.OPEN),
            Route("GET", f"{CONSOLE}/connectors/{{connector}}", self.connector, Access.CONSOLE),
            Route("GET", f"{CONSOLE}/connectors/{{connector}}/log", self.log, Access.CONSOLE, head=False),
            Route("GET", _COMMAND, self.command, Access.CONSOLE),
            Route("POST", f"{_COMMAND}/try", self.attempt, Access.CONSOLE_CALL, event="call"),
            Route("GET", f"{CONSOLE}/jobs", self.jobs, Access.CONSOLE),
            Route("GET", f"{CONSOLE}/jobs/purge", self.confirm_purge, Access.CONSOLE_OPERATOR),
            Route("POST", f"{CONSOLE}/jobs/purge", self.purge, Access.CONSOLE_OPERATOR, event="purge"),
            Route("GET", _JOB, self.job, Access.CONSOLE),
            Route("GET", f"{_JOB}/cancel", self.confirm_cancel, Access.CONSOLE_CALL),
            Route("POST", f"{_JOB}/cancel", self.cancel, Access.CONSOLE_CALL, event="cancel"),
            Route("GET", f"{_JOB}/retry", self.confirm_retry, Access.CONSOLE_CALL),
            Route("POST", f"{_JOB}/retry", self.retry, Access.CONSOLE_CALL, event="retry"),
            Route("GET", f"{CONSOLE}/runs", self.runs, Access.CONSOLE),
            Route("GET", _RUN, self.run, Access.CONSOLE),
            Route("GET", f"{_RUN}/replay", self.confirm_replay, Access.CONSOLE_CALL),
            Route("POST", f"{_RUN}/replay", self.replay, Access.CONSOLE_CALL, event="replay"),
        ]
        if self._gateway.settings.console:
            return routes
        return [route._replace(handler=_nothing, access=Access.OPEN, event=None) for route in routes]

    # --- to come in

    async def ask(self, request: web.Request) -> web.Response:
        """Ask for a key."""
        return self._ask(request, _local(request.query.get("next", "")))

    async def home(self, _request: web.Request) -> web.Response:
        """Send a browser to the overview."""
        return sent_to(CONSOLE)

    async def log_in(self, request: web.Request) -> web.Response:
        """Open a session for whoever has a key."""
        request["identity"] = None  # the audit tells whose the key is, or nothing
        self._sessions.check_site(request)
        form = await read_form(request, self._budget, self._gateway.settings.read_timeout, LOG_IN)
        back, wait = _local(form.get("next", "")), self._sessions.failures.wait(request)
        if wait:
            note(request, outcome="rate_limited")
            response = self._ask(
                request, back, f"Too many log-ins have failed. Try again in {Duration(round(wait))}.", 429
            )
            response.headers[hdrs.RETRY_AFTER] = str(round(wait))
            return response
        response = sent_to(back)
        try:
            request["identity"] = self._sessions.log_in(request, response, form.get("key", "").strip())
        except Unauthorized:
            self._sessions.failures.add(request)
            return self._ask(request, back, "This key is nobody's, or it does not count any more.", 401)
        return response

    async def log_out(self, request: web.Request) -> web.Response:
        """End the session."""
        await self._checked(request)
        response = sent_to(f"{CONSOLE}/login")
        self._sessions.log_out(request, response)
        return response

    async def static(self, request: web.Request) -> web.StreamResponse:
        """Answer a file of the pages."""
        return files.answered(request)

    # --- to look

    async def overview(self, request: web.Request) -> web.Response:
        """What is wrong, then what there is."""
        await self._compile(request.app)
        await self._gateway.registry.listed(client_of(request))
        return self._page(
            request, "overview.html", shown=await self._views.overview(request), q=request.query.get("q", "")
        )

    async def live(self, request: web.Request) -> web.StreamResponse:
        """The numbers of the overview, again and again."""
        last, due, clock = "", 0.0, asyncio.get_running_loop().time

        async def numbers() -> str:
            facts = {"shown": await self._views.overview(request), "q": request.query.get("q", "")}
            return aiohttp_jinja2.render_string("numbers.html", request, facts)

        async def news() -> AsyncIterator[tuple[str, str]]:
            nonlocal last, due
            if clock() < due:
                return
            due = (clock() // EVERY + 1) * EVERY  # the same for all, so that they share what is made
            text = await self._numbers.text((views.seen_client(request), request.query_string), numbers)
            if text != last:
                last = text
                yield "numbers", text

        return await self._streams.send(request, news, asyncio.Event())

    async def connector(self, request: web.Request) -> web.Response:
        """One connector."""
        name, status = self._status(request)
        return self._page(
            request,
            "connector.html",
            name=name,
            may=self._callable(request, name, status),
            runs=await self._runs.latest(status.name, views.seen_client(request), LATEST),
            **(await self._views.connector(request, name, status)),
        )

    async def log(self, request: web.Request) -> web.StreamResponse:
        """The lines of its log from now on, and how its calls end."""
        _, status = self._status(request)
        follower = Follower(status.name, AT_ONCE, client=views.seen_client(request))

        async def news() -> AsyncIterator[tuple[str, str]]:
            left_out, lines = follower.taken()
            if lines:
                facts = {"left_out": left_out, "lines": [_line(one) for one in lines]}
                yield "line", aiohttp_jinja2.render_string("lines.html", request, facts)

        self._logs.add(follower)
        try:
            return await self._streams.send(request, news, follower.came)
        finally:
            self._logs.remove(follower)

    async def command(self, request: web.Request) -> web.Response:
        """One command, with a form to try it."""
        name, status = self._status(request)
        return self._command(request, name, status, self._found(request, status))

    async def jobs(self, request: web.Request) -> web.Response:
        """Search jobs."""
        query = _said(request.query)
        found, limit, offset = await self._jobs.find(request, {"limit": str(PAGE), **query})
        asked = {key: query.get(key, "") for key in _FILTERS}
        return self._page(
            request,
            "jobs.html",
            jobs=[told(one, request) for one in found],
            states=[state.value for state in JobState],
            ends=[state.value for state in ENDS],
            asked=asked,
            before=max(0, offset - limit) if offset else None,
            after=offset + limit if len(found) == limit else None,
        )

    async def job(self, request: web.Request) -> web.Response:
        """One job, with its tries."""
        status = await self._jobs.status(request)
        facts = told(status, request)
        outcome = views.pretty(status.outcome.body) if status.outcome is not None else None
        return self._page(
            request,
            "job.html",
            job=facts,
            there=facts["connector"] in self._views.statuses(request),
            has_runs=self._gateway.invoker.journal is not None,
            outcome=outcome,
            is_open=status.state in OPEN,
            can_retry=status.state not in OPEN and not is_run(status.id),
        )

    async def runs(self, request: web.Request) -> web.Response:
        """Search runs that are over."""
        query = _said(request.query)
        found, limit, offset = await self._runs.search(request, {"limit": str(PAGE), **query})
        asked = {key: query.get(key, "") for key in _OF_RUNS}
        if found and not asked["until"]:  # what comes meanwhile would move the others to later pages
            stays = {**asked, "until": f"{found[0].finished + MOMENT:.4f}"}
        else:
            stays = asked
        return self._page(
            request,
            "runs.html",
            runs=[told_of_run(one, request) for one in found],
            asked=asked,
            stays=stays,
            before=max(0, offset - limit) if offset else None,
            after=offset + limit if len(found) == limit else None,
            **self._runs.node(request),
        )

    async def run(self, request: web.Request) -> web.Response:
        """One run, with where its time went."""
        run = await self._runs.find(request)
        kept = {name: getattr(run, name) for name in ("params", "task_data", "result")}
        return self._page(
            request,
            "run.html",
            run=told_of_run(run, request),
            steps=views.waterfall(run, await self._tries(request, run)),
            kept={name: views.pretty(bytes(raw)) for name, raw in kept.items() if raw is not None},
            memory=str(Size(run.peak_rss)),
            can_replay=run.kept == "whole" and not run.unreadable,
            is_job=run.job is not None and not is_run(run.job),
            **self._runs.node(request),
        )

    # --- to do something

    async def attempt(self, request: web.Request) -> web.Response:
        """Run a command as whoever has logged in, and show what comes of it."""
        form = await self._checked(request)
        name, status = self._status(request)
        command = self._found(request, status)
        if not self._callable(request, name, status):
            raise CommandNotFound(f"there is no connector {name} for the client {identity_of(request).client}")
        trace, client = trace_of(request), client_of(request)

        def call() -> Call:
            caller = Caller(
                request_id=request["request_id"],
                client=client,
                key_id=identity_of(request).key or None,
                traceparent=trace[0],
                tracestate=trace[1],
            )
            return Call(connector=name, command=command.name, params=forms.filled_in(command, form), caller=caller)

        outcome = await self._attempts.shown(request, status.name, client, call)
        if wants_part(request):
            return self._page(request, "result.html", outcome=outcome)
        return self._command(request, name, status, command, form=form, outcome=outcome)

    async def confirm_cancel(self, request: web.Request) -> web.Response:
        """Ask whether a job is to be cancelled."""
        status = await self._jobs.status(request)
        return self._page(request, "confirm.html", job=told(status, request), act="cancel")

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel a job."""
        await self._checked(request)
        return sent_to(f"{CONSOLE}/jobs/{(await self._jobs.cancelled(request)).id}")

    async def confirm_retry(self, request: web.Request) -> web.Response:
        """Ask whether a job is to be delivered, or run, again."""
        status = await self._jobs.status(request)
        return self._page(request, "confirm.html", job=told(status, request), act="retry")

    async def retry(self, request: web.Request) -> web.Response:
        """Deliver a job again, or run it again."""
        form = await self._checked(request)
        status = await self._jobs.retried(request, run=form.get("run") == "true")
        return sent_to(f"{CONSOLE}/jobs/{status.id}")

    async def confirm_purge(self, request: web.Request) -> web.Response:
        """Ask whether jobs are to be removed that have ended."""
        query = _said(request.query)
        count = await self._jobs.purgeable(query, COUNTED + 1)
        asked = {key: query.get(key, "") for key in ("older_than", "state")}
        return self._page(request, "purge.html", asked=asked, count=min(count, COUNTED), more=count > COUNTED)

    async def purge(self, request: web.Request) -> web.Response:
        """Remove jobs that have ended, and say how many."""
        form = await self._checked(request)
        return self._page(request, "purged.html", removed=await self._jobs.purged(request, _said(form)))

    async def confirm_replay(self, request: web.Request) -> web.Response:
        """Ask whether a run is to be repeated."""
        return self._page(request, "replay.html", run=told_of_run(await self._runs.find(request), request))

    async def replay(self, request: web.Request) -> web.Response:
        """Call again with what was kept of a run, and show what comes of it."""
        await self._checked(request)
        run, call = await self._runs.find(request), await self._runs.again(request)
        outcome = await self._attempts.shown(request, run.connector, call.caller.client, lambda: call)
        return self._page(request, "replayed.html", run=told_of_run(run, request), outcome=outcome)

    # --- private

    async def _compile(self, app: web.Application) -> None:
        """Compile all templates before the first of them is needed, with calls having their turn in between."""
        if not self._compiled:
            self._compiled = True
            environment = aiohttp_jinja2.get_env(app)
            for name in environment.list_templates():
                environment.get_template(name)
                await asyncio.sleep(0)

    def _still(self, request: web.Request) -> None:
        """See whether a page may go on to be sent what is live.

        Raises:
            Unauthorized: its session is over, or its key another's by now.
        """
        if self._sessions.needed and self._sessions.identify(request) != identity_of(request):
            raise Unauthorized

    def _page(self, request: web.Request, template: str, status: int = 200, **facts: Any) -> web.Response:
        identity = identity_of(request)
        common = {
            "identity": identity,
            "may_call": identity.role is not Role.VIEWER,
            "operates": identity.role is Role.OPERATOR,
            "sessions": self._sessions.needed,
            "token": self._sessions.token(request),
            "clients": self._gateway.registry.clients is not None,
        }
        return page(request, template, {**common, **facts}, status)

    def _ask(self, request: web.Request, back: str, problem: str = "", status: int = 200) -> web.Response:
        if not self._sessions.needed:
            return sent_to(CONSOLE)
        return page(request, "login.html", {"next": back, "problem": problem}, status)

    async def _checked(self, request: web.Request) -> dict[str, str]:
        """Read a form that does something, which has to be one of ours.

        Raises:
            Forbidden: it is not.
        """
        form = await read_form(request, self._budget, self._gateway.settings.read_timeout)
        self._sessions.check(request, form.pop(TOKEN, ""))
        return form

    def _status(self, request: web.Request) -> tuple[str, Status]:
        """Return the connector that a request names, if whoever asks may see it.

        Raises:
            HTTPNotFound: there is none.
        """
        name = request.match_info["connector"]
        status = self._views.statuses(request).get(name)
        if status is None:
            raise web.HTTPNotFound
        return name, status

    def _found(self, request: web.Request, status: Status) -> Command:
        command = views.commands_of(status).get(request.match_info["command"])
        if command is None:
            raise web.HTTPNotFound
        return command

    def _callable(self, request: web.Request, name: str, status: Status) -> bool:
        """Tell whether whoever asks may call a connector: who sees all need not be one who does."""
        own = self._gateway.registry.world(client_of(request)).statuses.get(name)
        return identity_of(request).role is not Role.VIEWER and own is not None and own.name == status.name

    def _command(
        self,
        request: web.Request,
        name: str,
        status: Status,
        command: Command,
        *,
        form: Mapping[str, str] | None = None,
        outcome: Mapping[str, Any] | None = None,
    ) -> web.Response:
        return self._page(
            request,
            "command.html",
            name=name,
            may=self._callable(request, name, status),
            command=command,
            fields=forms.fields(command, form),
            more=(form or {}).get(forms.MORE, "") if command.signature.additional else None,
            outcome=outcome,
        )

    async def _tries(self, request: web.Request, run: RunSummary) -> Sequence[Attempt]:
        """Return the tries to deliver what a run's job came to, as far as anybody knows of them."""
        if run.job is not None and not is_run(run.job):
            with contextlib.suppress(GatewayError):
                return (await self._jobs.named(request, run.job)).attempts
        return ()


def install(app: web.Application) -> None:
    """Have an application make pages."""
    environment = aiohttp_jinja2.setup(
        app, loader=FileSystemLoader(files.HERE / "templates"), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"at": views.at, "seconds": views.seconds, "lasting": views.lasting, "size": views.size}
    environment.tests["of_connector"] = views.is_of_connector
    environment.globals |= {"csrf": TOKEN, "console": CONSOLE, "version_of": files.version_of}


async def _nothing(_request: web.Request) -> web.Response:
    raise web.HTTPNotFound


def _said(fields: Mapping[str, str]) -> dict[str, str]:
    """Return what is said of a query, or a form: a field that is left empty says nothing."""
    return {key: value for key, value in fields.items() if value}


def _local(path: str) -> str:
    """Return a page of the console to go on to: no other place will do."""
    inside = path == CONSOLE or path.startswith((f"{CONSOLE}/", f"{CONSOLE}?"))
    return path if inside and path.isascii() and path.isprintable() and "\\" not in path else CONSOLE


def _line(event: ConnectorLine | RunFinished) -> dict[str, str]:
    if isinstance(event, ConnectorLine):
        return {"command": event.command, "request": event.request_id, "text": event.line, "kind": event.stream}
    text = f"ended: {event.outcome} after {views.seconds(event.wall)}"
    return {"command": event.command, "request": event.request_id, "text": text, "kind": "end"}
