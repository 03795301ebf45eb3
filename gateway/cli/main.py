"""The `gateway` command. One file a verb; exit statuses are in `docs/cli.md`."""

from __future__ import annotations

import importlib
from collections import UserDict

import click

VERBS = ("call", "check", "install", "jobs", "keys", "list", "new", "runs", "secrets", "serve", "status", "test")


class _Verbs(UserDict[str, click.Command]):
    """Imports a verb when it is asked for: each begins sooner without what the others need."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(VERBS, click.Command(None)))

    def __getitem__(self, verb: str) -> click.Command:
        if verb in self.data and self.data[verb].name is None:
            made = vars(importlib.import_module(f"gateway.cli.{verb}")).values()
            self.data[verb] = next(one for one in made if isinstance(one, click.Command) and one.name == verb)
        return self.data[verb]


@click.group(
    commands=_Verbs(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
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
      gateway status                     what is wrong with the one that runs, and what it does
      gateway jobs list                  what the one that runs has been asked to do durably
      gateway runs tail                  what it runs, as it ends
      gateway keys new acme              a key for a client

    \b
    Write a connector of your own:
      gateway new greet --runtime python a small one that works, to start from
      gateway test greet                 does it keep the contract?

    Exit statuses: 0 all right; 1 a connector is bad, or the command failed; 2 the configuration or the
    command line cannot be used.
    """
