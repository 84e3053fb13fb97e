"""The dense cell of the same settings: a single run is shown beside it, for a number alone tells nothing."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from .. import processes
from ..configuration import CONFIGURATION
from .cell import Cell, finished_record, prepare

log = logging.getLogger(__name__)

CHEAP = 600.0
"""Seconds of the sparse evaluation up to which the dense one, which takes as long, is run with it."""


def wanted(cell: Cell, record: dict[str, Any]) -> bool:
    """Whether there is anything of the cell to compare with a dense model."""
    compared = record["average"] is not None or record["perplexity"] is not None
    sparse = cell.method.name != "dense" or cell.heads.name != "none"
    return bool(cell.config.reference) and sparse and compared


def dense_cell(cell: Cell) -> Cell:
    """The dense model under the cell's settings, without its speed, which is timed with the sparse one's."""
    config: DictConfig = OmegaConf.create(cell.config)
    with open_dict(config):
        for group, choice in (("method", "dense"), ("heads", "none"), ("latency", "none")):
            config[group] = OmegaConf.load(CONFIGURATION / group / f"{choice}.yaml")
        config.force = False
    return prepare(config)


def is_cheap(dense: Cell, record: dict[str, Any], fresh: bool) -> bool:
    """Whether the dense cell is finished, or is measured in minutes at most; all processes find the same.

    fresh: whether the sparse cell was computed just now, with the model and the text still in memory.
    """

    def decide() -> bool:
        if finished_record(dense) is not None or (fresh and record["seconds"]["evaluation"] <= CHEAP):
            return True
        log.info("to see the dense model beside it, run the same command with method=dense")
        return False

    return processes.of_main(decide)
