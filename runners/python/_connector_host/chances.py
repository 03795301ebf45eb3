"""Generators of chance that were made at import: in a child, each that nobody has given a seed has one of its own.

One that was given a seed gives the same numbers in every process, as whoever gave it meant it to. CPython itself seeds
that of `random` at a fork.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Callable, Dict, Iterator, List, Set

from .own import gc


class Generators:
    """Those of `random` and of numpy."""

    def __init__(self) -> None:
        """There are none yet."""
        self._unseeded: Dict[int, Any] = {}
        self._drawn: Set[int] = set()
        """What numpy, as others, has been given to make a seed of."""
        self._to_seed: List[Callable[[], Any]] = []

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Note who asks for a seed meanwhile, and who has one."""
        import random  # noqa: PLC0415  (it costs milliseconds, and only who forks needs it)

        seed, urandom = random.Random.seed, random._urandom  # type: ignore[attr-defined]  # noqa: SLF001

        def seeded(generator: Any, a: Any = None, version: int = 2) -> None:
            seed(generator, a, version)
            if a is None:
                self._unseeded[id(generator)] = generator
            else:
                self._unseeded.pop(id(generator), None)

        def drawn(size: int) -> bytes:
            chance: bytes = urandom(size)
            self._drawn.add(int.from_bytes(chance, "big"))
            return chance

        random.Random.seed, random._urandom = seeded, drawn  # type: ignore[method-assign,attr-defined]  # noqa: SLF001
        try:
            yield
        finally:
            random.Random.seed, random._urandom = seed, urandom  # type: ignore[method-assign,attr-defined]  # noqa: SLF001

    def find(self) -> None:
        """Find what a child is to seed."""
        self._to_seed = [generator.seed for generator in self._unseeded.values()]
        numpy = sys.modules.get("numpy.random")
        with contextlib.suppress(Exception):  # an older one has no such parts
            self._to_seed += [_seeding(each) for each in self._found(numpy.BitGenerator)]  # type: ignore[union-attr]
        self._unseeded, self._drawn = {}, set()

    def seed(self) -> None:
        """Give each a seed, in a child."""
        for seed in self._to_seed:
            with contextlib.suppress(Exception):
                seed()

    # --- private

    def _found(self, kind: type) -> List[Any]:
        """List numpy's that have made their seeds of what they have drawn."""
        there = [each for each in gc.get_objects() if issubclass(type(each), kind)]
        seeds = [(each, getattr(each, "seed_seq", getattr(each, "_seed_seq", None))) for each in there]
        return [each for each, seed in seeds if getattr(seed, "entropy", None) in self._drawn]


def _seeding(generator: Any) -> Callable[[], Any]:
    def seed() -> None:
        generator.state = type(generator)().state

    return seed
