import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from small import VOCABULARY, instance_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cappuccino.errors import InputError
from cappuccino.instance import Adapter, Instance
from cappuccino.runtime.data import TokenizedDataset, adapter_samples, load_datasets

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
    return load_datasets(of or instance(), folder, folder, VOCABULARY)["d"]


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


def changed(row: int, **fields: object) -> list[object]:
    return [*ROWS[:row], {**ROWS[row], **fields}, *ROWS[row + 1 :]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(2, input_ids=[1, 2, 3], labels=[1, 2, 3]), "row 2: has 3 tokens (cut at 5), the instance says 2"),
        (changed(0, labels=[4, 5]), "row 0: 2 labels for 3 input_ids"),
        (changed(0, input_ids=[3, 4, VOCABULARY]), f"row 0: input_ids: {VOCABULARY} is no token"),
        (changed(1, labels=[-1] * 7), "row 1: labels: -1 is no token"),
        ([{"input_ids": [1.5, 2.5]}] * 3, "row 0: input_ids: is no list of integers"),
        ([{"input_ids": None, "labels": None}, *ROWS[1:]], "row 0: input_ids: is no list of integers"),
        (ROWS[:2], "holds 2 rows, the instance uses 3"),
        ([{"words": "w1"}] * 3, "has neither the field input_ids nor text (fields: words)"),
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
    with pytest.raises(InputError, match=r"d.jsonl: cannot be read as json"):
        load(tmp_path)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no d.jsonl or d.parquet"):
        load(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        load(tmp_path / "nowhere")


def test_text_without_tokenizer_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [{"text": "w3"}] * 3)
    with pytest.raises(InputError, match="holds no tokenizer"):
        load(tmp_path)
