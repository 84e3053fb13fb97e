"""One cell on one and on several processes: are the numbers the same, and how much faster is it?

    python -m wisparse.repro.cost.process_scaling --processes 1,2 model=llama3.1-8b model.weights=random \
        method=teal_uniform suite=embedded suite.limit=200
    python -m wisparse.repro.cost.process_scaling --records results/records/process_scaling   # the table alone

Writes results/process-scaling.csv and .md; rows of other cells and devices that they hold already are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ...method.errors import UserError
from ..configuration import PACKAGES, REPOSITORY, mistakes_in_one_line
from ..measured.cells import every_cell
from ..record_facts import hardware
from ..tables.csv_rows import Row, csv_path, csv_text, place_by, read_rows, renewed, write_table
from ..tables.text import table_row

RESULTS = ("tasks", "average", "perplexity", "bits_per_byte", "n_tokens", "realised", "items_sha256")
"""Parts of a record that must be the same for any number of processes, to the last digit."""

OUTPUT = REPOSITORY / "results" / "process-scaling"
CELL = ("model", "dtype", "method", "sparsity", "suite", "items", "documents", "device_name")
COLUMNS = (*CELL, "processes", "evaluation_s", "speedup", "differing", "commit")
HEADER = """\
# One cell on several processes

- A process has a device of its own; the items of the cell are spread over them by whole batches. Seconds are
  the evaluation's: the plan is made once, by one process, and every process loads the model.
- Speed-up and what differs are against the fewest processes. Compared to the last digit: scores, perplexity,
  realised sparsity, and the hash of every item's outcome.
- A model called random has random weights and scores at chance: it is here for its size."""
HEADS = (
    "Model", "Dtype", "Method", "Sparsity", "Suite", "Items", "Documents", "Device", "Processes", "Seconds",
    "Speed-up", "Differs",
)  # fmt: skip


def measured(processes: int, overrides: list[str]) -> dict[str, Any]:
    """The record of the cell, computed now by so many processes; exits as run.py does where it fails.

    Each process has the same number of threads, on which a CPU's last digits depend.
    """
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]
    command = [sys.executable, *([*launch, "--num_processes", str(processes)] if processes > 1 else [])]
    folder = REPOSITORY / "outputs" / "process_scaling" / str(processes)
    settings = [f"output_dir={folder}", "force=true", "logger=none", "reference=false"]
    ran = subprocess.run(
        [*command, str(PACKAGES / "repro/run.py"), *overrides, *settings],
        stdout=subprocess.PIPE,
        text=True,
        env={"OMP_NUM_THREADS": "1"} | os.environ,
        check=False,
    )
    if ran.returncode:
        sys.exit(ran.returncode)
    return json.loads(ran.stdout.splitlines()[-1])


def stored(folder: Path) -> list[list[dict[str, Any]]]:
    """The records below a folder by cell, the fewest processes first. Raises UserError where there is none."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for cell in every_cell([folder]):
        cells.setdefault(cell.record["cell"]["key"], []).append(cell.record)
    if not cells:
        raise UserError(f"{folder} holds no records; give the folder that a measurement left")
    return [sorted(records, key=lambda record: record["model"]["processes"]) for records in cells.values()]


def rows_of(records: list[dict[str, Any]]) -> list[Row]:
    """One row a number of processes; speed-up and what differs are against the first."""
    first = records[0]
    rows = []
    for record in records:
        cell = {
            "model": record["model"]["name"],
            "dtype": record["model"]["dtype"],
            "method": record["method"]["name"],
            "sparsity": record["sparsity"],
            "suite": record["suite"]["name"],
            "items": sum(task["n"] for task in record["tasks"].values()),
            "documents": record["n_documents"],
            "device_name": hardware(record["model"]),
        }
        seconds = record["seconds"]["evaluation"]
        found = {
            "processes": record["model"]["processes"],
            "evaluation_s": seconds,
            "speedup": round(first["seconds"]["evaluation"] / seconds, 3),
            "differing": " ".join(name for name in RESULTS if record[name] != first[name]),
            "commit": record["git"]["commit"] if record["git"] else "",
        }
        rows.append({name: str(value) for name, value in (cell | found).items()})
    return rows


def write_rows(output: Path, rows: list[Row]) -> None:
    """Write OUTPUT.csv and OUTPUT.md, the rows beside those of other cells that the table holds."""
    table = renewed(read_rows(csv_path(output)), rows, place_by(CELL))
    write_table(output, csv_text(COLUMNS, table), markdown(table))


def markdown(rows: list[Row]) -> str:
    """The table as people read it."""
    lines = [table_row(HEADS), table_row(["---"] * 5 + ["---:"] * 2 + ["---"] + ["---:"] * 3 + ["---"])]
    for row in rows:
        numbers = {
            "sparsity": f"{float(row['sparsity']):.0%}",
            "evaluation_s": f"{float(row['evaluation_s']):.1f}",
            "speedup": f"{float(row['speedup']):.2f}×",
            "differing": row["differing"] or "nothing",
        }
        shown = row | numbers
        lines.append(table_row(shown[name] for name in COLUMNS if name != "commit"))
    commits = ", ".join(f"`{commit[:10]}`" for commit in dict.fromkeys(row["commit"] for row in rows))
    return "\n".join([HEADER, f"- Commit: {commits}.", "", *lines]) + "\n"


@mistakes_in_one_line()
def main() -> None:
    """Measure a cell with each number of processes and compare; exits 1 where a number differs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--processes", default="1,2", help="numbers of processes, the one to compare with first"
    )
    parser.add_argument("--records", type=Path, help="make the table of the records below this folder instead")
    parser.add_argument("overrides", nargs="*", help="of the configuration, as for run.py")
    arguments = parser.parse_args()
    try:
        numbers = [int(number) for number in arguments.processes.split(",")]
        if min(numbers) < 1:
            raise ValueError("no process")
    except ValueError as error:
        raise UserError(f"--processes {arguments.processes} is not like 1,2") from error
    if arguments.records:
        cells = stored(arguments.records)
    else:
        cells = [[measured(number, arguments.overrides) for number in numbers]]
    rows = [rows_of(records) for records in cells]
    for of_cell in rows:
        write_rows(OUTPUT, of_cell)
    print(markdown([row for of_cell in rows for row in of_cell]))
    sys.exit(any(row["differing"] for of_cell in rows for row in of_cell))


if __name__ == "__main__":
    main()
