"""Where a connector's code lies: an installed package, or one file. A target imports; it runs nothing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Dict, Iterator, List, NamedTuple, Optional, Protocol

if TYPE_CHECKING:
    from types import ModuleType

COMMANDS, AUTHS = "commands", "auths"


class Place(NamedTuple):
    """A module that may hold commands (or auths), not yet imported."""

    module: str  # the name that describe reports and a request may ask for
    file: str
    functions: bool  # plain functions are commands too


class Target(Protocol):
    """A connector's code."""

    @property
    def name(self) -> str:
        """Its top module, which may hold `warmup`."""

    def places(self, kind: str) -> List[Place]:
        """List the modules for `COMMANDS` or `AUTHS`; raises what importing their parents raises."""

    def place(self, module: str, kind: str) -> Optional[Place]:
        """Find one of them by name without looking at the others; None when it is none of this connector's."""

    def load(self, module: str) -> ModuleType:
        """Import a module; raises whatever it raises."""


class PackageTarget:
    """A package that is installed for this interpreter.

    Its sub-packages `commands` and `auths` hold the classes (the Spiff convention). When it has neither, its own module
    holds functions.
    """

    def __init__(self, name: str) -> None:
        """Take the package's import name, `connector_x`."""
        self.name = name

    def places(self, kind: str) -> List[Place]:
        """List every module in the sub-package of that kind, nested ones too."""
        folders = self._folders()
        if not folders:
            own = Place(self.name, str(getattr(self.load(self.name), "__file__", "")), functions=True)
            return [own] if kind == COMMANDS else []
        return list(_walk(f"{self.name}.{kind}", folders[kind])) if kind in folders else []

    def place(self, module: str, kind: str) -> Optional[Place]:
        """Trust the name if it lies in the right folder: nothing else is imported or searched."""
        folder = f"{self.name}.{kind}"
        if module == folder or module.startswith(folder + "."):
            return Place(module, "", functions=False)
        return next((each for each in self.places(kind) if each.module == module), None)

    def load(self, module: str) -> ModuleType:
        """Import by name."""
        return importlib.import_module(module)

    def _folders(self) -> Dict[str, str]:
        parents = getattr(self.load(self.name), "__path__", [])
        wanted = [(kind, os.path.join(parent, kind)) for parent in parents for kind in (COMMANDS, AUTHS)]
        return {kind: folder for kind, folder in wanted if os.path.isfile(os.path.join(folder, "__init__.py"))}


class FileTarget:
    """One file of functions (and of classes with `execute`); it may import its neighbours."""

    def __init__(self, path: str) -> None:
        """Take the file's path. The module gets the file's name."""
        self._path = os.path.abspath(path)
        self.name = os.path.splitext(os.path.basename(path))[0]
        self._module: Optional[ModuleType] = None

    def places(self, kind: str) -> List[Place]:
        """Give the one file; it has no auths."""
        return [Place(self.name, self._path, functions=True)] if kind == COMMANDS else []

    def place(self, module: str, kind: str) -> Optional[Place]:  # noqa: ARG002  (there is but one)
        """Give the one file."""
        return next(iter(self.places(kind)), None)

    def load(self, module: str) -> ModuleType:  # noqa: ARG002
        """Import the file, once."""
        if self._module is None:
            _add_neighbours(os.path.dirname(self._path))
            self._module = self._import()
        return self._module

    def _import(self) -> ModuleType:
        if self._is_importable():
            return importlib.import_module(self.name)
        private = f"_connector_{self.name}".replace(".", "_")
        spec = importlib.util.spec_from_file_location(private, self._path)
        if spec is None or spec.loader is None:
            message = f"{self._path} is not a Python file"
            raise ImportError(message)
        module = importlib.util.module_from_spec(spec)
        sys.modules[private] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[private]
            raise
        return module

    def _is_importable(self) -> bool:
        """Tell whether the file's name leads to the file: an email.py must not replace the standard library's."""
        if not self.name.isidentifier():
            return False
        try:
            spec = importlib.util.find_spec(self.name)
        except (ImportError, ValueError):
            return False
        return spec is not None and spec.origin is not None and os.path.abspath(spec.origin) == self._path


def from_arguments(argv: List[str]) -> Optional[Target]:
    """Read the command line; None when it is not one of the two forms."""
    if len(argv) != 2:
        return None
    option, value = argv
    if option == "--package":
        return PackageTarget(value)
    return FileTarget(value) if option == "--module" else None


def _walk(name: str, folder: str) -> Iterator[Place]:
    """Give a package and what lies below it. Unlike `pkgutil.walk_packages` it imports nothing, so nothing can fail."""
    yield Place(name, os.path.join(folder, "__init__.py"), functions=False)
    import pkgutil  # noqa: PLC0415  (not needed when the request names the module)

    for info in sorted(pkgutil.iter_modules([folder]), key=lambda info: info.name):
        path = os.path.join(folder, info.name)
        if info.ispkg:
            yield from _walk(f"{name}.{info.name}", path)
        elif info.name != "__main__":
            yield Place(f"{name}.{info.name}", path + ".py", functions=False)


def _add_neighbours(folder: str) -> None:
    """Make a file's folder importable after the standard library (email.py, again) and before what is installed."""
    if folder in sys.path:
        return
    installed = ("site-packages", "dist-packages")
    before = (at for at, entry in enumerate(sys.path) if os.path.basename(entry) in installed)
    sys.path.insert(next(before, len(sys.path)), folder)
