"""One status view over several workers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.http.peers import ask
from gateway.jobs.remote import ENGINE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.team import Team

KEPT = 10  # outcomes of a connector
_MODES = (None, "persistent", "fork", "standby", "spawn")  # each but the first falls back to the next
_STATES = ("ready", "describing", "quarantined")  # from good to bad
_CIRCUITS = ("closed", "half_open", "open")  # from good to bad


async def status_of_team(own: dict[str, Any], team: Team, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """Ask the other workers, and put their answers together with one's own."""
    answers = await asyncio.gather(*(ask(team, worker, path, headers) for worker in team.others()))
    for worker, answer in zip(team.others(), answers, strict=True):
        if answer is None or answer.status != 200:
            own["workers"].append({"worker": worker, "pid": None})
        else:
            _add(own, answer.value)
            if worker == ENGINE:
                own["jobs"] = answer.value["jobs"]
    own["workers"].sort(key=lambda one: one["worker"])
    return own


def _add(own: dict[str, Any], other: dict[str, Any]) -> None:
    own["workers"] += other["workers"]
    own["processes"]["kept"] += other["processes"]["kept"]
    own["background_runs"] += other["background_runs"]
    own["registry_problem"] = own["registry_problem"] or other["registry_problem"]
    for name, theirs in other["connectors"].items():
        mine = own["connectors"].setdefault(name, theirs)
        if mine is theirs:
            continue
        outcomes = [*msgspec.to_builtins(mine["last_outcomes"]), *theirs["last_outcomes"]]
        mine["last_outcomes"] = sorted(outcomes, key=lambda one: str(one["at"]), reverse=True)[:KEPT]
        mine["notices"] += [notice for notice in theirs["notices"] if notice not in mine["notices"]]
        mine["mode"] = max(mine["mode"], theirs["mode"], key=_MODES.index)
        if _rank(theirs) > _rank(mine):
            mine.update({key: theirs[key] for key in ("state", "circuit", "reason") if key in theirs})


def _rank(connector: dict[str, Any]) -> tuple[int, int]:
    """Tell how bad it is."""
    circuit = connector.get("circuit")
    return _STATES.index(connector["state"]), _CIRCUITS.index(circuit) if circuit in _CIRCUITS else 0
