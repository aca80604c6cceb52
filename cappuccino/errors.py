"""What can go wrong for a user, each error one clear sentence with its remedy."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return how many there are: `1 stage`, `2 stages`.

    Parameters
    ----------
    plural
        Of the noun; by default with an s.
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


class CappuccinoError(Exception):
    """Base of all errors that a user can cause or cure; the command line prints them and exits."""

    exit_status = 1
    """Of the command line."""


class InputError(CappuccinoError):
    """A file or an argument is wrong.

    Parameters
    ----------
    source
        The file (or option) at fault.
    field
        Path of the field inside it, empty when the file as a whole is at fault.
    problem
        What is wrong, with the value that broke the rule.
    remedy
        What the user can do about it.
    """

    def __init__(self, source: object, field: str, problem: str, remedy: str) -> None:
        self.source, self.field, self.problem, self.remedy = str(source), field, problem, remedy
        where = f"{source}: {field}" if field else str(source)
        super().__init__(f"{where}: {problem}; {remedy}")


class InfeasibleError(CappuccinoError):
    """The input is well formed, but there is no plan; the message says why and what would help."""


class NoPlanFoundError(InfeasibleError):
    """No plan was found, though bounds exclude none; the message says what would help."""


class InvalidPlanError(CappuccinoError):
    """A plan breaks a rule of validity; the message names the rules."""


class CappuccinoWarning(UserWarning):
    """What is to be known before one relies on a result; the command line prints these too."""
