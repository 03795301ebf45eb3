"""What an operator should know of jobs and their callbacks although everything works."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.jobs.submit import may_be_promoted
from gateway.units import Duration

if TYPE_CHECKING:
    from gateway.connectors.definition import Command, Connector
    from gateway.jobs.destinations import Destinations

NO_CREDENTIALS = (
    "callbacks have no credentials (gateway.callbacks: headers, oauth2 or hosts): no call becomes a job while it runs, "
    "since a workflow backend would refuse its outcome"
)


def of_callbacks(destinations: Destinations) -> str | None:
    """Say what is to be known of all callbacks, if anything is."""
    return None if destinations.any_credentials else NO_CREDENTIALS


def of_connector(connector: Connector, destinations: Destinations) -> list[str]:
    """Say what is to be known of a connector's commands that become jobs."""
    names = ", ".join(one.name for one in (connector.commands or {}).values() if one.is_async)
    if not names:
        return []
    told = []
    if not destinations.any_credentials:
        told.append(
            f"async: {names}: callbacks have no credentials (gateway.callbacks), which a workflow backend asks for"
        )
    if connector.auths:
        told.append(
            f"async: {names}: refreshed tokens are lost, which a workflow backend takes from synchronous answers only"
        )
    return told


def of_command(command: Command, connector: Connector, destinations: Destinations) -> str | None:
    """Say how a command becomes a job, and what a crash does to it; None where it never is one."""
    after = connector.limits.promote_after
    if command.is_async:
        how = "async"
    elif command.execute_async:
        return f"may call back by itself within {Duration(command.job_timeout)}"
    elif after is not None and may_be_promoted(connector, command) and destinations.any_credentials:
        how = f"a job after {Duration(after)}"
    elif command.rerun or command.priority:
        how = "a job on request"
    else:
        return None
    return f"{how}, job timeout {Duration(command.job_timeout)}, retry {'always' if command.rerun else 'never'}"
