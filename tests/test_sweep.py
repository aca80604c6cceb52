from pathlib import Path

import pytest

from cappuccino.adapter import Adapter
from cappuccino.errors import InputError
from cappuccino.sweep import SHORT_NAMES, Sweep, expand_sweeps, label

ENTRY = {"name": "chat", "dataset": "d", "global_batch_size": 8}


def expand(*entries: object):
    return expand_sweeps({"adapters": list(entries)}, Path("i.json"))


def names(**sweep: object) -> list[str]:
    own = {k: v for k, v in ENTRY.items() if k not in sweep}
    return [a["name"] for a in expand(own | {"sweep": sweep})[0]["adapters"]]


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        ("rank", 8, "r8"),
        ("alpha", 32.0, "a32"),
        ("alpha", 0.5, "a0p5"),
        ("dropout", 0.0, "do0"),
        ("dropout", 0.05, "do0p05"),
        ("learning_rate", 1e-4, "lr1e-4"),
        ("learning_rate", 0.00025, "lr2p5e-4"),
        ("learning_rate", 0.01, "lr0p01"),
        ("weight_decay", 0.1, "wd0p1"),
        ("lr_scheduler", "cosine", "cosine"),
        ("warmup_steps", 100, "wu100"),
        ("max_grad_norm", 1.0, "gn1"),
        ("max_grad_norm", None, "nogn"),
        ("global_batch_size", 16, "bs16"),
        ("num_steps", 1000, "st1000"),
        ("num_steps", 2_500_000, "st2p5e6"),
        ("epochs", 1.5, "ep1p5"),
        ("seed", 0, "seed0"),
        ("target_modules", "all-linear", "all-linear"),
        ("target_modules", ("o_proj", "q_proj", "k_proj", "v_proj"), "attn"),
        ("target_modules", ("gate_proj", "up_proj", "down_proj"), "mlp"),
        ("target_modules", ("v_proj", "q_proj"), "q-v"),
        ("target_modules", ("layers.3.mlp.up_proj",), "layers_3_mlp_up"),
    ],
)
def test_labels(setting, value, text):
    assert label(setting, value) == text


def test_every_setting_of_an_adapter_is_swept_or_left_out_on_purpose():
    assert list(Sweep.model_fields) == list(SHORT_NAMES)
    # names and data tell adapters apart; a micro_batch_size of baselines changes no training, nor does how
    # it is evaluated
    left_out = {"name", "dataset", "micro_batch_size", "eval_dataset", "eval_every"}
    left_out |= {"early_stopping_patience", "early_stopping_threshold"}
    assert set(Adapter.model_fields) - set(Sweep.model_fields) == left_out


def test_settings_stand_in_one_order_however_the_file_lists_them():
    expected = ["chat-r8-lr1e-4", "chat-r8-lr2e-4", "chat-r16-lr1e-4", "chat-r16-lr2e-4"]
    assert names(learning_rate=[1e-4, 2e-4], rank=[8, 16]) == expected
    assert names(rank=[8, 16], learning_rate=[1e-4, 2e-4]) == expected


def test_entries_keep_their_places_and_say_where_they_are_from():
    plain = ENTRY | {"name": "first"}
    document, fields = expand(plain, ENTRY | {"sweep": {"seed": [1, 2]}}, ENTRY | {"name": "last"})
    assert [a["name"] for a in document["adapters"]] == ["first", "chat-seed1", "chat-seed2", "last"]
    assert fields == ("adapters[0]", "adapters[1]", "adapters[1]", "adapters[2]")
    assert document["adapters"][0] == plain


def test_content_without_a_sweep_is_left_alone():
    for content in (None, [], {}, {"adapters": 3}, {"adapters": [ENTRY, 5]}):
        assert expand_sweeps(content, Path("i.json")) == (content, ())


def test_a_sweep_of_a_required_setting():
    assert names(global_batch_size=[4, 8]) == ["chat-bs4", "chat-bs8"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sweep": {"ranks": [1]}}, r"i\.json: adapters\[1\]\.sweep\.ranks: is not a known field"),
        ({"sweep": {"micro_batch_size": [1]}}, r"i\.json: adapters\[1\]\.sweep\.micro_batch_size: is not a known"),
        (
            {"sweep": {"rank": [8, -1]}},
            r"i\.json: adapters\[1\]\.sweep\.rank\[1\]: -1 is not allowed; .*greater than 0",
        ),
        ({"sweep": {"rank": 8}}, r"i\.json: adapters\[1\]\.sweep\.rank: 8 is not allowed"),
        ({"sweep": {"rank": []}}, r"i\.json: adapters\[1\]\.sweep\.rank: \[\] is not allowed"),
        ({"sweep": {}}, r"i\.json: adapters\[1\]\.sweep: \{\} is not allowed; give a list of values"),
        ({"sweep": {"learning_rate": [1e-4, 0.0001]}}, r"adapters\[1\]\.sweep: .*learning_rate once: two .* lr1e-4"),
        (
            {"sweep": {"target_modules": [["q_proj", "v_proj"], ["v_proj", "q_proj"]]}},
            r"adapters\[1\]\.sweep: .*give every value of target_modules once: two of them would be called q-v",
        ),
        ({"sweep": {"rank": [8]}, "rank": 4}, r"i\.json: adapters\[1\]\.rank: is given beside the sweep of rank; keep"),
        ({"sweep": {"epochs": [1]}, "num_steps": 4}, r"i\.json: adapters\[1\]: .*either `num_steps` or `epochs`"),
        ({"sweep": {"rank": [8]}, "colour": 1}, r"i\.json: adapters\[1\]\.colour: is not a known field"),
        ({"sweep": {"rank": [8]}, "name": "n" * 199}, r"i\.json: adapters\[1\]\.name: .*at most 200"),
        ({"sweep": {"rank": [8]}, "name": 5}, r"i\.json: adapters\[1\]\.name: 5 is not allowed"),
        (
            {"sweep": {"rank": [8]}, "name": "first"},
            r'i\.json: adapters\[1\]\.name: "first-r8" is the name of an adapter of adapters\[0\] too; give one of',
        ),
    ],
)
def test_rejections_name_the_entry_of_the_file(change, message):
    with pytest.raises(InputError, match=message):
        expand(ENTRY | {"name": "first-r8"}, ENTRY | change)
