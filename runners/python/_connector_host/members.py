"""Which classes and functions of a module are commands or auths, and what is told of each."""

from __future__ import annotations

import inspect
from types import FunctionType, ModuleType
from typing import Any, Dict, List

from . import docstrings
from .signatures import Signature
from .targets import COMMANDS, Place

WARMUP = "warmup"
NAMES = "names"

# In a file of functions a class is a command when it can be run. In a package of the Spiff convention every class that
# a module of `commands` (or `auths`) defines is one, whatever it is: callers know the list of the original proxy, and
# ours has to be the same.
EXECUTE = "execute"


def find(module: ModuleType, place: Place, kind: str) -> Dict[str, Any]:
    """Give the commands (or auths) by name, in the order of the file.

    The names are those the module binds, so an alias is a name too, as in the original.
    """
    everything = list(vars(module).items())
    named = {name: value for name, value in everything if _is_one(value, kind, functions=place.functions)}
    exported = getattr(module, "__all__", None) if place.functions else None
    if exported is not None:
        # What is named there is meant, wherever it was written: a package may export what its modules define.
        return {name: value for name, value in named.items() if name in exported and name != WARMUP}
    return {name: value for name, value in named.items() if _is_own(name, value, module)}


def missing(module: ModuleType, place: Place) -> List[str]:
    """Name what `__all__` promises and the module does not have."""
    exported = getattr(module, "__all__", ()) if place.functions else ()
    return [name for name in exported if not hasattr(module, name)]


def signature(value: Any) -> Signature:
    """Read what a command takes."""
    return Signature.of_class(value) if isinstance(value, type) else Signature.of_function(value)


def describe(name: str, value: Any, place: Place, kind: str) -> Dict[str, Any]:
    """Give one entry of a describe answer."""
    takes = signature(value)
    description, parameters = _documentation(value)
    entry: Dict[str, Any] = {"name": name}
    if description:
        entry["description"] = description
    entry["module"] = place.module
    entry["parameters"] = takes.describe(parameters)
    if kind == COMMANDS:
        entry["async"] = False
        if not place.functions:
            entry["validate"] = NAMES  # callers have always sent these classes what they like
        if isinstance(value, type) and callable(getattr(value, "execute_async", None)):
            entry["execute_async"] = True
        if takes.additional:
            entry["additional_parameters"] = True
    return entry


def _is_one(value: Any, kind: str, *, functions: bool) -> bool:
    # type() and not isinstance(): a proxy object (flask.current_app) answers isinstance for what it stands for.
    if type(value) is FunctionType:
        return functions and kind == COMMANDS
    if not issubclass(type(value), type):
        return False
    return not functions or (callable(getattr(value, EXECUTE, None)) and not inspect.isabstract(value))


def _is_own(name: str, value: Any, module: ModuleType) -> bool:
    hidden = isinstance(value, FunctionType) and (name.startswith("_") or name == WARMUP)
    return value.__module__ == module.__name__ and not hidden


def _documentation(value: Any) -> docstrings.Docstring:
    """Read the docstring; a class's parameters may be told there or in `__init__`, its purpose by its own alone."""
    own = docstrings.parse(None if _is_generated(value) else value.__doc__)
    if not isinstance(value, type):
        return own
    initializer: Any = vars(value).get("__init__")
    more = docstrings.parse(getattr(initializer, "__doc__", None))
    return docstrings.Docstring(own.description, {**own.parameters, **more.parameters})


def _is_generated(value: Any) -> bool:
    """Tell a dataclass's "Send(to: str)" from a sentence."""
    return hasattr(value, "__dataclass_fields__") and (value.__doc__ or "").startswith(f"{value.__name__}(")
