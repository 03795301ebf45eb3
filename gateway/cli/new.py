"""The verb `gateway new`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from gateway.cells.removing import remove
from gateway.cli.common import config_option, escaped, fail, handled, out
from gateway.settings import NAME, find_file, read_settings

TEMPLATES = Path(__file__).parent.parent / "templates"
SUFFIX = ".in"  # so that nothing takes a template for code
RUNTIMES = sorted(folder.name for folder in TEMPLATES.iterdir())
BUILT = {"java"}  # their templates need `gateway install`


@click.command()
@config_option
@click.argument("name")
@click.option("--runtime", "-r", type=click.Choice(RUNTIMES), required=True, help="What it is written in.")
@click.option(
    "--dir",
    "-d",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where its folder goes [default: the configured connectors_dir].",
)
@handled
def new(config: Path | None, name: str, runtime: str, folder: Path | None) -> None:
    """Write a small connector that works, with a test, as a folder NAME: the start of your own.

    Nothing is overwritten.
    """
    if not NAME.fullmatch(name):
        fail(f"{name!r}: a connector's name is made of letters, digits, _ - and . and does not begin with a dot")
    parent = _connectors_dir(config) if folder is None else folder
    for taken in parent.iterdir() if parent.is_dir() else ():
        if name in {taken.name, taken.stem} and (taken.name == name or taken.is_file()):
            fail(f"{taken} exists: nothing is overwritten")
    try:
        files = _write(TEMPLATES / runtime, parent, name)
    except OSError as problem:
        fail(f"{problem.filename}: {problem.strerror}")
    _print(parent / name, files, name, runtime, "" if config is None else f" --config {config}")


def _connectors_dir(config: Path | None) -> Path:
    settings, _ = read_settings(find_file(config), lenient=True)
    if settings.connectors_dir is None:
        fail("gateway.connectors_dir is switched off: name a folder with --dir")
    return settings.connectors_dir


def _write(template: Path, parent: Path, name: str) -> list[str]:
    """Write the files into a hidden folder, and show it when it is complete: a running gateway may be watching."""
    places = {"__NAME__": name, "__CLASS__": _class_name(name)}
    draft = parent / f".{name}.{os.getpid()}"
    files = []
    try:
        for source in sorted(template.rglob(f"*{SUFFIX}")):
            relative = _filled(str(source.relative_to(template)).removesuffix(SUFFIX), places)
            target = draft / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            text = _filled(source.read_text(), places)
            target.write_text(text)
            if text.startswith("#!"):
                target.chmod(0o755)
            files.append(relative)
        draft.rename(parent / name)
    finally:
        remove(draft)
    return sorted(files)


def _filled(text: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        text = text.replace(place, value)
    return text


def _class_name(name: str) -> str:
    """Return `SmallMailConnector` for small-mail."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", name) if word]
    joined = "".join(word[:1].upper() + word[1:] for word in words)
    return f"{joined if joined[:1].isalpha() else f'X{joined}'}Connector"


def _print(folder: Path, files: list[str], name: str, runtime: str, config: str) -> None:
    out.print(f"made [bold]{escaped(os.path.relpath(folder))}[/]: {escaped(', '.join(files))}")
    out.print("next:")
    if runtime in BUILT:
        out.print(f"  gateway install{config} {name}", markup=False)
    out.print(f"  gateway test{config} {name}", markup=False)
    out.print(f"  gateway call{config} {name}/Greet name=Ada", markup=False)
