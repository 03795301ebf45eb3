"""The one use case: a connector, a command, parameters -> a reply. HTTP, the command line and jobs all come here."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.calls.admission import AdmissionState
from gateway.calls.call import EMPTY, Call
from gateway.calls.circuit import Circuit, CircuitState
from gateway.calls.outcome import LARGE, meaning, problem_of
from gateway.calls.reply import Reply
from gateway.calls.spans import CallSpans
from gateway.calls.underway import UnderwayRun, told_of
from gateway.errors import ConnectorInvalidOutput, ConnectorStartFailed, GatewayDraining, GatewayError
from gateway.identity import DEFAULT, registered
from gateway.journal.records import Payload as Kept
from gateway.journal.records import Ran
from gateway.observe.events import (
    BackgroundFinished,
    BackgroundStarted,
    Bus,
    ConnectorLine,
    ConnectorWarning,
    RunFinished,
)
from gateway.observe.redact import NOTHING_SHOWN
from gateway.processes.completed import Completed, StaleCell, StartFailed
from gateway.protocol.request import Context, Request, encoded, one_line
from gateway.protocol.result import Result, interpret
from gateway.runtimes.base import start_problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.calls.admission import Admission
    from gateway.calls.underway import Found, RunGoing
    from gateway.connectors.definition import Command, Connector
    from gateway.connectors.registry import Registry
    from gateway.journal.journal import Journal
    from gateway.observe.redact import Redactor
    from gateway.observe.tracing import Tracing
    from gateway.processes.base import Pool, Process
    from gateway.processes.launch import Launch, Payload
    from gateway.protocol.document import Object
    from gateway.protocol.request import Caller


class _Admitted(NamedTuple):
    """What a call runs with."""

    connector: Connector
    command: Command
    params: Object
    redact: Redactor
    circuit: Circuit


class Invoker:
    """Runs commands."""

    def __init__(
        self,
        registry: Registry,
        admission: Admission,
        pool: Pool,
        bus: Bus,
        rewritten: Callable[[Caller], str | None] = lambda caller: caller.callback_url,
        *,
        tracing: Tracing | None = None,
    ) -> None:
        """`rewritten` returns a caller's callback URL as connectors reach it; `tracing` makes spans."""
        self._tracing = tracing
        self.journal: Journal | None = None
        """Is handed all runs that are over."""
        self._rewritten = rewritten
        self._registry = registry
        self._admission = admission
        self._pool = pool
        self._bus = bus
        self._circuits: dict[tuple[str, str | None], tuple[str, Circuit]] = {}
        """By connector and client: what crashes with one client's parameters is called by the others on."""
        self._of_all: dict[str, dict[str | None, tuple[str, Circuit]]] = {}
        """The same, by connector alone."""
        self._going: dict[Process, UnderwayRun] = {}
        """The runs that go on."""

    async def invoke(self, call: Call, found: Found | None = None) -> Reply:
        """Run one command in a process of its own; `found` is what the registry has said of it, if it was asked.

        Raises:
            GatewayError: one of its classes says what went wrong; the run's event has been published.
        """
        run = UnderwayRun(call=call, begun=asyncio.get_running_loop().time() if call.begun is None else call.begun)
        if self._tracing is not None:
            run.spans = CallSpans(self._tracing, call)
        try:
            self._admission.enter()
            try:
                if found is None:
                    found = self._registry.world(call.caller.client).found.get((call.connector, call.command))
                if found is None:
                    found = await self._found(run)
                run.found = found
                return await self._invoke(run, self._admitted(call, found))
            finally:
                self._admission.leave()
        except GatewayError as problem:
            self._fail(run, problem)
            raise
        except asyncio.CancelledError:
            if run.acknowledged:
                self._went_on(run, "cancelled", "it was cancelled")
            else:
                self._finish(run, "cancelled", error_code="cancelled", message="the caller hung up")
            raise
        finally:
            if run.spans is not None:
                run.spans.end(run.outcome, run.completed)

    def refused(self, call: Call, problem: GatewayError) -> GatewayError:
        """Tell everybody that a call came to nothing before it was run, and return what to tell its caller."""
        if self._admission.state is not AdmissionState.SERVING:
            problem = GatewayDraining(retry_after=5)
        self._fail(UnderwayRun(call=call, begun=asyncio.get_running_loop().time()), problem)
        return problem

    def circuit(self, connector: Connector, client: str | None) -> Circuit:
        """Return a client's circuit of a connector's present definition; a new definition starts afresh."""
        key = (connector.name, client)
        identity, circuit = self._circuits.get(key, ("", None))
        if circuit is None or identity != connector.identity:
            circuit = Circuit(connector.name, self._bus, asyncio.get_running_loop().time, client)
            self._circuits[key] = (connector.identity, circuit)
            self._of_all.setdefault(connector.name, {})[client] = (connector.identity, circuit)
        return circuit

    def circuits(self, connector: Connector) -> list[Circuit]:
        """Return the circuits of a connector's present definition, those of all clients that have called it."""
        known = self._of_all.get(connector.name, {}).values()
        return [circuit for identity, circuit in known if identity == connector.identity]

    def trouble_of(self, connector: Connector, client: str | None) -> Circuit | None:
        """Return the circuit of a client, or the first of all clients', that is not closed; None: there is none."""
        found = (one for one in self.circuits(connector) if one.state is not CircuitState.CLOSED)
        return next((one for one in found if client is None or (one.client or DEFAULT) == client), None)

    def going(self, connector: str, client: str | None) -> list[RunGoing]:
        """Return the runs of a registered connector that go on now, the eldest first; of one client, or of all."""
        now = asyncio.get_running_loop().time()
        return [
            told_of(run, now)
            for run in self._going.values()
            if run.registered == connector and client in {None, run.call.caller.client or DEFAULT}
        ]

    # --- private: the way of a call

    async def _found(self, run: UnderwayRun) -> Found:
        """Find what a call names."""
        call = run.call
        return await self._registry.find(
            call.connector,
            call.command,
            client=call.caller.client,
            since=run.begun,
            within=call.timeout,
            job=call.job is not None,
        )

    def _admitted(self, call: Call, found: Found) -> _Admitted:
        """Check a call's parameters, ask the circuit: each once."""
        connector, command = found
        signature = command.signature
        params = signature.check(call.params)
        values = signature.secret_values(params)
        redact = connector.redact
        if values is None:
            redact = NOTHING_SHOWN
        elif values:
            redact = redact.plus(values)
        client = call.caller.client
        identity, circuit = self._circuits.get((connector.name, client), ("", None))
        if circuit is None or identity != connector.identity:
            circuit = self.circuit(connector, client)
        if circuit.state is not CircuitState.CLOSED:
            circuit.admit()
        return _Admitted(connector, command, params, redact, circuit)

    async def _invoke(self, run: UnderwayRun, admitted: _Admitted) -> Reply:
        connector, command, _, redact, circuit = admitted
        call = run.call
        clock = asyncio.get_running_loop().time
        timeout = command.timeout if call.job is None else command.job_timeout
        if call.timeout is not None:
            timeout = min(call.timeout, timeout)
        deadline = run.begun + timeout
        places = self._admission.places
        lane, client = places.lane(connector.name), call.caller.client or DEFAULT
        decided = False
        if run.spans is not None:
            run.spans.waits()
        try:
            if not places.take(lane, connector.limits.concurrency, client):
                await places.wait(lane, connector.limits, deadline - clock(), client)
            taken = clock()
            try:
                if circuit.state is CircuitState.OPEN:
                    circuit.admit()
                run.queue_wait = taken - run.begun
                if call.on_slot is not None:
                    await call.on_slot()
                    deadline += clock() - taken
                run.deadlines = (deadline, run.begun + command.job_timeout)
                try:
                    completed = await self._run(run, admitted)
                except StaleCell:  # in another cell it can be started
                    completed = await self._run(run, admitted)
            except StartFailed as problem:
                decided = True
                hint = start_problem(Path(connector.launch.argv[0]), connector.launch.env["PATH"])
                told = redact(f"{problem}: {hint}" if hint else str(problem))
                circuit.failed(told)
                raise ConnectorStartFailed(f"{run.title} could not be started: {told}") from problem
            finally:
                places.give(lane, clock() - taken, client)
            decided = _judge(circuit, completed)
        finally:
            if not decided:
                circuit.undecided()
        return self._plain_reply(run, completed, redact) or await self._reply(run, completed, admitted, timeout)

    async def _run(self, run: UnderwayRun, admitted: _Admitted) -> Completed:
        """Run a process until the first deadline, or the second one if its extension is granted."""
        connector, redact = admitted.connector, admitted.redact
        if run.spans is not None:
            run.call = run.spans.runs(connector.launch.mode)
        call = run.call
        name = connector.name
        # A process that stays has this until its next request: not to hold the call, whose parameters may be large.
        publish, command, request_id = self._bus.publish, call.command, call.caller.request_id
        client = call.caller.client

        def on_line(stream: str, line: str) -> None:
            publish(
                ConnectorLine(
                    connector=name,
                    command=command,
                    request_id=request_id,
                    stream=stream,
                    line=line,
                    client=client,
                )
            )

        payload = self._payload(run, admitted)
        plain = call.caller.traceparent is None and call.acknowledgement is None and redact is connector.redact
        launch = connector.launch if plain else _launch(connector.launch, call, redact)
        run.started = asyncio.get_running_loop().time()
        child = self._pool.obtain(launch, on_line)
        extension = call.extension
        self._admission.attend(child)
        self._going[child] = run
        try:
            if extension is not None:
                extension.limit(child, run.deadlines[0])
            running = child.run(
                payload,
                deadline=run.deadlines[0 if extension is None else 1],
                answered=None if call.acknowledgement is None else functools.partial(self._acknowledge, run, redact),
            )
            del payload  # it may be large, and is not needed once it is written
            run.completed = completed = await running
        finally:
            del self._going[child]
            self._admission.dismiss(child)
            if extension is not None:
                extension.over()
        return completed

    def _payload(self, run: UnderwayRun, admitted: _Admitted) -> Payload:
        """Write what the process reads."""
        call, command = run.call, admitted.command
        caller = call.caller
        # A job's outcome is called back by us; a command that could do it by itself has none to call.
        url = None if call.job is not None and command.execute_async else self._rewritten(caller)
        left = run.deadlines[0] - asyncio.get_running_loop().time()
        request = Request(
            command=call.command,
            module=command.module or msgspec.UNSET,
            params=admitted.params,
            task_data=call.task_data,
            config=admitted.connector.config,
            context=Context(
                request_id=caller.request_id,
                client=caller.client,
                traceparent=caller.traceparent,
                tracestate=caller.tracestate,
                process_instance_id=caller.process_instance_id,
                process_model_identifier=caller.process_model_identifier,
                task_id=caller.task_id,
                callback_url=url,
                deadline_ms=max(0, round(left * 1000)),
            ),
        )
        payload = one_line(request) if call.small else encoded(request)
        run.request_bytes = len(payload) if isinstance(payload, bytes) else sum(map(len, payload))
        return payload

    def _plain_reply(self, run: UnderwayRun, completed: Completed, redact: Redactor) -> Reply | None:
        """Return the reply to a run of which nothing is to be said but its result; None where there is more to it."""
        result = completed.result
        if not completed.clean or completed.log_tail or len(result) > LARGE or run.call.acknowledgement is not None:
            return None
        try:
            meant = interpret(result, redact)
        except ConnectorInvalidOutput:
            return None
        if meant.error is not None and meant.error.no_answer:
            return None
        return Reply(result=meant, run=self._answered(run, meant, redact))

    async def _reply(self, run: UnderwayRun, completed: Completed, admitted: _Admitted, allowed: float) -> Reply:
        call, job_timeout, redact = run.call, admitted.command.job_timeout, admitted.redact
        if call.acknowledgement is not None and run.acknowledged:
            fault = problem_of(completed, run.title, job_timeout)
            failed = ("failed", f"exit status {completed.status}") if completed.status else ("ok", None)
            self._went_on(run, *(failed if fault is None else (fault.code, redact(fault.message))))
            return call.acknowledgement.reply.result()
        if call.extension is not None and not call.extension.spent:
            allowed = job_timeout  # also where the promotion took so long that it came first
        accepted = call.acknowledgement is not None
        meant = await meaning(completed, run.title, redact, allowed, acknowledges=accepted)
        if meant.result is None or meant.problem is not None:
            raise meant.told(self._wall(run))
        event = self._answered(run, meant.result, redact)
        return Reply(result=meant.result, logs=meant.lines, run=event, accepted=accepted)

    def _acknowledge(self, run: UnderwayRun, redact: Redactor, answer: bytearray) -> bool:
        """Answer the call with what its run has written so far, if that is an answer; the run goes on."""
        acknowledgement, extension = run.call.acknowledgement, run.call.extension
        assert acknowledgement is not None
        assert extension is not None
        if run.acknowledged or acknowledgement.reply.done():
            return run.acknowledged
        try:
            result = interpret(bytearray(answer), redact, acknowledges=True)
        except ConnectorInvalidOutput:
            return False
        if result.error is not None and (result.error.raised or result.error.no_answer):
            return False  # nothing goes on, and the answer is no 202
        extension.granted = True
        extension.over()
        run.acknowledged = True
        event = self._answered(run, result, redact)
        self._bus.publish(
            BackgroundStarted(
                id=acknowledgement.name,
                connector=run.registered,
                command=run.call.command,
                request_id=run.call.caller.request_id,
            )
        )
        acknowledgement.reply.set_result(Reply(result=result, run=event, accepted=True))
        return True

    # --- private: what is told of it

    def _wall(self, run: UnderwayRun) -> float:
        """Return seconds since the process was asked for; 0 when none was."""
        return 0.0 if run.started is None else asyncio.get_running_loop().time() - run.started

    def _fail(self, run: UnderwayRun, problem: GatewayError) -> None:
        """Publish that there is none, and put what the run took into the problem."""
        if run.title not in problem.message:
            problem.message = f"{run.title}: {problem.message}"
        problem.run = self._finish(run, problem.code, error_code=problem.code, message=problem.message)

    def _answered(self, run: UnderwayRun, result: Result, redact: Redactor) -> RunFinished:
        """Publish that there is a result, and what is wrong with it."""
        for warning in result.warnings:
            self._bus.publish(
                ConnectorWarning(
                    connector=run.call.connector,
                    command=run.call.command,
                    request_id=run.call.caller.request_id,
                    message=redact(warning),
                )
            )
        error = result.error
        if error is None:
            return self._finish(run, "ok", result=result)
        outcome = "raised" if error.raised else "error"
        return self._finish(run, outcome, error_code=error.error_code, message=error.message, result=result)

    def _finish(
        self,
        run: UnderwayRun,
        outcome: str,
        *,
        error_code: str | None = None,
        message: str | None = None,
        result: Result | None = None,
        again: bool = False,
    ) -> RunFinished:
        """Publish the run's event, unless it was before (`again`), tell the journal, and return the event."""
        call, done, started = run.call, run.completed, run.started
        caller = call.caller
        now = asyncio.get_running_loop().time()
        took: dict[str, Any] = {}
        if done is not None:
            took = {
                "pid": done.pid,
                "status": done.status,
                "signal": done.signal,
                "cpu_user": done.cpu_user,
                "cpu_system": done.cpu_system,
                "peak_rss": done.peak_rss,
                "result_bytes": len(done.result),
                "log_bytes": done.log_bytes,
            }
        run.outcome = outcome
        event = RunFinished(
            connector=self._missed(call) if run.found is None else run.found[0].name,
            command=call.command,
            request_id=caller.request_id,
            client=caller.client,
            outcome=outcome,
            error_code=error_code,
            message=message,
            queue_wait=run.queue_wait,
            wall=0.0 if started is None else now - started,
            total=now - run.begun,
            request_bytes=run.request_bytes,
            **took,
        )
        if not again:
            self._bus.publish(event)
        if self.journal is not None:
            self._hand_over(self.journal, run, event, result)
        return event

    def _hand_over(self, journal: Journal, run: UnderwayRun, event: RunFinished, result: Result | None) -> None:
        """Give a run that is over to the journal, by reference: all work is the journal's."""
        call, again, payload = run.call, bool(run.id), None
        if run.found is not None:
            wanted = run.found[0].payloads or journal.section.payloads
            if wanted == "all" or (wanted == "errors" and event.outcome != "ok"):
                payload = _payload_of(run.found, call, result, journal.section.payload_size)
        run.id = run.id or os.urandom(10).hex()
        journal.put(
            Ran(
                id=run.id,
                event=event,
                caller=call.caller,
                finished=time.time(),
                took=asyncio.get_running_loop().time() - run.begun,
                started=None if run.started is None else run.started - run.begun,
                job=run.job,
                replay_of=call.replay_of,
                log=run.completed.log_tail if run.completed is not None else "",
                payload=payload,
                again=again,
            )
        )

    def _missed(self, call: Call) -> str:
        """Return what a connector is told by that was not found: of what is not there for a client, its own name."""
        client = call.caller.client
        status = self._registry.world(client).statuses.get(call.connector)
        if status is not None:
            return status.name
        return call.connector if client is None else registered(call.connector, client)

    def _went_on(self, run: UnderwayRun, outcome: str, message: str | None = None) -> None:
        """Publish the end of what went on after the answer."""
        done, acknowledgement = run.completed, run.call.acknowledgement
        assert acknowledgement is not None
        self._finish(run, outcome, message=message, again=True)
        self._bus.publish(
            BackgroundFinished(
                id=acknowledgement.name,
                connector=run.registered,
                command=run.call.command,
                request_id=run.call.caller.request_id,
                task_id=run.call.caller.task_id,
                client=run.call.caller.client,
                outcome=outcome,
                message=message,
                wall=self._wall(run),
                cpu_user=done.cpu_user if done else 0.0,
                cpu_system=done.cpu_system if done else 0.0,
                peak_rss=done.peak_rss if done else 0,
            )
        )


def _payload_of(found: Found, call: Call, result: Result | None, most: int) -> Kept:
    """Return a call's parameters and its result, as far as they have at most so many bytes."""
    connector, command = found
    sent = sum(len(memoryview(raw)) for raw in call.params.values()) + len(memoryview(call.task_data))
    answered = 0 if result is None else sum(map(len, result.pieces))
    return Kept(
        params=call.params if sent <= most else {},
        task_data=call.task_data if sent <= most else EMPTY,
        result=result.pieces if result is not None and answered <= most else (),
        redact=connector.redact,
        secret_values=command.signature.secret_values,
        hides=command.signature.hides,
        too_large=sent > most,
    )


def _judge(circuit: Circuit, completed: Completed) -> bool:
    """Tell the circuit what the end of a run says about the connector, if it says anything."""
    if completed.clean and circuit.spotless:
        return True
    if completed.stop is not None or completed.out_of_memory or completed.over or completed.cell_died:
        return False
    if completed.signal is not None:
        circuit.failed(f"died of {completed.signal}")
    else:
        circuit.succeeded()
    return True


def _launch(launch: Launch, call: Call, redact: Redactor) -> Launch:
    """Return a launch with what one call changes about it."""
    if redact is not launch.redact:
        launch = msgspec.structs.replace(launch, redact=redact)
    if call.acknowledgement is not None and launch.mode == "persistent":
        launch = msgspec.structs.replace(launch, mode="spawn")  # it goes on beside later calls
    if call.caller.traceparent is not None:
        trace = {"TRACEPARENT": call.caller.traceparent}
        if call.caller.tracestate is not None:
            trace["TRACESTATE"] = call.caller.tracestate
        launch = msgspec.structs.replace(launch, env={**launch.env, **trace})
    return launch
