"""Every form as tokens and labels, against samples written by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.chats import CHATML, WITHOUT_END, save_chat_tokenizer, words
from hypothesis import given, settings
from hypothesis import strategies as st

from cappuccino.errors import InputError
from cappuccino.runtime.encoding.encoder import NO_LOSS, EncodedSample, SampleEncoder
from cappuccino.runtime.encoding.forms import LOSS_RULES, Form, LossOn, RowError

Make = Callable[..., SampleEncoder]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Give an encoder of a form, with a template or without."""
    made: dict[tuple[str | None, bool], Path] = {}

    def get(form: Form, template: str | None = CHATML, loss_on: LossOn | None = None, merges: bool = False) -> Any:
        if (template, merges) not in made:
            folder = tmp_path_factory.mktemp("tokenizer")
            made[template, merges] = save_chat_tokenizer(folder, template, merges=merges)
        return SampleEncoder(made[template, merges], form, loss_on or LOSS_RULES[form][0])

    return get


def shown(sample: EncodedSample | RowError) -> list[tuple[bool, str]]:
    assert isinstance(sample, EncodedSample), sample
    learnt = sample.labels != NO_LOSS
    assert (sample.labels[learnt] == sample.ids[learnt]).all()
    return words(sample.ids.tolist(), learnt.tolist())


TEXT = st.text("abcXYZ 01.?\n", min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(asked=TEXT, answered=TEXT)
def test_every_form_learns_what_the_hand_marks(make: Make, asked: str, answered: str) -> None:
    chat = [
        (False, f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"),
        (True, f"{answered}<|im_end|>"),
        (False, "\n"),
    ]
    user, assistant = {"role": "user", "content": asked}, {"role": "assistant", "content": answered}
    rows: list[tuple[Form, dict[str, Any], list[tuple[bool, str]]]] = [
        (Form.MESSAGES, {"messages": [user, assistant]}, chat),
        (
            Form.SHAREGPT,
            {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]},
            chat,
        ),
        (Form.ALPACA, {"instruction": asked, "input": "", "output": answered}, chat),
        (Form.PROMPT_COMPLETION, {"prompt": [user], "completion": [assistant]}, chat),
        # as TRL has it: the prompt is masked, the completion and the end behind it are not
        (
            Form.PROMPT_COMPLETION,
            {"prompt": asked, "completion": answered},
            [(False, asked), (True, f"{answered}</s>")],
        ),
        (Form.TEXT, {"text": asked}, [(True, f"{asked}</s>")]),
    ]
    for form, row, expected in rows:
        (sample,) = make(form).encode([row])
        assert shown(sample) == expected, form
        (every,) = make(form, loss_on=LossOn.ALL).encode([row])
        assert shown(every) == [(True, "".join(text for _, text in expected))], form


def test_alpaca_without_a_template_is_its_well_known_text(make: Make) -> None:
    (sample,) = make(Form.ALPACA, None).encode([{"instruction": "say", "input": "it", "output": "no"}])
    (_, prompt), answer = shown(sample)
    assert prompt.endswith("### Instruction:\nsay\n\n### Input:\nit\n\n### Response:\n")
    assert answer == (True, "no</s>")


@pytest.mark.parametrize("form", [Form.MESSAGES, Form.SHAREGPT])
def test_chats_need_a_template(make: Make, form: Form) -> None:
    with pytest.raises(
        InputError, match=rf"chat_template: the tokenizer has no chat template, which rows of {form} need"
    ):
        make(form, None)


def test_prompts_of_messages_need_a_template(make: Make) -> None:
    row = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    (found,) = make(Form.PROMPT_COMPLETION, None).encode([row])
    assert isinstance(found, RowError)
    assert "no chat template" in found.problem
    (plain,) = make(Form.PROMPT_COMPLETION, None).encode([{"prompt": "a", "completion": "b"}])
    assert shown(plain) == [(False, "a"), (True, "b</s>")]


def test_a_token_over_the_border_is_refused_with_its_remedy(make: Make) -> None:
    # with these merges a space and the letter behind it are one token
    encoder = make(Form.PROMPT_COMPLETION, None, merges=True)
    joined, apart = encoder.encode([{"prompt": "a ", "completion": "b"}, {"prompt": "a", "completion": " b"}])
    assert isinstance(joined, RowError)
    assert "('a ' 'b')" in joined.problem
    assert "move the white space" in joined.remedy
    assert isinstance(apart, EncodedSample)
    assert (apart.labels != NO_LOSS).tolist() == [False, True, True]  # a, " b", </s>
    (every,) = make(Form.PROMPT_COMPLETION, None, LossOn.ALL, merges=True).encode([{"prompt": "a ", "completion": "b"}])
    assert isinstance(every, EncodedSample)  # where all is learnt there is no border


def test_good_and_bad_rows_keep_their_places(make: Make) -> None:
    rows = [{"prompt": "a", "completion": ""}, {"prompt": 1, "completion": "b"}, {"prompt": "a", "completion": "b"}]
    empty, bad, good = make(Form.PROMPT_COMPLETION).encode(rows)
    assert isinstance(empty, EncodedSample)
    assert not len(empty.ids)  # nothing but an end would be learnt
    assert isinstance(bad, RowError)
    assert shown(good) == [(False, "a"), (True, "b</s>")]


def test_an_end_is_added_to_the_last_answer_where_the_template_has_none(make: Make) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (sample,) = make(Form.MESSAGES, WITHOUT_END).encode([{"messages": messages}])
    assert shown(sample) == [(False, "user: a\nassistant: "), (True, "b\n</s>")]
    assert isinstance(sample, EncodedSample)
    assert shown(sample.without_end())[1] == (True, "b\n")
    (with_end,) = make(Form.MESSAGES).encode([{"messages": messages}])
    assert isinstance(with_end, EncodedSample)
    assert with_end.without_end() is with_end  # the template's own end is no addition
