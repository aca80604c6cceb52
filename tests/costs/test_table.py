import pytest

from cappuccino.costs import read_cost_table
from cappuccino.errors import InputError

COLUMNS = "param_name,pp_size,micro_bsz,grad_acc_steps,seqlen,rank,peak_memory_mb,time_per_step_s,status"
ROW = "b,2,4,8,256,16,2048,1.5,OK"
FAILED = "b,2,8,8,256,16,OOM,OOM,OOM_OR_INVALID"


def save(tmp_path, *rows, columns=COLUMNS):
    path = tmp_path / "t.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def test_reads_numbers_and_derives_shapes(tmp_path):
    table = read_cost_table(save(tmp_path, ROW, FAILED))
    row = table.ok.iloc[0]
    assert len(table.ok) == len(table.failed) == 1
    assert (row["tokens"], row["squares"]) == (4 * 256, 4 * 256 * 256)
    assert (row["peak_memory_mb"], row["time_per_step_s"]) == (2048.0, 1.5)
    assert table.failed.iloc[0]["tokens"] == 2048
    assert not table.is_analytic


def test_columns_may_stand_in_any_order_and_be_more(tmp_path):
    columns = "note," + ",".join(reversed(COLUMNS.split(",")))
    row = 'say "hi",' + ",".join(reversed(ROW.split(",")))
    assert read_cost_table(save(tmp_path, row, columns=columns)).ok.iloc[0]["tokens"] == 1024


def test_source_column_says_analytic(tmp_path):
    assert read_cost_table(save(tmp_path, ROW + ",analytic", columns=COLUMNS + ",source")).is_analytic


@pytest.mark.parametrize("column", COLUMNS.split(","))
def test_every_required_column_is_missed_by_name(tmp_path, column):
    keep = [i for i, c in enumerate(COLUMNS.split(",")) if c != column]
    header, row = (",".join(line.split(",")[i] for i in keep) for line in (COLUMNS, ROW))
    with pytest.raises(InputError, match=rf"t\.csv: {column}: column is missing; a cost table needs the columns "):
        read_cost_table(save(tmp_path, row, columns=header))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b,2,4,8,256,16,2048,fast,OK", r"t\.csv: line 3, time_per_step_s: \"fast\" is not a number"),
        ("b,2,4,8,256,16,2048,-1.5,OK", r"t\.csv: line 3, time_per_step_s: \"-1\.5\" is not a number that is not neg"),
        ("b,2,4,8,256,16,2048,0,OK", r"t\.csv: line 3, time_per_step_s: 0 is not allowed"),
        ("b,2,4,8,256,16,2048,nan,OK", r"t\.csv: line 3, time_per_step_s: \"nan\" is not a number"),
        ("b,2,4,8,256,16,2048,inf,OK", r"t\.csv: line 3, time_per_step_s: \"inf\" is not a number"),
        ("b,2,4,8,256,16,2048,,OK", r"t\.csv: line 3, time_per_step_s: \"\" is not a number"),
        ("b,2,4,8,256,16,OOM,1.5,OK", r"t\.csv: line 3, peak_memory_mb: \"OOM\" is not a number"),
        ("b,2.5,4,8,256,16,2048,1.5,OK", r"t\.csv: line 3, pp_size: \"2\.5\" is not a positive integer"),
        ("b,2,4,8,1e30,16,2048,1.5,OK", r"t\.csv: line 3, seqlen: \"1e30\""),
        ("b,0,4,8,256,16,2048,1.5,OK", r"t\.csv: line 3, pp_size: \"0\" is not a positive integer"),
        ("b,2,4,8,long,16,2048,OOM,OOM", r"t\.csv: line 3, seqlen: \"long\" is not a positive integer"),
    ],
)
def test_bad_values_name_line_column_and_value(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        read_cost_table(save(tmp_path, ROW, row))


@pytest.mark.parametrize("status", ["ok", "TIMEOUT", "oom", ""])
def test_a_status_that_is_not_known_is_not_taken_for_out_of_memory(tmp_path, status):
    bad = ROW.rsplit(",", 1)[0] + f",{status}"
    with pytest.raises(InputError, match=rf't\.csv: line 3, status: "{status}" is no status; write OK'):
        read_cost_table(save(tmp_path, ROW, bad))


def test_blanks_around_names_of_columns_are_no_part_of_them(tmp_path):
    table = read_cost_table(save(tmp_path, ROW + ",x", columns=COLUMNS.replace(",", " , ") + ", gpu"))
    assert table.backbones == (("b", "x"),)


def test_blanks_around_a_status_are_no_part_of_it(tmp_path):
    assert len(read_cost_table(save(tmp_path, ROW, ROW.rsplit(",", 1)[0] + ", OK ")).ok) == 2


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("time_per_step_s", r"time_per_step_s: is the name of two columns; keep one of them"),
        ("num_layer", r"num_layer: is no column that is used; call it num_layers, or otherwise"),
        ("layers_per_stages", r"layers_per_stages: is no column that is used; call it layers_per_stage"),
        ("GPU", r"GPU: is no column that is used; call it gpu, or otherwise"),
        ("dtypes", r"dtypes: is no column that is used; call it dtype, or otherwise"),
        ("num layers", r"num layers: is no column that is used; call it num_layers"),
    ],
)
def test_columns_whose_names_are_slips_are_refused(tmp_path, column, message):
    with pytest.raises(InputError, match=message):
        read_cost_table(save(tmp_path, ROW + ",1", columns=f"{COLUMNS},{column}"))


def test_lines_are_counted_as_an_editor_does_past_blank_lines(tmp_path):
    with pytest.raises(InputError, match="line 4, time_per_step_s"):
        read_cost_table(save(tmp_path, ROW, "", ROW.replace("1.5", "fast")))


@pytest.mark.parametrize("rows", [[FAILED], []])
def test_no_row_that_ran(tmp_path, rows):
    with pytest.raises(InputError, match=r"t\.csv: status: no row is OK"):
        read_cost_table(save(tmp_path, *rows))


def test_text_in_an_optional_column(tmp_path):
    path = save(tmp_path, ROW + ",soon", columns=COLUMNS + ",forward_time_s")
    with pytest.raises(InputError, match=r"t\.csv: line 2, forward_time_s: \"soon\" is not a number"):
        read_cost_table(path)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(InputError, match=r"gone\.csv: file not found"):
        read_cost_table(tmp_path / "gone.csv")
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    with pytest.raises(InputError, match=r"empty\.csv: is not a CSV table"):
        read_cost_table(empty)
    with pytest.raises(InputError, match=r"t\.csv: is not a CSV table"):
        read_cost_table(save(tmp_path, ROW, ROW + ",more,and,more"))


def test_rows_with_one_value_too_many_are_an_input_error(tmp_path):
    # a trailing comma in every row but not in the header: pandas would take the first column for an index
    with pytest.raises(InputError, match=r"t\.csv"):
        read_cost_table(save(tmp_path, ROW + ",", ROW + ","))


def test_select_backbone_and_gpu(tmp_path):
    columns = COLUMNS + ",gpu"
    table = read_cost_table(save(tmp_path, ROW + ",x", ROW + ",y", FAILED + ",x", columns=columns))
    part = table.select("b", "x")
    assert (len(part.ok), len(part.failed)) == (1, 1)
    with pytest.raises(InputError, match=r't\.csv: param_name: no OK rows of backbone "c"; .*of the table: b$'):
        table.select("c", "x")
    with pytest.raises(InputError, match=r't\.csv: gpu: no OK rows of backbone "b" on "z"; .*of the table: x, y$'):
        table.select("b", "z")


def test_a_table_without_gpu_column_serves_every_type(tmp_path):
    assert len(read_cost_table(save(tmp_path, ROW)).select("b", "anything").ok) == 1
