from xml.etree import ElementTree

import pytest
from cli.conftest import cappuccino, one_clear_error


def test_fit_states_errors_by_backbone(workspace):
    done = cappuccino("fit", workspace / "table.csv", "--json")
    assert done.code == 0, done.err
    toy = done.json["backbones"]["toy"]
    assert toy["rows"] == 10
    assert 0 <= toy["time_mape_cv"] < 0.05  # the rows follow a law
    assert 0 <= toy["memory_mape_cv"] < 0.05
    assert {"configurations_left_out", "stage_counts_left_out", "by_stages", "by_tokens", "warnings"} <= set(toy)
    assert any("5 rows of 1 stage" in w for w in toy["warnings"])


def test_fit_as_text_and_as_plot(workspace):
    plot = workspace / "fit.svg"
    done = cappuccino("fit", workspace / "table.csv", "--memory", 4, "--plot", plot)
    assert done.code == 0, done.err
    for word in ("toy", "rows left out", "stage counts left out", "largest micro-batch", "2 stages"):
        assert word in done.out
    root = ElementTree.parse(plot).getroot()
    groups = {g.get("id"): g for g in root.iter("{http://www.w3.org/2000/svg}g")}
    markers = [len(list(groups[f"{n} stage{'s' * (n > 1)}"].iter("{http://www.w3.org/2000/svg}use"))) for n in (1, 2)]
    assert markers == [5, 5]


BAD_TABLES = {
    "no column": ("param_name,pp_size\ntoy,1\n", "micro_bsz"),
    "nothing ran": ("{header}\ntoy,1,1,4,64,16,100,1.0,OOM\n", "status"),
    "text": ("{header}\ntoy,1,1,4,64,16,100,quick,OK\n", "quick"),
    "negative": ("{header}\ntoy,1,1,4,64,16,100,-1.0,OK\n", "-1.0"),
    "too few": ("{header}\ntoy,1,1,4,64,16,100,1.0,OK\n", "1 OK rows"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_one_clear_error(name, workspace):
    table = workspace / "table.csv"
    header = table.read_text().splitlines()[0]
    text, word = BAD_TABLES[name]
    table.write_text(text.replace("{header}", header))
    plot = workspace / "fit.svg"
    one_clear_error(cappuccino("fit", table, "--plot", plot), "table.csv", word)
    assert not plot.exists()


def test_one_stage_count_is_an_error_unless_it_is_meant(workspace):
    table = workspace / "table.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("toy,2")) + "\n")
    one_clear_error(cappuccino("fit", table), "table.csv", "pp_size", "1 is the only stage count", "--one-depth")
    done = cappuccino("fit", table, "--one-depth")
    assert done.code == 0
    assert "one stage count, 1" in done.err


def test_unknown_backbones_and_formats_are_refused(workspace):
    one_clear_error(cappuccino("fit", workspace / "table.csv", "--backbone", "other"), "param_name", "other", "toy")
    one_clear_error(cappuccino("fit", workspace / "table.csv", "--plot", workspace / "fit.pdf"), "fit.pdf", ".svg")
