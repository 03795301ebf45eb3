"""The parameters of one command: read from its signature, described for the gateway, bound to a request's."""

from __future__ import annotations

import enum
import inspect
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from . import hints
from .errors import InvalidParametersError
from .own import json

Kind = inspect.Parameter
RESERVED = frozenset({"config", "task_data", "context"})


class Arguments(NamedTuple):
    """How to call: ``f(*positional, **named)``."""

    positional: List[Any]
    named: Dict[str, Any]


class Signature:
    """What a class's ``__init__`` or a function takes from a request."""

    def __init__(self, parameters: List[Kind], namespace: hints.Namespace, *, function: bool) -> None:
        """Sort the parameters into those of the request, the reserved ones and ``**kwargs``."""
        reserved = RESERVED if function else frozenset()
        variable = (Kind.VAR_POSITIONAL, Kind.VAR_KEYWORD)
        named = [each for each in parameters if each.kind not in variable]
        self.listed = [each for each in named if each.name not in reserved]
        self.reserved = [each.name for each in named if each.name in reserved]
        self.additional = any(each.kind is Kind.VAR_KEYWORD for each in parameters)
        self._names = frozenset(each.name for each in self.listed)
        self._only = [each for each in named if each.kind is Kind.POSITIONAL_ONLY]
        self._namespace = namespace
        self._function = function

    @classmethod
    def of_class(cls, target: type) -> Signature:
        """Read ``__init__``, without its first parameter."""
        initializer: Any = target.__init__  # type: ignore[misc]
        if initializer is object.__init__:
            initializer = target.__new__
        if initializer is object.__new__:
            return cls([], {}, function=False)
        try:
            parameters = list(inspect.signature(initializer).parameters.values())
        except (ValueError, TypeError):  # implemented in C, and says nothing of what it takes
            parameters = [Kind("self", Kind.POSITIONAL_ONLY), Kind("kwargs", Kind.VAR_KEYWORD)]
        first_is_self = bool(parameters) and parameters[0].kind is not Kind.VAR_POSITIONAL
        return cls(parameters[1:] if first_is_self else parameters, _globals_of(initializer), function=False)

    @classmethod
    def of_function(cls, target: Callable[..., Any]) -> Signature:
        """Read a plain function; `RESERVED` names receive parts of the request and are not parameters."""
        return cls(list(inspect.signature(target).parameters.values()), _globals_of(target), function=True)

    def describe(self, descriptions: Dict[str, str]) -> List[Dict[str, Any]]:
        """Give the ``parameters`` of a describe answer."""
        return [self._describe(parameter, descriptions.get(parameter.name)) for parameter in self.listed]

    def bind(self, params: Dict[str, Any], reserved: Dict[str, Any]) -> Arguments:
        """Lay out the call; `InvalidParametersError` names everything that is missing, unknown or not a choice."""
        known = self._names
        unknown = [name for name in params if name not in known]
        if self.additional:
            unknown = [name for name in unknown if name in self.reserved]
        values, problems = self._values(params)
        problems += [f"unknown parameter '{name}'" for name in unknown]
        if problems:
            raise InvalidParametersError("; ".join(problems))
        for name in self.reserved:
            values[name] = reserved[name]
        # What cannot be passed by name is moved out, with the defaults of those that were left out.
        positional = [values.pop(parameter.name, parameter.default) for parameter in self._only]
        if self.additional:
            values.update({name: value for name, value in params.items() if name not in known})
        return Arguments(positional, values)

    def _values(self, params: Dict[str, Any]) -> Tuple[Dict[str, Any], List[str]]:
        values: Dict[str, Any] = {}
        problems = []
        for parameter in self.listed:
            name = parameter.name
            if name in params:
                try:
                    values[name] = self._value(parameter, params[name])
                except ValueError as error:
                    problems.append(f"parameter '{name}' {error}")
            elif parameter.default is Kind.empty:
                # Described as not required, so leaving it out must work.
                if self._shape(parameter).nullable:
                    values[name] = None
                else:
                    problems.append(f"missing parameter '{name}'")
        return values, problems

    def _value(self, parameter: Kind, value: Any) -> Any:
        """Give a function its Enum members. Classes of the Spiff convention have always had the raw values."""
        if not self._function or parameter.annotation is Kind.empty or (value is None and parameter.default is None):
            return value
        return hints.revive(parameter.annotation, value, self._namespace)

    def _describe(self, parameter: Kind, description: str | None) -> Dict[str, Any]:
        shape = self._shape(parameter)
        required = parameter.default is Kind.empty and not shape.nullable
        entry: Dict[str, Any] = {"id": parameter.name, "type": shape.type, "required": required}
        if description:
            entry["description"] = description
        entry.update(_default(parameter.default))
        if parameter.default is None:
            shape = hints.with_null(shape)
        if shape.schema:
            entry["schema"] = shape.schema
        return entry

    def _shape(self, parameter: Kind) -> hints.Shape:
        annotation = Any if parameter.annotation is Kind.empty else parameter.annotation
        return hints.shape(annotation, self._namespace)


def _globals_of(target: Any) -> hints.Namespace:
    namespace: hints.Namespace = getattr(inspect.unwrap(target), "__globals__", {})
    return namespace


def _default(value: object) -> Dict[str, Any]:
    """Give ``{"default": ...}``, or nothing for what JSON cannot hold as it is."""
    plain = value.value if isinstance(value, enum.Enum) else value
    try:
        json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return {}
    return {"default": plain}
