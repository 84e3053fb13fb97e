"""The table of sizes: rises by hand between cells, ratios over the smallest, what is not comparable refused."""

import csv
import io
import json
import math

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.report.summaries.method import scaling_table
from wisparse.repro.tables.make import write_tables
from wisparse.repro.tables.plot_style import ink
from wisparse.repro.train.scaling_cells import read_scaling
from wisparse.repro.train.scaling_table import SCALING, figure, main

from ..tables.made_up_cells import CONFIG, write_cell

PARAMETERS = {"llama-160": 3_525_280, "llama-640": 40_643_200}
BLOCKS = 8e6


def card(folder, model, **changes):
    path = folder / model
    path.mkdir(parents=True)
    content = {
        "parameters": PARAMETERS[model], "tokens_seen": 100_000_000, "seconds": 30.0, "device": "a GPU",
        "recipe": {"optimizer": "muon", "learning_rate": 4e-3, "seed": 0}, "held_out_perplexity": 9.5,
        "text": {"training_text_tokens": 89_000_000, "preparation_seconds": len(model)}, **changes,
    }  # fmt: skip
    (path / "training.json").write_text(json.dumps(content))


def cell(folder, model, method, sparsity, broken, realised=None, **changes):
    """A cell whose perplexity is the dense one times 1.01 ** broken."""
    share = sparsity if realised is None else realised
    about = {
        "name": model, "parameters": PARAMETERS[model], "device": "cpu", "device_name": "CPU", "threads": 2,
        "dtype": "float32", "fingerprint": model[-1] * 64,
    }  # fmt: skip
    read = {
        "realised_sparsity": share,
        "bytes_per_token": 1e7 - share * BLOCKS,
        "dense_bytes_per_token": 1e7,
    }
    return write_cell(folder, method, sparsity, broken, **{"model": about, "realised": read, **changes})


@pytest.fixture
def folders(tmp_path):
    for model in PARAMETERS:
        card(tmp_path / "cards", model)
        cell(tmp_path / "records", model, "dense", 0.0, 0)
    for model, factor in (("llama-160", 1), ("llama-640", 3)):
        for sparsity, broken in ((0.4, 2), (0.62, 8)):
            cell(tmp_path / "records", model, "teal", sparsity, factor * broken)
        cell(tmp_path / "records", model, "teal", 0.5, factor * 4, realised=0.48)
    cell(tmp_path / "records", "llama-160", "equal_loss", 0.5, 1)
    return tmp_path / "cards", tmp_path / "records"


def rise(broken):
    return 1.01**broken - 1


def between(low, high, share):
    """Rise between two, whose logarithm is linear."""
    return math.exp((1 - share) * math.log(rise(low)) + share * math.log(rise(high)))


def test_sizes_stand_beside_each_other_at_the_same_share_not_read(folders):
    rows = list(csv.DictReader(io.StringIO(SCALING.csv(read_scaling(*folders)))))
    found = {(row["model"], row["method"], row["sparsity"]): row for row in rows}
    assert len(found) == len(rows) == 12
    expected = {
        ("llama-160", "0.4"): rise(2),
        ("llama-160", "0.5"): between(4, 8, 2 / 14),  # from 48 to 62 % not read
        ("llama-160", "0.6"): between(4, 8, 12 / 14),
        ("llama-640", "0.5"): between(12, 24, 2 / 14),
    }
    for (model, sparsity), value in expected.items():
        assert float(found[model, "teal", sparsity]["relative_rise"]) == pytest.approx(value, abs=1e-5)
    assert found["llama-160", "teal", "0.5"]["over_smallest"] == ""
    share = between(12, 24, 2 / 14) / between(4, 8, 2 / 14)
    row = found["llama-640", "teal", "0.5"]
    # Every document is as much worse as the others: no resample says anything else.
    for end in ("", "_low", "_high"):
        assert float(row[f"over_smallest{end}"]) == pytest.approx(share, abs=1e-4)
    # A method with one cell: measured there, and nowhere else, for the dense model alone is too far away.
    assert float(found["llama-160", "equal_loss", "0.5"]["relative_rise"]) == pytest.approx(0.01)
    for model, sparsity in (("llama-160", "0.4"), ("llama-160", "0.6"), ("llama-640", "0.5")):
        assert found[model, "equal_loss", sparsity]["relative_rise"] == ""


def test_the_page_says_what_differs_and_what_was_not_measured(folders):
    page = SCALING.markdown(read_scaling(*folders))
    assert "**A larger one has seen fewer tokens a parameter**" in page
    assert "| llama-160 | 3.5 M | 80 % | 28.4 | 30 | 9.500 |" in page
    assert "| llama-640 | 40.6 M | 80 % | 2.5 |" in page
    part = page.split("## Rise at 50% of the block weights not read")[1].split("##")[0]
    assert "| equal_loss | **1.0 % [1.0 %, 1.0 %]** | not measured | – |" in part
    teal = f"{100 * between(4, 8, 2 / 14):.1f} %"
    assert f"| teal | {teal} [{teal}, {teal}] |" in part


def test_a_smallest_size_without_a_rise_has_no_share(folders):
    cards, records = folders
    for model, broken in (("llama-160", 0), ("llama-640", 5)):
        cell(records, model, "wina", 0.5, broken)
    rows = csv.DictReader(io.StringIO(SCALING.csv(read_scaling(cards, records))))
    (found,) = (
        row for row in rows if (row["model"], row["method"], row["sparsity"]) == ("llama-640", "wina", "0.5")
    )
    assert (float(found["relative_rise"]), found["over_smallest"]) == (pytest.approx(rise(5), abs=1e-5), "")


def test_a_panel_has_a_line_for_each_method_that_was_measured_there(folders):
    with ink("scaling"):
        drawn = figure(read_scaling(*folders))
    lines = [{line.get_label(): list(line.get_xdata()) for line in axis.get_lines()} for axis in drawn.axes]
    assert [axis.get_title() for axis in drawn.axes] == ["40% not read", "50% not read", "60% not read"]
    both = [3.52528, 40.6432]
    assert lines == [{"teal": both}, {"teal": both, "equal_loss": [3.52528]}, {"teal": both}]


def test_the_command_writes_the_table_the_plot_and_its_records(folders, tmp_path, monkeypatch):
    cards, records = folders
    output, kept = tmp_path / "out" / "scaling", tmp_path / "out" / "records.tar.xz"
    monkeypatch.setattr(
        "sys.argv",
        ["scaling_table", "--cards", str(cards), "--records", str(records), "--output", str(output),
         "--keep-records", str(kept)],
    )  # fmt: skip
    main()
    made = {suffix: output.with_suffix(suffix).read_bytes() for suffix in (".csv", ".md", ".svg", ".png")}
    write_tables(SCALING, read_scaling(cards, kept), output)
    assert made[".csv"] == output.with_suffix(".csv").read_bytes()
    assert made[".md"] == output.with_suffix(".md").read_bytes()
    shown = scaling_table(output.with_suffix(".csv")).splitlines()
    assert shown[0] == "| not read | method | 3.5 M | 40.6 M | largest ÷ smallest |"
    assert [line.split(" | ")[:2] for line in shown[2:5]] == [
        ["| 50%", "`teal`"],
        ["| 50%", "`equal_loss`"],
        ["| 60%", "`teal`"],
    ]
    assert shown[3].endswith("| not measured | – |")
    assert shown[-1] == "![rise of perplexity against parameters](../out/scaling.png)"


def test_before_it_was_measured_the_page_says_so(tmp_path):
    assert scaling_table(tmp_path / "scaling.csv") == "*Not measured.*"


def test_what_does_not_belong_together_is_refused(folders, tmp_path):
    cards, records = folders
    with pytest.raises(UserError, match=r"fewer than two sizes; run `make train-scaling` first"):
        read_scaling(tmp_path, records)
    card(tmp_path / "other", "llama-160")
    card(tmp_path / "other", "llama-640", tokens_seen=99)
    with pytest.raises(
        UserError, match="llama-640 is of another tokens_seen than llama-160 and not comparable"
    ):
        read_scaling(tmp_path / "other", records)
    card(tmp_path / "another", "llama-160")
    card(tmp_path / "another", "llama-640", parameters=41_000_000)
    with pytest.raises(UserError, match="is of another llama-640 than its card; measure it again"):
        read_scaling(tmp_path / "another", records)
    config = CONFIG | {"protocol": {"name": "all"}}
    cell(records, "llama-640", "wina", 0.5, 3, config=config, protocol={"name": "all", "description": "all"})
    with pytest.raises(UserError, match="records of different protocol do not belong"):
        read_scaling(cards, records)
