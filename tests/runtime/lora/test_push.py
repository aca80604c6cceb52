"""Uploads to the hub, before a client that only takes notes: nothing here goes to the network."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import RepoUrl
from huggingface_hub.utils import validate_repo_id

from cappuccino.errors import InputError
from cappuccino.runtime.lora.push import push_adapter


class Hub:
    """What `HfApi` is asked for; `public` repositories are there already."""

    def __init__(self) -> None:
        self.public: set[str] = set()
        self.private: set[str] = set()
        self.uploads: list[dict[str, object]] = []
        self.failure: Exception | None = None

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> RepoUrl:
        validate_repo_id(repo_id)
        assert exist_ok
        full = repo_id if "/" in repo_id else f"me/{repo_id}"
        if full not in self.public | self.private:
            (self.private if private else self.public).add(full)
        return RepoUrl(f"https://huggingface.co/{full}")

    def model_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=repo_id in self.private)

    def upload_folder(self, **options: object) -> None:
        if self.failure is not None:
            raise self.failure
        self.uploads.append(options)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    return made


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "chat"
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_text("weights")
    return folder


def test_the_adapter_and_its_card_go_up_and_nothing_else(hub: Hub, adapter: Path) -> None:
    notes: list[str] = []
    url = push_adapter(adapter, "chat", private=False, on_note=notes.append)
    assert (url, notes, hub.public) == ("https://huggingface.co/me/chat", [], {"me/chat"})
    (upload,) = hub.uploads
    assert (upload["repo_id"], upload["folder_path"]) == ("me/chat", adapter)
    assert sorted(upload["allow_patterns"]) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_private_repositories(hub: Hub, adapter: Path) -> None:
    push_adapter(adapter, "org/chat", private=True)
    push_adapter(adapter, "org/chat", private=True)  # again: there, and private
    assert (hub.private, len(hub.uploads)) == ({"org/chat"}, 2)
    hub.public.add("org/open")
    with pytest.raises(InputError, match=r"--private: https://huggingface\.co/org/open is there and public; make it"):
        push_adapter(adapter, "org/open", private=True)
    assert len(hub.uploads) == 2


def test_without_a_token_it_says_how_to_get_one(hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match=r"there is no token; log in with `hf auth login`, or set HF_TOKEN"):
        push_adapter(adapter, "chat", private=False)
    assert (hub.public, hub.uploads) == (set(), [])


@pytest.mark.parametrize("failure", [OSError("no route"), huggingface_hub.errors.HTTPError("no route\nmore")])
def test_what_the_hub_says_is_told(hub: Hub, adapter: Path, failure: Exception) -> None:
    hub.failure = failure
    with pytest.raises(InputError, match=r'push: the hub does not take "chat" \(no route\); check the name, what'):
        push_adapter(adapter, "chat", private=False)


def test_names_and_folders_that_are_none(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'push: the hub does not take "a/b/c" \(Repo id must be'):
        push_adapter(adapter, "a/b/c", private=False)
    with pytest.raises(InputError, match=r"gone: is not a folder"):
        push_adapter(tmp_path / "gone", "chat", private=False)
    with pytest.raises(InputError, match=r"is no adapter: it holds no adapter_config\.json"):
        push_adapter(tmp_path, "chat", private=False)
    assert hub.uploads == []


def test_a_backbone_that_others_cannot_find_is_a_note(hub: Hub, adapter: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": "/home/me/base"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    notes: list[str] = []
    push_adapter(adapter, "chat", private=False, on_note=notes.append)
    assert len(hub.uploads) == 1
    (note,) = notes
    assert "adapter_config.json: base_model_name_or_path: " in note
    assert '"/home/me/base" is no model of the hub' in note
