"""Where a finished record is logged besides the disk."""

from __future__ import annotations

import importlib.util
import json
import logging
import netrc
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

from ...method.errors import UserError
from ..records import LOGGED, write_json

log = logging.getLogger(__name__)

PUBLIC = "https://api.wandb.ai"
PATIENCE = 10.0
"""Seconds that a server has for an answer before a cell is computed."""
MODES = ("auto", "login", "online", "offline", "disabled")


class Logger(Protocol):
    """Anything `conf/logger/*.yaml` can name."""

    @property
    def place(self) -> str | None:
        """Where it logs, to which a record goes once; None for nowhere."""
        ...

    def check(self) -> None:
        """Raise UserError for what `log` would refuse, before a cell is computed."""
        ...

    def log(self, record: dict[str, Any]) -> None:
        """Write the record. Raises UserError."""
        ...


def is_due(logger: Logger, folder: Path, record: dict[str, Any]) -> bool:
    """Whether the record of a finished cell is to be logged: not where that very record was logged before.

    In another user's folder, where that could not be noted, it is not, and a line says so.
    """
    if logger.place is None or _logged(folder).get(logger.place) == _stamp(record):
        return False
    if not os.access(folder, os.W_OK):
        log.warning("%s is another user's: the record is not logged", folder)
        return False
    return True


def log_once(logger: Logger, folder: Path, record: dict[str, Any]) -> None:
    """Log the record of a finished cell where that is due, and note it. Raises UserError."""
    if is_due(logger, folder, record):
        logger.check()
        logger.log(record)
        write_json(folder / LOGGED, _logged(folder) | {logger.place: _stamp(record)})


def _logged(folder: Path) -> dict[str, Any]:
    path = folder / LOGGED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _stamp(record: dict[str, Any]) -> dict[str, str]:
    return {"utc": record["utc"], "items_sha256": record["items_sha256"]}


@dataclass(frozen=True)
class NoLogger:
    """The record on disk only."""

    place: ClassVar[None] = None
    """See `Logger`."""

    def check(self) -> None:
        """Nothing to refuse."""

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
        if self.place is not None and importlib.util.find_spec("wandb") is None:
            raise UserError("logger=wandb needs wandb: run `pip install wandb`, or use logger=none")

    @property
    def place(self) -> str | None:
        """The project, online or in runs that wait to be synchronised; nowhere if it is disabled."""
        return None if resolved_mode(self.mode) == "disabled" else f"wandb {self.project}"

    def check(self) -> None:
        """Raise UserError for a folder that cannot be written, or a server that cannot be reached."""
        Path(self.directory).mkdir(parents=True, exist_ok=True)
        if resolved_mode(self.mode) == "online" and not getproxies():
            _reach(server())

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
            log.info("logged to W&B, %s: project %s, %s", run.settings.mode, self.project, directory / "wandb")
        except (wandb.Error, OSError) as error:
            raise UserError(
                f"the record is written, but W&B failed ({' '.join(str(error).split())}); the same command "
                "logs it, or use logger.mode=offline"
            ) from error


def resolved_mode(mode: str) -> str:
    """What `auto` and `login` are here: WANDB_MODE where it is set, else online where there is a login.

    Without one `auto` is offline, and `login` is disabled: nobody without an account is asked or kept waiting.
    """
    if mode not in ("auto", "login"):
        return mode
    if wished := os.environ.get("WANDB_MODE"):
        return wished
    if os.environ.get("WANDB_API_KEY") or _has_login():
        return "online"
    return "offline" if mode == "auto" else "disabled"


def server() -> SplitResult:
    """Address of the W&B server: WANDB_BASE_URL of one's own, or the public one."""
    return urlsplit(os.environ.get("WANDB_BASE_URL") or PUBLIC)


def _has_login() -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server().hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _reach(address: SplitResult) -> None:
    port = address.port or {"http": 80}.get(address.scheme, 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()
    except OSError as error:
        raise UserError(
            f"the W&B server {address.geturl()} cannot be reached ({error}); use logger.mode=offline"
        ) from error


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
