import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from helpers.small import VOCABULARY, instance_of, save_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cappuccino.errors import InputError
from cappuccino.instance import Adapter, Instance
from cappuccino.runtime.data.samples import TokenizedDataset, adapter_samples, load_datasets
from cappuccino.training_data import TrainingData

LENGTHS = [3, 5, 2]
ROWS = [
    {"input_ids": [3, 4, 5], "labels": [-100, 4, 5]},
    {"input_ids": [6, 7, 8, 9, 10, 11, 12], "labels": [-100, -100, -100, 9, 10, 11, 12]},  # cut at 5
    {"input_ids": [13, 14], "labels": [13, -100]},
]


def instance(global_batch_size: int = 3, steps: int = 1) -> Instance:
    job = Adapter(name="a", dataset="d", global_batch_size=global_batch_size, num_steps=steps)
    return instance_of([job], {"d": LENGTHS}, longest=5)


def write(folder: Path, rows: Sequence[object]) -> None:
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(folder: Path, of: Instance | None = None) -> TokenizedDataset:
    return load_datasets(of or instance(), folder, folder, VOCABULARY).datasets["d"]


def test_rows_are_cut_and_counted(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    data = load(tmp_path)
    assert data.offsets.tolist() == [0, 3, 8, 10]
    assert data.input_ids.tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 13, 14]
    samples = adapter_samples(instance(), 0, {"d": data})
    # Row 0 predicts 2 tokens, row 1 the 2 that the cut leaves of 4, row 2 none: the first token is never predicted.
    assert samples.loss_tokens(0) == 4


def test_training_order_starts_again(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    of = instance(global_batch_size=2, steps=3)
    samples = adapter_samples(of, 0, {"d": load(tmp_path, of)})
    assert [samples.tokens(n)[0][0] for n in range(6)] == [3, 6, 13, 3, 6, 13]
    assert [samples.step(n) for n in range(6)] == [0, 0, 1, 1, 2, 2]


def test_labels_default_to_the_tokens(tmp_path: Path) -> None:
    write(tmp_path, [{"input_ids": row["input_ids"]} for row in ROWS])
    data = load(tmp_path)
    np.testing.assert_array_equal(data.labels, data.input_ids)


def test_parquet_equals_json_lines(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    expected = load(tmp_path)
    (tmp_path / "d.jsonl").unlink()
    Dataset.from_list(ROWS).to_parquet(tmp_path / "d.parquet")
    np.testing.assert_array_equal(load(tmp_path).input_ids, expected.input_ids)


def test_text_is_tokenised_with_the_backbone_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(tmp_path)
    write(tmp_path, [{"text": "w3 w4 w5"}, {"text": "w1 w2 w3 w4 w5 w6"}, {"text": "w7 w8"}])
    assert load(tmp_path).input_ids.tolist() == [3, 4, 5, 1, 2, 3, 4, 5, 7, 8]


def test_arrays_survive_saving(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    data = load(tmp_path)
    data.save(tmp_path / "saved")
    np.testing.assert_array_equal(TokenizedDataset.load(tmp_path / "saved").labels, data.labels)


def test_reading_leaves_no_cache_behind(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    load(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]


def notes_of(folder: Path, of: Instance) -> tuple[TokenizedDataset, list[str]]:
    notes: list[str] = []
    return load_datasets(of, folder, folder, VOCABULARY, notes.append).datasets["d"], notes


@pytest.mark.parametrize(
    ("lengths", "ids", "words"),
    [
        ([3, 5, 2], [3, 4, 1, 3, 4, 3, 4, 3, 3, 1], []),  # the second of 6 letters is cut at 5
        ([2, 5, 1], [3, 4, 3, 4, 3, 4, 3, 3], ["no </s> is added", "where to stop"]),
    ],
)
def test_texts_end_where_the_lengths_count_an_end(tmp_path: Path, lengths, ids, words) -> None:
    save_tokenizer(tmp_path)
    write(tmp_path, [{"text": "ab"}, {"text": "ababab"}, {"text": "a"}])
    job = Adapter(name="a", dataset="d", global_batch_size=3, num_steps=1)
    data, notes = notes_of(tmp_path, instance_of([job], {"d": lengths}, longest=5))
    assert data.input_ids.tolist() == ids
    assert len(notes) == (1 if words else 0)
    assert all(word in notes[0] for word in words)


def test_columns_that_are_not_used_are_said(tmp_path: Path) -> None:
    write(tmp_path, [{**row, "id": 7, "source": "web", "special_tokens_mask": [1] * 9} for row in ROWS])
    _, notes = notes_of(tmp_path, instance())
    assert notes == [f"{tmp_path / 'd.jsonl'}: not used: id, source, special_tokens_mask"]


BARE = [{"input_ids": [3, 4, 5]}, {"input_ids": [6, 7, 8, 9, 10]}, {"input_ids": [13, 14]}]


def beside(column: str, first: object) -> list[object]:
    """Rows without labels, the first with a value in a column where the others say nothing."""
    return [{**BARE[0], column: first}, *({**row, column: None} for row in BARE[1:])]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("attention_mask", [1, 1, 1]),
        ("loss_mask", [1, 1, 1]),
        ("target_masks", [True, True, True]),
        ("position_ids", [0, 1, 2]),
        ("seq_lengths", [3]),
        ("seq_lengths", 3),
        ("cu_seqlens", [0, 3]),
        ("segment_ids", [7, 7, 7]),
        ("document_ids", 12),
        ("loss_weights", [1.0, 1.0, 1.0]),
        ("weight", 1),
    ],
)
def test_columns_that_say_what_training_does_are_fine(tmp_path: Path, column: str, value: object) -> None:
    write(tmp_path, beside(column, value))
    data, notes = notes_of(tmp_path, instance())
    assert data.labels.tolist() == data.input_ids.tolist()
    assert notes == []


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("attention_mask", [1, 1, 0], "attention_mask is 0 at token 2, where padding would be trained on"),
        ("loss_mask", [0, 1, 1], "loss_mask is 0 at token 0, which would be learnt; give labels"),
        ("target_masks", [False, True, True], "target_masks is 0 at token 0"),
        (
            "prompt_mask",
            [1, 0, 0],
            "prompt_mask is not understood, and not the same for all tokens; give labels instead",
        ),
        ("mask", [1, 0, 0], "mask is not understood"),
        ("position_ids", [0, 1, 0], "position_ids says that several samples are in one row"),
        ("position_ids", [0, 1], "position_ids is not one number for each of the 3 input_ids"),
        ("attention_mask", [1, 2, 2], "attention_mask holds 2, and only 0 and 1 are understood"),
        ("attention_mask", [[1, 0, 0], [1, 1, 0], [1, 1, 1]], r"attention_mask holds \[1, 0, 0\], and only 0 and 1"),
        ("loss_mask", [0.5, 1.0, 1.0], "loss_mask holds 0.5, and only 0 and 1"),
        ("completion_mask", ["0", "1", "1"], "completion_mask holds '0', and only 0 and 1"),
        ("Labels", [-100, 4, 5], "Labels is not used, and has a number for every token; call it labels"),
        ("attention_mask", 1, "attention_mask is not one number for each of the 3 input_ids"),
        ("seq_lengths", [2, 1], "seq_lengths says that several samples are in one row"),
        ("seq_lengths", 2, "seq_lengths says that several samples are in one row"),
        ("cu_seqlens", [0, 2, 3], "cu_seqlens says that several samples are in one row"),
        ("segment_ids", [0, 0, 1], "segment_ids says that several samples are in one row"),
        ("loss_weights", [0.5, 1.0, 1.0], "loss_weights is not honoured"),
        ("weight", 2.0, "weight is not honoured"),
        ("target_ids", [-100, -100, 5], "target_ids is not used, and has a number for every token; call it labels"),
    ],
)
def test_columns_that_would_change_what_is_learnt_are_refused(tmp_path, column, value, words) -> None:
    write(tmp_path, beside(column, value))
    with pytest.raises(InputError, match=rf"d\.jsonl: row 0: {words}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("attention_mask", [1, 1, 1, 1, 1, 0, 0]),
        ("loss_mask", [1, 1, 1, 1, 1, 0, 1]),
        ("position_ids", [0, 1, 2, 3, 4, 0, 1]),
        ("seq_lengths", [5, 2]),
        ("cu_seqlens", [0, 5, 7]),
        ("segment_ids", [1, 1, 1, 1, 1, 2, 2]),
    ],
)
def test_what_is_said_of_tokens_that_are_cut_does_not_count(tmp_path: Path, column: str, value: object) -> None:
    rows = [BARE[0], {"input_ids": ROWS[1]["input_ids"], column: value}, BARE[2]]  # cut at 5
    write(tmp_path, [{column: None, **row} for row in rows])
    assert load(tmp_path).offsets.tolist() == [0, 3, 8, 10]


def test_a_mask_that_is_not_understood_is_said_where_it_is_the_same_throughout(tmp_path: Path) -> None:
    write(tmp_path, [{**row, "prompt_mask": [0] * len(row["input_ids"])} for row in BARE])
    assert notes_of(tmp_path, instance())[1] == [f"{tmp_path / 'd.jsonl'}: not used: prompt_mask"]
    write(tmp_path, [{**row, "prompt_mask": [n % 2] * len(row["input_ids"])} for n, row in enumerate(BARE)])
    with pytest.raises(InputError, match="row 1: prompt_mask is not understood, and not the same for all tokens"):
        load(tmp_path)
    write(tmp_path, [{**row, "prompt_mask": [1] + [0] * (len(row["input_ids"]) - 1)} for row in ROWS])
    assert notes_of(tmp_path, instance())[1] == [f"{tmp_path / 'd.jsonl'}: not used: prompt_mask"]  # labels decide


def test_columns_that_nobody_uses_may_hold_anything(tmp_path: Path) -> None:
    odd = (1, "z", {"a": [None]})
    write(tmp_path, [{**row, "id": value, "tools": None} for row, value in zip(ROWS, odd, strict=True)])
    data, notes = notes_of(tmp_path, instance())
    assert (len(data.offsets), notes) == (4, [f"{tmp_path / 'd.jsonl'}: not used: id, tools"])


def test_rows_may_stand_in_one_array(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps(ROWS, indent=1))
    assert load(tmp_path).offsets.tolist() == [0, 3, 8, 10]


def test_bytes_in_parquet_are_left_where_they_are(tmp_path: Path) -> None:
    Dataset.from_list([{**row, "image": b"PNG"} for row in ROWS]).to_parquet(tmp_path / "d.parquet")
    data, notes = notes_of(tmp_path, instance())
    assert (len(data.offsets), notes) == (4, [f"{tmp_path / 'd.parquet'}: not used: image"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"input_ids": [3, 4, 5], "input_ids": [3]}', "line 1: input_ids is given twice; keep one of the two"),
        ("3", "row 0: is no object"),
        ('{"input_ids": [[3], [4, 5], [6]]}', "row 0: input_ids is no list of integers"),
        ('{"input_ids": [3, 4, 5], "segment_ids": [[0], [0], [1]]}', "row 0: segment_ids says that several samples"),
        ("", "holds 0 rows, the instance uses 3"),
    ],
)
def test_rows_that_are_none_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "d.jsonl").write_text(text + "\n")
    with pytest.raises(InputError, match=rf"d\.jsonl: {message}"):
        load(tmp_path)


def test_a_class_label_is_said_not_to_be_used(tmp_path: Path) -> None:
    write(tmp_path, [{**row, "label": 1} for row in BARE])
    assert notes_of(tmp_path, instance())[1] == [f"{tmp_path / 'd.jsonl'}: not used: label"]


def test_labels_that_agree_with_a_mask_are_trained_on(tmp_path: Path) -> None:
    rows = [{**BARE[0], "labels": [-100, 4, 5], "completion_mask": [0, 1, 1], "attention_mask": [1, 1, 1]}, *ROWS[1:]]
    write(tmp_path, rows)
    assert load(tmp_path).labels[:3].tolist() == [-100, 4, 5]
    # padding behind the sample carries no loss and is seen by nothing; before it, it would be seen
    rows[0] = {**BARE[0], "labels": [3, 4, -100], "attention_mask": [1, 1, 0]}
    write(tmp_path, rows)
    assert load(tmp_path).labels[:3].tolist() == [3, 4, -100]
    rows[0] = {**BARE[0], "labels": [-100, 4, 5], "attention_mask": [0, 1, 1]}
    write(tmp_path, rows)
    with pytest.raises(InputError, match="attention_mask is 0 at token 0"):
        load(tmp_path)


@pytest.mark.parametrize(
    "columns", [("completion_mask",), ("assistant_masks",), ("completion_mask", "assistant_masks")]
)
def test_masks_of_what_is_learnt_become_labels(tmp_path: Path, columns: tuple[str, ...]) -> None:
    # TRL learns what every mask that is there leaves
    masks = {"completion_mask": [0, 1, 1, 1, 0, 1, 1], "assistant_masks": [False, True, True, False, True, True, True]}
    used = [[masks[c][k] for c in columns] for k in range(7)]
    rows = [{**row, **{c: masks[c][: len(row["input_ids"])] for c in columns}} for row in BARE]
    write(tmp_path, rows)
    data, notes = notes_of(tmp_path, instance())
    expected = [t if all(used[k]) else -100 for row in BARE for k, t in enumerate(row["input_ids"])]
    assert (data.labels.tolist(), notes) == (expected, [])


def test_masks_in_some_rows_only_are_refused(tmp_path: Path) -> None:
    write(
        tmp_path, [{**BARE[0], "completion_mask": [0, 1, 1]}, *({**row, "completion_mask": None} for row in BARE[1:])]
    )
    with pytest.raises(InputError, match=r"row 1: completion_mask are missing, of row 0 they are not"):
        load(tmp_path)


@pytest.mark.parametrize(("value", "words"), [([0, 1], "not one number for each"), ([0, 2, 1], "holds 2, and only 0")])
def test_masks_of_what_is_learnt_that_are_none_are_refused(tmp_path: Path, value: list[int], words: str) -> None:
    write(tmp_path, [{**row, "completion_mask": value if len(row["input_ids"]) == 3 else [1] * 5} for row in BARE])
    with pytest.raises(InputError, match=rf"row 0: completion_mask .*{words}"):
        load(tmp_path)


def test_samples_too_long_are_dropped_before_lengths_are_compared(tmp_path: Path) -> None:
    write(tmp_path, ROWS)  # the second has 7 tokens
    data = {"d": TrainingData(too_long="drop")}
    of = replace(instance(2), dataset_lengths={"d": np.array([3, 2])}, training_data=data)
    found, notes = notes_of(tmp_path, of)
    assert found.offsets.tolist() == [0, 3, 5]
    assert notes == [f"{tmp_path / 'd.jsonl'}: 1 too long and dropped"]
    of = replace(instance(2), dataset_lengths={"d": np.array([3, 2, 2])}, training_data=data)
    job = replace(of, adapters=(of.adapters[0].model_copy(update={"num_steps": 2}),))
    with pytest.raises(InputError, match=r"holds 2 rows to train on \(1 too long and dropped\), the instance uses 3"):
        load(tmp_path, job)


def test_sources_are_read_where_no_folder_is_given(tmp_path: Path) -> None:
    write(tmp_path, [{**ROWS[0], "labels": [-100] * 3}, *ROWS[:2], {**ROWS[2], "labels": [13, 14]}])
    of = replace(instance(), training_data={"d": TrainingData(str(tmp_path / "d.jsonl"))})
    notes: list[str] = []
    found = load_datasets(of, None, tmp_path, VOCABULARY, notes.append)
    assert found.datasets["d"].offsets.tolist() == [0, 3, 8, 10]  # the first row has nothing to learn from
    assert notes == [f"{tmp_path / 'd.jsonl'}: 1 without a token to learn from"]


@pytest.mark.parametrize(("first", "later"), [(True, False), (False, True)])
def test_labels_in_some_rows_only_are_refused(tmp_path: Path, first: bool, later: bool) -> None:
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"] if kept else None}
            for row, kept in zip(ROWS, (first, later, first), strict=True)]  # fmt: skip
    write(tmp_path, rows)
    with pytest.raises(InputError, match=r"row 1: labels are (missing|given), of row 0 they are not"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("labels", [1, 1], "labels belongs to tokens, and these are made of the text"),
        ("completion_mask", [0, 1], "completion_mask belongs to tokens"),
        ("sample_weight", 0.5, "sample_weight is not honoured"),
    ],
)
def test_columns_of_tokens_beside_texts_are_refused(tmp_path: Path, column: str, value: object, words: str) -> None:
    save_tokenizer(tmp_path)
    write(tmp_path, [{"text": "ab", column: value}] * 3)
    with pytest.raises(InputError, match=rf"d\.jsonl: row 0: {words}"):
        load(tmp_path)


@pytest.mark.parametrize(("column", "value"), [("labels", None), ("labels", 1), ("sample_weight", 1.0)])
def test_columns_beside_texts_that_say_nothing_of_tokens_are_said(tmp_path: Path, column: str, value: object) -> None:
    save_tokenizer(tmp_path)
    write(tmp_path, [{"text": "ab", column: value}, {"text": "abab", column: value}, {"text": "a", column: value}])
    assert notes_of(tmp_path, instance())[1] == [f"{tmp_path / 'd.jsonl'}: not used: {column}"]


def test_a_dataset_name_with_parts_is_a_path_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    write(tmp_path, ROWS)
    (tmp_path / "d.jsonl").rename(tmp_path / "org" / "d.jsonl")
    job = Adapter(name="a", dataset="org/d", global_batch_size=3, num_steps=1)
    found = load_datasets(instance_of([job], {"org/d": LENGTHS}, longest=5), tmp_path, tmp_path, VOCABULARY)
    assert found.datasets["org/d"].offsets.tolist() == [0, 3, 8, 10]


def changed(row: int, **fields: object) -> list[object]:
    return [*ROWS[:row], {**ROWS[row], **fields}, *ROWS[row + 1 :]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(2, input_ids=[1, 2, 3], labels=[1, 2, 3]), "row 2: has 3 tokens (cut at 5), the instance says 2"),
        (changed(0, labels=[4, 5]), "row 0: 2 labels for 3 input_ids"),
        (
            [{**row, "labels": 1, "attention_mask": [0] * len(row["input_ids"])} for row in ROWS],
            "row 0: labels is no list",
        ),
        (changed(0, input_ids=[3, 4, VOCABULARY]), f"row 0: input_ids: {VOCABULARY} is no token"),
        (changed(1, labels=[-1] * 7), "row 1: labels: -1 is no token"),
        ([{"input_ids": [1.5, 2.5]}] * 3, "row 0: input_ids is no list of integers"),
        ([{"input_ids": None, "labels": None}, *ROWS[1:]], "row 0: input_ids is no list of integers"),
        (ROWS[:2], "holds 2 rows, the instance uses 3"),
        ([{"words": "w1"}] * 3, "has the columns of no form that is known (columns: words)"),
        ([{**row, "labels": [-100] * len(row["input_ids"])} for row in ROWS], "step 0 of adapter a has no token"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[object], message: str) -> None:
    write(tmp_path, rows)
    with pytest.raises(InputError, match=r"d\.jsonl") as error:
        load(tmp_path)
    assert message in str(error.value)


def test_malformed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"input_ids": [1, 2\n')
    with pytest.raises(InputError, match=r"d\.jsonl: line 1: is no JSON at column 1 \(Expecting ',' delimiter\)"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["da?a", "da[1]ta", "da*a", "a::b", "d #1%20", "what\nnow"])
def test_names_that_readers_take_for_patterns_are_names(tmp_path: Path, name: str) -> None:
    neighbour = name.replace("?", "t").replace("*", "t").replace("[1]", "1")
    for folder, first in ((neighbour, 20), (name, 3)):
        (tmp_path / folder).mkdir(exist_ok=True)
        write(tmp_path / folder, [{"input_ids": [first, 4, 5]}, *({"input_ids": row["input_ids"]} for row in ROWS[1:])])
    assert load_datasets(instance(), tmp_path / name, tmp_path, VOCABULARY).datasets["d"].input_ids[0] == 3


@pytest.mark.parametrize("text", ["2024-01-01", "2024-01-01T10:00:00"])
def test_texts_that_look_like_dates_are_texts(tmp_path: Path, text: str) -> None:
    save_tokenizer(tmp_path)
    write(tmp_path, [{"text": text}] * 3)
    job = Adapter(name="a", dataset="d", global_batch_size=3, num_steps=1)
    of = instance_of([job], {"d": [len(text) + 1] * 3}, longest=40)
    found = load_datasets(of, tmp_path, tmp_path, VOCABULARY).datasets["d"]
    assert np.diff(found.offsets).tolist() == [len(text) + 1] * 3


def test_a_saved_dataset_in_the_folder_is_read(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "d")
    assert load(tmp_path).offsets.tolist() == [0, 3, 8, 10]
    write(tmp_path, ROWS)
    with pytest.raises(InputError, match=r"holds d\.jsonl and d; remove one of the two"):
        load(tmp_path)


def test_two_files_of_one_dataset_are_refused(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    Dataset.from_list(ROWS).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"holds d\.jsonl and d\.parquet; remove one of the two"):
        load(tmp_path)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no d\.jsonl, d\.json or d\.parquet"):
        load(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        load(tmp_path / "nowhere")


def test_text_without_tokenizer_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [{"text": "w3"}] * 3)
    with pytest.raises(InputError, match="holds no tokenizer"):
        load(tmp_path)
