from pathlib import Path

import pytest

from cappuccino.runtime.backbone.hub import backbone_name, is_hub_name, table_name


@pytest.mark.parametrize(
    ("given", "folder", "name"),
    [
        ("backbones/tiny", "backbones/tiny", "backbones/tiny"),
        ("/data/tiny", "/data/tiny", "/data/tiny"),
        ("Qwen/Qwen2.5-7B", "/hub/models--Qwen--Qwen2.5-7B/snapshots/0a1b", "Qwen/Qwen2.5-7B"),
        ("/h/models--Qwen--Qwen2.5-7B/snapshots/0a1b", "/h/models--Qwen--Qwen2.5-7B/snapshots/0a1b", "Qwen/Qwen2.5-7B"),
        ("/hub/models--a--b--c/snapshots/0a1b", "/hub/models--a--b--c/snapshots/0a1b", "a/b--c"),
        ("models--a--b", "models--a--b", "models--a--b"),  # no folder of the hub's
    ],
)
def test_backbones_are_named_as_peft_looks_them_up(given: str, folder: str, name: str) -> None:
    assert backbone_name(given, Path(folder)) == name


def test_tables_name_a_backbone_by_its_folder_or_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert table_name(Path("backbones/Qwen2.5-7B")) == "Qwen2.5-7B"
    assert table_name(Path("backbones/Qwen2.5-7B/config.json")) == "Qwen2.5-7B"
    assert table_name(Path("/hub/models--Qwen--Qwen2.5-7B/snapshots/0a1b")) == "Qwen2.5-7B"
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path / "tiny")
    assert table_name(Path(".")) == "tiny"


def test_a_folder_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("org/model")
    assert not is_hub_name("model")
    assert not is_hub_name("/org/model")
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert not is_hub_name("org/model")
