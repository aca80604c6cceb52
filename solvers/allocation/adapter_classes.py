"""Adapters that are alike: equal samples in equal steps at equal costs, so that what holds for one holds for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cappuccino.costs import AdapterCosts
from cappuccino.instance import Instance


@dataclass(frozen=True)
class AdapterClasses:
    """The adapters of an instance by kind.

    A sweep trains many adapters on the same samples. Those of which costs, memory and bounds read equal numbers are one
    kind, and a replica is described by how many adapters of each kind it holds: far fewer than there are sets.
    """

    members: tuple[tuple[int, ...], ...]
    """Adapters of each kind, ascending; kinds in the order of their first adapters."""

    @classmethod
    def of(cls, instance: Instance, costs: Sequence[AdapterCosts]) -> "AdapterClasses":
        """Group the adapters of an instance by their samples and by every number that costs read of them.

        Parameters
        ----------
        costs
            Of all adapters of the instance, in every place where they may run.
        """
        rows = [c.by_adapter() for c in costs]
        numbers = np.concatenate(rows, axis=1) if rows else np.zeros((len(instance.adapters), 0))
        kinds: dict[tuple[object, ...], list[int]] = {}
        for i, lengths in enumerate(instance.step_lengths):
            evaluated = instance.evaluated_steps(i), instance.evaluation_lengths(i).tobytes()
            key = (lengths.shape, lengths.tobytes(), *evaluated, *numbers[i].tolist())
            kinds.setdefault(key, []).append(i)
        return cls(tuple(map(tuple, kinds.values())))

    @cached_property
    def counts(self) -> np.ndarray:
        """Adapters of each kind, shape (K,)."""
        return np.array([len(m) for m in self.members], dtype=np.int64)

    @cached_property
    def representatives(self) -> list[int]:
        """The first adapter of each kind."""
        return [m[0] for m in self.members]

    @cached_property
    def of_adapter(self) -> np.ndarray:
        """Kind of every adapter."""
        result = np.empty(int(self.counts.sum()), dtype=np.int64)
        for kind, members in enumerate(self.members):
            result[list(members)] = kind
        return result

    def adapters(self, numbers: np.ndarray) -> tuple[int, ...]:
        """Return the first adapters of each kind, as many as `numbers` (shape (K,)) says, ascending.

        They stand for all sets that hold as many of each kind.
        """
        held = np.flatnonzero(numbers)
        return tuple(sorted(i for k in held for i in self.members[k][: numbers[k]]))

    def numbers(self, sets: Sequence[Sequence[int]]) -> np.ndarray:
        """Return how many adapters of each kind sets of adapters hold, shape (N, K)."""
        result = np.zeros((len(sets), len(self.members)), dtype=np.int64)
        for row, adapters in zip(result, sets, strict=True):
            np.add.at(row, self.of_adapter[list(adapters)], 1)
        return result

    def all_sets(self) -> np.ndarray:
        """Return every way to take some adapters, shape (number of sets, K)."""
        grid = np.indices(tuple(self.counts + 1)).reshape(len(self.counts), -1).T
        return np.ascontiguousarray(grid[1:])

    def ranks(self, numbers: np.ndarray) -> np.ndarray:
        """Return where in `all_sets` sets are, shape (N,), given by how many adapters of each kind they hold."""
        return np.asarray(np.ravel_multi_index(tuple(numbers.T), tuple(self.counts + 1)) - 1)

    @property
    def number_of_sets(self) -> int:
        """How many sets `all_sets` would return."""
        result = 1
        for n in self.counts.tolist():
            result *= n + 1
        return result - 1
