"""What was aimed at in decode speed and what was reached, from the tables of results/."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...configuration import REPOSITORY
from ...tables.csv_rows import Row, read_rows
from ...tables.speed.speed_data import COMPILED, COMPILED_DECODER, ENGINE_DENSE, FEW_BITS, OWN_WEIGHTS
from ...tables.speed.step_rows import StepPlace, fastest_steps
from ...tables.text import NOT_MEASURED, table_row
from .steps import ENGINE, HALF

RESULTS = REPOSITORY / "results"
BITS = {"16 bits": OWN_WEIGHTS, "int8": "int8", "int4": "int4"}
"""Formats of weights, and what speed_few_bits.csv calls them."""
GPU, SHAPE = "NVIDIA H200", "llama3.1-8b"
ONE_ROW = f"{GPU}, {SHAPE}, one row"
HEADS = ("where", "what", "aimed at, at least", "reached", "")


@dataclass(frozen=True)
class Bar:
    """One aim: a rate or a ratio that is to be reached at least."""

    where: str
    what: str
    aim: float
    reached: Mapping[str, float]
    """What was measured, by where; without a name where there is one."""
    form: Callable[[float], str]

    @property
    def verdict(self) -> str:
        """Whether what is shown is at least the aim as it is shown."""
        if not self.reached:
            return NOT_MEASURED
        aim = self.form(self.aim)
        met = [number >= self.aim or self.form(number) == aim for number in self.reached.values()]
        if len(met) > 1 and any(met) and not all(met):
            return f"met by {sum(met)} of {len(met)}"
        return "met" if all(met) else "**missed**"

    def line(self) -> str:
        """The row of the table."""
        shown = (f"{where} {self.form(number)}".strip() for where, number in self.reached.items())
        return table_row(
            [self.where, self.what, self.form(self.aim), ", ".join(shown) or NOT_MEASURED, self.verdict]
        )


def speed_bars(results: Path = RESULTS) -> str:
    """Every aim on an H200 and on two CPU cores beside what was reached."""
    bars = [*_gpu(results), *_batches(results), *_shared(results), *_cpu(results)]
    return "\n".join([table_row(HEADS), "|---|---|---:|---|---|", *(bar.line() for bar in bars)])


def _rate(number: float) -> str:
    return f"{number:,.0f} tok/s"


def _ratio(number: float) -> str:
    return f"{number:.2f}×"


def _share(number: float) -> str:
    return f"{number:.0%}"


def _known(number: float | None) -> dict[str, float]:
    return {} if number is None else {"": number}


def _over(rate: float | None, other: float | None) -> dict[str, float]:
    return _known(None if rate is None or other is None else rate / other)


def _gpu(results: Path) -> Iterator[Bar]:
    """One row of Llama-3.1-8B's shapes, all in one run, beside the fastest decoders of plain PyTorch."""
    rows = read_rows(results / "speed_few_bits.csv")
    half = {row["quantisation"]: float(row["tok_s"]) for row in rows if float(row["sparsity"]) == HALF}
    beside = {(row["quantisation"], row["baseline"]): float(row["baseline_tok_s"]) for row in rows}
    sparse = {name: half.get(column) for name, column in BITS.items()}
    dense = {name: beside.get((column, ENGINE_DENSE)) for name, column in BITS.items()}
    plain = {f"`{name}`": beside.get((OWN_WEIGHTS, name)) for name in (COMPILED_DECODER, COMPILED)}
    of_4_bits = beside.get((OWN_WEIGHTS, FEW_BITS[-1]))
    yield Bar(ONE_ROW, "16 bits at 50 %", 433, _known(sparse["16 bits"]), _rate)
    for name, rate in plain.items():
        yield Bar(ONE_ROW, f"16 bits at 50 % over {name}", 2.0, _over(sparse["16 bits"], rate), _ratio)
    yield Bar(ONE_ROW, "int8 dense", 430, _known(dense["int8"]), _rate)
    yield Bar(ONE_ROW, "int8 at 50 %", 650, _known(sparse["int8"]), _rate)
    for name, rate in plain.items():
        yield Bar(ONE_ROW, f"int8 at 50 % over {name} in 16 bits", 3.0, _over(sparse["int8"], rate), _ratio)
    yield Bar(ONE_ROW, "int4 dense over torch's int4", 2.0, _over(dense["int4"], of_4_bits), _ratio)
    yield Bar(ONE_ROW, "int4 at 50 %", 900, _known(sparse["int4"]), _rate)


def _batches(results: Path) -> Iterator[Bar]:
    """The least speed-up of rows with masks of their own over the dense step."""
    rows = fastest_steps(read_rows(results / "steps.csv"))
    found: dict[int, float] = {}
    for place, row in rows.items():
        dense = rows.get(StepPlace(place.setting, place.bits, 0.0))
        if place.setting.shape == SHAPE and place.setting.batch > 1 and place.sparsity and dense is not None:
            speedup = float(dense["ms"]) / float(row["ms"])
            found[place.setting.batch] = min(speedup, found.get(place.setting.batch, speedup))
    reached = {f"{batch} rows": found[batch] for batch in sorted(found)}
    what = "own masks over the dense step, at the worst of the sparsities"
    yield Bar(f"{GPU}, {SHAPE}, several rows", what, 1.0, reached, _ratio)


def _shared(results: Path) -> Iterator[Bar]:
    """Steps under one mask of 50 % for all rows, attention over all groups."""
    rows = [
        row
        for row in read_rows(results / "heads_speed.csv")
        if (row["device"], row["shape"], row["part"]) == (GPU, SHAPE, "step")
        and row["masked"] != "none" and row["kept"] == row["groups"]
    ]  # fmt: skip
    for batch, aim in ((4, 1.3), (8, 1.15)):
        reached = {
            f"{MASKED[row['masked']]} behind {int(row['context']):,}": float(row["over_dense"])
            for row in rows
            if row["batch"] == f"{batch}"
        }
        what = "one mask of 50 % for all rows over the dense step"
        yield Bar(f"{GPU}, {SHAPE}, {batch} rows", what, aim, reached, _ratio)


MASKED = {"ffn": "gate, up and down", "all": "all projections"}
"""What the mask is of, by its name in heads_speed.csv."""
CPU_SHAPES = {"smollm2-135m": 0.6, "llama3.2-1b": 0.75}
"""Shapes on a CPU, and the share of the bandwidth that a dense step in 16 or 32 bits was to reach."""


def _cpu(results: Path) -> Iterator[Bar]:
    """Steps of one row on two cores, 50 % sparse beside dense ones and llama.cpp's of the same bits."""
    rows = read_rows(results / "cpu_steps.csv")
    for instructions in dict.fromkeys(row["instructions"] for row in rows):
        for shape, bandwidth in CPU_SHAPES.items():
            here = [row for row in rows if (row["instructions"], row["shape"]) == (instructions, shape)]
            yield from _cpu_bars(f"2 CPU cores, built for {instructions}, {shape}", here, bandwidth)


def _cpu_bars(where: str, rows: list[Row], bandwidth: float) -> Iterator[Bar]:
    dense, half = ({_kind(row): row for row in rows if _is_engine(row, s)} for s in (0.0, HALF))
    llama = {row["bits"]: float(row["ms"]) for row in rows if row["decoder"] != ENGINE}
    shares = {
        kind: float(row["gb_s"]) / float(row["read_gb_s"]) for kind, row in dense.items() if row["bits"] == "16"
    }
    yield Bar(where, "dense, of the bandwidth", bandwidth, shares, _share)
    # Bytes are rate times time: the speed-up over that of the bytes is the ratio of the rates.
    gains = {kind: float(row["gb_s"]) / float(dense[kind]["gb_s"]) for kind, row in half.items()}
    yield Bar(where, "speed-up at 50 % over the byte limit", 0.85, gains, _ratio)
    for name, aim, found in (("dense", 1.0, dense), ("at 50 %", 1.4, half)):
        beside = {kind: row for kind, row in found.items() if row["bits"] in llama}
        over = {kind: llama[row["bits"]] / float(row["ms"]) for kind, row in beside.items()}
        yield Bar(where, f"{name} over llama.cpp in the same bits", aim, over, _ratio)


def _is_engine(row: Row, sparsity: float) -> bool:
    return row["decoder"] == ENGINE and float(row["sparsity"]) == sparsity


def _kind(row: Row) -> str:
    """Weights and activations of a step."""
    return row["dtype"] if row["bits"] == "16" else f"int{row['bits']} with {row['dtype']}"
