"""Precision and recall of SparseInfer's signs on held-out text, by block and α, of a trained ReLU model.

python -m wisparse.repro.train.predictor outputs/relu-models/llama-mini-relu --output results/relu/predictor
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from ...method.calibration import Calibration
from ...method.signs.predictor import PredictedNeurons, predicted_neurons
from ..configuration import mistakes_in_one_line
from ..embedded.card import held_out_sample
from ..models.tokenizer import load_tokenizer
from ..tables.csv_rows import csv_text, write_table
from ..tables.plot_style import ink, line_style, write_figure
from ..tables.text import table_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHAS = (0.9, 0.95, 1.0, 1.03, 1.05, 1.1, 1.2, 1.3)
"""Negative over positive products beyond which a neuron is taken to be zero; the releases have 1 and 1.03."""
PRECISION = "neurons taken to be zero that are"
ACTIVE = "active neurons that are computed"
NAMES = ("block", "alpha", "zeros", "predicted", "precision", "recall", "active_kept")


def limit_of(alpha: float, channels: int) -> int:
    """Most negative products of a neuron that is computed: N₋ ≤ α·N₊."""
    return int(alpha * channels / (1.0 + alpha) + 1e-9)


def rows(counted: list[PredictedNeurons], channels: int) -> Iterator[dict[str, str]]:
    """A row for every block and α, shares with four decimals.

    zeros: neurons whose gate is zero; predicted: those taken to be; precision: share of these that are; recall:
    share of zeros that are predicted; active_kept: share of the others that are computed.
    """
    for block, one in enumerate(counted):
        for alpha in ALPHAS:
            limit = limit_of(alpha, channels)
            zeros = one.zero.sum()
            shares = (
                float(zeros / one.every.sum()),
                one.predicted(limit),
                one.precision(limit),
                float(one.zero[limit + 1 :].sum() / zeros) if zeros else 0.0,
                one.recall(limit),
            )
            numbers = (f"{share:.4f}" for share in shares)
            yield dict(zip(NAMES, (str(block), f"{alpha:g}", *numbers), strict=True))


def page(name: str, found: list[dict[str, str]]) -> str:
    """The rows as a page: α by block, precision / share of zeros that are predicted / share of active kept."""
    blocks = list(dict.fromkeys(row["block"] for row in found))
    lines = [
        f"# What signs predict of {name}",
        "",
        "On held-out text, in percent: precision / recall of zeros / active neurons that are computed. A "
        "neuron is taken to be zero where its negative products are more than α times its positive ones "
        "(SparseInfer, arXiv 2411.12692).",
        "",
        table_row(["block", "zeros", *(f"α = {alpha:g}" for alpha in ALPHAS)]),
        "|---|---:" + "|---:" * len(ALPHAS) + "|",
    ]
    for block in blocks:
        mine = [row for row in found if row["block"] == block]
        shown = [
            " / ".join(f"{100 * float(row[part]):.0f}" for part in ("precision", "recall", "active_kept"))
            for row in mine
        ]
        lines.append(table_row([block, f"{100 * float(mine[0]['zeros']):.0f}", *shown]))
    return "\n".join(lines) + "\n"


def figure(name: str, found: list[dict[str, str]]) -> Figure:
    """Precision beside the share of active neurons that is computed, against α, a line for each block."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8, 3.2), layout="constrained")
    panels = drawn.subplots(1, 2, sharex=True)
    drawn.suptitle(f"What signs predict of {name}")
    for axes, part, title in zip(panels, ("precision", "active_kept"), (PRECISION, ACTIVE), strict=True):
        for place, block in enumerate(dict.fromkeys(row["block"] for row in found)):
            mine = [row for row in found if row["block"] == block]
            values = [100 * float(row[part]) for row in mine]
            alphas = [float(row["alpha"]) for row in mine]
            axes.plot(alphas, values, label=f"block {block}", markersize=4, **line_style(place))
        axes.set_title(title)
    drawn.supxlabel(
        "α: negative over positive products beyond which a neuron is taken to be zero", fontsize="medium"
    )
    panels[0].set_ylabel("%")
    panels[1].legend(fontsize=7)
    return drawn


@mistakes_in_one_line()
def main() -> None:
    """Write the table and the plot of a model folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--output", type=Path, required=True, help="path of the table without .md and .csv")
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    calibration = Calibration(model, held_out_sample(load_tokenizer(arguments.model)))
    found = list(rows(predicted_neurons(calibration), model.config.hidden_size))
    write_table(arguments.output, csv_text(NAMES, found), page(arguments.model.name, found))
    with ink(arguments.output.name):
        write_figure(figure(arguments.model.name, found), arguments.output)
    print(f"written: {arguments.output}.md, .csv, .png and .svg")


if __name__ == "__main__":
    main()
