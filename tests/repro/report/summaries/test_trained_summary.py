"""Models with true zeros in docs/field.md: cells around half, one of other models, gains by hand."""

from wisparse.repro.report.summaries.trained import predicted_table, trained_table
from wisparse.repro.tables.csv_rows import csv_text

SHARED = {"shape": "llama3.2-1b", "blocks": "4", "computed": "0.26", "active": "0.21"}
CELLS = (
    ("llama-mini-dense", "embedded", "dense", "0", "0.0", "14.0"),
    ("llama-mini-dense", "embedded", "teal", "0.5", "0.501", "21.0"),
    ("llama-mini-dense", "embedded", "teal", "0.6", "0.6", "70.0"),
    ("llama-mini-dense", "wikitext", "dense", "0", "0.0", "50.0"),
    ("llama-mini-dense", "wikitext", "teal", "0.5", "0.501", "80.0"),
    ("llama-mini-relu", "embedded", "relu_zeros", "0", "0.322", "13.3"),
    ("llama-mini-relu", "wikitext", "relu_zeros", "0", "0.322", "55.0"),
    ("llama-mini-relu", "english", "relu_zeros", "0", "0.322", "55.0"),
    ("llama-mini-lte", "embedded", "dense", "0", "0.0", "27.1"),
    ("llama-mini-lte", "embedded", "lte", "0.5", "0.608", "18.2"),
    ("llama-mini-lte", "embedded", "lte", "0.6", "0.637", "19.6"),
    ("llama-mini-qsparse_block", "", "", "", "", ""),
)


def test_a_model_has_a_suites_cells_around_half_or_the_one_nearest_to_it(tmp_path):
    rows = [
        {
            "model": model,
            "zeros": "0.6232",
            "over_control": "0.9879",
            "suite": suite,
            "method": method,
            "sparsity": sparsity,
            "realised_sparsity": realised,
            "bytes_per_token": "28166430" if method else "",
            "perplexity": perplexity,
        }
        for model, suite, method, sparsity, realised, perplexity in CELLS
    ]
    path = tmp_path / "models.csv"
    path.write_text(csv_text(tuple(rows[0]), rows))
    assert trained_table(path).splitlines()[2:] == [
        "| `llama-mini-dense` | 62.3% | 0.988 | embedded | `teal` | 50.1% | 28.2 | 1.500 |",
        "| `llama-mini-dense` | 62.3% | 0.988 | wikitext | `teal` | 50.1% | 28.2 | 1.600 |",
        "| `llama-mini-relu` | 62.3% | 0.988 | embedded | `relu_zeros` | 32.2% | 28.2 | 0.950 |",
        "| `llama-mini-relu` | 62.3% | 0.988 | wikitext | `relu_zeros` | 32.2% | 28.2 | 1.100 |",
        "| `llama-mini-relu` | 62.3% | 0.988 | english | `relu_zeros` | 32.2% | 28.2 | not measured |",
        "| `llama-mini-lte` | 62.3% | 0.988 | embedded | `lte` | 60.8% | 28.2 | 1.300 |",
        "| `llama-mini-qsparse_block` | 62.3% | 0.988 |  | not measured |  |  |  |",
    ]


def test_a_step_is_compared_with_the_dense_one_of_its_run(tmp_path):
    rows = [
        SHARED | {"device": device, "kind": kind, "ms": ms}
        for device, times in (
            ("GPU", ("9", "9", "9", "9", "9")),  # measured again
            ("GPU", ("2", "0.8", "0.88", "1.25", "1.5")),
            ("CPU", ("40", "20", "22", "30")),
        )
        for kind, ms in zip(("dense", "nothing", "signs", "predicted", "known"), times, strict=False)
    ]
    path = tmp_path / "predicted.csv"
    path.write_text(csv_text(tuple(rows[0]), rows))
    # Signs take 0.02 and 0.5 ms a block. A block has 60.8 of the 505.9 million weights beside them: 0.12 of 2
    # and of 40 ms. Of 399.9 million weights that a step reads whose zeros are known, 354.2 are left.
    unknown = "not measured | not measured"
    assert predicted_table(path).splitlines()[2:] == [
        "| GPU | llama3.2-1b | 4 | 26% | 21% | 21% | 1.25 | 1.60× | 1.20× | 1.13× | 20.0 | 8.3% |",
        f"| CPU | llama3.2-1b | 4 | 26% | 21% | 21% | 30.00 | 1.33× | {unknown} | 500.0 | 10.4% |",
    ]
