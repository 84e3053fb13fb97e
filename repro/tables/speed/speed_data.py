"""Records with a measured decode speed, and what plain PyTorch reached in the setting of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...measured.cells import MeasuredCell, method_rank, stored_cells
from ...measured.deciding import check_names
from ...record_facts import hardware
from ..csv_rows import Row

ENGINE_DENSE, COMPILED, EAGER = "engine-dense", "torch.compile", "eager"
COMPILED_DECODER = "compiled-decoder"
FEW_BITS = ("compiled-decoder-int8", "compiled-decoder-int4")


@dataclass(frozen=True)
class SpeedData:
    """Records whose decode speed was measured."""

    cells: dict[tuple[Any, ...], MeasuredCell]

    def sorted_cells(self) -> list[MeasuredCell]:
        """Cells in the order of device, model, batch, prompt, sparsity and method."""
        return sorted(self.cells.values(), key=lambda cell: _order(cell.record))


def read_speed(folder: Path) -> SpeedData:
    """Read every record with a measured decode speed below a folder; of several of one setting the newest.

    Raises UserError when there is none or one is damaged.
    """
    cells = stored_cells(
        [folder],
        _order,
        keep=lambda record: record.get("latency") is not None,
        command="a cell with latency=decode",
    )
    check_names(
        ((cell.folder, cell.record) for cell in cells.values()),
        varied=("dtype", "protocol", "search budget", "quantisation"),
    )
    return SpeedData(cells)


def _order(record: dict[str, Any]) -> tuple[Any, ...]:
    return (*setting_of(record), record["sparsity"], *method_rank(record["method"]["name"]))


def baselines(latency: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Baselines that a cell is compared with: name, what exactly it was, and its timing.

    `torch.compile` is the fastest of its modes that was measured.
    """
    timings = latency["timings"]
    modes = {name: timing for name, timing in timings.items() if name.startswith(COMPILED)}
    if modes:
        fastest = max(modes, key=lambda name: modes[name]["tok_s"])
        yield COMPILED, fastest.removeprefix(COMPILED).strip(), modes[fastest]
    for name in (COMPILED_DECODER, *FEW_BITS, EAGER, ENGINE_DENSE):
        if name in timings:
            yield name, name, timings[name]


@dataclass(frozen=True)
class Compiled:
    """What plain PyTorch reached when compiled, and the tokens a second."""

    tok_s: float
    mode: str
    """Mode of torch.compile with transformers, or `compiled-decoder`."""


@dataclass(frozen=True)
class PlainPyTorch:
    """What a user has without this project, in one setting: None where it was not measured."""

    transformers: Compiled | None = None
    """Transformers with a static cache, in the fastest mode of torch.compile."""
    decoder: Compiled | None = None
    """The compact decoder, `compiled-decoder`."""

    @property
    def faster(self) -> Compiled | None:
        """The faster of the two; None where one is missing, since the other may be the slower one."""
        if self.transformers is None or self.decoder is None:
            return None
        return max(self.transformers, self.decoder, key=lambda one: one.tok_s)


def plain_pytorch(data: SpeedData) -> dict[tuple[Any, ...], PlainPyTorch]:
    """The fastest of any cell, by setting: compiling takes minutes, so few processes time all."""
    fastest: dict[tuple[Any, ...], PlainPyTorch] = {}
    places = {COMPILED: "transformers", COMPILED_DECODER: "decoder"}
    for cell in data.sorted_cells():
        setting = setting_of(cell.record)
        known = fastest.setdefault(setting, PlainPyTorch())
        for name, mode, timing in baselines(cell.record["latency"]):
            if place := places.get(name):
                before, found = getattr(known, place), Compiled(timing["tok_s"], mode)
                if before is None or before.tok_s < found.tok_s:
                    known = replace(known, **{place: found})
        fastest[setting] = known
    return fastest


def in_main_dtype(rows: Iterable[Row]) -> list[Row]:
    """Rows of speed.csv in the dtype of most rows of their device and model: one line, one dtype."""
    rows = list(rows)
    counts = Counter((row["device"], row["model"], row["dtype"]) for row in rows)
    main = {place[:2]: place[2] for place, _ in reversed(counts.most_common())}
    return [row for row in rows if row["dtype"] == main[row["device"], row["model"]]]


def setting_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """Settings that a speed depends on beside the plan."""
    model, latency = record["model"], record["latency"]
    lengths = (latency["batch"], latency["prompt"], latency["new_tokens"])
    weights = (record.get("quantisation") or {}).get("description", "")
    return (hardware(model), model["name"], model["dtype"], weights, *lengths)


OWN_WEIGHTS = "none"
"""What rows call weights that are not quantised."""


def weights_of(record: dict[str, Any]) -> str | None:
    """Name of how the weights were quantised; None: they are the model's own."""
    found = record.get("quantisation")
    return None if found is None else found["name"]
