"""Options given as words."""

from enum import StrEnum
from typing import TypeVar

from cappuccino.errors import InputError

E = TypeVar("E", bound=StrEnum)


def one_of(kind: type[E], call: str, option: str, value: str) -> E:
    """Return the member of an enumeration that an option of a call names.

    Raises
    ------
    InputError
        When there is none.
    """
    try:
        return kind(value)
    except ValueError:
        raise InputError(call, option, f'"{value}" is not known', f"use one of {', '.join(kind)}") from None
