"""What massive activations and first tokens need of a sparse model: entries, tokens, blocks and bytes.

    python -m wisparse.repro.studies.massive_needs --output results/real/massive_needs

writes OUTPUT_entries.csv, where the dense model's massive entries are, and OUTPUT.csv, what it costs to drop
them alone, to compute first tokens sparsely, and to keep them. Plans are made on other sequences of the same
text than are measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ...kernels.plan.bases import FoldedBases
from ...method.calibration import Calibration
from ...method.rotation import folded_into
from ..configuration import composing, mistakes_in_one_line, register_resolvers
from ..models.checkpoint import LoadedModel, find_checkpoint, load_model
from ..records import write_text
from ..tables.csv_rows import Row, csv_text, read_rows
from .massive_bench import Bench
from .shifted_pass import StudiedText

PLANNED, REPORTED, LENGTH, BATCH = 24, 8, 256, 4
"""Sequences that plans are made on and that all is measured on, their tokens, and sequences a pass."""
TEXT = (
    "model.device=cpu",
    "calibration=english",
    f"calibration.sequences={PLANNED + REPORTED}",
    f"calibration.length={LENGTH}",
    f"calibration.batch_size={BATCH}",
    "search=quick",
)
METHODS: Mapping[str, tuple[str, ...]] = {
    "teal": (),
    "equal_loss": ("method.correction_sequences=8",),
    "equal_loss_folded_given": (
        "method.basis.steps=120",
        "method.basis.tokens=6144",
        "method.basis.tokens_a_step=256",
        "method.inner.correction_sequences=8",
    ),
}
"""Settings that a CPU core can do: less text, and fewer steps of a basis, than where methods are compared."""
COLUMNS = {
    "needs": (
        "model", "method", "part", "setting", "sparsity", "seed", "read", "extra_bytes",
        "divergence", "divergence_low", "divergence_high", "rise", "rise_low", "rise_high",
    ),
    "entries": (
        "model", "bases", "site", "block", "channel", "median", "first", "others", "other_tokens", "commonest",
    ),
}  # fmt: skip
"""Columns of what dropping and keeping costs, and of where massive entries are."""
WHOSE = ("model", "method", "bases", "sparsity", "seed")
"""Columns that tell whose a row is."""


def study(model: str, method: str, sparsity: float, seed: int) -> Iterator[tuple[str, Row]]:
    """Rows of one method, each with its table; with the first in each kind of bases, the dense model's."""
    config = configured(model, method, seed)
    loaded = load_model(find_checkpoint(OmegaConf.to_container(config.model, resolve=True)))
    bench, folded = made(config, loaded, sparsity, seed)
    with folded_into(loaded.model, folded):
        bases = "own" if folded is None else method
        if folded is not None or method == next(iter(METHODS)):
            yield from (("entries", row | {"bases": bases}) for row in bench.entries())
            yield from (("needs", row | {"method": f"dense, {bases} bases"}) for row in bench.dropped())
        yield from (("needs", row | {"method": method}) for row in bench.needs())


def configured(model: str, method: str, seed: int) -> DictConfig:
    """The configuration of a method's plan."""
    with composing():
        overrides = [f"model={model}", *TEXT, f"method={method}", *METHODS[method], f"seed={seed}"]
        return compose("config", overrides=overrides)


def made(
    config: DictConfig, loaded: LoadedModel, sparsity: float, seed: int
) -> tuple[Bench, FoldedBases | None]:
    """A plan on its part of the text, with what it is measured on, and the bases that it asks for."""
    ids = instantiate(config.calibration).input_ids(loaded.tokenizer)
    planned, reported = ids.split((PLANNED, REPORTED))
    calibration = Calibration(loaded.model, planned, config.calibration.batch_size)
    plan = instantiate(config.method).plan(calibration, sparsity)
    return Bench(StudiedText(loaded.model, plan, reported, BATCH), loaded.tokenizer, seed), plan.folded


class Tables:
    """Both tables on disk, where rows of other methods, models, sparsities and seeds stay."""

    def __init__(self, output: Path, of: Row) -> None:
        self._of = of
        self._paths = {
            "needs": output.with_name(f"{output.name}.csv"),
            "entries": output.with_name(f"{output.name}_entries.csv"),
        }
        self._mine: dict[str, list[Row]] = {table: [] for table in COLUMNS}

    def add(self, table: str, row: Row) -> None:
        """Write a row behind those that this run has written, and these behind what others have."""
        columns, path = COLUMNS[table], self._paths[table]
        self._mine[table].append({name: (self._of | row)[name] for name in columns})
        who = [name for name in columns if name in WHOSE]
        mine = {tuple(found[name] for name in who) for found in self._mine[table]}
        before = read_rows(path) if path.exists() else []
        others = [found for found in before if tuple(found[name] for name in who) not in mine]
        write_text(path, csv_text(columns, [*others, *self._mine[table]]))


@mistakes_in_one_line()
def main() -> None:
    """Measure methods, and write both tables as rows are found."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", required=True, type=Path, help="path of the tables without .csv")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparsity", type=float, default=0.5)
    chosen = parser.parse_args()
    register_resolvers()
    of = {"model": chosen.model, "seed": f"{chosen.seed}", "sparsity": f"{chosen.sparsity:g}"}
    tables = Tables(chosen.output, of)
    for method in chosen.methods:
        for table, row in study(chosen.model, method, chosen.sparsity, chosen.seed):
            tables.add(table, row)


if __name__ == "__main__":
    main()
