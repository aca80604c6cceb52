"""Length distributions of local files: what is counted, what is refused, and that nothing stays behind."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from helpers.small import save_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cappuccino.errors import InputError
from cappuccino.lengths import read_length_distribution
from cappuccino.runtime.data.lengths import measure_lengths
from cappuccino.runtime.data.reading import ReadingRules
from cappuccino.runtime.encoding.text_encoder import EncodedText, TextEncoder
from cappuccino.training_data import TooLong

ROWS = [{"question": "w " * n, "answer": "w w"} for n in (2, 3, 4, 5, 9)]
QUESTIONS = ReadingRules(8, text_fields=("question",))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token per word."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = Tokenizer(models.WordLevel({"w": 0}, unk_token="w"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w").save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `datasets` would keep copies of what it reads."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measure(
    sources: Sequence[str],
    tokenizer: Path,
    output: Path,
    *,
    fields: Sequence[str] = ("question",),
    most: int = 100,
    longest: int = 8,
    seed: int = 42,
) -> dict[str, list[int]]:
    """Measure, and return by dataset the lengths that the file holds."""
    rules = ReadingRules(longest, text_fields=tuple(fields))
    measure_lengths(sources, tokenizer, output, num_samples=most, rules=rules, seed=seed)
    found = read_length_distribution(output)
    return {name: lengths.tolist() for (name, _, _), lengths in found.entries.items()}


def test_samples_are_counted_in_tokens_and_cut(tokenizer: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "chat.jsonl", ROWS)
    (lengths,) = measure([f"chat={file}"], tokenizer, tmp_path / "out.json").values()
    assert sorted(lengths) == [2, 3, 4, 5, 8]  # the fifth has 9


def test_several_fields_make_one_sample(tokenizer: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "chat.jsonl", ROWS)
    found = measure([f"chat={file}"], tokenizer, tmp_path / "out.json", fields=("question", "answer"), longest=100)
    assert sorted(found["chat"]) == [4, 5, 6, 7, 11]


def test_the_file_has_the_format_of_the_seed(tokenizer: Path, tmp_path: Path) -> None:
    chat, code = write(tmp_path / "chat.jsonl", ROWS), tmp_path / "code.parquet"
    Dataset.from_list(ROWS).to_parquet(code)
    told: list[tuple[float, str]] = []
    records = measure_lengths(
        [f"chat={chat}", f"code={code}"],
        tokenizer,
        tmp_path / "out.json",
        num_samples=4,
        rules=QUESTIONS,
        seed=7,
        on_progress=lambda fraction, name: told.append((fraction, name)),
    )
    document = json.loads((tmp_path / "out.json").read_text())
    assert document == {name: {"seeds": [7], "seed_7": found.statistics} for name, found in records.items()}
    assert records["chat"].statistics["num_samples"] == 4
    assert list(read_length_distribution(tmp_path / "out.json").entries) == [("chat", 7, 1), ("code", 7, 1)]
    assert told == [(0.0, "chat"), (0.5, "code")]


def test_the_draw_follows_the_seed(tokenizer: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "chat.jsonl", [{"question": "w " * n} for n in range(2, 32)])
    draws = [
        measure([f"chat={file}"], tokenizer, tmp_path / "out.json", most=10, longest=100, seed=seed)["chat"]
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 10


def test_nothing_stays_in_a_cache(tokenizer: Path, tmp_path: Path, home: Path) -> None:
    file = write(tmp_path / "chat.jsonl", ROWS)
    measure([f"chat={file}"], tokenizer, tmp_path / "out.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chat.jsonl", "out.json"]
    assert not list(home.iterdir())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "w"}], r"chat\.jsonl: question: is no field of the data; set --text-field to one of: text"),
        ([{"question": "w"}, {"question": None}], r"chat\.jsonl: row 1: question is None, no text; give a string"),
        ([{"question": ["w", "w"]}], r"chat\.jsonl: row 0: question is \['w', 'w'\], no text"),
        ([{"question": " "}, {"question": "w"}], r"chat\.jsonl: holds no sample to learn from \(1 empty, 1 without a"),
    ],
)
def test_bad_rows_are_named(rows: list[object], message: str, tokenizer: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "chat.jsonl", rows)
    with pytest.raises(InputError, match=message):
        measure([f"chat={file}"], tokenizer, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_what_is_not_used_and_how_samples_end_is_said(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "letters")
    file = write(tmp_path / "chat.jsonl", [{"question": "a" * n, "id": n} for n in (0, 1, 2, 3, 9)])

    def told(end: bool, too_long: TooLong = "cut") -> tuple[list[str], list[int]]:
        notes: list[str] = []
        rules = replace(QUESTIONS, end=end, too_long=too_long)
        measure_lengths(
            [f"org/chat={file}"], tmp_path / "letters", tmp_path / "out.json", num_samples=9, rules=rules,
            data=tmp_path / "data", on_note=notes.append,
        )  # fmt: skip
        rows = [json.loads(line) for line in (tmp_path / "data" / "org" / "chat.jsonl").read_text().splitlines()]
        lengths = read_length_distribution(tmp_path / "out.json").lengths("org/chat").tolist()
        assert [len(row["input_ids"]) for row in rows] == lengths
        assert all(row["labels"] == row["input_ids"] for row in rows)
        return [note.removeprefix("org/chat: ") for note in notes], sorted(lengths)

    learnt = "rows of text, loss on all tokens"
    assert told(True) == (
        [
            f"{learnt} (13 of 17 tokens)",  # what stands first is predicted from nothing
            "1 cut to 8 tokens, 1 empty",
            "3 of 4 samples end with </s>",
            "not used: id",
        ],
        [2, 3, 4, 8],
    )
    assert told(False) == (
        [
            f"{learnt} (10 of 13 tokens)",
            "1 cut to 8 tokens, 1 empty, 1 without a token to learn from",
            "0 of 3 samples end with </s>",
            "not used: id",
        ],
        [2, 3, 8],
    )
    assert told(True, "drop")[0][1] == "1 too long and dropped, 1 empty"
    assert told(True, "drop")[1] == [2, 3, 4]


def test_columns_of_tokens_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "chat.jsonl", [{"question": "w w", "labels": [1, 2]}])
    with pytest.raises(InputError, match=r"chat\.jsonl: row 0: labels belongs to tokens"):
        measure([f"chat={file}"], tokenizer, tmp_path / "out.json")


def test_nothing_that_is_read_is_written_over(tokenizer: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "chat.jsonl", ROWS)
    before = file.read_text()
    with pytest.raises(InputError, match=r"chat\.jsonl: would replace another file of this command"):
        measure([f"chat={file}"], tokenizer, file)
    with pytest.raises(InputError, match=r"chat\.jsonl: would replace another file of this command"):
        measure_lengths(
            [f"chat={file}"], tokenizer, tmp_path / "out.json", num_samples=9, rules=QUESTIONS, data=tmp_path
        )  # fmt: skip
    assert file.read_text() == before


@pytest.mark.parametrize("content", ['{"question": "w\n', ""])
def test_unreadable_files_are_named(content: str, tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=r"chat\.jsonl: "):
        measure([f"chat={file}"], tokenizer, tmp_path / "out.json")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["chat.jsonl"], '"chat.jsonl" is not NAME=SOURCE'),
        (["=chat.jsonl"], '"=chat.jsonl" is not NAME=SOURCE'),
        (["chat="], '"chat=" is not NAME=SOURCE'),
        (["chat=a.jsonl", "chat=b.jsonl"], '"chat" is given twice'),
        (["chat=absent.jsonl"], "absent.jsonl: file not found"),
        (["../chat=a.jsonl"], '"../chat" names no data file: it has an empty part, or one that leads out'),
    ],
)
def test_bad_sources_are_named(sources: list[str], message: str, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        measure(sources, tokenizer, tmp_path / "out.json")
    assert not list(tmp_path.iterdir())


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "chat.jsonl", ROWS)
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="holds no tokenizer"):
            measure([f"chat={file}"], folder, tmp_path / "out.json")
    assert [p.name for p in tmp_path.iterdir()] == ["chat.jsonl"]


def test_the_samples_drawn_are_what_a_run_trains_on(tmp_path, tokenizer) -> None:
    # lengths draws in an order of its own; the data it writes has that order, so row n is sample n
    texts = [f"{'word ' * n}end" for n in range(1, 9)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    measure_lengths(
        [f"d={tmp_path / 'in.jsonl'}"],
        tokenizer,
        tmp_path / "lengths.json",
        num_samples=6,
        rules=ReadingRules(10),
        seed=1,
        data=tmp_path / "data",
    )
    lengths = read_length_distribution(tmp_path / "lengths.json").lengths("d")
    rows = [json.loads(line) for line in (tmp_path / "data" / "d.jsonl").read_text().splitlines()]
    assert [len(row["input_ids"]) for row in rows] == lengths.tolist()
    assert len(rows) == 6
    assert max(lengths) <= 10


def test_rows_of_tokens_are_measured_as_they_are(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "letters")
    rows = [
        {"input_ids": [0, 3, 4, 1], "labels": [-100, -100, 4, 1]},
        {"input_ids": [0, 3], "labels": [-100, -100]},  # nothing to learn
        {"input_ids": [3, 4, 3], "labels": [-100, 4, 3]},
    ]
    file, notes = write(tmp_path / "d.jsonl", rows), []
    found = measure_lengths(
        [f"d={file}"], tmp_path / "letters", tmp_path / "out.json", num_samples=9, rules=ReadingRules(9), in_order=True,
        data=tmp_path / "data", on_note=notes.append,
    )["d"]  # fmt: skip
    assert found.statistics["permutation_1"] == [4, 3]
    assert found.edges == {"begin": {"<s>": 1}, "end": {"</s>": 1}}
    assert notes[:2] == [
        "d: rows of input_ids, loss on what the rows say (4 of 7 tokens)",
        "d: 1 without a token to learn from",
    ]
    written = [json.loads(line) for line in (tmp_path / "data" / "d.jsonl").read_text().splitlines()]
    assert written == [rows[0], rows[2]]


def test_a_tokenizer_that_makes_no_tokens_is_told_from_an_empty_text(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as one does that transformers takes for another kind by the config.json beside it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(TextEncoder, "encode", lambda self, texts: [EncodedText([], False, True) for _ in texts])
    file = write(tmp_path / "chat.jsonl", ROWS)
    with pytest.raises(InputError, match=r"makes no tokens of .*give the tokenizer that the backbone is used with"):
        measure([f"chat={file}"], tokenizer, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
