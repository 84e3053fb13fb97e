"""Settings, costs of biases and what might still be gained, for the page on the own methods."""

from hydra import compose
from wisparse.repro.configuration import composing
from wisparse.repro.report.summaries.method import (
    METHODS,
    SETTINGS,
    biases_table,
    left_over_table,
    settings_table,
)


def rows(table):
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]


def test_settings_are_those_that_methods_are_made_with():
    table = {row[0]: dict(zip(METHODS, row[1:], strict=True)) for row in rows(settings_table())[2:]}
    assert len(table) == len(SETTINGS) + 1
    with composing():
        names = ("equal_loss_folded_long", "equal_loss_trained_long")
        long, trained = (compose("config", overrides=[f"method={name}"]).method for name in names)
    assert table["times that bases are found again"]["equal_loss_folded_long"] == str(long.sparse_rounds)
    assert table["sequences of a round"]["equal_loss_folded_long"] == str(long.inner.correction_sequences)
    assert table["steps of (9)"]["equal_loss_folded_long"] == f"{long.basis.steps:,}"
    assert table["sequences of such a step"]["equal_loss_trained_long"] == str(trained.inner.training.sequences)
    assert table["steps of (10)"]["equal_loss"] == ""
    slopes = table["octaves of the logistic function's slope"]
    assert [slopes[name] != "" for name in METHODS] == ["trained" in name for name in METHODS]


def test_biases_cost_a_share_of_a_step(tmp_path):
    path = tmp_path / "step_biases.csv"
    path.write_text("device,shape,bits,ms,ms_with_biases,cost\nH200,8b,4,1.2722,1.2795,0.0057\n")
    assert rows(biases_table(path))[2:] == [["H200, 8b", "4", "1.27", "1.28", "0.57%"]]


def test_what_is_left_has_a_column_a_seed(tmp_path):
    path = tmp_path / "left_over.csv"
    path.write_text(
        "part,setting,known_while_decoding,seed,divergence,divergence_low,divergence_high\n"
        "token,an oracle,false,0,-0.0964,-0.1540,-0.0327\n"
        "token,an oracle,false,1,0.0123,-0.0020,0.0200\n"
        "site,top-k in down,true,1,0.0700,0.0500,0.0900\n"
    )
    assert rows(left_over_table(path))[2:] == [
        ["an oracle", "no", "-9.6% [-15.4%, -3.3%]", "+1.2% [-0.2%, +2.0%]"],
        ["top-k in down", "yes", "not measured", "+7.0% [+5.0%, +9.0%]"],
    ]
