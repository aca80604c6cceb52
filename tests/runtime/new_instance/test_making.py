"""Instances made of raw data: what is in them is what training finds in the sources."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from helpers.chats import CHATML, save_chat_tokenizer
from helpers.small import save_llama

from cappuccino.costs import fit_instance_costs
from cappuccino.documents import read_yaml
from cappuccino.errors import InputError
from cappuccino.instance import Instance
from cappuccino.runtime.data.samples import load_datasets
from cappuccino.runtime.new_instance.making import (
    MadeInstance,
    NewInstanceOptions,
    evaluation_sources,
    make_instance,
    named_sources,
)

POSITIONS = 64
# letters are tokens; an answer of n `yes ` has 25 tokens before it, and its end and a line break behind it
CHATS = [
    {"messages": [{"role": "user", "content": "hi <b>"}, {"role": "assistant", "content": "yes " * n}]}
    for n in (1, 3, 40)
] + [{"messages": [{"role": "user", "content": "nothing to learn"}]}]
CHAT_LENGTHS = [25 + 4 + 2, 25 + 12 + 2, POSITIONS]
PAIRS = [{"prompt": "a" * n, "completion": "bb"} for n in (3, 5)]
Make = Callable[..., MadeInstance]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "tiny"
    save_llama(folder, layers=2, vocab_size=128, max_position_embeddings=POSITIONS)
    save_chat_tokenizer(folder, CHATML)
    return folder


@pytest.fixture
def make(backbone: Path, tmp_path: Path) -> Make:
    """Makes an instance of chats and pairs, in a folder beside that of the data."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    (raw / "pairs.json").write_text(json.dumps(PAIRS))

    def call(name: str = "instance.yaml", *, force: bool = False, **options: Any) -> MadeInstance:
        options = {"gpus": ["cpu=2:4"], **options}
        sources = options.pop("sources", [f"{raw}/chat.jsonl", f"org/two={raw}/pairs.json"])
        given = NewInstanceOptions(**options)
        return make_instance(str(backbone), sources, tmp_path / "out" / name, given, force=force)

    return call


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["instance.yaml", "mine.json"])
def test_what_is_written_is_what_training_finds(make: Make, backbone: Path, tmp_path: Path, name: str) -> None:
    made = make(name)
    loaded = Instance.load(tmp_path / "out" / name)
    assert loaded.digest == made.instance.digest
    assert loaded.cost_table == tmp_path / "out" / "cost-table.csv"
    assert loaded.dataset_lengths["chat"].tolist() == CHAT_LENGTHS
    assert loaded.max_sequence_length == POSITIONS  # the longest sample has more
    assert (loaded.backbone, loaded.name) == ("tiny", Path(name).stem)
    assert [(a.name, a.dataset) for a in loaded.adapters] == [("chat", "chat"), ("org-two", "org/two")]
    assert {n: (d.form, d.loss_on) for n, d in loaded.training_data.items()} == {
        "chat": ("messages", "assistant"),
        "org/two": ("prompt_completion", "completion"),
    }
    found = load_datasets(loaded, None, backbone, vocab_size=128)  # refuses lengths that are not those of the rows
    assert found.reports["chat"].samples == len(CHAT_LENGTHS)
    lengths = "lengths.json" if name == "instance.yaml" else "mine-lengths.json"
    assert files(tmp_path / "out") == {name, lengths}


def test_paths_in_the_file_are_relative_to_it(make: Make, tmp_path: Path) -> None:
    make(cost_table=tmp_path / "tables" / "own.csv")
    found = read_yaml(tmp_path / "out" / "instance.yaml")
    assert found["cost_table"] == "../tables/own.csv"
    assert found["datasets"]["chat"] == {
        "file": "lengths.json",
        "key": "chat",
        "source": "../raw/chat.jsonl",
        "form": "messages",
        "loss_on": "assistant",
    }


def test_longer_samples_are_cut_or_left_out(make: Make, tmp_path: Path) -> None:
    make(max_length=35)
    assert Instance.load(tmp_path / "out" / "instance.yaml").dataset_lengths["chat"].tolist() == [31, 35, 35]
    make(max_length=39, too_long="drop", force=True)
    dropping = Instance.load(tmp_path / "out" / "instance.yaml")
    assert dropping.dataset_lengths["chat"].tolist() == [31, 39]
    assert dropping.data_of("chat").too_long == "drop"
    text = (tmp_path / "out" / "instance.yaml").read_text()
    assert "2 samples, 31 to 39 tokens" in text and "1 too long and dropped, 1 without a token" in text
    make(num_samples=1, force=True)
    first = Instance.load(tmp_path / "out" / "instance.yaml")
    assert (first.dataset_lengths["chat"].tolist(), first.max_sequence_length) == ([31], 31)


def test_sweeps_become_adapters(make: Make, tmp_path: Path) -> None:
    make(sweeps=["rank=4,8", "learning_rate=1e-4,2e-4"], epochs=2.0)
    loaded = Instance.load(tmp_path / "out" / "instance.yaml")
    assert [a.name for a in loaded.adapters][:3] == ["chat-r4-lr1e-4", "chat-r4-lr2e-4", "chat-r8-lr1e-4"]
    assert len(loaded.adapters) == 8
    assert len(read_yaml(tmp_path / "out" / "instance.yaml")["adapters"]) == 2


def test_an_estimated_table_is_one_that_plans_are_made_with(make: Make, tmp_path: Path) -> None:
    make(gpus=["a100-40gb=2", "l40s-48gb=1"], estimate=True)
    costs = fit_instance_costs(Instance.load(tmp_path / "out" / "instance.yaml"))
    assert set(costs) == {"a100-40gb", "l40s-48gb"}
    assert all(model.analytic for model in costs.values())
    with pytest.raises(InputError) as error:  # whatever it holds: it may have been measured
        make(gpus=["a100-40gb=2"], estimate=True, force=True)
    assert "cost-table.csv: is there already; leave out --estimate" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "instance.txt"}, "ends with none of .yaml, .yml, .json"),
        ({"gpus": ["mine=2"]}, 'the memory of "mine" is not known'),
        ({"sweeps": ["rank=0"]}, "--sweep: rank[0]: 0 is not allowed"),
        ({"max_length": 65}, "--max-length: 65 is more than the 64 positions"),
        ({"estimate": True}, '--estimate: "cpu" has no data sheet here'),
        ({"max_length": 10}, "chat.jsonl: holds no sample to learn from"),
        ({"sources": ["x=raw/none.jsonl"]}, "raw/none.jsonl: file not found"),
        ({"forms": {"x": "text"}}, '--form: "x" is no dataset'),
        ({"epochs": float("inf")}, "--epochs: inf is not allowed"),
        ({"epochs": 1e12}, "1000000000000.0 passes over"),
    ],
)
def test_after_an_error_nothing_is_there(make: Make, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        make(**options)
    assert message in str(error.value)
    assert files(tmp_path) == {"raw/chat.jsonl", "raw/pairs.json"}


def test_nothing_is_replaced_without_being_told(make: Make, tmp_path: Path) -> None:
    make()
    (tmp_path / "out" / "instance.yaml").unlink()
    with pytest.raises(InputError) as error:  # the lengths of another instance, maybe
        make()
    assert "lengths.json: is there already; name another output, or give --force" in str(error.value)
    make(force=True)
    with pytest.raises(InputError) as error:
        make("../raw/pairs.json", force=True)
    assert "would replace the training data" in str(error.value)
    assert json.loads((tmp_path / "raw" / "pairs.json").read_text()) == PAIRS


def test_sources_are_named_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "saved.v2").mkdir()
    (tmp_path / "split=train").mkdir()
    odd = tmp_path / "split=train" / "a.b.jsonl"
    odd.write_text("")
    sources = ["raw/chat.jsonl", "raw/code.v1.parquet", f"{tmp_path}/saved.v2", "org/name", str(odd), "x=y.json"]
    assert named_sources(sources) == {
        "chat": "raw/chat.jsonl",
        "code.v1": "raw/code.v1.parquet",
        "saved.v2": f"{tmp_path}/saved.v2",
        "name": "org/name",
        "a.b": str(odd),
        "x": "y.json",
    }


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "--data: is not given"),
        (["=a.jsonl"], '"=a.jsonl" names no source'),
        (["chat="], '"chat=" names no source'),
        ([""], '"" names no source'),
        (["a/train.jsonl", "b/train.jsonl"], '"train" is the name of a/train.jsonl and of b/train.jsonl'),
        (["../x=a.jsonl"], '"../x" names no dataset'),
    ],
)
def test_sources_without_a_name_of_their_own_are_refused(sources: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        named_sources(sources)
    assert message in str(error.value)


def test_adapters_are_evaluated_on_what_is_held_out(make: Make, backbone: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text(json.dumps(CHATS[1]) + "\n")
    made = make(evaluation=[f"chat={held_out}"])
    chat, pairs = made.instance.adapters
    assert (chat.eval_dataset, chat.eval_every) == ("chat-eval", 1)
    assert pairs.eval_dataset is None
    assert made.instance.dataset_lengths["chat-eval"].tolist() == CHAT_LENGTHS[1:2]
    found = load_datasets(made.instance, None, backbone, vocab_size=128)
    assert found.reports["chat-eval"].samples == 1
    assert "held out: its loss is told on the way" in made.path.read_text()


def test_it_is_clear_what_is_evaluated_on_what(tmp_path: Path) -> None:
    two = {"chat": "raw/chat.jsonl", "org/code": "raw/code.jsonl"}
    given = ["held-out/chat.jsonl", "org/code=held-out/x.jsonl"]
    assert evaluation_sources(given, two) == {"chat": given[0], "org/code": "held-out/x.jsonl"}
    assert evaluation_sources(["held-out/any.jsonl"], {"chat": "raw/chat.jsonl"}) == {"chat": "held-out/any.jsonl"}
    for wrong, places, said in (
        (["held-out/any.jsonl"], two, r"is for none of the datasets chat, org/code; write DATASET=SOURCE"),
        (["chat=a.jsonl", "chat=b.jsonl"], two, r'"chat" has a.jsonl and b.jsonl; give one'),
        (["chat=a.jsonl"], {"chat": "c", "chat-eval": "d"}, r'"chat-eval" is the name of another dataset'),
    ):
        with pytest.raises(InputError, match=said):
            evaluation_sources(wrong, places)
