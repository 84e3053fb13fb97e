"""Where a finished record is logged besides the disk."""

from __future__ import annotations

import importlib.util
import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...method.errors import UserError

WANDB_HOST = "api.wandb.ai"
MODES = ("auto", "online", "offline", "disabled")


@dataclass(frozen=True)
class NoLogger:
    """The record on disk only."""

    def log(self, record: dict[str, Any]) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class WandbLogger:
    """One Weights & Biases run a record: configuration, scalars and a table of the tasks."""

    project: str
    directory: str
    mode: str

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"logger.mode={self.mode} is not supported; choose from {', '.join(MODES)}")
        # Found out before the cell is computed, not after.
        if importlib.util.find_spec("wandb") is None:
            raise UserError("logger=wandb needs wandb: run `pip install wandb`, or use logger=none")

    def log(self, record: dict[str, Any]) -> None:
        """Write the run; raises UserError when W&B cannot be reached or refuses it."""
        import wandb

        directory = Path(self.directory)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            run = wandb.init(
                project=self.project,
                name=record["cell"]["name"],
                group=record["config"]["experiment_name"],
                dir=directory,
                mode=resolved_mode(self.mode),
                config=record["config"],
                settings=wandb.Settings(silent=True, console="off"),
                reinit="finish_previous",
            )
            run.log(scalars(record) | {"tasks": task_table(record)})
            run.summary["record"] = {key: value for key, value in record.items() if key != "config"}
            run.finish()
        except (wandb.Error, OSError) as error:
            raise UserError(
                f"the record is written, but W&B failed ({' '.join(str(error).split())}); "
                "use logger.mode=offline"
            ) from error


def resolved_mode(mode: str) -> str:
    """`auto` follows WANDB_MODE where it is set; else online where there is a login, offline where not."""
    if mode != "auto":
        return mode
    if wished := os.environ.get("WANDB_MODE"):
        return wished
    return "online" if os.environ.get("WANDB_API_KEY") or _has_login() else "offline"


def _has_login() -> bool:
    try:
        return netrc.netrc().authenticators(WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """The record's numbers, under flat names."""
    latency = record["latency"] or {}
    numbers = {
        "sparsity": record["sparsity"],
        "average": record["average"],
        "perplexity": record["perplexity"],
        "bits_per_byte": record["bits_per_byte"],
        **{f"realised/{name}": value for name, value in record["realised"].items()},
        **{f"tasks/{name}": task["value"] for name, task in record["tasks"].items()},
        **{f"seconds/{stage}": value for stage, value in record["seconds"].items()},
        **{f"plan_seconds/{stage}": value for stage, value in record["plan"]["seconds_by_stage"].items()},
        **{f"memory/{kind}": value for kind, value in record["memory"].items()},
        **{f"latency/{name}": value for name, value in latency.items()},
        **{f"latency/speedup over {name}": value for name, value in latency.get("speedups", {}).items()},
        **{f"latency/{name}/tok_s": timing["tok_s"] for name, timing in latency.get("timings", {}).items()},
    }
    return {name: value for name, value in numbers.items() if isinstance(value, int | float)}


def task_table(record: dict[str, Any]) -> Any:
    """A wandb.Table with one row a task."""
    import wandb

    columns = ["task", "metric", "value", "stderr", "n", "chance"]
    rows = [[name, *(task[column] for column in columns[1:])] for name, task in record["tasks"].items()]
    return wandb.Table(columns=columns, data=rows)
