"""lengths, inspect and run on data as users have it: from chats in a file to adapters."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import TABLE_HEADER, Outcome, cappuccino, one_clear_error, table_rows, write_instance

pytest.importorskip("torch")
pytest.importorskip("peft")

from helpers.chats import CHATML, save_chat_tokenizer
from helpers.small import save_llama

CHATS = [
    {"messages": [{"role": "user", "content": "hi <b>"}, {"role": "assistant", "content": "yes " * n}]}
    for n in (1, 2, 3, 40, 2, 1)
] + [{"messages": [{"role": "user", "content": "nothing to learn"}]}]
# <|im_start|> user \n hi <b> <|im_end|> \n <|im_start|> assistant \n: 1+4+1+6+1+1 + 1+9+1 tokens before the answer
BEFORE = 25
SAMPLES = [BEFORE + 4 * n + 2 for n in (1, 2, 3, 2, 1)]  # the answer, its end and a line break
ALPACA = [{"instruction": "say", "input": "it", "output": "no"}] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone with a chat template, chats, and an instance that names them as its source, with a plan."""
    folder = tmp_path_factory.mktemp("chats")
    save_llama(folder / "backbone", layers=2, vocab_size=128)
    save_chat_tokenizer(folder / "backbone", CHATML)
    (folder / "raw").mkdir()
    (folder / "raw" / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    (folder / "raw" / "alpaca.json").write_text(json.dumps(ALPACA, indent=1))
    (folder / "table.csv").write_text("\n".join([TABLE_HEADER, *table_rows("tiny", (1, 2))]) + "\n")
    write_instance(folder, instance())
    options = ("--num-stages", 2, "--time-limit", 1)
    done = cappuccino("plan", folder / "instance.json", "-o", folder / "plan.json", *options)
    assert done.code == 0, done.err
    return folder


def instance(**changes: Any) -> dict[str, Any]:
    return {
        "format": "cappuccino.instance/1",
        "name": "tiny",
        "backbone": "tiny",
        "cost_table": "table.csv",
        "gpu_pools": [{"gpu": "cpu", "count": 2, "memory_gib": 4.0}],
        "max_sequence_length": 64,
        "datasets": {"chat": {"lengths": SAMPLES, "source": "raw/chat.jsonl", "too_long": "drop", **changes}},
        "adapters": [{"name": "a", "dataset": "chat", "global_batch_size": 2, "num_steps": 2, "rank": 2}],
    }


def lengths(folder: Path, out: Path, *arguments: object) -> Outcome:
    options = ("--tokenizer", folder / "backbone", "-o", out / "lengths.json", "--data-out", out / "data")
    return cappuccino("lengths", *options, "--max-length", 64, *arguments)


def test_lengths_in_order_are_those_that_a_run_finds_in_the_source(folder: Path, tmp_path: Path) -> None:
    sources = (f"chat={folder}/raw/chat.jsonl", f"alpaca={folder}/raw/alpaca.json")
    done = lengths(folder, tmp_path, "--in-order", "--too-long", "drop", "--json", *sources)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "lengths.json").read_text())["chat"]["seed_42"]["permutation_1"]
    assert found == SAMPLES
    said = done.json["datasets"]
    assert {k: said["chat"][k] for k in ("form", "loss_on", "dropped", "cut", "empty", "without_loss")} == {
        "form": "messages", "loss_on": "assistant", "dropped": 1, "cut": 0, "empty": 0, "without_loss": 1,
    }  # fmt: skip
    assert said["chat"]["loss_tokens"] == sum(n - BEFORE - 1 for n in SAMPLES)
    assert said["chat"]["special_tokens"] == {"begin": {"<|im_start|>": 5}, "end": {"<|im_end|>": 5}}
    assert (said["alpaca"]["form"], said["alpaca"]["loss_on"]) == ("alpaca", "completion")
    notes = done.json["notes"]
    assert "chat: 1 too long and dropped, 1 without a token to learn from" in notes
    rows = [json.loads(line) for line in (tmp_path / "data" / "chat.jsonl").read_text().splitlines()]
    assert [row["labels"].count(-100) for row in rows] == [BEFORE + 1] * 5


def test_loss_on_all_and_a_rule_that_makes_no_sense(folder: Path, tmp_path: Path) -> None:
    chat = f"chat={folder}/raw/chat.jsonl"
    done = lengths(folder, tmp_path, "--loss-on", "all", "--json", chat)
    # cut, not dropped; each first token is predicted from nothing; the row without an answer counts now
    assert done.json["datasets"]["chat"]["cut"] == 1
    assert done.json["datasets"]["chat"]["loss_tokens"] == done.json["datasets"]["chat"]["tokens"] - 7
    one_clear_error(
        lengths(folder, tmp_path, "--loss-on", "completion", chat), "chat.jsonl", "completion makes no sense"
    )
    one_clear_error(lengths(folder, tmp_path, "--form", "chat", chat), '"chat" is no form')
    one_clear_error(lengths(folder, tmp_path, "--form", "chut=text", chat), '"chut" is no dataset')
    one_clear_error(lengths(folder, tmp_path, "--form", "alpaca", chat), "chat.jsonl: instruction", "is not there")


def test_a_run_reads_the_source_that_the_instance_names(folder: Path, tmp_path: Path) -> None:
    base = ("--instance", folder / "instance.json", "--backbone", folder / "backbone", "--dtype", "float64")
    named = cappuccino("run", folder / "plan.json", *base, "-o", tmp_path / "named")
    assert named.code == 0, named.err
    assert "1 too long and dropped" in named.err
    # the same adapters come out of the tokens and labels that `lengths` writes
    assert lengths(folder, tmp_path, "--in-order", "--too-long", "drop", f"chat={folder}/raw/chat.jsonl").code == 0
    given = cappuccino("run", folder / "plan.json", *base, "-o", tmp_path / "given", "--data", tmp_path / "data")
    assert given.code == 0, given.err
    losses = [json.loads((tmp_path / name / "losses.json").read_text()) for name in ("named", "given")]
    assert losses[0] == losses[1]


def test_a_run_without_data_and_without_source_is_one_error(folder: Path, tmp_path: Path) -> None:
    document = instance()
    del document["datasets"]["chat"]["source"]
    write_instance(tmp_path, document | {"cost_table": str(folder / "table.csv")})
    base = ("--instance", tmp_path / "instance.json", "--backbone", folder / "backbone", "-o", tmp_path / "out")
    done = cappuccino("run", folder / "plan.json", *base)
    one_clear_error(done, "instance.json", "datasets.chat.source: is not given", "--data")


def inspect(folder: Path, *arguments: object) -> Outcome:
    return cappuccino("inspect", folder / "instance.json", "--backbone", folder / "backbone", *arguments)


def test_inspect_shows_every_token_and_whether_it_is_learnt(folder: Path) -> None:
    done = inspect(folder, "--samples", 1, "--json")
    assert done.code == 0, done.err
    (found,) = done.json["datasets"]
    assert found["counts"]["form"] == "messages"
    assert found["counts"]["samples"] == 4  # two steps of two samples, of the five there are
    (sample,) = found["samples"]
    assert "".join(t["text"] for t in sample if t["learnt"]) == "yes <|im_end|>"
    assert len(sample) == SAMPLES[0]


def test_inspect_is_readable_without_colour(folder: Path) -> None:
    done = inspect(folder, "--samples", 1, "--dataset", "chat")
    assert "⟦y|e|s| |<|im_end|>⟧|⏎" in done.out
    assert "rows of messages, loss on assistant; 4 of 4 samples begin with <|im_start|>" in done.out
    one_clear_error(inspect(folder, "--dataset", "chut"), 'no adapter is trained on "chut"')


def test_inspect_writes_a_page_that_holds_what_the_data_say_as_text(folder: Path, tmp_path: Path) -> None:
    done = inspect(folder, "-o", tmp_path / "page.html", "--samples", 2)
    assert done.code == 0, done.err
    page = (tmp_path / "page.html").read_text()
    assert not {"http", "src=", "<b>", "<script"} & {w for w in ("http", "src=", "<b>", "<script") if w in page}

    class Learnt(HTMLParser):
        text, depth = "", 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.depth = int(dict(attrs).get("class") == "t l" and "title" in dict(attrs))

        def handle_data(self, data: str) -> None:
            self.text += data if self.depth else ""

        def handle_endtag(self, tag: str) -> None:
            self.depth = 0

    parser = Learnt()
    parser.feed(page)
    assert parser.text == "yes <|im_end|>yes yes <|im_end|>"
