"""One cell on one and on several processes: are the numbers the same, and how much faster is it?

    python -m wisparse.repro.process_scaling --processes 1,2 model=llama3.1-8b model.weights=random \
        method=teal_uniform suite=embedded suite.limit=200

Writes results/process-scaling.csv; rows of other cells and devices that it holds already are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .configuration import REPOSITORY
from .csv_rows import csv_text, read_rows
from .records import write_text
from .table_text import table_row

RESULTS = ("tasks", "average", "perplexity", "bits_per_byte", "n_tokens", "realised", "items_sha256")
"""Parts of a record that must be the same for any number of processes, to the last digit."""

OUTPUT = REPOSITORY / "results" / "process-scaling.csv"
CELL = ("model", "dtype", "method", "sparsity", "suite", "items", "documents", "device_name")
COLUMNS = (*CELL, "processes", "evaluation_s", "speedup", "differing")


def measured(processes: int, overrides: list[str]) -> dict[str, Any]:
    """The record of the cell, computed now by so many processes; exits as run.py does where it fails.

    Each process has the same number of threads, on which a CPU's last digits depend.
    """
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]
    command = [sys.executable, *([*launch, "--num_processes", str(processes)] if processes > 1 else [])]
    folder = REPOSITORY / "outputs" / "process_scaling" / str(processes)
    settings = [f"output_dir={folder}", "force=true", "logger=none"]
    ran = subprocess.run(
        [*command, str(REPOSITORY / "repro/run.py"), *overrides, *settings],
        stdout=subprocess.PIPE,
        text=True,
        env={"OMP_NUM_THREADS": "1"} | os.environ,
        check=False,
    )
    if ran.returncode:
        sys.exit(ran.returncode)
    return json.loads(ran.stdout.splitlines()[-1])


def rows_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
            "device_name": record["model"]["device_name"],
        }
        seconds = record["seconds"]["evaluation"]
        found = {
            "processes": record["model"]["processes"],
            "evaluation_s": seconds,
            "speedup": round(first["seconds"]["evaluation"] / seconds, 3),
            "differing": " ".join(name for name in RESULTS if record[name] != first[name]),
        }
        rows.append({name: str(value) for name, value in (cell | found).items()})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows beside those of other cells that the table holds."""
    kept = [row for row in read_rows(path) if any(row[name] != rows[0][name] for name in CELL)]
    write_text(path, csv_text(COLUMNS, [*kept, *rows]))


def main() -> None:
    """Measure a cell with each number of processes and compare; exits 1 where a number differs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--processes", default="1,2", help="numbers of processes, the one to compare with first"
    )
    parser.add_argument("overrides", nargs="*", help="of the configuration, as for run.py")
    arguments = parser.parse_args()
    try:
        numbers = [int(number) for number in arguments.processes.split(",")]
    except ValueError:
        print(f"error: --processes {arguments.processes} is not like 1,2", file=sys.stderr)
        sys.exit(2)
    rows = rows_of([measured(number, arguments.overrides) for number in numbers])
    write_rows(OUTPUT, rows)
    print(table_row(COLUMNS), table_row("---" for _ in COLUMNS), sep="\n")
    for row in rows:
        print(table_row((row | {"differing": row["differing"] or "nothing"}).values()))
    sys.exit(any(row["differing"] for row in rows))


if __name__ == "__main__":
    main()
