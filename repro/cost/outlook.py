"""What reproducing a table at 7-8B will take, said before it starts: hours, downloads, and the disk they need.

python -m wisparse.repro.cost.outlook table1_paper
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from ...method.errors import UserError
from ..configuration import mistakes_in_one_line
from ..models.hub import MODEL_PATTERNS, SECOND_COPIES
from ..models.weight_files import weight_files
from ..records import RECORD
from ..tables.text import NOT_MEASURED
from .reproduction_cost import (
    EXPERIMENTS,
    Job,
    NotMeasuredError,
    Rates,
    composed,
    jobs,
    makespan,
    measured_rates,
    weight_bytes,
)

GB = 1e9
OUTPUTS = Path("outputs")
ON_CPU = "model.device=cpu"
"""Override that asks for CPU cores, where there is no GPU."""


def hub_cache() -> Path:
    """Folder that the hub's clients keep checkpoints in."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def on_disk(model: str) -> bool:
    """Whether a model's checkpoint is whole in the hub's cache already; nothing is asked of the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    settings = composed("config", f"model={model}").model
    try:
        folder = snapshot_download(
            settings.id,
            revision=settings.revision,
            allow_patterns=MODEL_PATTERNS,
            ignore_patterns=SECOND_COPIES,
            local_files_only=True,
        )
        weight_files(Path(folder), {})
    except (LocalEntryNotFoundError, UserError):
        return False
    return True


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk on which a folder lies or would be made."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free


def download(models: list[str], cache: Path) -> str:
    """Say what is to be downloaded and whether it fits. Raises UserError where the disk is too small."""
    lacking = [model for model in models if not on_disk(model)]
    if not lacking:
        return f"Weights: all of {', '.join(models)} are in {cache}."
    needed, free = sum(weight_bytes(model) for model in lacking), free_bytes(cache)
    sizes = ", ".join(f"{model} {weight_bytes(model) / GB:.1f} GB" for model in lacking)
    if needed > free:
        raise UserError(
            f"{needed / GB:.1f} GB of weights are to be downloaded ({sizes}), and {cache} has "
            f"{free / GB:.1f} GB free: make room, or name another disk with HF_HOME=DIR"
        )
    return f"To download: {needed / GB:.1f} GB ({sizes}) into {cache}, where {free / GB:.1f} GB are free."


def hours(cells: list[Job], rates: Rates, gpus: int) -> str:
    """Say how long these cells take on so many GPUs, or what of it is not measured."""
    try:
        found = makespan([rates.minutes(job) for job in cells], gpus) / 60
    except NotMeasuredError as lacking:
        return f"{NOT_MEASURED} ({lacking})"
    return f"{found:.1f} h on {gpus} GPU{'s' if gpus > 1 else ''}"


def outlook(experiment: str, gpu: str | None, gpus: int = 1) -> list[str]:
    """Sentences on what an experiment of the papers' models takes. gpu: name of this machine's; None: none."""
    cells = jobs(experiment)
    finished = len(list((OUTPUTS / experiment).glob(f"*/{RECORD}")))
    lines = [f"{experiment}: {len(cells)} cells, a dense one for each model; {finished} are finished and kept."]
    measured = dict(measured_rates())
    for device, rates in measured.items():
        if gpu == device or gpu not in measured:
            lines.append(f"From the start, at rates measured on a {device}: {hours(cells, rates, gpus)}.")
    if gpu is None:
        lines.append(f"There is no GPU here; on CPU cores: {NOT_MEASURED}.")
    elif gpu not in measured:
        lines.append(f"On a {gpu}, which is here: {NOT_MEASURED}; `make reproduce-search-cost` measures it.")
    lines.append(download(list(dict.fromkeys(job.model for job in cells)), hub_cache()))
    return lines


@mistakes_in_one_line()
def main() -> None:
    """Print what an experiment takes. Exits with 2 without a GPU, and where weights do not fit on the disk."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("experiment", choices=list(EXPERIMENTS.values()), help="a table of the papers' models")
    parser.add_argument("overrides", nargs="*", help=f"of the configuration, after --; {ON_CPU} needs no GPU")
    arguments = parser.parse_args()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print("\n".join(outlook(arguments.experiment, gpu)), flush=True)
    if gpu is None and ON_CPU not in arguments.overrides:
        raise UserError(f"these models take a GPU, and none is here; on CPU cores: OVERRIDES={ON_CPU}")


if __name__ == "__main__":
    main()
