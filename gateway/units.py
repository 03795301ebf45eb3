"""Durations, sizes and rates as operators write them: `500ms 5s 2m 1h`, `512B 64KiB 8MiB 1GiB`, `50/s 3000/min`."""

from __future__ import annotations

import re

_DURATION = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(ms|s|m|h|d)")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(B|KiB|MiB|GiB|KB|MB|GB)")
_RATE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)/(s|min|h)")
_SHOWN = 80  # characters of what is none of them
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PERIODS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class Duration(float):
    """A length of time in seconds."""

    @classmethod
    def parse(cls, value: object) -> Duration:
        """Read `500ms`, `5s`, `2m`, `1h`, `7d`.

        Raises:
            ValueError: anything else, a number without a unit included.
        """
        match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{_shown(value)} is not a duration: write 500ms, 5s, 2m or 1h")
        return cls(float(match[1]) * _SECONDS[match[2]])

    def __str__(self) -> str:
        """Write it as an operator would."""
        if self < 1:
            return f"{float(self) * 1000:g}ms"
        for unit in ("h", "m"):
            if self >= _SECONDS[unit] and float(self) % _SECONDS[unit] == 0:
                return f"{float(self) / _SECONDS[unit]:g}{unit}"
        return f"{float(self):.10g}s"


class Size(int):
    """A number of bytes."""

    @classmethod
    def parse(cls, value: object) -> Size:
        """Read `512B`, `64KiB`, `8MiB`, `1GiB` (and the decimal `KB`, `MB`, `GB`).

        Raises:
            ValueError: anything else, a number without a unit included.
        """
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{_shown(value)} is not a size: write 512B, 64KiB, 8MiB or 1GiB")
        return cls(float(match[1]) * _BYTES[match[2]])

    def __str__(self) -> str:
        """Write it as an operator would."""
        for unit in ("GiB", "MiB", "KiB"):
            if self >= _BYTES[unit]:
                return f"{int(self) / _BYTES[unit]:.4g}{unit}"
        return f"{int(self)}B"


class Rate(float):
    """How often a second."""

    @classmethod
    def parse(cls, value: object) -> Rate:
        """Read `50/s`, `3000/min`, `100/h`.

        Raises:
            ValueError: anything else, a number without a unit and a rate of nothing included.
        """
        match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{_shown(value)} is not a rate: write 50/s, 3000/min or 100/h")
        if not float(match[1]):
            raise ValueError(f"{_shown(value)} lets nothing through: write 50/s, 3000/min or 100/h")
        return cls(float(match[1]) / _PERIODS[match[2]])

    def __str__(self) -> str:
        """Write it as an operator would."""
        for unit, period in _PERIODS.items():
            often = round(float(self) * period, 6)
            if often >= 1 and often == int(often):
                return f"{int(often)}/{unit}"
        return f"{float(self):.4g}/s"
