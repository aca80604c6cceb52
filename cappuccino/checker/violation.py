"""What the checker finds wrong."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One broken rule."""

    rule: int
    """1 to 7, as docs/formats.md numbers them: placement, samples, operations, steps, order, memory, times."""
    message: str

    def __str__(self) -> str:
        return f"rule {self.rule}: {self.message}"
