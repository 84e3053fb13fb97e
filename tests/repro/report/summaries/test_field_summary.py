"""Chart of the field: a row a method, its numbers those of the tables, no speed of another device or dtype."""

from wisparse.repro.report.summaries.field import field_table
from wisparse.repro.tables.csv_rows import csv_text

SHARED = {"protocol": "half", "search_budget": "medium", "reference": "teal", "seed": "0"}


METHODS = (("teal", "337000000", "24.5", ""), ("larosa", "326000000", "91.25", "18.5"))


def test_every_number_stands_in_a_table(tmp_path):
    cells = [
        {
            "suite": "wikitext",
            "method": method,
            "sparsity": "0.5",
            "bytes_per_token": read,
            "perplexity": ppl,
            "realised_sparsity": "0.4825",
            "rise_share": rise,
            "status": "measured",
            "compared": "1 of 1",
            **SHARED,
        }
        for method, read, ppl, rise in METHODS
    ]
    cells += [{**cell, "suite": "english", "average": "65.25"} for cell in cells]
    losses = [
        {
            "suite": "wikitext",
            "loss": "0.1",
            "method": "teal",
            "sparsity": "0.4456",
            "status": "measured",
            **SHARED,
        },
        {
            "suite": "wikitext",
            "loss": "0.1",
            "method": "larosa",
            "status": "before the first cell",
            "first_cell_sparsity": "0.251",
            **SHARED,
        },
        {
            "suite": "wikitext",
            "loss": "0.05",
            "method": "teal",
            "sparsity": "0.3",
            "status": "measured",
            **SHARED,
        },
    ]
    other_text = {**losses[0], "sparsity": "0.51", "calibration": "english_wikitext"}
    losses = [*({"calibration": "english", **loss} for loss in losses), other_text]
    speeds = [
        {
            "device": device,
            "model": "llama3.1-8b-random",
            "dtype": dtype,
            "method": "teal",
            "sparsity": "0.5",
            "batch": "1",
            "prompt": "5",
            "baseline": "engine-dense",
            "speedup": speedup,
        }
        for device, dtype, speedup in (
            ("NVIDIA H100", "bfloat16", "1.9"),
            ("NVIDIA H200", "bfloat16", "1.637"),
            ("NVIDIA H200", "float16", "1.8"),
        )
    ]
    steps = [
        {"device": device, "shape": "llama3.1-8b", "blocks": "16", "kind": kind, "sparsity": sparsity, "ms": ms}
        for device, times in (
            ("CPU", ("8", "8", "8", "8")),
            ("NVIDIA H200", ("2.6", "1.3", "2", "1")),
        )
        for (kind, sparsity), ms in zip(
            (("dense", "0.0"), ("rotated", "0.4"), ("rotated", "0.5"), ("thresholds", "0.5")),
            times,
            strict=True,
        )
    ]
    paths = []
    for name, rows in (("cells", cells), ("losses", losses), ("speeds", speeds), ("steps", steps)):
        names = list(dict.fromkeys(key for row in rows for key in row))
        paths.append(tmp_path / name)
        paths[-1].write_text(csv_text(names, rows))
    teal, larosa = field_table(*paths).splitlines()[2:]
    assert teal == "| `teal` | 48.2% | 337 | 24.50 |  | 65.2 | 44.6% | 1.64× |"
    # Decoding with it was not timed: 2.6 over 2 ms.
    assert larosa == "| `larosa` | 48.2% | 326 | 91.25 | 18.50 | 65.2 | < 25.1% | 1.30× (step) |"
