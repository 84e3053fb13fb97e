"""Cost of reproducing the tables at 7-8B on 1, 8 and 64 GPUs, from measured rates: a part of docs/cost.md."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra import compose
from omegaconf import DictConfig

from ..configuration import REPOSITORY, composing
from ..models.architecture import architecture, decode_tflops
from ..tables.csv_rows import Row, csv_path, read_rows
from ..tables.text import NOT_MEASURED
from .search_cost_table import TABLE, read_costs

EXPERIMENTS = {"Table 1": "table1_paper", "Table 2, the ablation": "table2_paper"}
GPUS = (1, 8, 64)
SUITE_TOKENS = REPOSITORY / "results" / "suite-tokens.csv"
BYTES_A_WEIGHT = 2
SPARSITY = 0.5
"""Sparsity at which plans were measured; what they cost hardly depends on it."""
SWITCHES: dict[str, Callable[[DictConfig], bool]] = {
    "coarse": lambda method: method.allocator.name != "uniform",
    "greedy": lambda method: method.get("fine", method.get("greedy")),  # WiSparse's name for it, and TEAL's
    "alpha": lambda method: method.alpha_search,
}
"""Tells from a method's settings whether it has a stage that can be left out, by stage."""
EVALUATION = ("scoring", "generation")
APART = ("calibration", "application", *EVALUATION)
"""Stages of conf/search_cost.yaml that are no part of making one method's plan."""


class NotMeasuredError(Exception):
    """A rate that is needed has not been measured; says which."""


@dataclass(frozen=True)
class Job:
    """One cell of a table, which one GPU computes."""

    model: str
    method: str
    sparsity: float


@cache
def composed(config: str, *overrides: str) -> DictConfig:
    """A configuration of conf/ with overrides, Hydra's own settings in it; composed once."""
    with composing():
        return compose(config, overrides=list(overrides), return_hydra_config=True)


def jobs(experiment: str) -> list[Job]:
    """The cells that an experiment sweeps over; the dense model once."""
    swept: Any = composed("config", f"experiment={experiment}").hydra.sweeper.params
    cells = [
        Job(model, method, 0.0 if method == "dense" else float(sparsity))
        for model in swept.model.split(",")
        for sparsity in str(swept.sparsity).split(",")
        for method in swept.method.split(",")
    ]
    return list(dict.fromkeys(cells))


@dataclass(frozen=True)
class Rates:
    """Rates that were measured on one GPU."""

    rows: list[Row]
    tokens: list[Row]
    """Tokens that each task reads and generates, from results/suite-tokens.csv."""

    def minutes(self, job: Job) -> float:
        """Minutes of a job: calibration, plan and evaluation. Raises NotMeasuredError."""
        return self.plan(job) + self._evaluation(job)

    def plan(self, job: Job) -> float:
        """Minutes of a job's calibration and plan. Raises NotMeasuredError."""
        if job.method == "dense":
            return 0.0
        settings, costed = self._costed(job.method)
        wanted = [
            stage
            for stage in composed("search_cost").cost.stages[costed]
            if stage not in APART and (stage not in SWITCHES or SWITCHES[stage](settings))
        ]
        minutes = float(self._row(job.model, "dense", "calibration")["minutes"])
        for stage in wanted:
            minutes += sum(float(row["minutes"]) for row in self._stage_rows(job.model, costed, stage))
        return minutes

    def _costed(self, method: str) -> tuple[DictConfig, str]:
        """A method's settings, and the method of its class whose stages are measured."""
        settings = composed("config", f"method={method}").method
        for costed in composed("search_cost").cost.stages:
            if composed("config", f"method={costed}").method._target_ == settings._target_:
                return settings, costed
        raise NotMeasuredError(f"{method} has no stages in conf/search_cost.yaml")

    def _stage_rows(self, model: str, method: str, stage: str) -> list[Row]:
        if stage != "plan":
            return [self._row(model, method, stage)]
        found = [row for row in self._of(model, method) if row["stage"] not in APART]
        if not found:
            raise NotMeasuredError(f"{model}, {method}")
        return found

    def _evaluation(self, job: Job) -> float:
        if not self.tokens:
            raise NotMeasuredError("what the suite reads and generates")
        counts = {"scoring": "read", "generation": "steps"}
        _, costed = self._costed(job.method)
        # A method whose own evaluation is not timed drops channels by thresholds as WiSparse does.
        timed = costed if EVALUATION[0] in composed("search_cost").cost.stages[costed] else "wisparse"
        seconds = sum(
            float(self._row(job.model, timed, stage)["seconds_an_evaluation"]) * int(task[counts[stage]])
            for task in self.tokens
            for stage in EVALUATION
        )
        return seconds / 60

    def peak_bytes(self, model: str) -> int:
        """Highest GPU memory of any stage of a model."""
        return max(int(row["peak_gpu_bytes"]) for row in self.rows if row["model"] == f"{model}-random")

    def _of(self, model: str, method: str) -> list[Row]:
        return [row for row in self.rows if (row["model"], row["method"]) == (f"{model}-random", method)]

    def _row(self, model: str, method: str, stage: str) -> Row:
        """A stage's row; where it was measured on several numbers of tokens, the one with the fewest."""
        found = [row for row in self._of(model, method) if row["stage"] == stage]
        if not found:
            raise NotMeasuredError(f"{model}, {method}, {stage}")
        return min(found, key=lambda row: int(row["tokens"]))


def makespan(minutes: Iterable[float], gpus: int) -> float:
    """Minutes until all jobs are done, the longest first, each on the GPU that is free soonest."""
    free = [0.0] * gpus
    for job in sorted(minutes, reverse=True):
        heapq.heapreplace(free, free[0] + job)
    return max(free)


def weight_bytes(model: str) -> float:
    """Bytes of a checkpoint in bfloat16; norms and biases, less than 0.01 %, are left out."""
    sizes = architecture(model)
    multiplied = decode_tflops(model, 1, 0.0) * 1e12 / 2
    return BYTES_A_WEIGHT * (multiplied + sizes["vocab_size"] * sizes["hidden_size"])


def measured_rates() -> list[tuple[str, Rates]]:
    """Rates of every GPU of results/search-cost.csv, by device."""
    tokens = read_rows(SUITE_TOKENS)
    rows = [row for row in read_costs(csv_path(TABLE)) if row["peak_gpu_bytes"]]
    devices = dict.fromkeys(row["device"] for row in rows)
    return [(name, Rates([row for row in rows if row["device"] == name], tokens)) for name in devices]


def reproduction() -> str:
    """Hours by experiment and number of GPUs on each GPU that was measured; downloads and disk."""
    rates = measured_rates()
    found = [
        table for device, measured in rates for table in (_table(device, measured), _plans(device, measured))
    ]
    if not rates:
        found = [f"GPU hours: {NOT_MEASURED} yet; `make reproduce-search-cost` on a GPU, then `make readme`."]
    models = dict.fromkeys(job.model for experiment in EXPERIMENTS.values() for job in jobs(experiment))
    sizes = ", ".join(f"{model} {weight_bytes(model) / 1e9:.1f} GB" for model in models)
    total = sum(weight_bytes(model) for model in models) / 1e9
    found.append(
        f"To download and to keep: {total:.1f} GB of weights ({sizes}), each once for any number of GPUs that "
        "share a disk. Data sets are not in this sum."
    )
    return "\n\n".join(found)


def _table(device: str, rates: Rates) -> str:
    lines = [
        f"| {device} | cells | {' | '.join(f'{gpus} GPU' + 's' * (gpus > 1) for gpus in GPUS)} |",
        "|---|---:" + "|---:" * len(GPUS) + "|",
    ]
    for name, experiment in EXPERIMENTS.items():
        cells = jobs(experiment)
        lines.append(_line(name, cells, rates))
        for model in dict.fromkeys(job.model for job in cells):
            lines.append(_line(f"{name}: {model} alone", [job for job in cells if job.model == model], rates))
    return "\n".join(lines)


def _plans(device: str, rates: Rates) -> str:
    """Minutes of one plan by model and method, and the highest memory."""
    methods = [method for method in composed("search_cost").cost.stages if method != "dense"]
    lines = [
        f"| a plan, minutes on one {device} | {' | '.join(methods)} | peak memory |",
        "|---|" + "---:|" * (len(methods) + 1),
    ]
    for model in dict.fromkeys(row["model"].removesuffix("-random") for row in rates.rows):
        shown = [_plan_text(Job(model, method, SPARSITY), rates) for method in methods]
        lines.append(f"| {model} | {' | '.join(shown)} | {rates.peak_bytes(model) / 1e9:.0f} GB |")
    return "\n".join(lines)


def _plan_text(job: Job, rates: Rates) -> str:
    try:
        return f"{rates.plan(job):.1f}"
    except NotMeasuredError:
        return NOT_MEASURED


def _line(name: str, cells: list[Job], rates: Rates) -> str:
    try:
        minutes = [rates.minutes(job) for job in cells]
        hours = [f"{makespan(minutes, gpus) / 60:.1f} h" for gpus in GPUS]
    except NotMeasuredError as lacking:
        hours = [f"{NOT_MEASURED} ({lacking})"] + [NOT_MEASURED] * (len(GPUS) - 1)
    return f"| {name} | {len(cells)} | {' | '.join(hours)} |"
