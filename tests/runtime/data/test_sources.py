"""Files, saved data sets and folders are read alike; what cannot be is named."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from cappuccino.errors import InputError
from cappuccino.runtime.data.sources import open_source

ROWS = [{"prompt": f"a{n}", "completion": "b"} for n in range(3)]


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("home"))


def save(folder: Path) -> dict[str, Path]:
    """Save the rows in every way."""
    places = {name: folder / name for name in ("a.jsonl", "a.json", "a.parquet", "saved", "splits", "files")}
    places["a.jsonl"].write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    places["a.json"].write_text(json.dumps(ROWS, indent=1))
    rows = Dataset.from_list(ROWS)
    rows.to_parquet(places["a.parquet"])
    rows.save_to_disk(places["saved"])
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(places["splits"])
    places["files"].mkdir()
    (places["files"] / "train.jsonl").write_text(places["a.jsonl"].read_text())
    return places


def test_all_places_give_the_same_rows(tmp_path: Path) -> None:
    contents = set()
    for name, place in save(tmp_path).items():
        source = open_source(place)
        assert list(source.rows()) == list(source.rows()) == ROWS, name
        assert source.count() == 3
        contents.add(source.content())
    assert None not in contents
    assert len(list(open_source(tmp_path / "splits", "test").rows())) == 1


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("absent.jsonl", "absent.jsonl: file not found"),
        ("a.txt", "a.txt: ends with none of .jsonl, .json, .parquet"),
        ("splits", 'splits: has no split "dev"; name one of train, test'),
        ("empty", "empty: cannot be loaded as a data set"),
        ("broken", "broken: cannot be loaded as a saved data set"),
    ],
)
def test_places_that_cannot_be_read_are_named(tmp_path: Path, place: str, message: str) -> None:
    save(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{")
    with pytest.raises(InputError) as error:
        open_source(tmp_path / place, "dev")
    assert message in str(error.value)


def test_a_choice_of_rows_is_not_taken_for_its_files(tmp_path: Path) -> None:
    rows = Dataset.load_from_disk(save(tmp_path)["saved"])
    from cappuccino.runtime.data.sources import SavedDataset

    assert SavedDataset(rows, "d").content() is not None
    assert SavedDataset(rows.select([2, 0, 1]), "d").content() is None
    assert SavedDataset(Dataset.from_list(ROWS), "d").content() is None
