"""The verbs `gateway jobs ...`: they ask a running gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from gateway.cli.common import escaped, fail, out, run
from gateway.cli.remote import Number, Text, ask, at, print_facts, print_table, remote, table, took
from gateway.jobs.contract import ENDS, JobState
from gateway.units import Duration

if TYPE_CHECKING:
    from gateway.cli.remote import Where

_COLORS = {"delivered": "green", "kept": "green", "dead": "red", "cancelled": "yellow"}


@click.group()
def jobs() -> None:
    """Look at the durable jobs of a running gateway, cancel them, deliver them again, remove them.

    Exit status 1 when there is no such job, it is not in a state that allows this, or no gateway answers.
    """


@jobs.command("list")
@click.option("--state", "-s", type=click.Choice([one.value for one in JobState]), help="Those in this state alone.")
@click.option("--connector", metavar="NAME", type=Text(), help="Those of this connector alone.")
@click.option("--process-instance", metavar="ID", type=Text(), help="Those of this process instance alone.")
@click.option("--task", metavar="ID", type=Text(), help="Those of this task alone.")
@click.option("--client", metavar="NAME", type=Text(), help="Those of this client alone.")
@click.option("--limit", "-n", type=Number(1, 500), default=50, show_default=True, help="How many.")
@click.option("--offset", type=Number(0), default=0, help="How many to leave out.")
@remote
def list_(where: Where, *, as_json: bool, **query: Any) -> None:
    """List jobs, the latest first."""

    def show(answer: Any) -> None:
        rows = table("job", "command", "state", "process", "accepted", "took", "runs cut", "why")
        for one in answer["jobs"]:
            rows.add_row(
                one["id"], f"[cyan]{escaped(one['connector'])}/{escaped(one['command'])}[/]",
                _state(one["state"]), escaped(str(one["process_instance_id"] or "")), at(one["accepted"]),
                took(one["accepted"], one["finished"]), str(one["interrupted"] or ""), escaped(one["reason"]),
            )  # fmt: skip
        print_table(rows)

    run(ask(where, "GET", "/v1/jobs", query, None if as_json else show))


@jobs.command()
@click.argument("job", type=Text())
@remote
def show(where: Where, job: str, *, as_json: bool) -> None:
    """Show one job: where it is, each try to deliver it, and what it came to."""
    run(ask(where, "GET", f"/v1/jobs/{quote(job, safe='')}", {}, None if as_json else _show))


@jobs.command()
@click.argument("job", type=Text())
@remote
def cancel(where: Where, job: str, *, as_json: bool) -> None:
    """Cancel an open job: kill what it runs, or end its delivery. Its caller is told."""
    run(ask(where, "POST", f"/v1/jobs/{quote(job, safe='')}/cancel", {}, None if as_json else _summarize))


@jobs.command()
@click.argument("job", type=Text())
@click.option("--run", "again", is_flag=True, help="Run the command again, as a new job.")
@remote
def retry(where: Where, job: str, *, again: bool, as_json: bool) -> None:
    """Deliver again, now, what a job came to."""
    query = {"run": "true"} if again else {}
    run(ask(where, "POST", f"/v1/jobs/{quote(job, safe='')}/retry", query, None if as_json else _summarize))


@jobs.command()
@click.option("--older-than", required=True, metavar="TIME", help="Those that ended longer ago, for example 7d.")
@click.option("--state", "-s", type=click.Choice([one.value for one in ENDS]), help="Those that ended so alone.")
@remote
def purge(where: Where, *, as_json: bool, **query: Any) -> None:
    """Remove jobs that have ended."""
    try:
        Duration.parse(query["older_than"])
    except ValueError as problem:
        fail(f"--older-than: {problem}")

    def show(answer: Any) -> None:
        out.print(f"removed {answer['removed']} jobs")

    run(ask(where, "POST", "/v1/jobs/purge", query, None if as_json else show))


def _show(job: dict[str, Any]) -> None:
    facts = {
        "job": job["id"],
        "command": f"{job['connector']}/{job['command']}",
        "accepted": at(job["accepted"]),
        "ended": _ended(job["accepted"], job["finished"]),
        "request": job["request_id"],
        "client": job["client"],
        "process": " ".join(str(one) for one in (job["process_model_identifier"], job["process_instance_id"]) if one),
        "task": job["task_id"],
        "gateway": job.get("node"),
        "runs cut short": job["interrupted"],
        "why": job["reason"],
    }
    print_facts("state", _state(job["state"]), facts)
    if job["attempts"]:
        tries = table("callback", "took", "answer", "led to", "why")
        for one in job["attempts"]:
            tries.add_row(
                at(one["at"]), f"{one['took'] * 1000:.0f} ms", str(one.get("status", "")), one["verdict"],
                escaped(one.get("reason", "")),
            )  # fmt: skip
        print_table(tries)
    if job["outcome"] is not None:
        out.print(f"[bold]outcome[/] (status {job['outcome']['status']})")
        out.print_json(data=job["outcome"]["body"])


def _summarize(job: dict[str, Any]) -> None:
    out.print(f"{job['id']} {escaped(job['connector'])}/{escaped(job['command'])} is {_state(job['state'])}")


def _state(state: str) -> str:
    color = _COLORS.get(state)
    return f"[{color}]{state}[/]" if color else state


def _ended(begun: float, ended: float | None) -> str:
    time = took(begun, ended)
    return "" if ended is None else f"{at(ended)} (after {time})" if time else at(ended)
