"""The command that every rank runs, and the replicas that are of one size."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cappuccino.plan import Plan, Replica


@dataclass(frozen=True)
class ReplicaCommand:
    """`cappuccino run-replica` with everything but the replica."""

    python: str
    """Interpreter on the machines that run it."""
    plan: Path
    """File, as those machines see it."""
    files: Sequence[tuple[str, Path]]
    """Options whose values are files or folders, likewise."""
    options: Sequence[tuple[str, str]]
    """Options with other values."""

    def words(self, *, start: bool = True) -> list[str]:
        """Return its words.

        Parameters
        ----------
        start
            Whether it begins with the interpreter; torchrun brings its own.
        """
        words = [self.python] if start else []
        words += ["-m", "cappuccino", "run-replica", str(self.plan)]
        for name, file in self.files:
            words += [name, str(file)]
        for name, value in self.options:
            words += [name, value]
        return words

    def lines(self, *, start: bool = True, indent: str = "    ") -> str:
        """Return it as a shell reads it, an option a line, every line but the last with a backslash."""
        quoted = [shlex.quote(word) for word in self.words(start=start)]
        found: list[str] = []
        for word in quoted:
            if not found or (word.startswith("-") and word != "-m"):
                found.append(word)
            else:
                found[-1] += f" {word}"
        return f" \\\n{indent}".join(found)


@dataclass(frozen=True)
class ReplicaGroup:
    """Replicas that want the same machines."""

    gpu: str
    """GPU type, as in the instance."""
    num_stages: int
    """Ranks of each."""
    replicas: tuple[Replica, ...]


def groups(plan: Plan) -> list[ReplicaGroup]:
    """Return the replicas of a plan by what they want, in the order of the plan."""
    found: dict[tuple[str, int], list[Replica]] = {}
    for replica in plan.replicas:
        found.setdefault((replica.gpu, replica.num_stages), []).append(replica)
    return [ReplicaGroup(gpu, stages, tuple(replicas)) for (gpu, stages), replicas in found.items()]


def described(replica: Replica) -> str:
    """Return a replica in a line of a comment."""
    names = ", ".join(replica.adapters)
    return f"replica {replica.id}: {replica.num_stages} x {replica.gpu}, {replica.makespan_s:.4g} s as planned: {names}"


def comment(lines: Sequence[str]) -> str:
    """Return lines as a comment; names of a plan may hold anything, a line break too."""
    return "".join(f"# {' '.join(line.split())}".rstrip() + "\n" for line in lines)
