"""Names of rows and columns that every reader of LP and MPS files takes, whatever adapters are called."""

import re
import unicodedata

LONGEST_TOKEN = 24
"""Letters of an adapter's name that stand in the names of columns."""
LONGEST_NAME = 160
"""Letters of a name; readers of LP files take up to 255."""


class Names:
    """Gives out names of letters, digits and underscores, none twice, whatever the case of the letters."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, text: str, longest: int = LONGEST_NAME) -> str:
        """Return a name that is like the text and has not been given out yet.

        Parameters
        ----------
        longest
            Letters that it may have.
        """
        plain = cleaned(text)[:longest].rstrip("_") or "unnamed"
        name, number = plain, 1
        while name.casefold() in self._taken:
            number += 1
            suffix = f"_{number}"
            name = plain[: longest - len(suffix)] + suffix
        self._taken.add(name.casefold())
        return name


def cleaned(text: str) -> str:
    """Return a text with letters without their accents, and one underscore for whatever is no letter or digit."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "_", ascii_text).strip("_")


def printable(text: str) -> str:
    """Return a text in one line: what does not print, line breaks among it, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
