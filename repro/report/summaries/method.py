"""Settings of the own methods, what biases cost, what might still be gained, and size, for the page on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ....method.training.trained_rules import BAND
from ...configuration import CONFIGURATION, REPOSITORY
from ...tables.csv_rows import Row, read_rows
from ...tables.text import NOT_MEASURED, table_row
from ...train.scaling_table import SCALING

BIASES = REPOSITORY / "results" / "step_biases.csv"
LEFT_OVER = REPOSITORY / "results" / "left_over.csv"
SIZES = REPOSITORY / "results" / "scaling.csv"
SHOWN_SPARSITIES = ("0.5", "0.6")
"""Sparsities at which sizes are compared."""
METHODS = (
    "equal_loss",
    "equal_loss_folded",
    "equal_loss_folded_brief",
    "equal_loss_folded_long",
    "equal_loss_trained",
    "equal_loss_trained_long",
)
"""Own methods of the real model."""
SETTINGS = {
    "own_sequences": "sequences of its own text",
    "basis_sequences": "sequences that bases are found on, at most",
    "basis.tokens": "tokens kept of each site for (8)",
    "basis.dropped": "share of the weights that $\\tau$ of (8) drops",
    "basis.steps": "steps of (9)",
    "sparse_rounds": "times that bases are found again",
    "sensitivity_sequences": "sequences of (1), at most",
    "correction_rounds": "rounds of (4)",
    "correction_sequences": "sequences of a round",
    "correction_exponent": "$\\gamma$ of (4)",
    "correction_bound": "$\\beta$ of (4)",
    "training.steps": "steps of (10)",
    "training.sequences": "sequences of such a step",
}
"""What settings are, by the end of their path in a configuration."""


def settings_table(methods: tuple[str, ...] = METHODS) -> str:
    """Settings of the methods, from their configurations."""
    found = {method: dict(_leaves(_configured(method))) for method in methods}
    lines = [table_row(["", *(f"`{method}`" for method in methods)]), "|---" + "|---:" * len(methods) + "|"]
    for setting, what in SETTINGS.items():
        lines.append(table_row([what, *(_setting(found[method], setting) for method in methods)]))
    trained = [f"{BAND:g}" if _setting(found[method], "training.steps") else "" for method in methods]
    lines.append(table_row(["octaves of the logistic function's slope", *trained]))
    return "\n".join(lines)


def biases_table(path: Path = BIASES) -> str:
    """What trained biases cost a decode step, by the bits of the weights."""
    heads = ["device, shapes", "bits", "step, ms", "with biases, ms", "cost"]
    lines = [table_row(heads), "|---|---:|---:|---:|---:|"]
    for row in read_rows(path):
        times = [f"{float(row[name]):.2f}" for name in ("ms", "ms_with_biases")]
        where = f"{row['device']}, {row['shape']}"
        lines.append(table_row([where, row["bits"], *times, f"{float(row['cost']):.2%}"]))
    return "\n".join(lines)


def left_over_table(path: Path = LEFT_OVER) -> str:
    """What each setting changes of the divergence at the weights that it reads, a column a seed."""
    rows = read_rows(path)
    seeds = sorted({row["seed"] for row in rows})
    heads = ["", "known while decoding", *(f"seed {seed}" for seed in seeds)]
    lines = [table_row(heads), "|---|---|" + "---:|" * len(seeds)]
    for part, setting in dict.fromkeys((row["part"], row["setting"]) for row in rows):
        mine = {row["seed"]: row for row in rows if (row["part"], row["setting"]) == (part, setting)}
        known = {"true": "yes", "false": "no"}[next(iter(mine.values()))["known_while_decoding"]]
        lines.append(table_row([setting, known, *(_change(mine.get(seed)) for seed in seeds)]))
    return "\n".join(lines)


def scaling_table(path: Path = SIZES) -> str:
    """A row for every sparsity and method: its rise in every size, and the largest's over the smallest's."""
    rows = read_rows(path)
    if not rows:
        return f"*{NOT_MEASURED.capitalize()}.*"
    form = {column.name: column for column in SCALING.columns(())}
    sizes = {row["model"]: f"{int(row['parameters']) / 1e6:.1f} M" for row in rows}
    lines = [table_row(["not read", "method", *sizes.values(), "largest ÷ smallest"])]
    lines.append("|---:|---|" + "---:|" * (len(sizes) + 1))
    for sparsity in SHOWN_SPARSITIES:
        mine = [row for row in rows if row["sparsity"] == sparsity]
        for method in dict.fromkeys(row["method"] for row in mine):
            found = {row["model"]: row for row in mine if row["method"] == method}
            rises = [form["relative_rise"].shown(found[model]) for model in sizes]
            last = form["over_smallest"].shown(found[list(sizes)[-1]])
            lines.append(table_row([f"{float(sparsity):.0%}", f"`{method}`", *rises, last]))
    return "\n".join(
        [*lines, "", f"![rise of perplexity against parameters](../{path.parent.name}/scaling.png)"]
    )


def _configured(method: str) -> Mapping[str, Any]:
    """A method's settings over those that it begins with."""
    own = OmegaConf.load(CONFIGURATION / "method" / f"{method}.yaml")
    base, *others = [name for name in own.pop("defaults", ["_self_"]) if name != "_self_"] or [None]
    if others:
        raise ValueError(f"conf/method/{method}.yaml begins with several methods")
    return own if base is None else OmegaConf.merge(_configured(base), own)


def _leaves(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name in config:
        if OmegaConf.is_missing(config, name) or OmegaConf.is_interpolation(config, name):
            continue
        value = config[name]
        yield from _leaves(value, f"{path}{name}.") if OmegaConf.is_dict(value) else [(f"{path}{name}", value)]


def _setting(leaves: Mapping[str, Any], setting: str) -> str:
    found = [value for path, value in leaves.items() if f".{path}".endswith(f".{setting}")]
    return "" if not found else f"{found[0]:,}"


def _change(row: Row | None) -> str:
    if row is None:
        return "not measured"
    change = (float(row[f"divergence{end}"]) for end in ("", "_low", "_high"))
    return "{:+.1%} [{:+.1%}, {:+.1%}]".format(*change)
