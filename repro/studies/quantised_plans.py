"""Plans and quantised weights: which is made on which, and what other formats lose, on calibration text apart.

    python -m wisparse.repro.studies.quantised_plans --output results/quantised_plans.csv --seed 0

All tokens are sparse. A plan is compared at the weights that it reads: between two passes in which all
thresholds of what it is compared with are moved.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ...kernels.quantised.int8 import int8_rounded
from ...method.calibration import Calibration
from ...method.errors import UserError
from ...method.hooks import hooked
from ...method.plan import SparsityPlan
from ...method.projections import model_projections
from ...method.quantised_model import quantised, replaced
from ..configuration import composing, mistakes_in_one_line, register_resolvers
from ..measured.paired_bootstrap import interval, resample_counts
from ..models.checkpoint import find_checkpoint, load_model
from ..records import write_text
from ..tables.csv_rows import Row, csv_text, read_rows
from .shifted_pass import Deviation, StudiedText

PLANNED, REPORTED, BATCH = 24, 32, 8
"""Sequences that plans and stored weights are made on and that all is measured on, and sequences a pass."""
TEXT = ("calibration=unseen", f"calibration.sequences={PLANNED + REPORTED}", "search=quick")
METHODS: Mapping[str, tuple[str, ...]] = {"teal": (), "equal_loss": ("method.correction_sequences=8",)}
NORMED = "wisparse_alpha_1"
"""A method whose scores have the weights' norms in them, under thresholds."""
BITS = ("int8", "int4", "int4_calibrated")
MOVES = (-0.3, 0.0, 0.3)
"""Octaves that all thresholds are moved by, for what a plan is compared with."""
COLUMNS = (
    "model", "seed", "sparsity", "part", "quantisation", "method", "setting", "compared_with", "bits_a_weight",
    "read", "perplexity", "ratio", "ratio_low", "ratio_high",
)  # fmt: skip
RESAMPLES = 4000
LARGEST_E4M3 = 448.0
Norms = Mapping[str, Tensor]
"""Norms of the weights of each input channel, (in,) by projection."""


@dataclass(frozen=True)
class Passed:
    """What passes over the text that is reported lose and read."""

    surprisal: NDArray[np.float64]
    """(rows,) mean over a sequence, in nats a token."""
    read: float
    """Share of the block weights."""


class Bench:
    """A model, the text that is reported, and resamples of its sequences."""

    def __init__(self, model: PreTrainedModel, ids: Tensor, seed: int) -> None:
        self._model, self._ids = model, ids
        counts = resample_counts(len(ids), RESAMPLES, np.random.default_rng(seed))
        self._counts = np.vstack([np.ones(len(ids)), counts])

    def passed(self, plan: SparsityPlan, octaves: float = 0.0) -> Passed:
        """A plan on the weights that the model has in place, its thresholds moved."""
        text = StudiedText(self._model, plan, self._ids, BATCH)
        lost = text.lost(text.dense_states(), Deviation(octaves=octaves))
        return Passed(lost.surprisal.double().mean(dim=1).numpy(), float(lost.read.mean()))

    def dense(self, plan: SparsityPlan) -> Passed:
        """The weights that are in place, all of them read; plan: any of the model, with its thresholds at 0."""
        rules = {
            name: replace(rule, thresholds=torch.zeros_like(rule.thresholds))
            for name, rule in plan.rules.items()
        }
        return self.passed(replace(plan, rules=rules))

    def moved(self, plan: SparsityPlan) -> list[Passed]:
        """The plan with all its thresholds moved by each of `MOVES`."""
        return [self.passed(plan, octaves) for octaves in MOVES]

    def row(self, found: Passed, among: list[Passed]) -> Row:
        """Perplexity beside that of what it is compared with, at the weights read."""
        ours, theirs = self._resampled(found), self._at(found.read, among)
        ratio = np.exp(ours - theirs)
        spread = interval(ratio[0], ratio[1:])
        return {
            "read": f"{found.read:.4f}",
            "perplexity": f"{np.exp(ours[0]):.3f}",
            "ratio": f"{spread.value:.4f}",
            "ratio_low": f"{spread.low:.4f}",
            "ratio_high": f"{spread.high:.4f}",
        }

    def _resampled(self, found: Passed) -> NDArray[np.float64]:
        return self._counts @ found.surprisal / self._counts.sum(axis=1)

    def _at(self, read: float, among: list[Passed]) -> NDArray[np.float64]:
        """Surprisal by resample, linear in what is read between the two passes around it."""
        if len(among) == 1:
            return self._resampled(among[0])
        ordered = sorted(among, key=lambda one: one.read)
        for low, high in pairwise(ordered):
            if low.read <= read <= high.read:
                share = (read - low.read) / (high.read - low.read)
                return (1 - share) * self._resampled(low) + share * self._resampled(high)
        raise UserError(f"a plan reads {read:.3f} of the weights, beyond what it is compared with")


def study(model: str, seed: int, sparsity: float) -> Iterator[Row]:
    """Rows of one model and seed."""
    config = composed(f"model={model}", "method=teal", f"seed={seed}")
    loaded = load_model(find_checkpoint(OmegaConf.to_container(config.model, resolve=True)))
    ids = instantiate(config.calibration).input_ids(loaded.tokenizer)
    planned, reported = ids.split((PLANNED, REPORTED))
    bench = Bench(loaded.model, reported, seed)
    calibration = Calibration(loaded.model, planned, BATCH)
    names = {**METHODS, NORMED: ()}
    methods = {name: instantiate(composed(f"method={name}", *more).method) for name, more in names.items()}
    own = {name: method.plan(calibration, sparsity) for name, method in methods.items()}
    norms = norms_of(loaded.model)
    yield from formats(bench, calibration, own["teal"])
    for bits in BITS:
        quantiser = instantiate(composed(f"quantisation={bits}").quantisation)
        with quantised(loaded.model, quantiser.weights(calibration)):
            inside = Calibration(loaded.model, planned, BATCH)
            plans = {name: method.plan(inside, sparsity) for name, method in methods.items()}
            unlike = with_other_norms(plans[NORMED], norms_of(loaded.model), norms)
            for row in on_stored_weights(bench, own, plans, unlike):
                yield row | {"quantisation": bits}
    for name in METHODS:
        yield from under_a_plan(bench, calibration, own[name], name)


def composed(*overrides: str) -> Any:
    """The configuration with these choices."""
    with composing():
        return compose("config", overrides=["model=llama-mini", *TEXT, *overrides])


def formats(bench: Bench, calibration: Calibration, plan: SparsityPlan) -> Iterator[Row]:
    """The dense model and one plan of the own weights, in each format, beside the own weights."""
    model = calibration.model
    dense, sparse = [bench.dense(plan)], bench.moved(plan)
    stored = {
        "int8": ("int8", ()),
        "int4": ("int4", ()),
        "int4, a zero point for each group": ("int4", ("quantisation.symmetric=false",)),
        "int4_calibrated": ("int4_calibrated", ()),
        "int4_calibrated, a zero point for each group": ("int4_calibrated", ("quantisation.symmetric=false",)),
    }
    linears = model_projections(model)
    for setting, (choice, more) in stored.items():
        found = instantiate(composed(f"quantisation={choice}", *more).quantisation).weights(calibration)
        kept = [found.weights[name] for name in linears]
        weights = sum(linear.weight.numel() for linear in linears.values())
        bits = 8 * sum(one.stored_bytes().total for one in kept) / weights
        yield from _formatted(bench, linears, found.weights, plan, dense, sparse, setting, f"{bits:.2f}")
    e4m3 = {name: InE4m3(linear.weight.data.T) for name, linear in linears.items()}
    yield from _formatted(bench, linears, e4m3, plan, dense, sparse, "e4m3 with int8's scales", "")


def _formatted(
    bench: Bench,
    linears: Mapping[str, nn.Linear],
    stored: Mapping[str, Any],
    plan: SparsityPlan,
    dense: list[Passed],
    sparse: list[Passed],
    setting: str,
    bits: str,
) -> Iterator[Row]:
    with replaced(linears, {name: stored[name] for name in linears}):
        for method, found, among in (
            ("dense", bench.dense(plan), dense),
            ("teal", bench.passed(plan), sparse),
        ):
            row = {"part": "format", "method": method, "setting": setting, "bits_a_weight": bits}
            yield row | {"compared_with": "own weights"} | bench.row(found, among)


@dataclass(frozen=True)
class InE4m3:
    """A weight (in, out) in float8 e4m3, scaled as `int8_rounded` scales it."""

    weight: Tensor

    def dequantised(self) -> Tensor:
        """(in, out) float32."""
        stored = int8_rounded(self.weight)
        scale = stored.row_scales[:, None] * stored.column_scales[None] * (127.0 / LARGEST_E4M3)
        scaled = torch.where(scale > 0, self.weight.float() / scale, 0.0).clamp(-LARGEST_E4M3, LARGEST_E4M3)
        return scaled.to(torch.float8_e4m3fn).float() * scale


def on_stored_weights(
    bench: Bench, own: Mapping[str, SparsityPlan], plans: Mapping[str, SparsityPlan], unlike: SparsityPlan
) -> Iterator[Row]:
    """Plans made on the own weights, and one with their norms in its scores, on stored weights in place."""
    for name in METHODS:
        row = {"part": "thresholds", "method": name, "setting": "plan of the own weights"}
        found = bench.row(bench.passed(own[name]), bench.moved(plans[name]))
        yield row | {"compared_with": "plan of the stored weights"} | found
    row = {"part": "norms", "method": NORMED, "setting": "norms of the own weights"}
    found = bench.row(bench.passed(unlike), bench.moved(plans[NORMED]))
    yield row | {"compared_with": "norms of the stored weights"} | found


def with_other_norms(plan: SparsityPlan, norms: Norms, others: Norms) -> SparsityPlan:
    """A plan by |x|·c under thresholds, t/c of a channel, with the norms c of other weights and the same t."""
    rules = {
        name: replace(rule, thresholds=rule.thresholds * norms[name] / others[name].clamp_min(1e-12))
        for name, rule in plan.rules.items()
    }
    return replace(plan, rules=rules)


def norms_of(model: PreTrainedModel) -> Norms:
    """‖W[:, i]‖ of every projection, (in,) float32."""
    return {name: linear.weight.data.float().norm(dim=0) for name, linear in model_projections(model).items()}


def under_a_plan(bench: Bench, calibration: Calibration, plan: SparsityPlan, name: str) -> Iterator[Row]:
    """GPTQ on what projections read under a plan, beside GPTQ on the dense model's inputs, under that plan."""
    quantiser = instantiate(composed("quantisation=int4_calibrated").quantisation)
    linears = model_projections(calibration.model)
    with replaced(linears, quantiser.weights(calibration).weights):
        among, every = bench.moved(plan), [bench.dense(plan)]
    with masked(calibration.model, plan):
        found = quantiser.weights_of_own_inputs(calibration).weights
    with replaced(linears, found):
        passed, dense = bench.passed(plan), bench.dense(plan)
    row = {"part": "GPTQ", "quantisation": "int4_calibrated", "method": name}
    row |= {"setting": "on inputs under the plan", "compared_with": "on dense inputs"}
    yield row | bench.row(passed, among)
    yield row | {"setting": "on inputs under the plan, all weights read"} | bench.row(dense, every)


@contextmanager
def masked(model: PreTrainedModel, plan: SparsityPlan) -> Iterator[None]:
    """Context in which each projection reads what its thresholds leave of its input."""

    def dropping(thresholds: Tensor) -> Callable[..., tuple[Tensor]]:
        return lambda _, inputs: (inputs[0] * (inputs[0].abs() >= thresholds),)

    def placed() -> Iterator[RemovableHandle]:
        for name, linear in model_projections(model).items():
            yield linear.register_forward_pre_hook(dropping(plan.rules[name].thresholds))

    with hooked(placed()):
        yield


@mistakes_in_one_line()
def main() -> None:
    """Measure one model and seed, and write its rows beside those of others."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", required=True, type=Path, help="CSV")
    parser.add_argument("--model", default="llama-mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparsity", type=float, default=0.5)
    chosen = parser.parse_args()
    register_resolvers()
    of = {"model": chosen.model, "seed": f"{chosen.seed}", "sparsity": f"{chosen.sparsity:g}"}
    before = read_rows(chosen.output) if chosen.output.exists() else []
    rows = [row for row in before if any(row[name] != value for name, value in of.items())]
    for row in study(chosen.model, chosen.seed, chosen.sparsity):
        rows.append(dict.fromkeys(COLUMNS, "") | row | of)
        write_text(chosen.output, csv_text(COLUMNS, rows))


if __name__ == "__main__":
    main()
