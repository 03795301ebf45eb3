"""The one use case: a request and a connector's code in, an outcome out.

No I/O here: the caller reads the request and writes the outcome, so the same core serves one process a request, a fork
of a warm process, and one process for many requests (a body holds no newline).
"""

from __future__ import annotations

import contextlib
import inspect
import os
import traceback
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, TypedDict

from . import applications, encoding, errors, flask_app, members
from .signatures import Signature
from .targets import AUTHS, COMMANDS, PackageTarget, Place, Target

Request = Dict[str, Any]

Known = Dict[Tuple[str, str], Tuple[Any, Signature]]
"""Commands by module and name, with what they take: true as long as no code of the connector has run since."""

HOST = os.path.dirname(os.path.abspath(__file__))


class Outcome(TypedDict):
    """What a request came to."""

    body: bytes  # one JSON document, without a newline
    exit_status: int  # 0: the connector's result (which may tell an error of its own); 1: an error told by the host
    log: str  # for stderr: the connector's traceback


class Problem(TypedDict):
    """Why a part of the connector is hidden."""

    module: str
    message: str


def handle(request: Any, target: Target, known: Optional[Known] = None) -> Outcome:
    """Answer one request. Raises nothing but KeyboardInterrupt and MemoryError."""
    try:
        return Outcome(body=encoding.encode(_answer(request, target, known or {})), exit_status=0, log="")
    except errors.ConnectorError as error:
        return told(error)


def told(error: errors.ConnectorError) -> Outcome:
    """Give the outcome of a request that failed."""
    raised = error.__cause__ if isinstance(error, errors.RaisedError) else None
    log = "".join(_connector_traceback(raised)) if raised else f"{error.code}: {error}\n"
    return Outcome(body=encoding.encode({"error": error.to_json()}), exit_status=1, log=log)


def warm_up(target: Target) -> List[Problem]:
    """Import everything and call the connector's `warmup()`, for a process that will serve more than one request.

    What goes wrong is returned and stops nothing: a cold start is no reason to refuse work.
    """
    description = _Description(target)
    description.warm_up()
    return description.problems


def known(target: Target) -> Known:
    """Look every command up once, for a process that forks; what fails is left to the request that needs it."""
    found: Known = {}
    with contextlib.suppress(Exception, SystemExit):
        for place in target.places(COMMANDS):
            with contextlib.suppress(Exception, SystemExit):
                for name, command in members.find(target.load(place.module), place, COMMANDS).items():
                    with contextlib.suppress(Exception, SystemExit):
                        found[place.module, name] = command, members.signature(command)
    return found


def _answer(request: Any, target: Target, known: Known) -> Any:
    if not isinstance(request, dict):
        message = "the request must be a JSON object"
        raise errors.InvalidRequestError(message)
    operation = request.get("op")
    if operation == "describe":
        return _Description(target, _typed(request, "config", dict, {})).to_json()
    if operation == "execute":
        return _execute(request, target, known)
    message = f"op must be 'describe' or 'execute', not {operation!r}"
    raise errors.InvalidRequestError(message)


class _Description:
    """Everything the connector has; what cannot be imported or described hides only itself."""

    def __init__(self, target: Target, config: Optional[Dict[str, Any]] = None) -> None:
        """Without `config` nobody is asked for an application."""
        self._target = target
        self._config = config
        self.problems: List[Problem] = []
        self.commands = self._entries(COMMANDS)
        self.auths = self._entries(AUTHS)

    def to_json(self) -> Dict[str, Any]:
        return {"commands": self.commands, "auths": self.auths, "problems": self.problems}

    def warm_up(self) -> None:
        if any(entry.get("validate") == members.NAMES for entry in self.commands):
            flask_app.warm_up()
        module = self._attempt(self._target.name, self._target.load, self._target.name)
        warmup = getattr(module, members.WARMUP, None)
        if callable(warmup):
            self._attempt(f"{self._target.name}.{members.WARMUP}", warmup)

    def _entries(self, kind: str) -> List[Dict[str, Any]]:
        entries: Dict[str, Dict[str, Any]] = {}
        for place in self._attempt(self._target.name, self._target.places, kind) or []:
            found = self._attempt(place.module, self._members, place, kind) or {}
            for name, value in found.items():
                entry = self._attempt(place.module, self._entry, name, value, place, kind)
                hidden = entries.pop(name, None)
                if hidden:  # the last one wins, as in the original
                    self._report(hidden["module"], f"{name} is hidden by the one in {place.module}")
                entries.update({name: entry} if entry else {})
        return list(entries.values())

    def _entry(self, name: str, value: Any, place: Place, kind: str) -> Dict[str, Any]:
        entry = members.describe(name, value, place, kind)
        if kind == AUTHS and self._config is not None:
            entry.update(applications.describe(value, self._config))
        encoding.encode(entry)  # text that has no UTF-8 form must fail here, where it hides only this entry
        return entry

    def _members(self, place: Place, kind: str) -> Dict[str, Any]:
        module = self._target.load(place.module)
        for name in members.missing(module, place):
            self._report(place.module, f"__all__ names {name}, which is not there")
        return members.find(module, place, kind)

    def _attempt(self, module: str, attempt: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return attempt(*arguments)
        except (Exception, SystemExit) as raised:  # noqa: BLE001  (import runs any code; it hides only itself)
            self._report(module, errors.one_line(raised))
            return None

    def _report(self, module: str, message: str) -> None:
        problem = Problem(module=module, message=message)
        if problem not in self.problems:  # a broken package fails for its commands and for its auths
            self.problems.append(problem)


def _execute(request: Request, target: Target, known: Known) -> Any:
    name = _typed(request, "command", str, None)
    params = _typed(request, "params", dict, {})
    reserved = {
        "config": _typed(request, "config", dict, {}),
        "task_data": request.get("task_data", {}),
        "context": _typed(request, "context", dict, {}),
    }
    command, signature = known.get((str(request.get("module")), name)) or _looked_up(request, name, target)
    arguments = signature.bind(params, reserved)
    if not isinstance(command, type):
        with _ConnectorCode():
            return _with_bytes(_finished(command(*arguments.positional, **arguments.named)))
    if not isinstance(target, PackageTarget):
        with _ConnectorCode():
            return _with_bytes(_finished(_run(command(*arguments.positional, **arguments.named), reserved)))
    with _ConnectorCode(), flask_app.context(reserved["config"]) as config:
        made = command(*arguments.positional, **arguments.named)
        return _with_bytes(_finished(_run(made, {**reserved, "config": config})))


def goes_on(request: Any, target: Target, known: Optional[Known] = None) -> bool:
    """Tell whether what a request has started may go on after its answer, and call back by itself."""
    if not isinstance(request, dict) or request.get("op") != "execute" or not _callback_url(request.get("context")):
        return False
    name, module = request.get("command"), str(request.get("module"))
    found = (known or {}).get((module, str(name)))
    command = found[0] if found else _find_in(module, str(name), target)
    return isinstance(command, type) and callable(getattr(command, "execute_async", None))


def _with_bytes(result: Any) -> Any:
    """Have the bytes of a version 1 result go out as they are: JSON has no form for them."""
    if (
        isinstance(result, dict)
        and "mimetype" in result
        and isinstance(result.get("response"), (bytes, bytearray, memoryview))
    ):
        return {**result, "encoding": "base64"}
    return result


def _typed(request: Request, key: str, kind: type, default: Any) -> Any:
    value = request.get(key)
    if value is None:
        value = default
    if not isinstance(value, kind):
        message = f"{key} must be {'an object' if kind is dict else 'a string'}"
        raise errors.InvalidRequestError(message)
    return value


def _run(instance: Any, reserved: Dict[str, Any]) -> Any:
    # By position: the original does, and connectors write `_config` or leave the names to a base class.
    config, task_data = reserved["config"], reserved["task_data"]
    callback_url = _callback_url(reserved["context"])
    if callback_url and callable(getattr(instance, "execute_async", None)):
        return instance.execute_async(config, task_data, callback_url=callback_url)
    return instance.execute(config, task_data)


def _callback_url(context: Any) -> Optional[str]:
    url = context.get("callback_url") if isinstance(context, dict) else None
    return url if isinstance(url, str) and url else None


def _finished(result: Any) -> Any:
    """Wait for what is awaited, and read what is yielded, while the connector's own code is what may fail."""
    if inspect.isawaitable(result) or hasattr(type(result), "__aiter__"):
        import asyncio  # noqa: PLC0415  (it costs tens of milliseconds)

        result = asyncio.run(_awaited(result))
    return encoding.listed(result) if encoding.is_iterator(result) else result


async def _awaited(result: Any) -> Any:
    while inspect.isawaitable(result):
        result = await result
    if not hasattr(type(result), "__aiter__"):
        return result
    found = []
    async for value in result:
        if len(found) == encoding.LONGEST:
            raise encoding.too_many()
        found.append(value)
    return found


def _looked_up(request: Request, name: str, target: Target) -> Tuple[Any, Signature]:
    command = _find(request, name, target)
    with _ConnectorCode():
        return command, members.signature(command)


def _find(request: Request, name: str, target: Target) -> Any:
    """Import what holds the command and as little else as possible."""
    with _ConnectorCode():
        found = _find_in(request.get("module"), name, target)
        places = target.places(COMMANDS) if found is None else []
    failures: List[str] = []
    for place in _likely_first(places, name):
        try:
            found = members.find(target.load(place.module), place, COMMANDS).get(name)
        except (Exception, SystemExit) as raised:  # noqa: BLE001  (another module may well hold it)
            failures.append(f"{place.module} could not be imported: {errors.one_line(raised)}")
        if found is not None:
            break
    if found is not None:
        return found
    message = "; ".join([f"{target.name} has no command {name}", *failures])
    raise errors.CommandNotFoundError(message)


def _find_in(module: Any, name: str, target: Target) -> Any:
    """Look where describe found it; None when it has moved since."""
    place = target.place(module, COMMANDS) if isinstance(module, str) else None
    if place is None:
        return None
    try:
        return members.find(target.load(place.module), place, COMMANDS).get(name)
    except ModuleNotFoundError as error:
        if f"{place.module}.".startswith(f"{error.name}."):
            return None
        raise


def _likely_first(places: List[Place], name: str) -> List[Place]:
    """Order modules by whether their source mentions the command; of two that define it, the last wins."""
    latest = places[::-1]
    latest.sort(key=lambda place: not _mentions(place, name))
    return latest


def _mentions(place: Place, name: str) -> bool:
    try:
        with open(place.file, "rb") as source:
            return name.encode("utf-8", "replace") in source.read()
    except OSError:
        return False


class _ConnectorCode:
    """Turns whatever the connector's own code raises into `RaisedError`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, raised: Optional[BaseException], _frames: object) -> None:
        if raised is None or isinstance(raised, (KeyboardInterrupt, errors.InvalidOutputError)):
            return
        if isinstance(raised, SystemExit) and not raised.code:
            message = "the command ended the process (sys.exit) before it returned a result"
            raise errors.InvalidOutputError(message) from raised
        raise errors.RaisedError(raised) from raised


def _connector_traceback(raised: BaseException) -> Iterator[str]:
    """Format what the connector's author needs: the frames of the host are not theirs."""
    frames = raised.__traceback__
    while frames and frames.tb_next and frames.tb_frame.f_code.co_filename.startswith(HOST):
        frames = frames.tb_next
    yield from traceback.format_exception(type(raised), raised, frames)
