"""Steps with chosen neurons and with bounds in docs/field.md: gains over the dense step of the run, by hand."""

from wisparse.repro.report.summaries.proxies import proxies_table
from wisparse.repro.tables.csv_rows import csv_text

RUN = {"device": "CPU", "shape": "a", "blocks": "4"}
TIMES = (
    ("dense", "0.0", "", "30"),
    ("thresholds", "0.4", "", "20"),
    ("bounded", "0.4", "", "24"),
    ("proxies", "0.4", "0.417", "15"),
    ("routed", "0.4", "0.45", "12"),
    ("rotated", "0.4", "", "25"),
)


def test_a_step_is_compared_with_the_dense_one_of_its_run(tmp_path):
    # The first run of the CPU was measured again.
    rows = [
        run | {"kind": kind, "sparsity": sparsity, "neurons": neurons, "ms": str(slower * float(ms))}
        for run, slower in ((RUN, 3), (RUN | {"device": "GPU"}, 0.1), (RUN, 1))
        for kind, sparsity, neurons, ms in TIMES
    ]
    path = tmp_path / "proxies.csv"
    path.write_text(csv_text(tuple(rows[0]), rows))
    assert proxies_table(path).splitlines()[2:] == [
        "| CPU | a | 4 | 40% | 30.00 | 1.50× | 1.25× | 2.00× | 2.50× | 1.20× | not measured | 42% | 45% |",
        "| GPU | a | 4 | 40% | 3.00 | 1.50× | 1.25× | 2.00× | 2.50× | 1.20× | not measured | 42% | 45% |",
    ]


def test_what_was_not_measured_is_said(tmp_path):
    assert proxies_table(tmp_path / "none.csv").splitlines()[2].startswith("| not measured |")
