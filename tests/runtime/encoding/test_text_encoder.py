"""Special tokens at the ends of samples stand there once, and tokenizers that cannot be read are one error."""

import json
from pathlib import Path

import pytest
from helpers.small import save_tokenizer

from cappuccino.errors import InputError
from cappuccino.runtime.encoding.text_encoder import TextEncoder

BOS, EOS, A, B, NEWLINE = 0, 1, 3, 4, 5


@pytest.mark.parametrize(
    ("adds", "text", "expected"),
    [
        ((), "ab", [A, B, EOS]),
        ((), "ab</s>", [A, B, EOS]),
        ((), "ab</s>\n", [A, B, EOS, NEWLINE]),  # as chat templates end
        ((), "ab</s></s>", [A, B, EOS, EOS]),  # what the text itself doubles is not ours to judge
        (("bos",), "ab", [BOS, A, B, EOS]),
        (("bos",), "<s>ab", [BOS, A, B, EOS]),
        (("bos",), "<s><s>ab", [BOS, BOS, A, B, EOS]),
        (("bos", "eos"), "ab", [BOS, A, B, EOS]),
        (("bos", "eos"), "<s>ab</s>", [BOS, A, B, EOS]),
        (("bos", "eos"), "<s>ab</s>\n", [BOS, A, B, EOS, NEWLINE]),
        (("eos",), "ab", [A, B, EOS]),
        (("eos",), "ab</s>", [A, B, EOS]),
    ],
)
def test_special_tokens_stand_once(tmp_path: Path, adds: tuple[str, ...], text: str, expected: list[int]) -> None:
    encoder = TextEncoder(save_tokenizer(tmp_path, adds=adds))
    assert encoder.encode([text, "a"])[0].ids == expected


def test_what_was_put_around_a_text_is_said(tmp_path: Path) -> None:
    encoder = TextEncoder(save_tokenizer(tmp_path, adds=("bos",)))
    found = encoder.encode(["ab", "<s>ab</s>", ""])
    assert [(f.first, f.end_added, f.empty) for f in found] == [(1, True, False), (0, False, False), (0, False, True)]
    assert encoder.end == "</s>"


def test_a_token_that_is_added_but_not_declared_stands_once(tmp_path: Path) -> None:
    encoder = TextEncoder(save_tokenizer(tmp_path, adds=("bos",), begin=None))
    assert [f.ids for f in encoder.encode(["ab", "<s>ab"])] == [[BOS, A, B, EOS]] * 2


def test_a_tokenizer_without_an_end(tmp_path: Path) -> None:
    encoder = TextEncoder(save_tokenizer(tmp_path, end=None))
    assert encoder.end is None
    assert [f.ids for f in encoder.encode(["ab"])] == [[A, B]]


def test_a_tokenizer_of_another_version_is_one_error(tmp_path: Path) -> None:
    file = save_tokenizer(tmp_path) / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"]["merges"] = [["a", "b", "c"]]
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=rf"{tmp_path}: holds no tokenizer that can be read \(data did not match"):
        TextEncoder(tmp_path)


def test_a_folder_without_a_tokenizer_is_named_with_what_to_name_instead(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for folder, problem in ((tmp_path, "holds no tokenizer"), (tmp_path / "none", "is no folder")):
        with pytest.raises(InputError) as refused:
            TextEncoder(folder)
        assert str(refused.value).startswith(f"{folder}: {problem}")
        assert "name a folder with one of tokenizer.json" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert "hub" not in str(refused.value)
        assert "huggingface.co" not in str(refused.value)
