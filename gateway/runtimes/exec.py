"""`runtime: exec`: any executable, started as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from gateway.errors import Quarantine
from gateway.files import open_file
from gateway.runtimes.base import CODE, CommandLine, Home, find_program, script_problem

if TYPE_CHECKING:
    from gateway.sections import Mode


class ExecOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`run:` is the command line; its words that begin with ./ or ../ (and a first one with a /) are paths."""

    run: Annotated[list[str], msgspec.Meta(min_length=1)]


class Exec:
    """Starts `run` with nothing in between."""

    options = ExecOptions
    mode: Mode = "spawn"

    def command_line(self, options: ExecOptions, place: Home) -> CommandLine:
        """Resolve the paths; a bare first word is looked up on PATH."""
        argv: list[str] = []
        files: list[Path] = []
        for index, word in enumerate(options.run):
            if word.startswith(("./", "../")) or (index == 0 and "/" in word):
                file = place.resolve(word, "run", index)
                files.append(file)
                argv.append(str(file))
            elif index == 0:
                program = find_program(word, place.path)
                files.append(program)
                argv.append(str(program))
            else:
                argv.append(word)
        problem = script_problem(files[0], place.path) if os.access(files[0], os.X_OK) else None
        if problem is not None:
            raise Quarantine(problem)
        line = tuple(argv)
        own = files[:1] if "/" in options.run[0] else []
        code = (*own, *(file for file in files[len(own) :] if _is_code(file)))
        return CommandLine(
            argv=line,
            resident={"persistent": line},
            files=tuple(files),
            code=code,
            needs=tuple(Path(word) for word in argv[1:] if word.startswith("/") and os.path.exists(word)),
        )

    def build(self, _options: ExecOptions, _place: Home) -> None:
        """Nothing has to be built."""


def _is_code(file: Path) -> bool:
    """Tell whether a file that an argument names is part of the program, rather than what the program works on."""
    if file.suffix in CODE:
        return True
    try:
        with open_file(file) as stream:
            return stream.read(2) == b"#!"
    except OSError:
        return False
