"""What a cell takes of a GPU's memory on a smaller card: the allocator is held to that card's size.

    python -m wisparse.repro.cost.card_memory --gb 24 --methods dense,teal,wisparse -- model=llama3.1-8b \
        model.weights=random data.root=MIRROR suite=paper suite.limit=8 suite.longest_answer=32 \
        calibration=english calibration.sequences=64 search=paper search.generations=1 search.greedy_step=0.8

Writes results/card-memory.csv and .md; rows of other cells and cards that they hold already are kept.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...method.errors import UserError
from ..configuration import REPOSITORY, mistakes_in_one_line
from ..record_facts import hardware
from ..records import git_state
from ..tables.csv_rows import Row, csv_path, csv_text, place_by, read_rows, renewed, write_table
from ..tables.text import table_row
from .reproduction_cost import composed

if TYPE_CHECKING:
    from omegaconf import DictConfig

GB = 1e9
CONTEXT = 1.5
"""GB of a card that CUDA's own context, its libraries and a display keep from the allocator."""
OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory.*Tried to allocate ([\d.]+) (\w+)\..* of which ([\d.]+) (\w+) is free", re.S
)
"""What an allocation in vain says: what was asked for, and what the whole GPU had left."""
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

OUTPUT = REPOSITORY / "results" / "card-memory"
CELL = ("model", "card_gb", "method", "sparsity", "search", "suite")
COLUMNS = (*CELL, "fits", "peak_gb", "device_name", "commit")
HEADER = f"""\
# Memory at full size, by card

- Random weights of the full size. The allocator of the GPU that is named is held to the card's size less
  {CONTEXT} GB, which CUDA itself and its libraries take of a card.
- Peak: the most that tensors took at once, in calibration, search and tasks.
- Searches are shortened to one generation and large steps; their passes are as large as the budget's."""
HEADS = ("Model", "Card GB", "Method", "Sparsity", "Search", "Suite", "Fits", "Peak GB", "Device")


def hold_to(gigabytes: float) -> None:
    """Let this process take no more of the GPU than a card of so many GB has, and see no more of it."""
    limit = int((gigabytes - CONTEXT) * GB)
    total = torch.cuda.get_device_properties(0).total_memory
    if not 0 < limit <= total:
        raise UserError(f"--gb {gigabytes:g} is not between {CONTEXT} and this GPU's {total / GB:.0f}")
    torch.cuda.set_per_process_memory_fraction(limit / total)
    seen = torch.cuda.mem_get_info

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        left = max(0, limit - torch.cuda.memory_reserved())
        return min(left, seen(device)[0]), limit

    torch.cuda.mem_get_info = mem_get_info


def run_inside(gigabytes: float, overrides: list[str]) -> None:
    """Run run.py's cell in this process, held to a card's memory; exits as it does."""
    from ..run import main as run

    hold_to(gigabytes)
    sys.argv = ["repro/run.py", *overrides]
    run()


def measured(gigabytes: float, method: str, overrides: list[str]) -> Row:
    """The row of one cell, computed now. Exits as run.py does where it fails for other reasons than memory.

    Raises UserError where the GPU was full before the cell had taken as much of it as the card has.
    """
    settings = [*overrides, f"method={method}"]
    folder = REPOSITORY / "outputs" / "card_memory" / f"{gigabytes:g}"
    here = [f"output_dir={folder}", f"cache_dir={folder}/plans", "force=true", "logger=none", "reference=false"]
    held = [sys.executable, "-m", "wisparse.repro.cost.card_memory", "--gb", str(gigabytes), "--inside", "--"]
    ran = subprocess.run([*held, *settings, *here], capture_output=True, text=True, check=False)
    sys.stderr.write(ran.stderr)
    if ran.returncode and not too_small(ran.stderr):
        sys.exit(ran.returncode)
    record = None if ran.returncode else json.loads(ran.stdout.splitlines()[-1])
    return row_of(composed("config", *settings), gigabytes, record)


def too_small(errors: str) -> bool:
    """Whether a cell ended since it needed more than the card that it was held to.

    Raises UserError where the GPU had not so much left, which says nothing of the card.
    """
    if (found := OUT_OF_MEMORY.search(errors)) is None:
        return False
    asked, unit, free, unit_of_free = found.groups()
    if float(asked) * UNITS[unit] > float(free) * UNITS[unit_of_free]:
        raise UserError(
            f"the GPU itself was full, with {free} {unit_of_free} left: other processes hold the rest, and "
            "whether the card would do cannot be told; run this when the GPU is free"
        )
    return True


def row_of(config: DictConfig, gigabytes: float, record: dict[str, Any] | None) -> Row:
    """A cell's row; record: None where memory was too small for it."""
    state = git_state()
    return {
        "model": config.model.name,
        "card_gb": f"{gigabytes:g}",
        "method": config.method.name,
        "sparsity": str(config.sparsity),
        "search": config.search.name,
        "suite": config.suite.name,
        "fits": "no" if record is None else "yes",
        "peak_gb": "" if record is None else f"{record['memory']['cuda_bytes'] / GB:.1f}",
        "device_name": torch.cuda.get_device_name() if record is None else hardware(record["model"]),
        "commit": state.commit if state else "",
    }


def write_rows(output: Path, rows: list[Row]) -> None:
    """Write OUTPUT.csv and OUTPUT.md, the rows beside those of other cells that the table holds."""
    table = renewed(read_rows(csv_path(output)), rows, place_by(CELL))
    write_table(output, csv_text(COLUMNS, table), markdown(table))


def markdown(rows: list[Row]) -> str:
    """The table as people read it."""
    alignment = ["---", "---:", "---", "---:", *["---"] * 3, "---:", "---"]
    shown = [table_row(row[name] for name in COLUMNS if name != "commit") for row in rows]
    commits = ", ".join(f"`{commit[:10]}`" for commit in dict.fromkeys(row["commit"] for row in rows))
    return (
        "\n".join([HEADER, f"- Commit: {commits}.", "", table_row(HEADS), table_row(alignment), *shown]) + "\n"
    )


@mistakes_in_one_line()
def main() -> None:
    """Measure cells on cards of one size, each method in a process of its own, and add them to the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--gb", type=float, required=True, help="memory of the card")
    parser.add_argument("--methods", default="dense,teal,wisparse", help="names, with commas between them")
    parser.add_argument("--inside", action="store_true", help="run the cell of the overrides in this process")
    parser.add_argument("overrides", nargs="*", help="of the configuration, as for run.py, after --")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("a card's memory is measured on a CUDA GPU, and there is none")
    if arguments.inside:
        run_inside(arguments.gb, arguments.overrides)
        return
    for method in arguments.methods.split(","):
        write_rows(OUTPUT, [measured(arguments.gb, method, arguments.overrides)])
    print(markdown(read_rows(csv_path(OUTPUT))))


if __name__ == "__main__":
    main()
