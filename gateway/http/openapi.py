"""The OpenAPI document of a running gateway: its routes, and one operation for each command that can be called."""

from __future__ import annotations

import collections
import hashlib
import inspect
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import msgspec

from gateway.connectors.examples import as_sent, find_examples, is_accepted, made_up, read_examples
from gateway.connectors.parameters import CONTEXT
from gateway.connectors.schemas import Schema
from gateway.errors import ConfigError
from gateway.http import shapes
from gateway.http.calls import PATH as CALLS
from gateway.http.jobs import DIGITS
from gateway.http.routes import CONSOLE, DOCS, KEY_HEADER, SIGN_IN, Access
from gateway.http.shapes import COUNT, STATE, TEXT
from gateway.http.statuses import ACCEPTED, TOLD
from gateway.http.subschemas import chosen, folded, nullable, placed, refers
from gateway.jobs.contract import OPEN, JobState
from gateway.protocol.envelope import JSON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gateway.connectors.definition import Command, Connector
    from gateway.connectors.examples import Example
    from gateway.connectors.parameters import Parameter, Signature
    from gateway.connectors.snapshot import Snapshot
    from gateway.http.routes import Route

VERSION = "3.1.1"
EXAMPLES = 5
"""Examples of one command that are shown."""
LARGEST = 1 << 14
"""Bytes of an example that is shown."""
ABOUT = """What can be called on this gateway now: an operation for each command, and the routes of the gateway itself.

Each path answers OPTIONS, and HEAD where it has GET; any other method is a 405 `method_not_allowed` with `Allow`.
Commands can be called with GET, too, as connector proxies have it."""
OWN = "Gateway"
"""The tag of the gateway's own routes."""
_IN_PATH = re.compile(r"{(\w+)}")
_PLAIN = re.compile(r"(?!_)(?:(?!__)\w)+(?<!_)", re.ASCII)
_TYPES = {"str": "string", "int": "integer", "bool": "boolean"}
_UNREAD = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xef\xbf[\xbe\xbf]")
"""Characters that JSON may have as they are, and YAML may not: there are tools that read the one as the other."""
_LENGTH = r"[0-9]{1,4}(\.[0-9]{1,9})?(ms|s|m|h|d)"
_DAY = r"((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-](0[0-9]|1[0-2]):[0-5][0-9])"
_MOMENT = {**TEXT, "pattern": rf"^({_LENGTH}|[0-9]{{1,12}}(\.[0-9]{{1,9}})?|(19[7-9]|20[0-9])[0-9]-{_DAY}T{_TIME})$"}
_NUMBER = {**COUNT, "maximum": 10**DIGITS - 1}
_FILTERS = dict.fromkeys(("connector", "process_instance", "task", "client"), TEXT)
_QUERIES: dict[str, dict[str, dict[str, Any]]] = {
    "/v1/status": {"client": TEXT},
    "/v1/auth/{connector}/{auth}": {"redirect_url": {**TEXT, "format": "uri"}},
    "/v1/auth/{connector}/{auth}/callback": dict.fromkeys(("code", "state", "error", "error_description"), TEXT),
    "/v1/jobs": {"state": STATE, **_FILTERS, "limit": _NUMBER, "offset": _NUMBER},
    "/v1/jobs/purge": {
        "state": {**TEXT, "enum": [one.value for one in JobState if one not in OPEN]},
        "older_than": {**TEXT, "pattern": f"^{_LENGTH}$"},
    },
    "/v1/jobs/{id}/retry": {"run": {"type": "boolean"}},
    "/v1/runs": {
        **dict.fromkeys(
            ("connector", "command", "outcome", "process_instance", "task", "client", "job", "after"), TEXT
        ),
        "since": _MOMENT,
        "until": _MOMENT,
        "limit": _NUMBER,
        "offset": _NUMBER,
    },
    "/v1/typeahead/{category}": {"prefix": TEXT, "limit": {"type": "integer", "minimum": 1, "maximum": 1000}},
}
_NEEDED = {"redirect_url", "older_than"}
"""Those of them that have to be there."""
_REPLAY = "/v1/runs/{run}/replay"
_OK: dict[str, Any] = {"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean"}}}
_LIST = {"type": "array", "items": shapes.named("Listed")}
_JOBS = {
    "type": "object",
    "required": ["jobs", "limit", "offset"],
    "properties": {"jobs": {"type": "array", "items": shapes.named("JobStatus")}, "limit": COUNT, "offset": COUNT},
}
_ANSWERS: dict[str, dict[str, Any]] = {
    "/": {**_OK, "properties": {**_OK["properties"], "name": TEXT, "version": TEXT}},
    "/liveness": _OK,
    "/v1/liveness": _OK,
    "/v1/readiness": shapes.named("Health"),
    "/v1/status": {"type": "object"},
    "/v1/commands": _LIST,
    "/v1/auths": _LIST,
    "/openapi.json": {"type": "object"},
    "/v1/reload": {
        "type": "object",
        "properties": {
            "ok": {"type": "boolean"},
            "problem": {"type": ["string", "null"]},
            "connectors": COUNT,
            "clients": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        },
    },
    "/v1/typeahead/{category}": {"type": "array", "items": {}},
    "/v1/jobs": _JOBS,
    "/v1/jobs/{id}": shapes.named("JobStatus"),
    "/v1/jobs/{id}/cancel": shapes.named("JobStatus"),
    "/v1/jobs/{id}/retry": shapes.named("JobStatus"),
    "/v1/jobs/purge": {"type": "object", "required": ["removed"], "properties": {"removed": COUNT}},
    "/v1/runs": {
        "type": "object",
        "properties": {
            "node": TEXT,
            "runs": {"type": "array", "items": {"type": "object"}},
            "limit": COUNT,
            "offset": COUNT,
        },
    },
    "/v1/runs/{run}": {"type": "object"},
}
"""What routes answer; of those that are not here, texts."""
_PAGES: dict[str, tuple[str, ...]] = {DOCS: ("text/html",), f"{DOCS}/{{file}}": ("text/css", "text/javascript")}
"""What browsers are sent."""
_ONE_JOB = (404, 409, 503)
_PROBLEMS: dict[str, tuple[int, ...]] = {
    f"{DOCS}/{{file}}": (404,),
    "/v1/jobs": (503,),
    "/v1/jobs/purge": (503,),
    "/v1/jobs/{id}": (404, 503),
    "/v1/jobs/{id}/cancel": _ONE_JOB,
    "/v1/jobs/{id}/retry": _ONE_JOB,
    "/v1/runs": (503,),
    "/v1/runs/{run}": (404, 503),
    _REPLAY: (404, 409, 429, 500, 502, 503, 504),
    "/v1/typeahead/{category}": (404, 429, 500, 502, 503, 504),
}
"""What routes answer beside that, 400 and what has to do with keys apart."""
_ACCEPTS = {"/v1/jobs/{id}/retry"}


class Admittance(NamedTuple):
    """Who is let in."""

    keyed: bool
    """Callers need a key."""
    opened: frozenset[Access] = frozenset({Access.OPEN})
    """What is open to all."""
    certified: bool = False
    """There are authorities of callers' certificates."""
    named: bool = False
    """A certificate says which client shows it, and does for a key."""
    required: bool = False
    """Who shows none cannot connect."""

    @property
    def asks(self) -> bool:
        """Tell whether nobody gets in who does not show a key."""
        return self.keyed and not (self.certified and self.named)

    def schemes(self) -> dict[str, Any]:
        """Return the ways to say who calls."""
        certificate = {"certificate": {"type": "mutualTLS"}} if self.certified else {}
        return {
            "key": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
            "bearer": {"type": "http", "scheme": "bearer"},
            **certificate,
        }

    def security(self, *, keyed: bool) -> list[dict[str, Any]]:
        """Return which of them are needed, where a key is or is not."""
        always: dict[str, Any] = {"certificate": []} if self.required else {}
        ways = [{"key": [], **always}, {"bearer": [], **always}] if keyed else [always]
        if keyed and self.certified and self.named:
            ways.append({"certificate": []})
        return [way for way in ways if way]


def document(
    snapshot: Snapshot, routes: Iterable[Route], version: str, admittance: Admittance, *, server: str
) -> bytes:
    """Return it as JSON. It reads the examples that lie beside connectors. `server` is the URL of all paths."""
    paths: dict[str, Any] = {}
    schemas = _Schemas()
    tags: list[msgspec.Raw] = []
    own = [one for one in routes if one.method in {"GET", "POST"} and one.path != CALLS and not _is_of_console(one)]
    connectors = list(snapshot.ready())
    commands = [(one.called, name) for one in connectors for name in one.commands or ()]
    ids = operation_ids(commands, map(_id_of_route, own))
    tagged = _apart({one.called: one.called for one in connectors}, [])
    for connector in connectors:
        examples = list(_examples(connector))
        about = connector.redact(connector.description or "").strip() or f"Commands of {connector.called}."
        tags.append(_written({"name": tagged[connector.called], "description": about}))
        for command in (connector.commands or {}).values():
            path = CALLS.format(connector=quote(connector.called, safe=""), command=quote(command.name, safe=""))
            name = ids[connector.called, command.name]
            operation = _of_command(connector.called, command, name, examples, schemas)
            paths[path] = _written({"post": {**operation, "tags": [tagged[connector.called]]}})
    tag = _apart({OWN: OWN}, tagged.values())[OWN]
    tags.append(_written({"name": tag, "description": "What the gateway says of itself, and what becomes of jobs."}))
    for route in own:
        paths.setdefault(route.path, {})[route.method.lower()] = _of_route(route, tag, admittance)
    return msgspec.json.encode(
        {
            "openapi": VERSION,
            "info": {
                "title": "Connector gateway",
                "version": version,
                "description": ABOUT,
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": server}],
            "security": admittance.security(keyed=admittance.keyed),
            "tags": tags,
            "paths": paths,
            "components": {
                "schemas": {name: _written(one) for name, one in schemas.made.items()},
                "responses": shapes.responses(),
                "headers": shapes.headers(),
                "parameters": {
                    name: {"name": name, "in": "header", **facts} for name, facts in shapes.REQUEST_HEADERS.items()
                },
                "securitySchemes": admittance.schemes(),
            },
        }
    )


def operation_ids(commands: Iterable[tuple[str, str]], taken: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return the names of the commands' operations, by connector and command; `taken` are those of others."""
    return _apart({one: operation_id(*one) for one in commands}, taken)


def operation_id(connector: str, command: str) -> str:
    """Return the name of a command's operation: an identifier, another one for each command, whatever else there is.

    It is `connector__command` where both are words. Otherwise what is no letter is replaced, and a digest tells apart
    what looks the same then.
    """
    name = f"{connector}__{command}"
    if _PLAIN.fullmatch(connector) and _PLAIN.fullmatch(command):
        return _identifier(name)
    digest = _digest(f"{connector}/{command}")
    return _identifier(f"{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}__{digest}")


# --- private


def _apart(names: dict[Any, str], taken: Iterable[str]) -> dict[Any, str]:
    """Return names of which no two differ in case, underscores and the like alone, nor one from one that is taken.

    Generators would write them the same. Each that would be has a digest, so that it does not matter who was first.
    """
    often = collections.Counter(map(folded, [*names.values(), *taken]))
    return {
        one: name if often[folded(name)] == 1 else f"{name}__{_digest(one if isinstance(one, str) else '/'.join(one))}"
        for one, name in names.items()
    }


def _written(part: Any) -> msgspec.Raw:
    """Return a part as JSON, by itself: of all of it at once, nobody else would have the interpreter meanwhile."""
    return msgspec.Raw(_UNREAD.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), msgspec.json.encode(part)))


def _identifier(name: str) -> str:
    return f"_{name}" if name[:1].isdigit() else name


def _responses(statuses: Iterable[int | str]) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _is_of_console(route: Route) -> bool:
    return route.path.startswith(CONSOLE)


def _id_of_route(route: Route) -> str:
    words = re.sub(r"\W+", "_", route.path).strip("_") or "root"
    return f"{route.method.lower()}_{words}"


def _of_route(route: Route, tag: str, admittance: Admittance) -> dict[str, Any]:
    queries = _QUERIES.get(route.path, {})
    is_open = route.access in admittance.opened
    in_path = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in _IN_PATH.findall(route.path)]
    in_query = [
        {"name": name, "in": "query", "schema": one, **({"required": True} if name in _NEEDED else {})}
        for name, one in queries.items()
    ]
    in_header = [name for name in shapes.REQUEST_HEADERS if route.path == _REPLAY and name != "X-Timeout"]
    problems = {400, *_PROBLEMS.get(route.path, ()), *(() if is_open else (shapes.UNAUTHORIZED, 403))}
    said = inspect.getdoc(route.handler) or ""
    operation = {
        "summary": said.partition("\n")[0],
        "description": said,
        "operationId": _id_of_route(route),
        "tags": [tag],
        "parameters": [*in_path, *in_query, *map(_header, in_header)],
        "responses": {**_responses([*sorted(problems), "default"]), **_answered(route)},
    }
    return {**operation, "security": admittance.security(keyed=False)} if is_open else operation


def _header(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/parameters/{name}"}


def _answered(route: Route) -> dict[str, Any]:
    """Return what a route answers where nothing goes wrong; of one for browsers, also what they are shown then."""
    if route.path.startswith(SIGN_IN):
        page = {"$ref": "#/components/responses/page"}
        to = {"description": "Where to go.", "headers": {"Location": {"$ref": "#/components/headers/Location"}}}
        return {"302": to, **dict.fromkeys(("400", "404", "500", "502"), page)}
    if route.path == _REPLAY:
        return {**_responses([TOLD, ACCEPTED]), "default": {"$ref": "#/components/responses/legacy"}}
    answer = _ANSWERS.get(route.path)
    if answer is None:
        kinds = _PAGES.get(route.path, ("text/plain",))
        return {"200": {"description": "OK", "content": {kind: {"schema": TEXT} for kind in kinds}}}
    if route.path == "/v1/readiness":
        return {"200": shapes.told(answer), "503": shapes.told(answer, "No new work is taken.")}
    return {"202" if route.path in _ACCEPTS else "200": shapes.told(answer)}


def _of_command(
    connector: str, command: Command, name: str, examples: list[Example], schemas: _Schemas
) -> dict[str, Any]:
    """Return the operation of a command, called `name`; what its parameters' schemas refer to is added to `schemas`."""
    signature = command.signature
    usable = signature.parameters if signature.enforced else map(_without_a_bad_schema, signature.parameters)
    parameters = {one.id: _schema(name, one, schemas) for one in usable}
    body: dict[str, Any] = {"type": "object", "properties": {**parameters, **shapes.CALLER}}
    if required := [one.id for one in signature.parameters if one.required]:
        body["required"] = required
    if not signature.additional:
        body["additionalProperties"] = False
        body["patternProperties"] = {f"^{CONTEXT}": {}}
    content: dict[str, Any] = {"schema": body}
    if shown := list(_shown(signature, [one for one in examples if one.command == command.name])):
        content["examples"] = {f"example{number}": {"value": one} for number, one in enumerate(shown, 1)}
    told = (command.description or "").strip() or f"{connector}: {command.name}"
    return {
        "summary": told.partition("\n")[0],
        "description": told,
        "operationId": name,
        "parameters": list(map(_header, shapes.REQUEST_HEADERS)),
        "requestBody": {"required": True, "content": {JSON: content}},
        "responses": {
            **_responses(sorted(set(shapes.OF_CALLS))),
            "default": {"$ref": "#/components/responses/legacy"},
        },
    }


def _examples(connector: Connector) -> Iterator[Example]:
    """Yield what the author wrote down, without the connector's secrets.

    A file that holds no examples is the business of `gateway test`.
    """
    try:
        file = find_examples(connector.called, connector.folder)
        examples = read_examples(file) if file is not None else ()
    except (ConfigError, OSError):
        return
    for one in examples:
        text = msgspec.json.encode(one.params).decode()
        if connector.redact(text) == text:
            yield one


def _shown(signature: Signature, examples: list[Example]) -> Iterator[dict[str, Any]]:
    """Yield parameters that the command accepts and that hold no secret: an author's, or else what is made up."""
    good = [one.params for one in examples if one.expect is None or one.expect.error_code is None]
    found = 0
    for params in good:
        if found < EXAMPLES and _can_be_shown(signature, params):
            found += 1
            yield params
    made = None if found else made_up(signature)
    if made is not None and not refers(made) and len(msgspec.json.encode(made)) <= LARGEST:
        yield made


def _can_be_shown(signature: Signature, params: dict[str, Any]) -> bool:
    is_small = len(msgspec.json.encode(params)) <= LARGEST
    return (
        is_small
        and not refers(params)
        and is_accepted(signature, params)
        and signature.secret_values(as_sent(params)) == []
    )


def _without_a_bad_schema(one: Parameter) -> Parameter:
    """Return a parameter, without its schema where that is none: nobody has looked at it where it only describes."""
    if isinstance(one.schema, dict):
        try:
            Schema(one.schema)
        except ValueError:
            return msgspec.structs.replace(one, schema=msgspec.UNSET)
    return one


class _Schemas:
    """The schemas that others refer to, by names that are not the same in any language."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = shapes.schemas()
        self._taken = set(map(folded, self.made))

    def namer(self, name: str) -> Callable[[str], str]:
        """Return what makes the names of a parameter's schemas, which begin with `name`."""

        def called(word: str) -> str:
            whole = f"{name}__{word}" if word else name
            plain = re.sub(r"[^A-Za-z0-9._-]", "_", whole)
            if plain != whole or folded(plain) in self._taken:
                plain = f"{plain}__{_digest(f'{whole}/{len(self._taken)}')}"
            self._taken.add(folded(plain))
            return plain

        return called


def _schema(operation: str, one: Parameter, schemas: _Schemas) -> dict[str, Any]:
    """Return what fits a parameter as JSON Schema; what it refers to is added to `schemas`."""
    told: dict[str, Any] = {}
    if isinstance(one.schema, dict):
        try:
            told, shared = placed(one.schema, schemas.namer(f"{operation}__{one.id}"))
            schemas.made.update(shared)
        except ValueError:  # what it refers to has no place here: whoever calls is told what does not fit
            told = {}
    if isinstance(one.enum, list):
        told |= chosen(one.enum)
    kind = _TYPES.get(one.type)
    if kind is not None and "$ref" not in told:
        told.setdefault("type", kind)
    for key in ("description", "default"):
        value = getattr(one, key)
        if value is not msgspec.UNSET and not refers(value):
            told.setdefault(key, value)
    if not one.required:
        told = nullable(told)
    if one.secret is True:
        told["writeOnly"] = True
        if one.type in {"str", "any"}:
            told.setdefault("format", "password")
    return told


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]
