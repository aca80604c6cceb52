"""Forms are recognised by columns, turned into chats or texts, and what would not be honoured is refused."""

from typing import Any

import pytest

from cappuccino.runtime.encoding.forms import (
    COLUMNS,
    LOSS_RULES,
    Chat,
    Form,
    PlainText,
    RowError,
    as_sample,
    matching_forms,
)

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("columns", "forms"),
    [
        (["input_ids", "labels", "text"], [Form.INPUT_IDS, Form.TEXT]),
        (["instruction", "input", "output", "text"], [Form.TEXT, Form.ALPACA]),
        (["prompt", "prompt_id", "messages"], [Form.MESSAGES]),
        (["prompt", "completion"], [Form.PROMPT_COMPLETION]),
        (["conversations", "id"], [Form.SHAREGPT]),
        (["instruction", "output"], [Form.ALPACA]),
        (["words"], []),
    ],
)
def test_forms_are_recognised_by_columns(columns: list[str], forms: list[Form]) -> None:
    assert matching_forms(columns) == forms


def test_every_form_has_columns_and_a_rule() -> None:
    assert set(COLUMNS) == set(LOSS_RULES) == set(Form)


def test_sharegpt_becomes_messages() -> None:
    turns = [("system", "s"), ("human", "a"), ("gpt", "b"), ("tool", "c"), ("gpt", "d")]
    row = {"conversations": [{"from": who, "value": what} for who, what in turns], "system": ""}
    roles = ["system", "user", "assistant", "tool", "assistant"]
    expected = [{"role": role, "content": what} for role, (_, what) in zip(roles, turns, strict=True)]
    assert as_sample(row, Form.SHAREGPT, True) == Chat(expected)
    named = {"conversations": [{"role": "user", "content": "hi", "from": None, "value": None}, ASSISTANT]}
    assert as_sample(named, Form.SHAREGPT, True) == Chat([USER, ASSISTANT])


@pytest.mark.parametrize("given", ["it", "", None])
def test_alpaca_becomes_a_chat_or_its_well_known_text(given: str | None) -> None:
    row = {"instruction": "say", "input": given, "output": "no"}
    asked = "say\n\nit" if given else "say"
    chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": "no"}]
    assert as_sample(row, Form.ALPACA, True) == Chat(chat, 1)
    plain = as_sample(row, Form.ALPACA, False)
    assert isinstance(plain, PlainText)
    middle = "### Instruction:\nsay\n\n" + ("### Input:\nit\n\n" if given else "") + "### Response:\n"
    assert plain.prompt.startswith("Below is an instruction that describes a task")
    assert plain.prompt.endswith(f"completes the request.\n\n{middle}")
    assert plain.completion == "no"


def test_braces_in_alpaca_are_text() -> None:
    row = {"instruction": "{input} {0}", "output": "{output}"}
    plain = as_sample(row, Form.ALPACA, False)
    assert isinstance(plain, PlainText)
    assert "### Instruction:\n{input} {0}\n\n" in plain.prompt


def test_prompt_and_completion_are_texts_or_messages() -> None:
    assert as_sample({"prompt": "a", "completion": " b"}, Form.PROMPT_COMPLETION, True) == PlainText("a", " b")
    row = {"prompt": [USER], "completion": [ASSISTANT], "system": "s", "tools": '[{"name": "t"}]'}
    system = {"role": "system", "content": "s"}
    assert as_sample(row, Form.PROMPT_COMPLETION, True) == Chat([system, USER, ASSISTANT], 2, [{"name": "t"}])


def test_columns_beside_messages_are_honoured() -> None:
    row: dict[str, Any] = {
        "messages": [USER, ASSISTANT],
        "system": "s",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    found = as_sample(row, Form.MESSAGES, True)
    assert found == Chat([{"role": "system", "content": "s"}, USER, ASSISTANT], options={"enable_thinking": False})
    assert as_sample({**row, "system": None, "tools": [], "chat_template_kwargs": None}, Form.MESSAGES, True) == Chat(
        [USER, ASSISTANT]
    )


def test_empty_fields_of_a_message_are_none() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "t"}], "name": None}
    chat = as_sample({"messages": [USER, call]}, Form.MESSAGES, True)
    assert isinstance(chat, Chat)
    assert chat.messages[1] == {"role": "assistant", "tool_calls": [{"name": "t"}]}


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        (Form.MESSAGES, {"messages": []}, r"messages is \[\]"),
        (Form.MESSAGES, {"messages": "hi"}, "messages is 'hi'"),
        (Form.MESSAGES, {"messages": [{"content": "hi"}]}, r"messages\[0\] is \{'content': 'hi'\}"),
        (Form.MESSAGES, {"messages": [USER, {"role": "assistant"}]}, r"messages\[1\] has no content"),
        (Form.MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "adapters learn text only"),
        (Form.MESSAGES, {"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, r"messages\[1\].weight is 0.5"),
        (Form.MESSAGES, {"messages": [USER, {**ASSISTANT, "train": False}]}, r"messages\[1\].train is not understood"),
        (Form.MESSAGES, {"messages": [USER], "tools": "{"}, "tools is text that is no JSON"),
        (Form.MESSAGES, {"messages": [USER], "tools": {"a": 1}}, "give a list"),
        (
            Form.MESSAGES,
            {"messages": [{"role": "system", "content": "s"}], "system": "t"},
            "the first message is one too",
        ),
        (Form.MESSAGES, {"messages": [USER], "system": ["s"]}, r"system is \['s'\], no text"),
        (Form.SHAREGPT, {"conversations": [{"from": "function_call", "value": "x"}]}, "from is 'function_call'"),
        (Form.PROMPT_COMPLETION, {"prompt": [USER], "completion": "b"}, "completion is text, and the other a list"),
        (Form.PROMPT_COMPLETION, {"prompt": "a", "completion": "b", "system": "s"}, "system has no place"),
        (Form.PROMPT_COMPLETION, {"prompt": None, "completion": None}, "prompt is None"),
        (Form.ALPACA, {"instruction": "a", "output": None}, "output is None"),
        (Form.ALPACA, {"instruction": "a", "output": "b", "history": [["c", "d"]]}, "history holds earlier turns"),
    ],
)
def test_rows_that_would_not_be_honoured_are_refused(form: Form, row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError) as refused:
        as_sample(row, form, True)
    import re

    assert re.search(message, f"{refused.value.problem}; {refused.value.remedy}")
