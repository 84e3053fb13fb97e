"""WiSparse's figures (arXiv 2602.14452) as rows, from records; Figure 4 from architectures and speed.csv."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...method.projections import PROJECTIONS, key
from ..embedded.names import from_scratch
from ..measured.cells import MeasuredCell, place_of, stored_cells
from ..measured.comparable import check_comparable
from ..measured.paired_bootstrap import PairedResamples, interval
from ..models.architecture import PAPER_MODELS, decode_tflops, projection_sizes
from ..record_facts import suite_choice
from ..tables.csv_rows import read_rows
from ..tables.speed.speed_data import ENGINE_DENSE, in_main_dtype
from ..tables.text import NOT_MEASURED

Row = dict[str, Any]
RANDOM = "-random"
"""End of the name of a model with random weights; its sizes are the model's."""

TIMED_METHODS = ("wisparse", "teal_uniform")
SHOWN_SPARSITIES = tuple(step / 10 for step in range(8))
COUNTED_TOKENS = 128
PARTS = {"attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}


@dataclass(frozen=True)
class FigureRecords:
    """The records that figures are made of, by suite, model, method and sparsity."""

    cells: dict[tuple[Any, ...], MeasuredCell]

    def under(self, suite: str) -> list[MeasuredCell]:
        """Records under a suite, by model and sparsity. Raises UserError unless they belong together."""
        found = [cell for known, cell in sorted(self.cells.items()) if known[0] == suite]
        if found:
            check_comparable(found)
        return found

    def timed(self, rows: Iterable[Row]) -> list[Row]:
        """Rows of Figure 4, which asks no record, where any is of a model of these records; else none."""
        found, models = list(rows), {model for _, model, *_ in self.cells}
        return found if any(row["model"] in models for row in found) else []


def read_figures(folders: list[Path]) -> FigureRecords:
    """Read every record below the folders; of several of one cell the newest.

    Raises UserError when there is none or one is damaged.
    """

    def place(record: dict[str, Any]) -> tuple[Any, ...]:
        return suite_choice(record["suite"]["name"]), *place_of(record)

    return FigureRecords(stored_cells(folders, place, command="`make reproduce-figures`"))


def mismatch_rows(records: FigureRecords) -> Iterator[Row]:
    """Figure 2: E|x_i| and ‖W[:, i]‖₂ of every channel with their ranks, 1 the largest."""
    for cell in records.under("channels"):
        details = cell.items["details"]
        for projection, channels in details["projections"].items():
            magnitudes, norms = (np.array(channels[name]) for name in ("magnitudes", "column_norms"))
            ranks = zip(_ranks(magnitudes), _ranks(norms), strict=True)
            for channel, (magnitude_rank, norm_rank) in enumerate(ranks):
                yield {
                    "model": cell.key[0],
                    "block": details["block"],
                    "projection": projection,
                    "channel": channel,
                    "magnitude": f"{magnitudes[channel]:.6g}",
                    "column_norm": f"{norms[channel]:.6g}",
                    "magnitude_rank": magnitude_rank,
                    "norm_rank": norm_rank,
                }


def _ranks(values: np.ndarray) -> list[int]:
    order = np.argsort(-values, kind="stable")
    ranks = np.empty(len(values), dtype=int)
    ranks[order] = np.arange(1, len(values) + 1)
    return ranks.tolist()


def one_block_rows(records: FigureRecords) -> Iterator[Row]:
    """Figure 3: perplexity with each block alone sparse; its ratio to dense paired by document."""
    for cell in records.under("one_block"):
        model, method, sparsity = cell.key
        details = cell.items["details"]
        tokens, dense = details["tokens"], details["dense"]
        resamples = PairedResamples({}, len(tokens))
        dense_resampled = resamples.log_perplexities(dense, tokens)
        for block, found in enumerate(details["blocks"]):
            ratio = np.exp((sum(found["nats"]) - sum(dense)) / sum(tokens))
            resampled = np.exp(resamples.log_perplexities(found["nats"], tokens) - dense_resampled)
            bounds = interval(float(ratio), resampled)
            yield {
                "model": model,
                "method": method,
                "sparsity": sparsity,
                "block": block,
                "realised_sparsity": f"{found['realised_sparsity']:.5f}",
                "perplexity": f"{np.exp(sum(found['nats']) / sum(tokens)):.4f}",
                "dense_perplexity": f"{np.exp(sum(dense) / sum(tokens)):.4f}",
                "perplexity_ratio": f"{bounds.value:.5f}",
                "perplexity_ratio_low": f"{bounds.low:.5f}",
                "perplexity_ratio_high": f"{bounds.high:.5f}",
                "documents": len(tokens),
            }


def cost_rows(speed: Path) -> Iterator[Row]:
    """Figure 4: TFLOPs of 128 tokens from the architecture, and tokens a second where measured.

    `speed`: results/speed.csv; from it WiSparse's rows of batch 1 against the same engine without a plan, and
    those of TEAL without allocation, which runs the same kernels; each model's in one dtype.
    """
    measured = in_main_dtype(
        row
        for row in read_rows(speed)
        if row["method"] in ("dense", *TIMED_METHODS)
        and row["baseline"] == ENGINE_DENSE
        and (row["batch"], row["prompt"]) == ("1", "5")
    )
    models = dict.fromkeys([*PAPER_MODELS, *from_scratch(), *(row["model"] for row in measured)])
    for model in models:
        mine = [row for row in measured if row["model"] == model]
        sparsities = sorted({*SHOWN_SPARSITIES, *(float(row["sparsity"]) for row in mine)})
        for sparsity in sparsities:
            tflops = decode_tflops(model.removesuffix(RANDOM), COUNTED_TOKENS, sparsity)
            shared = {"model": model, "sparsity": sparsity, "tflops_128_tokens": f"{tflops:.6g}"}
            rows = [row for row in mine if float(row["sparsity"]) == sparsity]
            yield from (shared | _throughput(row) for row in rows)
            if not rows:
                yield shared | {"status": NOT_MEASURED}


def _throughput(row: dict[str, str]) -> Row:
    taken = ("method", "device", "realised_sparsity", "new_tokens", "tok_s", "speedup")
    return {name: row[name] for name in taken} | {"dense_tok_s": row["baseline_tok_s"], "status": "measured"}


def allocation_rows(records: FigureRecords) -> Iterator[Row]:
    """Figure 5: sparsity that WiSparse's plan gives a block, its attention, its MLP and each projection.

    Of calibration, weighted by size; `block_sparsity` is what the search over blocks gave.
    """
    for cell in _plans(records):
        model, _, sparsity = cell.key
        provenance = cell.record["plan"]["provenance"]
        sizes = projection_sizes(model.removesuffix(RANDOM))
        for block, wanted in enumerate(provenance["block_sparsities"]):
            inside = {name: provenance["sparsities"][key(block, name)] for name in PROJECTIONS}
            groups = {name: _weighted(inside, sizes, part) for name, part in PARTS.items()}
            numbers = {"block_sparsity": wanted} | groups | inside
            shared = {"model": model, "sparsity": sparsity, "block": block}
            yield shared | {name: f"{value:.5f}" for name, value in numbers.items()}


def _weighted(sparsities: dict[str, float], sizes: dict[str, int], members: tuple[str, ...]) -> float:
    return sum(sparsities[name] * sizes[name] for name in members) / sum(sizes[name] for name in members)


def alpha_rows(records: FigureRecords) -> Iterator[Row]:
    """Figure 6: the exponent α of WiSparse's score, by block and projection; none where the plan keeps all."""
    for cell in _plans(records):
        model, _, sparsity = cell.key
        provenance = cell.record["plan"]["provenance"]
        alphas = {
            name: f"{alpha:g}" if provenance["sparsities"][name] > 0 else ""
            for name, alpha in provenance["alphas"].items()
        }
        for block in range(len(alphas) // len(PROJECTIONS)):
            shown = {name: alphas[key(block, name)] for name in PROJECTIONS}
            yield {"model": model, "sparsity": sparsity, "block": block} | shown


def _plans(records: FigureRecords) -> list[MeasuredCell]:
    return [cell for cell in records.under("none") if cell.key[1] == "wisparse"]
