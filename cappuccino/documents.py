"""Files that people write, JSON or YAML by their suffix, as plain values.

YAML is read so that it means what the same words mean in JSON: numbers are numbers however they are written (YAML 1.1
takes `1e-4` for text), keys are text, and only `true` and `false` are truth values.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from cappuccino.errors import InputError
from cappuccino.files import read_json, read_text

YAML_SUFFIXES = (".yaml", ".yml")
_TAG = "tag:yaml.org,2002:"
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the compiled one is not on every platform


def read_document(path: Path) -> Any:
    """Return what stands in a file: YAML where its name ends in .yaml or .yml, JSON otherwise.

    Raises
    ------
    InputError
        When the file is missing or neither; a repeated key, and what YAML could take for two things, are named with
        their lines.
    """
    return read_yaml(path) if path.suffix.lower() in YAML_SUFFIXES else read_json(path)


def read_yaml(path: Path) -> Any:
    """Return the parsed YAML of a file: mappings, sequences, text, numbers, truth values and null.

    Raises
    ------
    InputError
        When the file is missing or not such YAML, naming the line.
    """
    text = read_text(path)
    try:
        return yaml.load(text, Loader=_Loader)
    except _RefusedError as error:
        raise InputError(path, error.field, error.problem, error.remedy) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
        said = ", ".join(part for part in (error.context, error.problem) if part)
        remedy = "correct it there: indent with spaces, write `name: value`, put text with : or # in quotes"
        raise InputError(path, "", f"is not valid YAML{at} ({said})", remedy) from error
    except yaml.YAMLError as error:  # a character that YAML has no place for
        problem = f"is not valid YAML ({str(error).splitlines()[0]})"
        raise InputError(path, "", problem, "remove control characters") from error
    except (ValueError, RecursionError) as error:
        raise InputError(path, "", f"is YAML that cannot be held ({error})", "correct the file") from error


class _RefusedError(Exception):
    """YAML that is well formed, but that means nothing here or two things."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        self.field, self.problem, self.remedy = field, problem, remedy
        super().__init__(problem)


class _Loader(_Base):
    """PyYAML's safe loader with the plain values of YAML 1.2, and with mappings that hold each key once."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - filled below; PyYAML's own are those of YAML 1.1
    yaml_constructors: dict[str | None, Any] = {}  # noqa: RUF012


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _mapping(loader: Any, node: Any) -> dict[str, Any]:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _RefusedError("", f"has a key that is no text on line {_line(key)}", "write `name: value`")
        if key.value in lines:
            problem = f"is given twice in one mapping, on lines {lines[key.value]} and {_line(key)}"
            raise _RefusedError(key.value, problem, "keep one of the two")
        lines[key.value] = _line(key)
    loader.flatten_mapping(node)  # puts what `<<` refers to in front, so that a mapping's own values hold
    return {_text(loader, key): loader.construct_object(value, deep=True) for key, value in node.value}


def _sequence(loader: Any, node: Any) -> list[Any]:
    return [loader.construct_object(value, deep=True) for value in node.value]


def _text(_: Any, node: Any) -> str:
    text = str(node.value)
    for character in text:
        if character == "\0" or "\ud800" <= character <= "\udfff":
            problem = f"holds {character!a} on line {_line(node)}, which is no text"
            raise _RefusedError("", problem, "write the character itself, or none")
    return text


def _integer(_: Any, node: Any) -> int:
    return int(node.value)


def _number(_: Any, node: Any) -> float:
    return float(node.value)


def _not_a_number(_: Any, node: Any) -> None:
    problem = f"contains {node.value} on line {_line(node)}"
    raise _RefusedError("", problem, "write null or a finite value, or text in quotes")


def _two_numbers(_: Any, node: Any) -> None:
    shown = node.value
    problem = f"contains {shown} on line {_line(node)}, which some readers take for an octal number"
    raise _RefusedError("", problem, f'write it without leading zeros, or "{shown}" if it is text')


def _refuse_tag(_: Any, node: Any) -> None:
    tag = str(node.tag).replace(_TAG, "!!")
    raise _RefusedError("", f"has the tag {tag} on line {_line(node)}", "write plain values")


for _name, _pattern, _first, _construct in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""], lambda loader, node: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF"), lambda loader, node: node.value.lower() == "true"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789"), _integer),
    ("leading-zero", r"[-+]?0[0-9]+", list("-+0"), _two_numbers),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789"), _number),
    ("no-number", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+."), _not_a_number),
    ("merge", "<<", ["<"], _text),
    ("str", None, None, _text),
    ("map", None, None, _mapping),
    ("seq", None, None, _sequence),
):
    if _pattern is not None:
        _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
    _Loader.add_constructor(_TAG + _name, _construct)
_Loader.add_constructor(None, _refuse_tag)
