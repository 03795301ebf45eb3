"""`runtime: shell`: a bash file whose functions named cmd_* are commands; `runners/shell` reads the JSON for it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec

from gateway.runners import RUNNERS
from gateway.runtimes.base import CommandLine, Home, find_program, must_exist

if TYPE_CHECKING:
    from gateway.sections import Mode

HOST = RUNNERS / "shell" / "host.py"


class ShellOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`module:` is the bash file."""

    module: str


class Shell:
    """Starts the host, which starts bash."""

    options = ShellOptions
    mode: Mode = "standby"

    def command_line(self, options: ShellOptions, place: Home) -> CommandLine:
        """Run the host with the gateway's own interpreter: it needs the standard library only."""
        bash = find_program("bash", place.path)
        script = must_exist(place.resolve(options.module, "module"), "module")
        return CommandLine(
            argv=(sys.executable, "-I", "-S", "-B", str(HOST), "--fd3", str(script)),
            files=(bash, script, HOST),
            code=(script,),
            needs=(bash, HOST.parent),
            result_on_fd3=True,
        )

    def build(self, _options: ShellOptions, _place: Home) -> None:
        """Nothing has to be built."""
