"""A new instance as text: what is read is what was meant."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cappuccino.documents import read_yaml
from cappuccino.files import read_json
from cappuccino.instance import GpuPool
from cappuccino.runtime.new_instance.adapters import new_adapter
from cappuccino.runtime.new_instance.document import NewDataset, NewInstance, flow, scalar
from cappuccino.runtime.new_instance.pools import FoundPool

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(0, 1e6, allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_values_are_read_as_they_were(tmp_path_factory, value) -> None:
    path = tmp_path_factory.getbasetemp() / "value.yaml"
    path.write_text(f"value: {flow(value)}\n", encoding="utf-8")
    assert read_yaml(path) == {"value": value}


def test_only_text_that_is_nothing_else_goes_without_quotes() -> None:
    plain = ["chat", "raw/chat.jsonl", "../raw/a-b_c.json", "/data/x", "SmolLM2-135M-Instruct"]
    assert [scalar(text) for text in plain] == plain
    for text in ("2024", "1e-4", "true", "No", ".5", "-a", "a: b", "a #b", "", "a b", "~"):
        assert scalar(text) == f'"{text}"'
    assert scalar(2e-4) == "2e-4"
    assert scalar(0.05) == "0.05"


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    sweep = {"rank": (8, 16), "target_modules": ("all-linear", ("q_proj", "v_proj"))}
    new = NewInstance(
        name="2024",
        backbone="tiny",
        cost_table="../tables/cost table.csv",
        pools=[FoundPool(GpuPool(gpu="cpu", count=2, memory_gib=4.0), "this machine's")],
        max_sequence_length=64,
        why_length="the longest sample",
        datasets=[NewDataset("org/chat: v2", {"file": "lengths.json", "key": "org/chat: v2"}, "5 samples")],
        adapters=[new_adapter("chat", "org/chat: v2", 5, None, {}), new_adapter("b", "org/chat: v2", 5, 1.5, sweep)],
    )
    (tmp_path / "a.yaml").write_text(new.yaml(), encoding="utf-8")
    (tmp_path / "a.json").write_text(new.json(), encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == read_json(tmp_path / "a.json") == json.loads(json.dumps(new.document()))
    first, second = new.yaml().split("  - name: b")
    assert all(any(line.startswith(f"    {s.name}: ") and "# " in line for line in first.splitlines())
               for s in new.adapters[0].settings)  # fmt: skip
    assert "# usual for LoRA" not in second
