"""`make reproduce-speed`: decode speed of every method and kernel speed on this machine, tables and plots.

On a GPU the 7-8B models with random weights, without one the embedded llama-mini on the CPU. Rows of other
devices that the tables hold already are kept.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from ..archive import unpacked
from ..configuration import PACKAGES, REPOSITORY, mistakes_in_one_line
from ..figures.make import write_figures
from ..figures.rows import read_figures
from ..figures.speed_plots import write_plots
from ..tables.kept_records import keep_records
from ..tables.make import TABLES, write_tables
from ..tables.speed.speed_data import read_speed
from .kernel_table import write_kernels

EXPERIMENTS = {
    "cuda": ("speed_full", "speed_int8", "speed_int4", "speed_batches", "speed_contexts"),
    "cpu": ("speed", "speed_1b"),
}
RESULTS = REPOSITORY / "results"
KEPT = RESULTS / "records" / "speed.tar.xz"
KEPT_FIGURES = RESULTS / "records" / "figures.tar.xz"
KERNEL_REPEATS = 21


def run_experiments(device: str, overrides: list[str]) -> list[Path]:
    """Run the device's experiments with run.py; returns the folders of their records. Exits as run.py does."""
    for experiment in EXPERIMENTS[device]:
        command = [sys.executable, str(PACKAGES / "repro" / "run.py"), f"experiment={experiment}", *overrides]
        code = subprocess.run(command, check=False).returncode
        if code:
            sys.exit(code)
    return [REPOSITORY / "outputs" / experiment for experiment in EXPERIMENTS[device]]


def gather(sources: list[Path], staging: Path) -> None:
    """Copy the kept records and then the new ones into one folder; of one cell the newest is read later."""
    shutil.rmtree(staging, ignore_errors=True)
    for source in map(unpacked, [KEPT, *sources]):
        if source.is_dir():
            shutil.copytree(source, staging, dirs_exist_ok=True)


@mistakes_in_one_line()
def main() -> None:
    """Measure, then write results/speed.*, results/kernels.csv and the plots: rows of this device anew."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of run.py for every cell")
    overrides = parser.parse_args().overrides
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print(
            "There is no CUDA GPU here: this measures the CPU path, on the embedded llama-mini and on a model "
            "of 1.2 billion random weights. It says nothing about a GPU.",
            flush=True,
        )
    staging = REPOSITORY / "outputs" / "speed_records"
    gather(run_experiments(device, overrides), staging)
    data = read_speed(staging)
    write_tables(TABLES["speed"], data, RESULTS / "speed")
    keep_records(data, [staging], KEPT)
    write_kernels(RESULTS / "kernels.csv", KERNEL_REPEATS)
    print((RESULTS / "speed.md").read_text(encoding="utf-8"))
    for path in write_plots(RESULTS):
        print(f"written: {path.relative_to(REPOSITORY)}")
    if KEPT_FIGURES.is_file():  # Figure 4 shows these speeds
        write_figures(read_figures([KEPT_FIGURES]), RESULTS / "figures")


if __name__ == "__main__":
    main()
