"""The one use case: a connector, a command, parameters -> a reply. HTTP, the command line and jobs all come here."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec

from gateway.calls.circuit import Circuit
from gateway.calls.outcome import interpreted, last_lines, problem_of
from gateway.calls.reply import Reply
from gateway.errors import (
    ConnectorFailed,
    ConnectorInvalidOutput,
    ConnectorStartFailed,
    ConnectorTimeout,
    GatewayError,
)
from gateway.observe.events import (
    BackgroundFinished,
    BackgroundStarted,
    Bus,
    ConnectorLine,
    ConnectorWarning,
    RunFinished,
)
from gateway.processes.run import Completed, StaleCell, StartFailed
from gateway.protocol.request import Context, Request, encoded
from gateway.protocol.result import Result, interpret, told_error
from gateway.units import Duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.calls.call import Call
    from gateway.connectors.definition import Command, Connector
    from gateway.connectors.registry import Registry
    from gateway.observe.redact import Redactor
    from gateway.processes.base import Pool
    from gateway.processes.run import Payload
    from gateway.processes.supervisor import Supervisor
    from gateway.protocol.document import Object

TAIL_IN_MESSAGE = 500  # characters


class Invoker:
    """Runs commands."""

    def __init__(
        self,
        registry: Registry,
        supervisor: Supervisor,
        pool: Pool,
        bus: Bus,
        rewritten: Callable[[str], str] = lambda url: url,
    ) -> None:
        """`rewritten` returns a callback URL as connectors reach it."""
        self._rewritten = rewritten
        self._registry = registry
        self._supervisor = supervisor
        self._pool = pool
        self._bus = bus
        self._circuits: dict[str, tuple[str, Circuit]] = {}

    async def invoke(self, call: Call) -> Reply:
        """Run one command in a process of its own.

        Raises:
            GatewayError: one of its classes says what went wrong; the run's event has been published.
        """
        run = _Run(call, self._bus)
        try:
            with self._supervisor.invocation():
                connector, command = self._registry.snapshot.find(call.connector, call.command)
                reply = await self._invoke(run, connector, command)
        except GatewayError as problem:
            if run.title not in problem.message:
                problem.message = f"{run.title}: {problem.message}"
            problem.run = run.finished(problem.code, message=problem.message)
            raise
        except asyncio.CancelledError:
            if run.acknowledged:
                run.went_on("cancelled", "it was cancelled")
            else:
                run.finished("cancelled", message="the caller hung up")
            raise
        return reply

    def circuit(self, connector: Connector) -> Circuit:
        """Return the circuit of a connector's present definition; a new definition starts afresh."""
        identity, circuit = self._circuits.get(connector.name, ("", None))
        if circuit is None or identity != connector.identity:
            circuit = Circuit(connector.name, self._bus, asyncio.get_running_loop().time)
            self._circuits[connector.name] = (connector.identity, circuit)
        return circuit

    async def _invoke(self, run: _Run, connector: Connector, command: Command) -> Reply:
        call = run.call
        params = command.signature.check(call.params)
        redact = connector.redact.plus(command.signature.secret_values(params))
        circuit = self.circuit(connector)
        circuit.admit()
        clock = asyncio.get_running_loop().time
        timeout = command.job_timeout if call.job else command.timeout
        if call.timeout is not None:
            timeout = min(call.timeout, timeout)
        deadline = run.begun + timeout
        decided = False
        try:
            async with self._supervisor.slot(connector.name, connector.limits, patience=deadline - clock()):
                circuit.admit_after_wait()
                run.queue_wait = clock() - run.begun
                if call.on_slot is not None:
                    asked = clock()
                    await call.on_slot()
                    deadline += clock() - asked
                run.deadlines = (deadline, run.begun + command.job_timeout)
                try:
                    completed = await self._ran(run, connector, command, params, redact)
                except StartFailed as problem:
                    decided = True
                    circuit.failed(str(problem))
                    raise ConnectorStartFailed(f"{run.title} could not be started: {redact(str(problem))}") from problem
            decided = self._judge(circuit, completed)
        finally:
            if not decided:
                circuit.undecided()
        if call.acknowledgement is not None and run.acknowledged:
            fault = problem_of(completed, run.title, command.job_timeout)
            failed = ("failed", f"exit status {completed.status}") if completed.status else ("ok", None)
            run.went_on(*(failed if fault is None else (fault.code, redact(fault.message))))
            return call.acknowledgement.reply.result()
        if call.extension is not None and not call.extension.spent:
            timeout = command.job_timeout  # also where the promotion took so long that it came first
        accepted = call.acknowledgement is not None
        reply = await self._reply(run, completed, redact, timeout, accepted=accepted)
        return msgspec.structs.replace(reply, accepted=True) if accepted else reply

    def _request(self, run: _Run, connector: Connector, command: Command, params: Object, left: float) -> Payload:
        call = run.call
        caller = msgspec.structs.asdict(call.caller)
        url = call.caller.callback_url
        if url is not None:
            # A job's outcome is called back by us; a command that could do it by itself has none to call.
            caller["callback_url"] = None if call.job and command.execute_async else self._rewritten(url)
        context = Context(deadline_ms=max(0, round(left * 1000)), **caller)
        request = Request(
            command=call.command,
            module=command.module or msgspec.UNSET,
            params=params,
            task_data=call.task_data,
            config=connector.config,
            context=context,
        )
        payload = encoded(request)
        run.request_bytes = sum(map(len, payload)) if isinstance(payload, tuple) else len(payload)
        return payload

    async def _ran(
        self, run: _Run, connector: Connector, command: Command, params: Object, redact: Redactor
    ) -> Completed:
        """Run a process; in another cell where the first one is stale."""
        clock = asyncio.get_running_loop().time
        for last in (False, True):
            left = run.deadlines[0] - clock()
            try:
                # No name for the request here: it may be large, and is to be gone once it is written.
                return await self._run(run, connector, redact, self._request(run, connector, command, params, left))
            except StaleCell:
                if last:
                    raise
        raise AssertionError

    async def _run(self, run: _Run, connector: Connector, redact: Redactor, payload: Payload) -> Completed:
        """Run a process until the first deadline, or the second one if its extension is granted."""
        # A process that stays has this until its next request: not to hold the call, whose parameters may be large.
        command, request_id = run.call.command, run.call.caller.request_id

        def on_line(stream: str, line: str) -> None:
            self._bus.publish(
                ConnectorLine(
                    connector=connector.name,
                    command=command,
                    request_id=request_id,
                    stream=stream,
                    line=redact(line),
                )
            )

        def answered(result: bytearray) -> bool:
            return self._acknowledge(run, redact, result)

        launch = connector.launch
        acknowledgement = run.call.acknowledgement
        if acknowledgement is not None and launch.mode == "persistent":
            launch = msgspec.structs.replace(launch, mode="spawn")  # it goes on beside later calls
        if run.call.caller.traceparent is not None:
            launch = msgspec.structs.replace(launch, env={**launch.env, "TRACEPARENT": run.call.caller.traceparent})
        run.started = asyncio.get_running_loop().time()
        child = await self._pool.obtain(launch, on_line)
        extension = run.call.extension
        with self._supervisor.attended(child):
            if extension is not None:
                extension.limit(child, run.deadlines[0])
            running = child.run(
                payload,
                deadline=run.deadlines[0 if extension is None else 1],
                answered=None if acknowledgement is None else answered,
            )
            del payload  # it may be large, and is not needed once it is written
            try:
                completed = await running
            finally:
                if extension is not None:
                    extension.over()
        run.completed = completed
        return completed

    def _acknowledge(self, run: _Run, redact: Redactor, answer: bytearray) -> bool:
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
        if result.error is not None and (result.error.raised or result.error.invalid_output):
            return False  # nothing goes on, and the answer is no 202
        extension.granted = True
        extension.over()
        event = run.answered(result)
        run.acknowledged = True
        self._bus.publish(
            BackgroundStarted(
                id=acknowledgement.name,
                connector=run.call.connector,
                command=run.call.command,
                request_id=run.call.caller.request_id,
            )
        )
        acknowledgement.reply.set_result(Reply(result=result, run=event, accepted=True))
        return True

    @staticmethod
    def _judge(circuit: Circuit, completed: Completed) -> bool:
        """Tell the circuit what the end of a run says about the connector, if it says anything."""
        if completed.stop is not None or completed.out_of_memory or completed.over or completed.cell_died:
            return False
        if completed.signal is not None:
            circuit.failed(f"died of {completed.signal}")
        else:
            circuit.succeeded()
        return True

    async def _reply(
        self, run: _Run, completed: Completed, redact: Redactor, allowed: float, *, accepted: bool
    ) -> Reply:
        tail = redact(completed.log_tail)
        problem = problem_of(completed, run.title, allowed)
        result = None
        if isinstance(problem, ConnectorTimeout) and completed.whole:
            # It did what it was to do: told as a failure, it would be done again.
            with contextlib.suppress(ConnectorInvalidOutput):
                result = await interpreted(completed.result, redact, acknowledges=accepted)
                late = f"gave its result, and did not end until its deadline of {Duration(allowed)}: it was stopped"
                result = msgspec.structs.replace(result, warnings=(*result.warnings, late))
                problem = None
        elif problem is None and completed.status:
            result = told_error(completed.result, redact)
            if result is None:
                problem = ConnectorFailed(f"{run.title} failed with exit status {completed.status}")
        elif problem is None:
            try:
                result = await interpreted(completed.result, redact, acknowledges=accepted)
            except ConnectorInvalidOutput as invalid:
                problem = ConnectorInvalidOutput(f"{run.title} gave no valid result: {redact(invalid.message)}")
        if problem is None and result is not None and result.error is not None and result.error.invalid_output:
            problem = ConnectorInvalidOutput(f"{run.title} gave no valid result: {result.error.message}")
        if problem is not None:
            shown = f"; stderr: {tail[-TAIL_IN_MESSAGE:]}" if tail else ""
            message = f"{problem.message} (after {run.wall:.2f} s){shown}"
            raise type(problem)(message, logs=last_lines(tail), retry_after=problem.retry_after)
        assert result is not None
        return Reply(result=result, logs=last_lines(tail), run=run.answered(result))


class _Run:
    """What is known of one invocation so far."""

    def __init__(self, call: Call, bus: Bus) -> None:
        self.call = call
        self.title = f"{call.connector}/{call.command}"
        self.queue_wait = 0.0
        self.request_bytes = 0
        self.deadlines = (0.0, 0.0)
        """When it is stopped: as a call, and when it has become a job."""
        self.started: float | None = None
        self.completed: Completed | None = None
        self.acknowledged = False
        """It was answered, and goes on."""
        self._bus = bus
        self._clock = asyncio.get_running_loop().time
        self.begun = self._clock()

    @property
    def wall(self) -> float:
        """Seconds since the process was asked for; 0 when none was."""
        return 0.0 if self.started is None else self._clock() - self.started

    def answered(self, result: Result) -> RunFinished:
        """Publish that there is a result, and what is wrong with it."""
        for warning in result.warnings:
            self._bus.publish(
                ConnectorWarning(
                    connector=self.call.connector,
                    command=self.call.command,
                    request_id=self.call.caller.request_id,
                    message=warning,
                )
            )
        error = result.error
        return self.finished(
            "ok" if error is None else "raised" if error.raised else "error",
            error_code=error.error_code if error else None,
            message=error.message if error else None,
        )

    def went_on(self, outcome: str, message: str | None = None) -> None:
        """Publish the end of what went on after the answer."""
        done, acknowledgement = self.completed, self.call.acknowledgement
        assert acknowledgement is not None
        self._bus.publish(
            BackgroundFinished(
                id=acknowledgement.name,
                connector=self.call.connector,
                command=self.call.command,
                request_id=self.call.caller.request_id,
                outcome=outcome,
                message=message,
                wall=self.wall,
                cpu_user=done.cpu_user if done else 0.0,
                cpu_system=done.cpu_system if done else 0.0,
                peak_rss=done.peak_rss if done else 0,
            )
        )

    def finished(self, outcome: str, *, error_code: str | None = None, message: str | None = None) -> RunFinished:
        """Publish the run's event and return it."""
        done = self.completed
        event = RunFinished(
            connector=self.call.connector,
            command=self.call.command,
            request_id=self.call.caller.request_id,
            client=self.call.caller.client,
            outcome=outcome,
            error_code=error_code if error_code is not None or outcome == "ok" else outcome,
            message=message,
            queue_wait=self.queue_wait,
            wall=self.wall,
            request_bytes=self.request_bytes,
            pid=done.pid if done else 0,
            status=done.status if done else None,
            signal=done.signal if done else None,
            cpu_user=done.cpu_user if done else 0.0,
            cpu_system=done.cpu_system if done else 0.0,
            peak_rss=done.peak_rss if done else 0,
            result_bytes=len(done.result) if done else 0,
            log_bytes=done.log_bytes if done else 0,
        )
        self._bus.publish(event)
        return event
