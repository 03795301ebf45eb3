"""Runs that are over, made up."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.connectors.parameters import Parameter, Signature
from gateway.journal.records import Payload, Ran
from gateway.observe.events import RunFinished
from gateway.observe.redact import Redactor
from gateway.protocol.request import Caller

NOW = 1_800_000_000.0


def ran(name: str, *, at: float = NOW, log: str = "", payload: Payload | None = None, **facts: Any) -> Ran:
    """Return a run that has ended at a time; facts are its event's and its caller's."""
    called = {key: facts.pop(key) for key in ("task_id", "process_instance_id", "key_id") if key in facts}
    told = {"connector": "fax", "command": "Send", "outcome": "ok", "client": None, **facts}
    job, again = told.pop("job", None), told.pop("again", False)
    return Ran(
        id=name,
        event=RunFinished(request_id=f"request-{name}", **told),
        caller=Caller(request_id=f"request-{name}", client=told["client"], **called),
        finished=at,
        took=2.0,
        started=0.5,
        job=job,
        replay_of=None,
        log=log,
        payload=payload,
        again=again,
    )


def sent(
    params: dict[str, Any], *, result: bytes = b"", secret: tuple[str, ...] = (), known: tuple[str, ...] = ()
) -> Payload:
    """Return what a run was called with and answered; some parameters are secret, and some values known to be."""
    signature = Signature(
        tuple(Parameter(id=name, type="any", required=False, secret=True) for name in secret), additional=True
    )
    return Payload(
        params={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in params.items()},
        task_data=msgspec.Raw(b"{}"),
        result=(result,),
        redact=Redactor(known),
        secret_values=signature.secret_values,
        hides=signature.hides,
    )
