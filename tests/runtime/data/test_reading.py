"""Rows of a source become samples: cut or dropped, counted, kept, in several processes the same as in one."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.chats import CHATML, save_chat_tokenizer

from cappuccino.errors import InputError
from cappuccino.runtime.data import reading
from cappuccino.runtime.data.reading import ReadingRules, Sample, SampleReader
from cappuccino.runtime.data.sources import open_source
from cappuccino.runtime.encoding import workers
from cappuccino.runtime.encoding.encoder import SampleEncoder
from cappuccino.runtime.encoding.forms import Form, LossOn


def chat(answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]}


ROWS = [chat("b" * n) for n in (1, 5, 2, 9)] + [{"messages": [{"role": "user", "content": "a"}]}, chat("c")]
BEFORE = 1 + 5 + 1 + 1 + 1 + 1 + 10  # <|im_start|> user\n a <|im_end|> \n <|im_start|> assistant\n


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_tokenizer(tmp_path_factory.mktemp("tokenizer"), CHATML)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where encoded samples are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cappuccino" / "samples"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def read(
    file: Path, tokenizer: Path, rules: ReadingRules, numbers: Any = None, notes: list[str] | None = None
) -> tuple[list[Sample], SampleReader]:
    told = [] if notes is None else notes
    reader = SampleReader(open_source(file), tokenizer, rules, told.append)
    return list(reader.samples(itertools.count() if numbers is None else numbers, len(ROWS))), reader


def as_lists(samples: Sequence[Sample]) -> list[tuple[int, list[int], list[int]]]:
    return [(s.row, s.ids.tolist(), s.labels.tolist()) for s in samples]


def test_long_samples_are_cut_or_dropped_and_rows_without_loss_left_out(file: Path, tokenizer: Path) -> None:
    longest = BEFORE + 5 + 1  # the answer of 5 loses the line break behind its end, that of 9 its end
    cut, reader = read(file, tokenizer, ReadingRules(longest))
    assert [(s.row, len(s.ids) - BEFORE) for s in cut] == [(0, 3), (1, 6), (2, 4), (3, 6), (5, 3)]
    report = reader.report
    assert (report.rows, report.samples, report.cut, report.dropped, report.unlearnt) == (6, 5, 2, 0, 1)
    assert report.loss_tokens == 2 + 6 + 3 + 6 + 2
    dropped, reader = read(file, tokenizer, ReadingRules(longest, too_long="drop"))
    assert [s.row for s in dropped] == [0, 2, 5]
    assert (reader.report.cut, reader.report.dropped, reader.report.unlearnt) == (0, 2, 1)


def test_any_rising_rows_can_be_read(file: Path, tokenizer: Path) -> None:
    assert [s.row for s in read(file, tokenizer, ReadingRules(99), [1, 3, 5, 7])[0]] == [1, 3, 5]


def test_what_was_encoded_once_is_read_from_the_cache(
    file: Path, tokenizer: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*ROWS[:5], {**ROWS[5], "id": 7}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, reader = read(file, tokenizer, ReadingRules(99), range(6))
    assert len(list(kept.rglob("*.npz"))) == 1
    encoded: list[int] = []
    encode = SampleEncoder.encode
    monkeypatch.setattr(SampleEncoder, "encode", lambda self, rows: encoded.append(len(rows)) or encode(self, rows))
    again, other = read(file, tokenizer, ReadingRules(99), range(6))
    assert not encoded
    assert as_lists(again) == as_lists(first)
    assert (other.report, other.unused) == (reader.report, ["id"])
    # other limits and ends are made of the same; another rule, other rows, another content are not
    read(file, tokenizer, ReadingRules(9, too_long="drop"), range(6))
    assert not encoded
    read(file, tokenizer, ReadingRules(99, loss_on=LossOn.ALL), range(6))
    read(file, tokenizer, ReadingRules(99), range(5))
    file.write_text(file.read_text().replace('"c"', '"d"'))
    changed, _ = read(file, tokenizer, ReadingRules(99), range(6))
    assert encoded == [6, 5, 6]
    assert as_lists(changed) != as_lists(first)


def test_a_damaged_cache_is_made_anew(file: Path, tokenizer: Path, kept: Path) -> None:
    first, _ = read(file, tokenizer, ReadingRules(99), range(6))
    (block,) = kept.rglob("*.npz")
    block.write_bytes(block.read_bytes()[:-40])
    assert as_lists(read(file, tokenizer, ReadingRules(99), range(6))[0]) == as_lists(first)
    assert as_lists(read(file, tokenizer, ReadingRules(99), range(6))[0]) == as_lists(first)


def test_a_cache_that_cannot_be_written_is_a_note(file: Path, tokenizer: Path, kept: Path) -> None:
    kept.parent.parent.write_text("a file where the folder would be")
    notes: list[str] = []
    found, _ = read(file, tokenizer, ReadingRules(99), notes=notes)
    assert len(found) == 5
    assert len(notes) == 1
    assert f"{kept}: encoded samples are not kept (" in notes[0]


def test_the_cache_forgets_what_was_not_used_for_longest(
    file: Path, tokenizer: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cappuccino.runtime.data import cache

    read(file, tokenizer, ReadingRules(99), range(6))
    (old,) = kept.rglob("*.npz")
    monkeypatch.setattr(cache, "MOST_BYTES", old.stat().st_size + 1)
    import os

    os.utime(old, (1, 1))
    read(file, tokenizer, ReadingRules(99), range(5))
    (left,) = kept.rglob("*.npz")
    assert left != old


def test_the_date_of_the_day_is_part_of_what_is_kept(
    file: Path, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cappuccino.runtime.data import reading

    dated = save_chat_tokenizer(tmp_path / "dated", '{{ strftime_now("%d") }}' + CHATML)
    notes: list[str] = []
    for day in ("2026-01-01", "2026-01-01", "2026-01-02"):
        monkeypatch.setattr(reading, "today", lambda day=day: day)
        read(file, dated, ReadingRules(99), range(6), notes)
    assert len(list(kept.rglob("*.npz"))) == 2
    assert notes[0] == f"{file}: the chat template writes the date of the day into samples"


def test_processes_give_what_one_gives(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps(chat("b" * (n % 7 + 1))) + "\n" for n in range(300)))
    alone, _ = read(file, tokenizer, ReadingRules(99), range(300))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(workers, "MANY", 2)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    reader = SampleReader(open_source(file), tokenizer, ReadingRules(99), print)
    assert as_lists(list(reader.samples(range(300), 300))) == as_lists(alone)
    with workers.Encoding((tokenizer, Form.MESSAGES, LossOn.ASSISTANT, ("messages",)), 300) as encoding:
        assert encoding.processes == 2
        assert isinstance(encoding.encode([chat("b")] * 70 + [{"messages": 3}])[70], Exception)
        assert encoding.started


def test_bad_rows_are_named_with_their_number(file: Path, tokenizer: Path) -> None:
    with file.open("a") as stream:
        stream.write(json.dumps({"messages": [{"role": "assistant", "content": "b"}]}) + "\n")
    with pytest.raises(InputError, match=r"d\.jsonl: row 6: begins with an assistant message"):
        read(file, tokenizer, ReadingRules(99))


@pytest.mark.parametrize(
    ("row", "rules", "message"),
    [
        ({"messages": 1, "labels": [1]}, {}, "row 0: labels belongs to tokens"),
        ({"text": "a"}, {"loss_on": LossOn.ASSISTANT}, "loss_on: assistant makes no sense for rows of text; use all"),
        ({"text": "a"}, {"form": Form.ALPACA}, "instruction: is not there, which rows of the form alpaca have"),
        (
            {"input_ids": [1, 2], "labels": [-100, 2]},
            {"loss_on": LossOn.ALL},
            "row 0: loss_on is all, and labels leaves out tokens",
        ),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, tokenizer: Path, row: dict[str, Any], rules: dict[str, Any], message: str
) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"d\.jsonl: {message}"):
        read(file, tokenizer, ReadingRules(9, **rules))


def test_rows_that_fit_several_forms_are_said(tmp_path: Path, tokenizer: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"instruction": "a", "output": "b", "text": "ab"}) + "\n")
    notes: list[str] = []
    _, reader = read(file, tokenizer, ReadingRules(9), notes=notes)
    assert (reader.report.form, reader.unused) == (Form.TEXT, ["instruction", "output"])
    assert notes == [f"{file}: rows are read as text; they could be read as alpaca too (form)"]
    assert read(file, tokenizer, ReadingRules(99, form=Form.ALPACA))[1].report.form is Form.ALPACA


def test_blocks_do_not_show(file: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = read(file, tokenizer, ReadingRules(99))
    monkeypatch.setattr(reading, "_BLOCK", 2)
    monkeypatch.setattr(reading, "_MORE", 1)
    assert as_lists(read(file, tokenizer, ReadingRules(99))[0]) == as_lists(whole)
