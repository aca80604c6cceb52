"""The data of the benchmark: what of it can be tested without a backbone."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "from_raw_data.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("from_raw_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_three_forms_of_training_data_and_what_is_held_out_of_them(script: ModuleType, tmp_path: Path) -> None:
    script.write_data(tmp_path, samples=12, held_out=4)
    for name, columns in (("chat", {"messages"}), ("code", {"prompt", "completion"}), ("notes", {"text"})):
        trained, apart = (
            [json.loads(line) for line in (tmp_path / where / f"{name}.jsonl").read_text().splitlines()]
            for where in ("raw", "held-out")
        )
        assert (len(trained), len(apart)) == (12, 4)
        assert all(row.keys() == columns for row in [*trained, *apart])
        assert not [row for row in apart if row in trained]


def test_more_rows_than_there_are_is_an_error(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="documents too little for 100015 rows of chat"):
        script.write_data(tmp_path, samples=100_000, held_out=15)
