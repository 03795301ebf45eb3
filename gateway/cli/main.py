"""The `gateway` command. One file a verb; exit statuses are in `docs/cli.md`."""

from __future__ import annotations

import click

from gateway.cli.call import call
from gateway.cli.check import check
from gateway.cli.install import install
from gateway.cli.jobs import jobs
from gateway.cli.list import list_
from gateway.cli.new import new
from gateway.cli.serve import serve
from gateway.cli.test import test


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gateway")
def main() -> None:
    """Run connectors for workflow engines: any executable, each request in a process of its own.

    \b
    Start here:
      gateway check                      is everything in connectors.yaml and connectors.d all right?
      gateway install                    build the runtimes that connectors need
      gateway list                       what can be called?
      gateway call hello/Greet name=Ada  run one command, without a server
      gateway serve                      serve them over HTTP
      gateway jobs list                  what the one that runs has been asked to do durably

    \b
    Write a connector of your own:
      gateway new greet --runtime python a small one that works, to start from
      gateway test greet                 does it keep the contract?

    Exit statuses: 0 all right; 1 a connector is bad, or the command failed; 2 the configuration or the
    command line cannot be used.
    """


for command in (serve, check, list_, call, install, new, test, jobs):
    main.add_command(command)
