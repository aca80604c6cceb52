"""The forms in which rows hold samples: recognised by their columns, and read as chats or as prompt and completion."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Row = dict[str, Any]
"""By column, what stands there."""


class Form(StrEnum):
    """What the rows of a data set are."""

    INPUT_IDS = "input_ids"
    TEXT = "text"
    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt_completion"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"


class LossOn(StrEnum):
    """Which tokens are learnt."""

    ASSISTANT = "assistant"
    COMPLETION = "completion"
    ALL = "all"


COLUMNS: Mapping[Form, tuple[str, ...]] = {
    Form.INPUT_IDS: ("input_ids",),
    Form.TEXT: ("text",),
    Form.MESSAGES: ("messages",),
    Form.PROMPT_COMPLETION: ("prompt", "completion"),
    Form.SHAREGPT: ("conversations",),
    Form.ALPACA: ("instruction", "output"),
}
"""Columns by which a form is recognised, the first form that has them all."""
BESIDE: Mapping[Form, tuple[str, ...]] = {
    Form.INPUT_IDS: ("labels",),
    Form.TEXT: (),
    Form.MESSAGES: ("system", "tools", "chat_template_kwargs"),
    Form.PROMPT_COMPLETION: ("system", "tools", "chat_template_kwargs"),
    Form.SHAREGPT: ("system", "tools", "chat_template_kwargs"),
    Form.ALPACA: ("input", "system", "history", "tools", "chat_template_kwargs"),
}
"""Columns that are read besides, where they are there."""
LOSS_RULES: Mapping[Form, tuple[LossOn, ...]] = {
    Form.INPUT_IDS: (LossOn.ALL,),
    Form.TEXT: (LossOn.ALL,),
    Form.MESSAGES: (LossOn.ASSISTANT, LossOn.ALL),
    Form.PROMPT_COMPLETION: (LossOn.COMPLETION, LossOn.ALL),
    Form.SHAREGPT: (LossOn.ASSISTANT, LossOn.ALL),
    Form.ALPACA: (LossOn.COMPLETION, LossOn.ALL),
}
"""Which rules make sense for a form; the first is the one by default (of `input_ids`: what the rows say)."""

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_ALPACA_BELOW = "Below is an instruction that describes a task"
_ALPACA_INPUT = (
    _ALPACA_BELOW + ", paired with an input that provides further context. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA = (
    _ALPACA_BELOW + ". Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}"
    "\n\n### Response:\n"
)


class RowError(Exception):
    """A row cannot be read, or not be honoured; whoever knows file and row says so.

    Parameters
    ----------
    problem
        What is wrong.
    remedy
        What to do about it.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy


@dataclass(frozen=True)
class Chat:
    """Messages that a chat template renders."""

    messages: list[dict[str, Any]]
    """Each with `role` and, but for calls of tools, `content`."""
    first: int = 0
    """Messages before it are never learnt."""
    tools: list[Any] | None = None
    """Descriptions of tools for the template."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template."""


@dataclass(frozen=True)
class PlainText:
    """A prompt and what follows it, without a chat template."""

    prompt: str
    completion: str


def matching_forms(columns: Collection[str]) -> list[Form]:
    """Return the forms that rows with these columns could have, the one to be preferred first."""
    return [form for form, needed in COLUMNS.items() if all(c in columns for c in needed)]


def as_sample(row: Row, form: Form, has_template: bool) -> Chat | PlainText:
    """Return a row of `messages`, `prompt_completion`, `sharegpt` or `alpaca` as a sample.

    Parameters
    ----------
    has_template
        Whether there is a chat template; without one `alpaca` becomes the text of its well-known template.

    Raises
    ------
    RowError
        When a column is malformed, or holds what would not be honoured.
    """
    if form is Form.ALPACA:
        sample = _alpaca(row, has_template)
    elif form is Form.PROMPT_COMPLETION:
        sample = _prompt_completion(row)
    else:
        column = COLUMNS[form][0]
        sample = Chat(_messages(row.get(column), column, _turn if form is Form.SHAREGPT else _message))
    if isinstance(sample, PlainText):
        for column in ("system", "tools", "chat_template_kwargs"):
            if row.get(column):
                problem = f"{column} has no place in a plain prompt and completion"
                raise RowError(problem, "give lists of messages and a tokenizer with a chat template, or remove it")
        return sample
    return _with_columns(sample, row)


def _with_columns(chat: Chat, row: Row) -> Chat:
    """Return a chat with what the columns beside it say."""
    messages, first, system = chat.messages, chat.first, row.get("system")
    if system is not None and not isinstance(system, str):
        raise RowError(f"system is {_short(system)}, no text", "give a string")
    if system:
        if messages[0]["role"] == "system":
            raise RowError("system is given, and the first message is one too", "keep one of the two")
        messages, first = [{"role": "system", "content": system}, *messages], first + 1 if first else 0
    tools, options = _parsed(row, "tools", list), _parsed(row, "chat_template_kwargs", dict)
    return Chat(messages, first, tools or None, options or {})


def _parsed(row: Row, column: str, kind: type) -> Any:
    """Return a column that may be JSON text, as data sets without a schema have it."""
    value = row.get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            raise RowError(f"{column} is text that is no JSON", "correct it, or remove the column") from None
    if value is not None and not isinstance(value, kind):
        raise RowError(f"{column} is {_short(value)}", f"give a {kind.__name__}, or remove the column")
    return value


def _messages(value: Any, column: str, read: Any) -> list[dict[str, Any]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RowError(f"{column} is {_short(value)}", "give a list of messages")
    return [read(message, f"{column}[{i}]") for i, message in enumerate(value)]


def _message(value: Any, at: str) -> dict[str, Any]:
    """Return a message without the fields that are empty, as tables of unlike messages have them."""
    message = {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else {}
    if not isinstance(message.get("role"), str):
        raise RowError(f"{at} is {_short(value)}", "give a message with role and content")
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise RowError(f"{at} has no content", "give a string")
    if content is not None and not isinstance(content, str):
        raise RowError(f"{at}.content is {_short(content)}", "give a string: adapters learn text only")
    for key in ("train", "training"):
        if message.pop(key, True) is not True:
            raise RowError(f"{at}.{key} is not understood", "set weight to 0 for a message that is not to be learnt")
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise RowError(f"{at}.weight is {_short(weight)}", "give 0 or 1: all that is learnt counts alike")
    return message


def _turn(value: Any, at: str) -> dict[str, Any]:
    """Return a turn of `from` and `value` as a message; some have the names of messages already."""
    if not isinstance(value, Mapping) or value.get("from") is None:
        return _message(value, at)
    role = _ROLES.get(str(value["from"]).lower())
    if role is None:
        known = ", ".join(_ROLES)
        raise RowError(f"{at}.from is {_short(value['from'])}", f"use one of {known}, or give the row as messages")
    rest = {k: v for k, v in value.items() if k not in ("from", "value", "role", "content")}
    return _message({"role": role, "content": value.get("value"), **rest}, at)


def _alpaca(row: Row, has_template: bool) -> Chat | PlainText:
    parts: dict[str, str] = {}
    for column in ("instruction", "input", "output"):
        value = row.get(column)
        if value is None and column == "input":
            value = ""
        if not isinstance(value, str):
            raise RowError(f"{column} is {_short(value)}", "give a string")
        parts[column] = value
    if row.get("history"):
        raise RowError("history holds earlier turns, which this form does not learn from", "give the row as messages")
    if not has_template:
        form = _ALPACA_INPUT if parts["input"] else _ALPACA
        return PlainText(form.format(instruction=parts["instruction"], input=parts["input"]), parts["output"])
    asked = "\n\n".join(part for part in (parts["instruction"], parts["input"]) if part)
    return Chat([{"role": "user", "content": asked}, {"role": "assistant", "content": parts["output"]}], 1)


def _prompt_completion(row: Row) -> Chat | PlainText:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return PlainText(prompt, completion)
    for name, value in (("prompt", prompt), ("completion", completion)):
        if isinstance(value, str):
            raise RowError(f"{name} is text, and the other a list", "give both as strings, or both as messages")
    before = _messages(prompt, "prompt", _message)
    return Chat([*before, *_messages(completion, "completion", _message)], len(before))


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
