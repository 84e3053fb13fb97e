"""What became of the models that were trained on: zeros, perplexity beside the control, and methods on them.

python -m wisparse.repro.train.relu_table --cards results/relu/cards --records outputs/relu \
    --output results/relu/models --keep-records results/relu/records.tar.xz
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from ...method.errors import UserError
from ..configuration import mistakes_in_one_line
from ..embedded.names import MODELS
from ..measured.cells import MeasuredCell, method_rank, place_of, stored_cells
from ..measured.comparable import check_comparable, check_one_text, check_same_items
from ..tables.csv_rows import csv_text, write_table
from ..tables.kept_records import made_from_records
from ..tables.text import table_row
from .cards import CARD, check_trained_alike, read_cards
from .recipes import CONTINUATIONS

CONTROL = "dense"
CLAIMED_ZEROS = 0.89
"""Share of zeros in ProSparse's abstract, of Llama-2-7B."""
NAMES = (
    "model", "zeros", "least_zeros", "most_zeros", "held_out_perplexity", "over_control", "suite", "method",
    "sparsity", "realised_sparsity", "bytes_per_token", "perplexity",
)  # fmt: skip


@dataclass(frozen=True)
class TrainedModels:
    """Cards of trained models by the name of their continuation, and cells measured on them."""

    start: str
    """Name of the model that all of them were trained on from."""
    cards: dict[str, dict[str, Any]]
    cells: dict[int, MeasuredCell]
    """Cells in the order in which they were read."""

    def model(self, name: str) -> str:
        """Name of the model of a continuation."""
        return f"{self.start}-{name}"

    def of(self, name: str) -> list[MeasuredCell]:
        """Cells of a model, a suite after the other, dense first."""
        mine = [cell for cell in self.cells.values() if cell.record["model"]["name"] == self.model(name)]
        return sorted(mine, key=lambda cell: (_suite(cell), method_rank(cell.key[1]), cell.key[2]))


def read_models(cards: Path, *records: Path) -> TrainedModels:
    """Read the cards below a folder, a folder each, and the cells below others.

    Cells of the model that they were trained on from are read, too; of one that was measured again the newest.
    Raises UserError without one control, where another model was trained otherwise or on other tokens, where
    cells of one name are of different weights, and where those of a suite were not measured alike.
    """
    controls = sorted(path.parent.name for path in cards.glob(f"*-{CONTROL}/{CARD}"))
    if len(controls) != 1:
        those = f"has {', '.join(controls)}; keep the one" if controls else f"has no MODEL-{CONTROL}/{CARD},"
        raise UserError(f"{cards} {those} which the others are compared with")
    start = controls[0].removesuffix(f"-{CONTROL}")
    known = {f"{start}-{name}": name for name in CONTINUATIONS}
    of_models = read_cards(cards, known)
    for model, part in product(of_models, ("zeros_by_block", "held_out_perplexity_tokens")):
        if part not in of_models[model]:
            raise UserError(f"{cards / model / CARD} lacks {part}; train the model anew")
    check_trained_alike(of_models)
    found = {known[model]: card for model, card in of_models.items()}
    cells = _cells(records, {start, *of_models}) if records else []
    weights: dict[str, str] = {}
    for cell in cells:
        model = cell.record["model"]
        if weights.setdefault(model["name"], model["fingerprint"]) != model["fingerprint"]:
            raise UserError(f"cells of {model['name']} are of several trainings; keep those of one")
    for suite in sorted(set(map(_suite, cells))):
        of_suite = [cell for cell in cells if _suite(cell) == suite]
        check_one_text(of_suite)
        check_same_items(of_suite)
        # Of each model by itself: records of before say less of a method's settings.
        for model in sorted({cell.record["model"]["name"] for cell in of_suite}):
            mine = (cell for cell in of_suite if cell.record["model"]["name"] == model)
            check_comparable(mine, varied={"search"})
    return TrainedModels(start, found, dict(enumerate(cells)))


def _cells(records: tuple[Path, ...], models: set[str]) -> list[MeasuredCell]:
    """Cells of these models in the order of their paths, one for each place of the table."""
    found = stored_cells(
        records,
        lambda record: (
            record["suite"]["name"],
            record["model"]["name"],
            record["model"]["fingerprint"],
            *place_of(record)[1:],
        ),
        keep=lambda record: record["model"]["name"] in models,
        command="`python repro/run.py experiment=relu`",
    )
    return sorted(found.values(), key=lambda cell: cell.folder)


def rows(data: TrainedModels) -> list[dict[str, str]]:
    """A row for every cell of a model, and one for a model without cells."""
    control, found = data.cards[CONTROL]["held_out_perplexity"], []
    for name, card in data.cards.items():
        zeros, perplexity = card["zeros_by_block"], card["held_out_perplexity"]
        shares = (fmean(zeros), min(zeros), max(zeros))
        of_model = (data.model(name), *(f"{share:.4f}" for share in shares), f"{perplexity:.4f}",
                    f"{perplexity / control:.4f}")  # fmt: skip
        for cell in data.of(name) or [None]:
            of_cell = ("",) * 6 if cell is None else _of_cell(cell)
            found.append(dict(zip(NAMES, (*of_model, *of_cell), strict=True)))
    return found


def _of_cell(cell: MeasuredCell) -> tuple[str, ...]:
    realised = cell.record["realised"]
    return (
        _suite(cell),
        cell.key[1],
        f"{cell.key[2]:g}",
        f"{realised['realised_sparsity']:.4f}",
        f"{realised['bytes_per_token']:.0f}",
        f"{cell.record['perplexity']:.4f}",
    )


def _suite(cell: MeasuredCell) -> str:
    """Name of the suite that a cell was measured on."""
    return str(cell.record["suite"]["name"])


def page(data: TrainedModels) -> str:
    """The rows as a page."""
    card = data.cards[CONTROL]
    lines = [
        "# Models with true zeros",
        "",
        f"- Each was trained on from `{data.start}` with {card['tokens_seen']:,} tokens, the control among "
        f"them; text, batches and learning rate are the same. Trained on: {card['device']}.",
        "- Zeros: exact zeros behind the gate on held-out text, mean over the blocks and least to most. "
        f"Perplexity: the first {card['held_out_perplexity_tokens']:,} held-out tokens: dense, but "
        "Q-Sparse with its top-k, and LTE with its routers, whose zeros are what these leave out."
        f"{_before(data)}",
        f"- Methods: perplexity of {_texts(data)}. Realised: block weights not read.",
        *_slow(data),
        *_settings(data),
        *_claims(data),
        "",
        table_row(["model", "zeros", "perplexity", "÷ control", "suite", "method", "sparsity", "realised",
                   "MB/token", "perplexity under it"]),
        "|---|---|---:|---:|---|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for row in rows(data):
        zeros = [f"{100 * float(row[part]):.1f}" for part in ("zeros", "least_zeros", "most_zeros")]
        dense = [
            row["model"],
            f"{zeros[0]} % ({zeros[1]} to {zeros[2]})",
            f"{float(row['held_out_perplexity']):.3f}",
            f"{float(row['over_control']):.3f}",
        ]
        under = [""] * 6
        if row["method"]:
            under = [
                row["suite"],
                row["method"],
                f"{float(row['sparsity']):.0%}",
                f"{float(row['realised_sparsity']):.1%}",
                f"{float(row['bytes_per_token']) / 1e6:.2f}",
                f"{float(row['perplexity']):.3f}",
            ]
        lines.append(table_row([*dense, *under]))
    return "\n".join(lines) + "\n"


def _before(data: TrainedModels) -> str:
    """Held-out perplexity of the model that training went on from, where this project trained it, too."""
    path = MODELS / data.start / CARD
    if not path.is_file():
        return ""
    card = json.loads(path.read_text(encoding="utf-8"))
    return (
        f" That of `{data.start}` itself was {card['held_out_perplexity']:.3f}, after {card['tokens_seen']:,} "
        "tokens of more text."
    )


def _texts(data: TrainedModels) -> str:
    """What the methods' perplexity is of, and that of the model that training went on from, as it was."""
    found = []
    for suite in sorted({_suite(cell) for cell in data.cells.values()}):
        text = "WikiText-2" if suite == "wikitext" else "the suite's held-out texts"
        found.append(
            f"{text} (`{suite}`)"
            + "".join(
                f", of which `{data.start}` itself has {cell.record['perplexity']:.3f}"
                for cell in data.cells.values()
                if cell.key[:2] == (data.start, "dense") and _suite(cell) == suite
            )
        )
    return "; and of ".join(found)


def _slow(data: TrainedModels) -> list[str]:
    """What must be known of models that had a part of the control's learning rate."""
    named: dict[tuple[float, float], list[str]] = {}
    for name, card in data.cards.items():
        if how := card.get("continuation", {}).get("routers"):
            named.setdefault((how["model_rate"], how["hard_from"]), []).append(f"`{data.model(name)}`")
    return [
        f"- {', '.join(names)}: {rate:g} of the control's learning rate for the first {share:.0%} of training, "
        "so that the model is less far from its start than the control is."
        for (rate, share), names in named.items()
    ]


def _settings(data: TrainedModels) -> list[str]:
    """Search budgets of the methods that search, and what a method keeps where it is told."""
    records = [cell.record for cell in data.cells.values()]
    budgets: dict[str, set[str]] = {}
    kept: dict[str, None] = {}
    for record in records:
        method = record["method"]
        if record["plan"]["provenance"]["evaluations"]:
            budgets.setdefault(record["config"]["search"]["name"], set()).add(f"`{method['name']}`")
        if recall := method["config"].get("recall"):
            kept[f"- `{method['name']}`: α by block, at which {recall:.1%} of every block's active neurons are "
                 "kept on the calibration text, whatever sparsity that gives."] = None  # fmt: skip
    searched = "; ".join(f"`{name}` for {', '.join(sorted(of))}" for name, of in sorted(budgets.items()))
    return [*([f"- Search budget: {searched}."] if searched else []), *kept]


def _claims(data: TrainedModels) -> list[str]:
    """The headline of ProSparse's paper beside what its recipe gives at this size."""
    control, found = data.cards[CONTROL]["held_out_perplexity"], []
    for name, card in data.cards.items():
        if name.startswith("prosparse"):
            zeros, ratio = fmean(card["zeros_by_block"]), card["held_out_perplexity"] / control
            verdict = "so, too" if zeros >= CLAIMED_ZEROS and ratio <= 1.0 else "not so"
            found.append(
                f"`{data.model(name)}` has {zeros:.1%} at {ratio:.3f} of its control's perplexity: {verdict}"
            )
    if not found:
        return []
    return [
        f"- ProSparse (arXiv 2402.13516) claims about {CLAIMED_ZEROS:.0%} of zeros at the quality of its dense "
        f"model, for 7 billion parameters. At this size, and after so few tokens: {'; '.join(found)}."
    ]


def write_models(data: TrainedModels, output: Path) -> None:
    """Write OUTPUT.csv and OUTPUT.md."""
    write_table(output, csv_text(NAMES, rows(data)), page(data))


@mistakes_in_one_line()
def main() -> None:
    """Write the table of the trained models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cards", type=Path, required=True, help="folder with a folder of each model's card")
    parser.add_argument("--records", type=Path, nargs="*", default=[], help="cells measured on them")
    parser.add_argument("--output", type=Path, required=True, help="path of the table without .md and .csv")
    parser.add_argument("--keep-records", type=Path, help="keep the records that were used here: a .tar.xz")
    arguments = parser.parse_args()
    made_from_records(
        arguments,
        lambda records: read_models(arguments.cards, *records),
        lambda data: write_models(data, arguments.output),
    )
    print(f"written: {arguments.output}.md and {arguments.output}.csv")


if __name__ == "__main__":
    main()
