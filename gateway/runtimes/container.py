"""`runtime: container`: an image, started by docker or podman for each request."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.errors import Quarantine
from gateway.processes.launch import RUN_NAME
from gateway.runtimes.base import CommandLine, Home, find_program

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.sections import Mode


class ContainerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`image:` speaks the stdio contract."""

    image: str
    engine: Literal["auto", "docker", "podman"] = "auto"
    command: list[str] = []
    """Replaces the image's command."""
    network: str = "none"
    """A network of the engine."""
    options: list[str] = []
    """More options for `run`."""
    engine_options: list[str] = []
    """Options of the engine itself, before `run`."""
    engine_env: dict[str, str] = {}
    """Variables for the engine; `env:` is for what runs in the container."""


class Container:
    """Starts `docker run` or `podman run`, and removes the container by its name when the run was stopped."""

    options = ContainerOptions
    mode: Mode = "spawn"

    def command_line(self, options: ContainerOptions, place: Home) -> CommandLine:
        """Map the bounds to flags; the gateway itself watches the engine's process."""
        engine = _engine(options, place)
        call = (str(engine), *options.engine_options)
        env = [flag for name in place.env for flag in ("--env", name)]
        return CommandLine(
            argv=(
                *call,
                *("run", "--interactive", "--rm", "--name", RUN_NAME, "--label", f"gateway.connector={place.name}"),
                *("--network", options.network, "--memory", f"{place.memory}b", *env),
                *(*options.options, options.image, *options.command),
            ),
            files=(engine,),
            env={"HOME": os.path.expanduser("~"), **options.engine_env},
            cleanup=(*call, "rm", "--force", RUN_NAME),
        )

    def build(self, _options: ContainerOptions, _place: Home) -> None:
        """Nothing has to be built: images are the engine's business."""


def _engine(options: ContainerOptions, place: Home) -> Path:
    if options.engine != "auto":
        return find_program(options.engine, place.path)
    for name in ("podman", "docker"):
        if shutil.which(name, path=place.path) is not None:
            return find_program(name, place.path)
    raise Quarantine("no container engine found: install podman or docker")
