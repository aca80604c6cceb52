"""Operations of timelines as columns: as many rows an operation as adapters share it, one above the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cappuccino.plan import Operation, Replica
from cappuccino.reports.page.contents import PageContents
from cappuccino.timeline import Timeline

KINDS = {"F": "forward", "B": "backward", "E": "evaluation", "S": "optimizer step"}
_ALPHA = {"F": 0.5, "B": 1.0, "E": 0.22, "S": 1.0}
_EDGE = {"F": 0.0, "B": 0.0, "E": 0.9, "S": 0.9}
_HEIGHT = 0.84


@dataclass
class Works:
    """What operations are of: micro-batches and optimizer steps of all replicas, as columns."""

    name: list[str] = field(default_factory=list)
    """As `micro-batch 3` or `docs, step 2`."""
    holds: list[str] = field(default_factory=list)
    """Samples and tokens by adapter, in words."""
    tokens: list[int] = field(default_factory=list)
    """Computed, padding included; 0 of optimizer steps."""
    members: list[list[int]] = field(default_factory=list)
    """Positions of the adapters."""
    first: list[int] = field(default_factory=list)
    """First optimizer step, from 0."""
    last: list[int] = field(default_factory=list)
    """Last one."""

    def add(self, name: str, holds: str, tokens: int, members: Sequence[int], first: int, last: int) -> int:
        """Add one and return its number."""
        self.name.append(name)
        self.holds.append(holds)
        self.tokens.append(tokens)
        self.members.append(list(members))
        self.first.append(first)
        self.last.append(last)
        return len(self.name) - 1


def list_works(contents: PageContents) -> tuple[Works, list[dict[Operation, int]]]:
    """Return all works of a plan, and by replica the number of each operation's."""
    works, numbers = Works(), []
    for r, replica in enumerate(contents.plan.replicas):
        mine: dict[Operation, int] = {}
        for k in range(len(replica.micro_batches) + len(replica.evaluations)):
            number = _add_batch(works, contents, r, k)
            trained = len(replica.micro_batches)
            if k < trained:
                mine["F", k] = mine["B", k] = number
            else:
                mine["E", k - trained] = number
        for operation in replica.programs[0]:
            if operation[0] == "S":
                name = replica.adapters[operation[1]]
                i = contents.instance.adapter_index(name)
                mine[operation] = works.add(f"{name}, step {operation[2]}", "", 0, [i], operation[2], operation[2])
        numbers.append(mine)
    return works, numbers


def _add_batch(works: Works, contents: PageContents, replica: int, k: int) -> int:
    held, work = contents.lengths[replica], contents.workloads[replica]
    trained = len(work.tokens)
    words = []
    for i, tokens in held.tokens[k].items():
        first, last = held.steps[k][i]
        step = f"step {first}" if first == last else f"steps {first} to {last}"
        samples = held.samples[k][i]
        words.append(f"{contents.adapters[i]} {step}: {samples} sample{'s' * (samples > 1)}, {tokens} tokens")
    name = f"micro-batch {k}" if k < trained else f"evaluation micro-batch {k - trained}"
    computed = work.tokens[k] if k < trained else work.evaluations.tokens[k - trained]
    steps = held.steps[k].values()
    first, last = min(f for f, _ in steps), max(e for _, e in steps)
    return works.add(name, "; ".join(words), int(computed), list(held.tokens[k]), first, last)


def operation_columns(
    contents: PageContents, lines: Sequence[Timeline], numbers: Sequence[dict[Operation, int]]
) -> dict[str, np.ndarray]:
    """Return the columns of the operations of timelines, one a replica in the plan's order.

    Every operation is a row for each adapter that it is of; the rows share its height by tokens. `operation` counts the
    operations, `stage` the stages of all replicas, `left` and `right` are seconds, `work` is the number of its work,
    `adapter` the position of the adapter in the instance.
    """
    names = ("operation", "stage", "kind", "work", "adapter", "left", "right", "top", "bottom", "alpha", "edge")
    columns: dict[str, list[float]] = {name: [] for name in names}
    count = row = 0
    for r, (replica, line) in enumerate(zip(contents.plan.replicas, lines, strict=True)):
        shares = _shares(contents, r, replica)
        for program, starts, ends in zip(line.programs, line.starts, line.ends, strict=True):
            for operation, start, end in zip(program, starts.tolist(), ends.tolist(), strict=True):
                kind, top = operation[0], row - _HEIGHT / 2
                for adapter, share in shares[operation]:
                    bottom = top + _HEIGHT * share
                    values = (count, row, list(KINDS).index(kind), numbers[r][operation], adapter, start, end)
                    for name, value in zip(names, (*values, top, bottom, _ALPHA[kind], _EDGE[kind]), strict=True):
                        columns[name].append(value)
                    top = bottom
                count += 1
            row += 1
    kinds = {"left": np.float64, "right": np.float64, "operation": np.int32, "work": np.int32, "kind": np.int8}
    kinds |= {"adapter": np.int16, "stage": np.int16}
    return {name: np.array(values, dtype=kinds.get(name, np.float32)) for name, values in columns.items()}


def _shares(contents: PageContents, r: int, replica: Replica) -> dict[Operation, list[tuple[int, float]]]:
    """Return by operation of a replica the adapters it is of, each with its share of the tokens."""
    found: dict[Operation, list[tuple[int, float]]] = {}
    trained = len(replica.micro_batches)
    for k, tokens in enumerate(contents.lengths[r].tokens):
        total = sum(tokens.values())
        mine = [(i, n / total) for i, n in tokens.items()]
        if k < trained:
            found["F", k] = found["B", k] = mine
        else:
            found["E", k - trained] = mine
    for operation in replica.programs[0]:
        if operation[0] == "S":
            found[operation] = [(contents.instance.adapter_index(replica.adapters[operation[1]]), 1.0)]
    return found
