"""The stdio contract, tried on one connector: what `gateway test` runs.

A command is run by the same invoker, pool and launch as a caller's; only the requests that no caller can send
(describe, and a stdin that ends early) go to the process directly.
"""

from __future__ import annotations

import asyncio
import enum
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from gateway.calls.call import Call
from gateway.calls.invoke import Invoker
from gateway.calls.outcome import LATE
from gateway.cells.wire import Said
from gateway.connectors.definition import Command
from gateway.connectors.describe import Describer
from gateway.connectors.examples import Example, Expect, is_subset, made_up
from gateway.connectors.parameters import Parameter, Signature
from gateway.connectors.registry import Registry
from gateway.connectors.snapshot import ConnectorState, Snapshot, Status
from gateway.errors import (
    ConnectorCrashed,
    ConnectorFailed,
    ConnectorInvalidOutput,
    ConnectorOutOfMemory,
    ConnectorOutputTooLarge,
    ConnectorStartFailed,
    ConnectorTimeout,
    GatewayError,
    InvalidParameters,
    Quarantine,
)
from gateway.observe.events import Bus, ConnectorWarning, Event
from gateway.processes.completed import StartFailed, Stop, had_answered
from gateway.processes.launch import GRACE
from gateway.protocol.description import (
    DescribedAuth,
    DescribedCommand,
    DescribedParameter,
    Description,
    read_description,
)
from gateway.protocol.request import Caller, DescribeRequest, one_line
from gateway.protocol.result import interpret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from gateway.connectors.definition import Connector
    from gateway.gateway import Gateway
    from gateway.observe.events import RunFinished
    from gateway.processes.base import OnLine, Pool, Process
    from gateway.processes.completed import Completed
    from gateway.processes.launch import Answered, Launch, Payload
    from gateway.protocol.document import Object
    from gateway.protocol.result import Result

LARGE = 1 << 20  # characters
SNOW = "\N{SNOWMAN}\N{GRINNING FACE}"
BEFORE, AFTER = "before-", "-after"  # stand around it, so that it is found again in a result
QUICK = 0.5  # seconds; a command that takes no longer cannot be caught at a deadline
SOON = 1.0  # seconds until the deadline of one that can; it has got to work by then
EARLY = 10.0  # seconds in which a connector has to notice that its stdin has ended
UNKNOWN = "NoSuchCommand"

ADVICE: dict[type[GatewayError], str] = {
    ConnectorStartFailed: "Is the program there, executable, and its #! line right?",
    ConnectorCrashed: "A signal ended the process: look at its log; a missing library or a memory fault are usual.",
    ConnectorOutOfMemory: "Use less memory, or raise max_memory in connector.yaml.",
    ConnectorOutputTooLarge: "Answer less, or raise max_output in connector.yaml.",
    ConnectorTimeout: "Read stdin until it ends, answer, and exit; or raise timeout in connector.yaml.",
    ConnectorFailed: 'Tell what went wrong: print {"error": {"error_code": "...", "message": "..."}}.',
    InvalidParameters: "Give parameters that fit in tests.yaml.",
    ConnectorInvalidOutput: "Print one JSON value in UTF-8 to stdout, and nothing else; log to stderr.",
}


class Grade(enum.Enum):
    """What a check found."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAIL"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check's outcome; `fix` tells an author what to do about it."""

    check: str
    outcome: Grade
    command: str | None = None
    message: str = ""
    fix: str | None = None


class _Trial(NamedTuple):
    """What one invocation came to: a result or the gateway's error, and what the run took."""

    result: Result | None
    problem: GatewayError | None
    facts: RunFinished

    @property
    def code(self) -> str | None:
        """The error's code, whoever told it."""
        if self.problem is not None:
            return self.problem.code
        return self.result.error.error_code if self.result is not None and self.result.error is not None else None

    @property
    def raised(self) -> bool:
        return self.result is not None and self.result.error is not None and self.result.error.raised

    @property
    def body(self) -> Any:
        """What a caller gets to see as the response's body."""
        assert self.result is not None
        if self.result.status is None:
            return msgspec.json.decode(self.result.content)["command_response"]["body"]
        text = self.result.content.decode(errors="replace")
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text


class _Watched:
    """A pool that remembers how its processes ended."""

    def __init__(self, pool: Pool, ended: list[Completed]) -> None:
        self._pool = pool
        self._ended = ended

    def obtain(self, launch: Launch, on_line: OnLine) -> Process:
        return _WatchedProcess(self._pool.obtain(launch, on_line), self._ended)


class _WatchedProcess:
    def __init__(self, process: Process, ended: list[Completed]) -> None:
        self._process = process
        self._ended = ended

    async def run(self, payload: Payload, *, deadline: float, answered: Answered | None = None) -> Completed:
        completed = await self._process.run(payload, deadline=deadline, answered=answered)
        self._ended.append(completed)
        return completed

    def stop(self, why: Stop, *, grace: float = GRACE) -> None:
        self._process.stop(why, grace=grace)


class Kit:
    """The checks of one connector."""

    def __init__(self, gateway: Gateway, connector: Connector, examples: tuple[Example, ...]) -> None:
        self._gateway = gateway
        self._connector = connector
        self._examples = examples
        self._ended: list[Completed] = []
        self._pool = _Watched(gateway.pools, self._ended)
        self._spawn = _Watched(gateway.pools.spawn, self._ended)
        self._bus = Bus()
        self._bus.listen(self._listen, called="command line")
        self._noise: list[str] = []
        self._boot = 0.0
        """Seconds that it takes to begin, as far as that is known: what it does then takes them too."""

    async def check(self, only: str | None = None) -> AsyncIterator[Finding]:
        """Yield the findings as they come; `only` names the one command to run."""
        declared = self._connector.commands is not None
        finding = self._declared() if declared else await self._describe()
        yield finding
        if finding.outcome is Grade.FAILED:
            return
        commands = self._connector.commands or {}
        for finding in self._forgotten(commands, only):
            yield finding
        for command in commands.values():
            if only in (None, command.name):
                async for finding in self._command(command):
                    yield finding
        if declared:
            yield _skipped("unknown-command", None, "its commands are declared in YAML: no other one reaches it")
        else:
            yield await self._unknown_command(commands)
        yield await self._early_end()
        for finding in self._observed():
            yield finding

    # --- describe

    def _declared(self) -> Finding:
        faults = list(_faults(self._connector))
        if faults:
            return _failed("describe", None, "; ".join(faults), "Mend its commands: in the YAML file.")
        return _skipped("describe", None, "its commands are declared in YAML, so it is never asked")

    async def _describe(self) -> Finding:
        folder = self._gateway.run_folder / "described"
        try:
            description = await Describer(self._gateway.pools.spawn, folder).ask(self._connector)
            self._connector = self._connector.described(description)
        except Quarantine as problem:
            return _failed("describe", None, str(problem), 'Answer {"op": "describe"} as docs/protocol.md says.')
        lost = {one.name for one in description.commands} - set(self._connector.commands or ())
        faults = [one for one in self._connector.notices if one.partition(" is left out")[0] in lost]
        faults += _faults(self._connector)
        if faults:
            return _failed("describe", None, "; ".join(faults), "Mend what describe prints.")
        request = one_line(DescribeRequest(config=self._connector.config))
        begun = asyncio.get_running_loop().time()
        raw = await self._raw(request, self._connector.limits.describe_timeout)
        self._boot = asyncio.get_running_loop().time() - begun
        printed = interpret(raw.result, self._connector.redact)
        self._noise += printed.warnings
        document = msgspec.json.decode(printed.content)["command_response"]["body"]
        doubts = [*self._connector.notices, *_doubts(document, read_description(raw.result))]
        if doubts:
            return Finding(
                check="describe", outcome=Grade.WARNING, message="; ".join(doubts), fix="Mend what describe prints."
            )
        names = ", ".join(self._connector.commands or {}) or "none"
        return _ok("describe", None, f"commands: {names}")

    def _forgotten(self, commands: dict[str, Command], only: str | None) -> Iterator[Finding]:
        """Say what the author asks for and the connector does not have."""
        named = {example.command: "tests.yaml" for example in self._examples} | ({only: "--command"} if only else {})
        for name, where in named.items():
            if name not in commands:
                known = ", ".join(commands) or "none"
                yield _failed("answers", name, f"{where} names it, the connector has: {known}", "Correct the name.")

    # --- one command

    async def _command(self, command: Command) -> AsyncIterator[Finding]:
        examples = [example for example in self._examples if example.command == command.name]
        reason = next((example.skip for example in examples if example.skip), None)
        if reason is not None:
            yield _skipped("answers", command.name, reason)
            return
        if not examples:
            params = made_up(command.signature)
            if params is None:
                yield _skipped("answers", command.name, "no parameters could be made up: give an example in tests.yaml")
                return
            examples = [Example(command=command.name, params=params)]
        good: list[tuple[Example, _Trial]] = []
        for example in examples:
            run = await self._invoke(command.name, example)
            answers = _judged("answers", command.name, run, expect=example.expect)
            yield answers
            if answers.outcome is not Grade.FAILED and example.expect is not None:
                yield _expected(command.name, run, example)
            if answers.outcome is Grade.OK and run.facts.pid:
                good.append((example, run))
        if good:
            example, run = next((one for one in good if one[1].code is None), good[0])
            yield await self._unicode(command, example, run)
            yield await self._large(command, example, run)
            yield await self._deadline(command, *max(good, key=lambda one: one[1].facts.wall))

    async def _unicode(self, command: Command, example: Example, before: _Trial) -> Finding:
        params = _with_text(command.signature, example.params, lambda text: f"{text}{BEFORE}{SNOW}{AFTER}")
        if params is None:
            return _skipped("unicode", command.name, "no parameter takes any text")
        run = await self._invoke(command.name, msgspec.structs.replace(example, params=params))
        finding = _judged("unicode", command.name, run, before=before)
        if finding.outcome is Grade.FAILED or run.result is None:
            return finding
        came_back = _between(msgspec.json.encode(run.body).decode())
        if came_back is not None and _mangled(came_back):
            return _failed(
                "unicode",
                command.name,
                f"{SNOW} came back as {came_back!r}",
                "Read and write UTF-8, whatever the locale.",
            )
        return finding

    async def _large(self, command: Command, example: Example, before: _Trial) -> Finding:
        params = _with_text(command.signature, example.params, lambda _: "x" * LARGE) or example.params
        large = msgspec.structs.replace(example, params=params, task_data={"large": "x" * LARGE})
        return _judged("large", command.name, await self._invoke(command.name, large), before=before)

    async def _deadline(self, command: Command, example: Example, before: _Trial) -> Finding:
        took = before.facts.wall
        if took <= QUICK:
            return _skipped("deadline", command.name, f"it is quick ({took:.2f} s)")
        run = await self._invoke(command.name, example, within=min(took / 2, SOON))
        if not isinstance(run.problem, ConnectorTimeout):
            return _skipped("deadline", command.name, "it was quicker this time")
        if run.facts.signal == "SIGKILL":
            return _failed(
                "deadline",
                command.name,
                f"it was still running {GRACE:g} s after SIGTERM and had to be killed",
                "End on SIGTERM: do not ignore it, and do not wait for anything long in its handler.",
            )
        return _ok("deadline", command.name, "it ends on SIGTERM")

    # --- the connector as a whole

    async def _unknown_command(self, commands: dict[str, Command]) -> Finding:
        check = "unknown-command"
        fix = 'Answer {"error": {"error_code": "command_not_found", "message": "..."}}.'
        probe = Command(name=UNKNOWN, description=None, timeout=self._boot + EARLY, signature=Signature(()))
        if UNKNOWN in commands:
            return _skipped(check, None, f"it has a command {UNKNOWN}")
        known, self._connector = (
            self._connector,
            msgspec.structs.replace(self._connector, commands={**commands, UNKNOWN: probe}),
        )
        try:
            run = await self._invoke(UNKNOWN, Example(command=UNKNOWN))
        finally:
            self._connector = known
        if run.problem is not None:
            return _failed(check, None, run.problem.message, fix)
        if run.code is None:
            return _failed(check, None, "it answers a command that it does not have as if it had worked", fix)
        return _ok(check, None, f"it answers {run.code}")

    async def _early_end(self) -> Finding:
        for sent, what in ((b"", "no request"), (b'{"protocol": 1, "op": "exe', "half a request")):
            try:
                completed = await self._raw(sent, self._boot + EARLY)
            except StartFailed as problem:
                return _failed("stdin", None, str(problem), ADVICE[ConnectorStartFailed])
            if completed.stop is Stop.DEADLINE:
                trouble = f"it still ran {EARLY:g} s after a stdin with {what} had ended"
            elif completed.stop is Stop.LINGERED:
                trouble = f"it still ran {completed.bounds.linger:g} s after its answer to a stdin with {what}"
            elif completed.signal is not None:
                trouble = f"a stdin with {what} made it die of {completed.signal}"
            else:
                continue
            return _failed("stdin", None, trouble, "Read stdin until it ends, and exit when there is no request in it.")
        return _ok("stdin", None, "it ends when stdin does")

    def _observed(self) -> Iterator[Finding]:
        """Tell what was seen on the side."""
        yield _seen(
            "stdout",
            f"it {self._noise[0]}" if self._noise else None,
            "Print the result and nothing else to stdout; log to stderr.",
            "nothing but results",
        )
        bound = self._connector.limits.max_log
        longest = max((run.log_bytes for run in self._ended), default=0)
        yield _seen(
            "stderr",
            f"a run logged {longest} bytes; what is over max_log ({bound}) is dropped" if longest > bound else None,
            "Log less, or raise max_log in connector.yaml.",
            f"at most {longest} bytes of log a run",
        )
        late = sum(run.stop is Stop.LINGERED or (run.said != Said.ALL and had_answered(run)) for run in self._ended)
        yield _seen(
            "end",
            f"in {late} runs it had written its result, did not end, and was stopped" if late else None,
            "Exit once the result is written: end timers and threads; or raise linger in connector.yaml.",
            "it ends once it has given its result",
        )
        left = sum(run.left_behind for run in self._ended)
        yield _seen(
            "processes",
            f"after {left} runs something that it had started was still running, and was killed" if left else None,
            "Wait for the programs that it starts before it exits.",
            "it leaves none behind",
        )

    # --- running

    async def _invoke(self, command: str, example: Example, *, within: float | None = None) -> _Trial:
        # A new one each time: the circuit of a connector that crashes must not answer for it.
        describer = Describer(self._gateway.pools.spawn, self._gateway.run_folder)
        registry = Registry(self._gateway.settings, describer, self._bus)
        connector = self._connector
        registry.snapshot = Snapshot(
            {connector.name: Status(name=connector.name, state=ConnectorState.READY, connector=connector)}
        )
        call = Call(
            connector=connector.name,
            command=command,
            params=_raw_values(example.params),
            caller=Caller(request_id=uuid.uuid4().hex),
            task_data=msgspec.Raw(msgspec.json.encode(example.task_data)),
            timeout=within,
        )
        try:
            reply = await Invoker(registry, self._gateway.admission, self._pool, self._bus).invoke(call)
        except GatewayError as problem:
            return _Trial(None, problem, cast("RunFinished", problem.run))
        return _Trial(reply.result, None, reply.run)

    async def _raw(self, payload: Payload, seconds: float) -> Completed:
        process = self._spawn.obtain(self._connector.launch, lambda _stream, _line: None)
        return await process.run(payload, deadline=asyncio.get_running_loop().time() + seconds)

    def _listen(self, event: Event) -> None:
        if isinstance(event, ConnectorWarning) and not event.message.endswith(LATE):  # which `end` tells
            self._noise.append(event.message)


# --- private: verdicts


def _seen(check: str, doubt: str | None, fix: str, fine: str) -> Finding:
    """Return a warning where there is a doubt."""
    if doubt is None:
        return _ok(check, None, fine)
    return Finding(check=check, outcome=Grade.WARNING, message=doubt, fix=fix)


def _ok(check: str, command: str | None, message: str) -> Finding:
    return Finding(check=check, command=command, outcome=Grade.OK, message=message)


def _skipped(check: str, command: str | None, why: str) -> Finding:
    return Finding(check=check, command=command, outcome=Grade.SKIPPED, message=why)


def _failed(check: str, command: str | None, message: str, fix: str) -> Finding:
    return Finding(check=check, command=command, outcome=Grade.FAILED, message=message, fix=fix)


def _judged(
    check: str, command: str, run: _Trial, *, expect: Expect | None = None, before: _Trial | None = None
) -> Finding:
    """Tell whether an answer is within the contract; a told error is. `before` is an answer to milder parameters."""
    wanted = expect.error_code if expect is not None else None
    if wanted is not None and run.code == wanted:
        return _ok(check, command, f"it ends with {wanted}, as expected")
    if run.problem is not None:
        fix = ADVICE.get(type(run.problem), "Look at its log.")
        return _failed(check, command, run.problem.message, fix)
    assert run.result is not None
    error = run.result.error
    if error is None:
        return _ok(check, command, f"a result of {run.facts.result_bytes} bytes in {run.facts.wall:.2f} s")
    if not error.raised:
        return _ok(check, command, f"it tells an error: {error.error_code}: {error.message}")
    return Finding(
        check=check,
        command=command,
        outcome=Grade.FAILED if before is not None and not before.raised else Grade.WARNING,
        message=f"its code raised {error.error_code}: {error.message}",
        fix="If this can be expected, tell it as an error with a code; else mend it.",
    )


def _expected(command: str, run: _Trial, example: Example) -> Finding:
    """Compare an answer with what the example says of it."""
    expect = example.expect
    assert expect is not None
    fix = "Mend the command, or what tests.yaml expects of it."
    if run.code != expect.error_code:
        wanted = expect.error_code or "a result"
        told = run.result.error.message if run.result is not None and run.result.error is not None else ""
        got = f"{run.code}: {told}" if run.code else f"a result: {_short(run.body)}"
        return _failed("expected", command, f"expected {wanted}, got {got}", fix)
    if expect.body is not msgspec.UNSET and not is_subset(expect.body, run.body):
        return _failed("expected", command, f"expected {_short(expect.body)} in {_short(run.body)}", fix)
    return _ok("expected", command, f"{expect.error_code or 'the result'}, as {_short(example.params)} should")


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 200 else f"{text[:200]}..."


# --- private: what describe printed


def _faults(connector: Connector) -> Iterator[str]:
    """Find what makes a description wrong."""
    for command in (connector.commands or {}).values():
        for parameter in command.signature.parameters:
            name = f"{command.name}, parameter {parameter.id!r}"
            if not parameter.id:
                yield f"{name}: this name never reaches a connector"
            yield from (f"{name}: {problem}" for problem in _unfit(parameter))


def _unfit(parameter: Parameter) -> Iterator[str]:
    """Find a default, or a choice, that the parameter itself would refuse."""
    if parameter.default is not msgspec.UNSET:
        try:
            Signature((parameter,)).check(_raw_values({parameter.id: parameter.default}))
        except InvalidParameters as problem:
            yield f"its default does not fit: {problem.message.split(' (parameters:')[0]}"
    plain = Signature((Parameter(id=parameter.id, type=parameter.type, required=True),))
    for choice in parameter.enum if isinstance(parameter.enum, list) else ():
        try:
            plain.check(_raw_values({parameter.id: choice}))
        except InvalidParameters:
            yield f"its enum has {_short(choice)}, which is no {parameter.type}"


def _doubts(document: dict[str, Any], description: Description) -> Iterator[str]:
    """Find what is ignored in a description, or contradicts itself."""
    yield from _unknown(document, Description, "describe")
    kinds: tuple[tuple[str, type[msgspec.Struct]], ...] = (("commands", DescribedCommand), ("auths", DescribedAuth))
    for kind, struct in kinds:
        for command in document.get(kind, ()):
            yield from _unknown(command, struct, command["name"])
            for parameter in command.get("parameters", ()):
                yield from _unknown(parameter, DescribedParameter, f"{command['name']}, {parameter['id']}")
    for told in description.commands:
        for one in told.parameters:
            if one.required and one.default is not msgspec.UNSET:
                yield f"{told.name}, {one.id}: it has a default, so it is not required"


def _unknown(part: dict[str, Any], kind: type[msgspec.Struct], where: str) -> Iterator[str]:
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    if set(part) - known:
        yield f"{where}: unknown keys are ignored: {', '.join(sorted(set(part) - known))}"


# --- private: parameters


def _raw_values(params: dict[str, Any]) -> Object:
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in params.items()}


def _with_text(signature: Signature, params: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any] | None:
    """Return the parameters with one text changed, one that accepts it; None when none does."""
    for parameter in signature.parameters:
        if parameter.type != "str":
            continue
        old = params.get(parameter.id, parameter.default)
        changed = {**params, parameter.id: change(old if isinstance(old, str) else "")}
        try:
            signature.check(_raw_values(changed))
        except InvalidParameters:
            continue
        return changed
    return None


def _between(text: str) -> str | None:
    """Return what came back in the place of the snowman."""
    _, mark, rest = text.partition(BEFORE)
    came_back, end, _ = rest.partition(AFTER)
    return came_back if mark and end else None


def _mangled(came_back: str) -> bool:
    """Tell a text that was read in another encoding from one that was escaped, or left out, on purpose."""
    return "?" in came_back or any(not letter.isascii() for letter in set(came_back) - set(SNOW))
