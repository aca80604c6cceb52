"""What of a chat is learnt: the assistant's turns with their ends, whatever the template, or a clear refusal."""

from typing import Any

import pytest
from helpers import chats
from helpers.chats import save_chat_tokenizer, words
from hypothesis import given, settings
from hypothesis import strategies as st

from cappuccino.runtime.encoding.chat import ChatTemplate, EncodedChat
from cappuccino.runtime.encoding.forms import Chat, LossOn, RowError

QUESTION = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yes"}
TWICE = [QUESTION, ANSWER, {"role": "user", "content": "so?"}, {"role": "assistant", "content": "no"}]
CHATML_TWICE = [
    (False, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
    (True, "yes<|im_end|>"),
    (False, "\n<|im_start|>user\nso?<|im_end|>\n<|im_start|>assistant\n"),
    (True, "no<|im_end|>"),
    (False, "\n"),
]


@pytest.fixture(scope="module")
def template_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give a tokenizer's chat template, made once of every kind."""
    made: dict[tuple[str, str | None], ChatTemplate] = {}

    def get(name: str, end: str | None = "</s>") -> ChatTemplate:
        from transformers import AutoTokenizer

        if (name, end) not in made:
            folder = save_chat_tokenizer(tmp_path_factory.mktemp("tokenizer"), getattr(chats, name), end=end)
            made[name, end] = ChatTemplate(AutoTokenizer.from_pretrained(folder))
        return made[name, end]

    return get


def encode(
    template: ChatTemplate, messages: list[dict[str, Any]], loss_on: str = "assistant", **more: Any
) -> EncodedChat:
    return template.encode(Chat(messages, **more), LossOn(loss_on))


def said(template: ChatTemplate, messages: list[dict[str, Any]], **more: Any) -> list[tuple[bool, str]]:
    found = encode(template, messages, **more)
    return words(found.ids, found.learnt)


@pytest.mark.parametrize("name", ["CHATML", "MARKED_CHATML", "MARKED_WITHOUT_END", "WITH_TOOLS"])
def test_every_turn_of_the_assistant_is_learnt_with_its_end(template_of: Any, name: str) -> None:
    # a template that leaves the end out of its own mark would cost the run: the end is learnt there too
    assert said(template_of(name), TWICE) == CHATML_TWICE


def test_llama_3(template_of: Any) -> None:
    begin, end = "<|start_header_id|>", "<|end_header_id|>\n\n"
    assert said(template_of("LLAMA3"), [{"role": "system", "content": "be brief"}, *TWICE]) == [
        (
            False,
            f"<s>{begin}system{end}be brief<|eot_id|>{begin}user{end}hi<|eot_id|>{begin}assistant{end}",
        ),
        (True, "yes<|eot_id|>"),
        (False, f"{begin}user{end}so?<|eot_id|>{begin}assistant{end}"),
        (True, "no<|eot_id|>"),
    ]


def test_a_template_without_anything_before_an_answer(template_of: Any) -> None:
    assert said(template_of("MISTRAL"), TWICE) == [
        (False, "<s>[INST] hi [/INST]"),
        (True, " yes</s>"),
        (False, "[INST] so? [/INST]"),
        (True, " no</s>"),
    ]


def test_all_tokens_are_learnt_where_asked(template_of: Any) -> None:
    assert said(template_of("CHATML"), TWICE, loss_on="all") == [(True, "".join(text for _, text in CHATML_TWICE))]


@pytest.mark.parametrize("name", ["CHATML", "MARKED_CHATML"])
def test_messages_of_no_weight_are_not_learnt(template_of: Any, name: str) -> None:
    messages = [QUESTION, {**ANSWER, "weight": 0}, *TWICE[2:]]
    (_, silent), *rest = said(template_of(name), messages)
    assert "yes<|im_end|>" in silent
    assert rest == CHATML_TWICE[3:]


@pytest.mark.parametrize("name", ["CHATML", "MARKED_CHATML"])
def test_answers_of_the_prompt_are_not_learnt(template_of: Any, name: str) -> None:
    assert [text for kept, text in said(template_of(name), TWICE, first=3) if kept] == ["no<|im_end|>"]


def test_earlier_reasoning_that_is_left_out_is_refused(template_of: Any) -> None:
    thought = {"role": "assistant", "content": "<think>hm</think>yes"}
    template = template_of("WITHOUT_REASONING")
    with pytest.raises(RowError) as refused:
        encode(template, [QUESTION, thought, *TWICE[2:]])
    assert "up to message 1 alike alone and in the whole chat" in refused.value.problem
    assert "{% generation %}" in refused.value.remedy
    # as the last message it is whole, and without any reasoning nothing is left out
    assert said(template, [QUESTION, thought])[1] == (True, "<think>hm</think>yes<|im_end|>")
    assert said(template, TWICE) == CHATML_TWICE


def test_a_thought_before_the_last_answer_only_is_no_obstacle(template_of: Any) -> None:
    expected = [*CHATML_TWICE[:3], (True, "<think></think>no<|im_end|>"), CHATML_TWICE[4]]
    assert said(template_of("EMPTY_THOUGHT_LAST"), TWICE) == expected
    tricky = [QUESTION, {"role": "assistant", "content": "yes<|im_end|>no"}, *TWICE[2:]]  # where does it end?
    with pytest.raises(RowError, match="up to message 1 alike"):
        encode(template_of("EMPTY_THOUGHT_LAST"), tricky)


def test_what_changes_before_the_messages_is_refused(template_of: Any) -> None:
    with pytest.raises(RowError, match=r"does not render the messages up to message 1 alike .*token 0"):
        encode(template_of("WITH_COUNT"), TWICE)
    assert encode(template_of("WITH_COUNT"), TWICE, loss_on="all").ended


def test_a_template_that_knows_no_generation_prompt_is_refused(template_of: Any) -> None:
    with pytest.raises(RowError, match="knows no add_generation_prompt: where message 1 begins is not known"):
        encode(template_of("WITHOUT_PROMPT"), TWICE)


def test_turns_without_end_are_refused_but_for_the_last(template_of: Any) -> None:
    with pytest.raises(RowError, match="puts no end token behind assistant message 1"):
        encode(template_of("WITHOUT_END"), TWICE)
    found = encode(template_of("WITHOUT_END"), TWICE[:2])
    assert (found.ended, words(found.ids, found.learnt)) == (False, [(False, "user: hi\nassistant: "), (True, "yes\n")])


def test_turns_that_a_template_marks_without_end_are_refused(template_of: Any) -> None:
    with pytest.raises(RowError, match="puts no end token behind a message of the assistant"):
        encode(template_of("MARKED_NO_END"), TWICE)
    found = encode(template_of("MARKED_NO_END"), TWICE[:2])
    assert (found.ended, words(found.ids, found.learnt)) == (False, [(False, "user: hi\nassistant: "), (True, "yes\n")])


def test_a_turn_that_a_template_marks_in_parts_is_whole(template_of: Any) -> None:
    assert [text for kept, text in said(template_of("MARKED_IN_PARTS"), TWICE) if kept] == [
        "yes", "<|im_end|>", "no", "<|im_end|>",
    ]  # fmt: skip


def test_a_chat_that_ends_with_a_question_needs_no_end(template_of: Any) -> None:
    found = encode(template_of("CHATML"), TWICE[:3])
    assert found.ended
    assert [text for kept, text in words(found.ids, found.learnt) if kept] == ["yes<|im_end|>"]


def test_tools_go_to_the_template_or_are_refused(template_of: Any) -> None:
    (first, *_) = said(template_of("WITH_TOOLS"), TWICE, tools=[{"name": "a"}, {"name": "b"}])
    assert first[1].startswith("2 tools\n<|im_start|>user")
    with pytest.raises(RowError, match="tools are given, and the chat template has no place for them"):
        encode(template_of("CHATML"), TWICE, tools=[{"name": "a"}])


def test_what_a_template_refuses_is_said_with_its_reason(template_of: Any) -> None:
    with pytest.raises(RowError, match=r"refuses the messages \(user\): .*has no attribute 'content'"):
        encode(template_of("CHATML"), [{"role": "user", "tool_calls": [1]}])
    with pytest.raises(RowError, match="begins with an assistant message"):
        encode(template_of("CHATML"), [ANSWER])


LETTERS = st.text("abcXYZ 01.?\n", min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    turns=st.lists(st.tuples(LETTERS, LETTERS), min_size=1, max_size=4),
    system=st.none() | LETTERS,
    name=st.sampled_from(["CHATML", "MARKED_CHATML", "MARKED_WITHOUT_END"]),
)
def test_the_mask_is_that_of_chatml_written_by_hand(
    template_of: Any, turns: list[tuple[str, str]], system: str | None, name: str
) -> None:
    messages, expected = [], []
    if system is not None:
        messages.append({"role": "system", "content": system})
        expected.append((False, f"<|im_start|>system\n{system}<|im_end|>\n"))
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        expected += [
            (False, f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"),
            (True, f"{answered}<|im_end|>"),
            (False, "\n"),
        ]
    merged: list[tuple[bool, str]] = []
    for kept, text in expected:
        if merged and merged[-1][0] == kept:
            merged[-1] = (kept, merged[-1][1] + text)
        else:
            merged.append((kept, text))
    assert said(template_of(name), messages) == merged
