"""Runs one request against one bash file: ``python3 -I -S host.py [--fd3] [--max-output BYTES] FILE``.

The file's functions named ``cmd_NAME`` are its commands. Python reads and writes the JSON, so that the bash side
needs no jq; the bash side is ``command.sh``. A comment right above a function describes it::

    # Checksum of a text
    # @param text str The text
    # @param algorithm str=sha256 Name of the algorithm
    # @param [note] any Optional
    cmd_Checksum() { param text | "${PARAM_algorithm}sum"; }

A function without a comment accepts any parameters; ``# @async`` marks a command whose work is long.

What the function sees: each parameter as the exported ``PARAM_x`` (numbers in decimal, true or false, lists and
objects as JSON; null is left unset; letters outside [A-Za-z0-9_] become _), or, when it is too large for an
environment, ``PARAMFILE_x``, the name of a file; ``param x`` writes either. The whole request is its stdin. Secrets
are in there, not in the environment.

What its stdout means: a JSON object or list is the result as it is; everything else is text, ``{"output": "..."}``,
without the newlines at its end. A number or ``true`` alone is text too, or the shape of a result would depend on what
a checksum looks like. Where the last line alone is an object or a list, it is the result, and what stands before it is
noise, which the gateway warns of. Text that begins or ends like JSON and is none is an error. A non-zero exit status is
a failure, told by that status unless stdout is ``{"error": ...}``.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys

TYPE_CHECKING = False  # typing's own takes 5 ms to import
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]
    # What one request came to: an exit status (negative: a signal), and one JSON document if there is one.
    Answer = tuple[int, bytes | None]

MAX_OUTPUT = 64 << 20
MAX_VARIABLE = 64 << 10
MAX_VARIABLES = 1 << 20  # Linux grants the environment and argv a quarter of the stack limit, usually 2 MiB

BASH_SIDE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "command.sh")
FUNCTION = re.compile(r"\s*(?:function\s+cmd_([\w.-]+)\s*(?:\(\s*\)\s*)?|cmd_([\w.-]+)\s*\(\s*\)\s*)(?:[{(#].*)?$")
NOT_A_COMMENT = re.compile(r"#!|#\s*shellcheck ")
BEGINS_LIKE_JSON = re.compile(r'^(?:\{\s*"|\[\s*["{])', re.MULTILINE)
PARAMETER = re.compile(
    r"""@param \s+ (?: \[([\w.-]+)\] | ([\w.-]+) )
        \s+ (str|int|bool|any) (?: =("[^"]*"|\S*) )?
        (?: \s+ (.*) )? $""",
    re.VERBOSE,
)


def main(args: list[str]) -> int:
    results = 1
    max_output = MAX_OUTPUT
    while args and args[0].startswith("--"):
        option = args.pop(0)
        if option == "--fd3":
            results = 3
        elif option == "--max-output":
            max_output = int(args.pop(0))
        else:
            sys.exit(f"unknown option {option}")
    if len(args) != 1:
        sys.exit("usage: host.py [--fd3] [--max-output BYTES] FILE")
    os.set_inheritable(results, False)
    path = os.path.abspath(args[0])
    status, document = answer(path, read_all(0), max_output)
    if document is not None:
        write_all(results, document + b"\n")
    if status < 0:
        die_of(-status)
    return status


def answer(path: str, request_bytes: bytes, max_output: int) -> Answer:
    """Answers one request; there is no document when a command failed and only its status tells so."""
    try:
        request = json.loads(request_bytes)
        op = request["op"]
    except (ValueError, TypeError, KeyError) as error:
        return failure("invalid_request", f"the request is not a JSON object with an op: {error}")
    commands, problems = parse_commands(path)
    if op == "describe":
        described = {"commands": list(commands.values()), "auths": []}
        return 0, encode(described | {"problems": problems} if problems else described)
    if op != "execute":
        return failure("invalid_request", "op must be describe or execute")
    command = commands.get(request.get("command"))
    if command is None:
        return failure("command_not_found", f"there is no command {request.get('command')}")
    return execute(path, command, request, request_bytes, max_output)


def execute(path: str, command: Json, request: Json, request_bytes: bytes, max_output: int) -> Answer:
    defaults = {each["id"]: each["default"] for each in command["parameters"] if "default" in each}
    variables = parameter_variables(defaults | request.get("params", {}))
    stdin = inherited_file(request_bytes)
    status, output = run_bash([path, command["name"]], os.environ | variables, stdin, max_output)
    if output is None:
        return failure("connector_output_too_large", f"the command wrote more than {max_output} bytes")
    return interpret(status, output)


def interpret(status: int, output: bytes) -> Answer:
    try:
        text = output.decode("utf-8-sig")
        result = find_result(text.strip())
    except (ValueError, RecursionError) as error:
        if status != 0:
            log(output)
            return status, None
        return failure("connector_invalid_output", f"the command's output is not valid: {error}", invalid_output=True)
    if result is not None and (status == 0 or (isinstance(result, dict) and "error" in result)):
        return status, output
    if status != 0:
        log(output)
        return status, None
    return 0, encode({"output": text.rstrip("\n")})


def find_result(text: str) -> Any:
    """The JSON object or list that a text, or the last line of it, is; else None. ValueError: it looks like one."""
    last = text[text.rfind("\n") + 1 :].strip()
    broken = None
    for candidate in [text, last]:
        if looks_like_json(candidate):
            try:
                # The digits of a number may be more than Python reads.
                return json.loads(candidate, parse_constant=refuse_constant, parse_int=str)
            except (ValueError, RecursionError) as error:
                # "[INFO] copied [3 files]" is a line of text.
                broken = broken or (error if candidate.startswith("{") or BEGINS_LIKE_JSON.match(candidate) else None)
    if broken is not None:
        raise broken
    check_mixture(text)
    return None


def looks_like_json(text: str) -> bool:
    in_brackets = text[:1] + text[-1:] in ("{}", "[]")
    return in_brackets or BEGINS_LIKE_JSON.match(text) is not None


def check_mixture(text: str) -> None:
    """Looks for JSON after the first line of a text that is none. ValueError: the text ends with it."""
    begins = BEGINS_LIKE_JSON.search(text)
    if begins is None:
        return
    try:
        _, end = json.JSONDecoder(parse_int=str).raw_decode(text, begins.start())
    except (ValueError, RecursionError):
        return
    line = text.count("\n", 0, begins.start()) + 1
    if end == len(text):
        raise ValueError(f"JSON on several lines begins in line {line}, after other text (send that to stderr)")
    log(f"line {line} of the command's output is JSON, and other text is around it: all of it is text\n".encode())


def refuse_constant(name: str) -> None:
    raise ValueError(f"JSON cannot hold {name}")


# --- describing -----------------------------------------------------------------------------------------------------


def parse_commands(path: str) -> tuple[dict[str, Json], list[Json]]:
    """The commands of a bash file by name, in order, and the problems with their comments. The file is not run."""
    commands, problems, comment = {}, [], []
    with open(path, encoding="utf-8") as source:
        for line in source:
            stripped = line.strip()
            function = FUNCTION.match(stripped)
            if stripped.startswith("#"):
                comment += [] if NOT_A_COMMENT.match(stripped) else [stripped.lstrip("#").strip()]
                continue
            if function:
                name = function[1] or function[2]
                commands[name], found = describe(name, comment)
                problems += [{"module": os.path.basename(path), "message": message} for message in found]
            comment = []
    return commands, problems


def describe(name: str, comment: list[str]) -> tuple[Json, list[str]]:
    described: Json = {"name": name, "parameters": [], "async": "@async" in comment}
    if not comment:
        return described | {"additional_parameters": True}, []
    problems = []
    for line in comment:
        if line.startswith("@param"):
            try:
                described["parameters"].append(parameter(line))
            except ValueError:
                problems.append(f"{name}: cannot read {line!r}: expected @param NAME str|int|bool|any[=DEFAULT] TEXT")
    names = [variable_name(each["id"]) for each in described["parameters"]]
    problems += [
        f"{name}: two parameters are both $PARAM_{twice}" for twice in sorted({n for n in names if names.count(n) > 1})
    ]
    text = " ".join(line for line in comment if line and not line.startswith("@"))
    return described | ({"description": text} if text else {}), problems


def parameter(line: str) -> Json:
    parts = PARAMETER.match(line)
    if parts is None:
        raise ValueError(line)
    optional, plain, kind, default, description = parts.groups()
    parsed = {"id": optional or plain, "type": kind, "required": optional is None and default is None}
    if default is not None:
        parsed["default"] = parse_default(default, kind)
    if description:
        parsed["description"] = description
    return parsed


def parse_default(text: str, kind: str) -> object:
    if kind == "str":
        return text[1:-1] if text.startswith('"') else text
    value = json.loads(text)
    if kind != "any" and type(value) is not {"int": int, "bool": bool}[kind]:
        raise ValueError(text)
    return value


# --- running --------------------------------------------------------------------------------------------------------


def parameter_variables(params: Json) -> dict[str, str]:
    """The environment of the parameters; what is too large for it, or holds a NUL, goes to files in memory."""
    variables, total = {}, 0
    for id_, value in params.items():
        if value is None:
            continue
        name, data = variable_name(id_), variable_value(value)
        if len(data) <= MAX_VARIABLE and total + len(data) <= MAX_VARIABLES and b"\0" not in data:
            variables["PARAM_" + name] = os.fsdecode(data)
            total += len(data)
        else:
            variables["PARAMFILE_" + name] = f"/dev/fd/{inherited_file(data)}"
    return variables


def variable_name(id_: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", id_)


def variable_value(value: object) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def inherited_file(data: bytes) -> int:
    """A descriptor of a file in memory, at its start, that the bash side inherits. It needs no cleaning up."""
    fd = os.memfd_create("shell-host", 0)
    os.set_inheritable(fd, True)
    write_all(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def run_bash(
    arguments: list[str], environment: dict[str, str], stdin: int, max_output: int
) -> tuple[int, bytes | None]:
    """Runs the bash side to its end and returns its status and output; output is None when there is too much of it.

    The end is the exit of bash, not the end of the pipe: that may be held open by a forgotten background process.
    """
    reading, writing = os.pipe()
    pid = os.posix_spawnp(
        "bash",
        ["bash", BASH_SIDE, *arguments],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, writing, 1),
            (os.POSIX_SPAWN_CLOSE, stdin),
        ],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores, and a child would inherit that
    )
    os.close(writing)
    ended = os.pidfd_open(pid)
    output = read_until(ended, reading, max_output)
    os.close(reading)
    if output is None:
        os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output


def read_until(ended: int, reading: int, max_output: int) -> bytes | None:
    os.set_blocking(reading, False)
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(ended, select.POLLIN)
    chunks, size, running = [], 0, True
    while running:
        # Asked before the pipe is read, which then holds all that bash wrote.
        running = ended not in dict(poll.poll())
        while chunk := read_some(reading):
            chunks.append(chunk)
            size += len(chunk)
            if size > max_output:
                return None
        if chunk == b"" and running:
            poll.unregister(reading)
    return b"".join(chunks)


def read_some(fd: int) -> bytes | None:
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return None


# --- bytes in and out -----------------------------------------------------------------------------------------------


def failure(code: str, message: str, **more: object) -> Answer:
    return 1, encode({"error": {"error_code": code, "message": message, **more}})


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def log(output: bytes) -> None:
    write_all(2, output)


def read_all(fd: int) -> bytes:
    return b"".join(iter(lambda: os.read(fd, 1 << 20), b""))


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def die_of(number: int) -> None:
    """Ends as bash ended, so that the gateway sees the same."""
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
