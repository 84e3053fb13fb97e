"""The table of the predictor: limits that are α's, and shares by hand."""

import torch
from wisparse.method.signs.predictor import PredictedNeurons
from wisparse.repro.train.predictor import ALPHAS, figure, limit_of, page, rows


def test_limits_are_the_last_counts_that_alpha_lets_pass():
    for channels in (5, 96, 320):
        for alpha in ALPHAS:
            passing = [n for n in range(channels + 1) if n <= alpha * (channels - n) + 1e-9]
            assert limit_of(alpha, channels) == passing[-1]


def test_shares_by_hand():
    # Of 4 products, 0 to 4 negative; with α = 1 what has 3 or 4 is taken to be zero.
    counts = PredictedNeurons(
        active=torch.tensor([2, 3, 2, 1, 0]),
        zero=torch.tensor([0, 0, 2, 5, 5]),
        every=torch.tensor([2, 3, 4, 6, 5]),
    )
    found = [row for row in rows([counts], 4) if row["alpha"] == "1"]
    assert found == [
        {"block": "0", "alpha": "1", "zeros": "0.6000", "predicted": "0.5500", "precision": "0.9091",
         "recall": "0.8333", "active_kept": "0.8750"}
    ]  # fmt: skip
    assert "91 / 83 / 88" in page("a-model", list(rows([counts], 4)))
    precision, active = figure("a-model", list(rows([counts], 4))).axes
    assert precision.lines[0].get_xdata().tolist() == active.lines[0].get_xdata().tolist() == list(ALPHAS)
    assert (precision.lines[0].get_ydata()[2], active.lines[0].get_ydata()[2]) == (90.91, 87.5)
