"""What the folded method might still gain on `llama-mini`, tried and not built.

    python -m wisparse.repro.studies.left_over --output results/left_over.csv --seed 0

Plans, choices and measurements have parts of one calibration text that are apart; no text of an evaluation is
read. All tokens are sparse. Every setting is compared with the plan as it is, at the weights that the setting
reads: between two passes in which all thresholds of that plan are moved.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from hydra import compose
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from ...kernels.model.decoder import PROJECTIONS
from ...method.calibration import Calibration
from ...method.errors import UserError
from ...method.plan import SparsityPlan
from ...method.projections import split_key
from ...method.rotation import folded_into
from ..configuration import composing, mistakes_in_one_line, register_resolvers
from ..measured.paired_bootstrap import interval, resample_counts
from ..models.checkpoint import find_checkpoint, load_model
from ..records import write_text
from ..tables.csv_rows import Row, csv_text, read_rows
from .known_of_a_token import (
    Feature,
    Followed,
    fitted,
    given,
    kept_before,
    positions,
    price,
    stream_itself,
    stream_size,
)
from .shifted_pass import Deviation, Lost, StudiedText

PLANNED, FITTED, CHOSEN, REPORTED = 16, 8, 4, 12
"""Sequences that a plan is made on, and regressions and strengths, and that all is measured on."""
MOVES = (-0.4, 0.0, 0.3)
"""Octaves that all thresholds are moved by, for what other settings are compared with."""
GROUP_MOVES = (-0.3, 0.0, 0.3)
"""Octaves that the thresholds of one block, or of one kind of projection, are moved by."""
STRENGTHS = (0.04, 0.1)
"""Octaves a doubled price moves a token's thresholds by: one is chosen."""
SMALL = (
    "model=llama-mini",
    "calibration=unseen",
    f"calibration.sequences={PLANNED + FITTED + CHOSEN + REPORTED}",
    "search=quick",
)
FOLDED = (
    "method=equal_loss_folded_given",
    f"method.basis_sequences={PLANNED}",
    "method.basis.steps=120",
    "method.basis.tokens=8192",
    "method.basis.tokens_a_step=256",
    "method.inner.correction_rounds=6",
    "method.inner.correction_sequences=6",
)
"""Settings that two CPU cores can do: fewer steps and less text than where methods are compared."""
COLUMNS = (
    "part", "setting", "known_while_decoding", "seed", "sparsity", "strength", "read",
    "divergence", "divergence_low", "divergence_high",
)  # fmt: skip
RESAMPLES = 4000


def study(seed: int, sparsity: float) -> Iterator[Row]:
    """Rows of one seed. Raises UserError where a setting reads more or less than the passes compared with."""
    with composing():
        config = compose("config", overrides=[*SMALL, *FOLDED, f"seed={seed}"])
    loaded = load_model(find_checkpoint(OmegaConf.to_container(config.model, resolve=True)))
    ids = instantiate(config.calibration).input_ids(loaded.tokenizer)
    planned, fit, choose, report = ids.split((PLANNED, FITTED, CHOSEN, REPORTED))
    calibration = Calibration(loaded.model, planned, config.calibration.batch_size)
    method = instantiate(config.method)
    plan = method.plan(calibration, sparsity)
    with folded_into(loaded.model, plan.folded):
        texts = [StudiedText(loaded.model, plan, part) for part in (fit, choose, report)]
        bench = _Bench(*texts, seed)
        yield from bench.rows()
    for setting, inner in _inner_methods(config).items():
        other = replace(method, inner=inner).plan(calibration, sparsity)
        with folded_into(loaded.model, other.folded):
            yield bench.row("allocation", setting, True, bench.of_plan(other))


def _inner_methods(config: OmegaConf) -> dict[str, object]:
    """What allocates in place of equal loss with corrections, by its name."""
    with composing():
        others = {
            name: compose("config", overrides=[*SMALL, f"method={name}", "allocation=curves"]).method
            for name in ("equal_error", "wisparse")
        }
    bare = instantiate(config.method.inner, correction_rounds=0)
    return {
        "equal expected loss, no corrections": bare,
        "equal local error": instantiate(others["equal_error"]),
        "dynamic programming on the blocks' curves, WiSparse's scores": instantiate(others["wisparse"]),
    }


class _Bench:
    """One plan on its parts of a text, and what deviates from it."""

    def __init__(self, fit: StudiedText, choose: StudiedText, report: StudiedText, seed: int) -> None:
        self._fit, self._choose, self._report = fit, choose, report
        self._dense = {text: text.dense_states() for text in (fit, choose, report)}
        self._plain = fit.lost(self._dense[fit], Deviation(), keep_seen=True)
        self._moved = {
            text: [text.lost(self._dense[text], Deviation(octaves=move)) for move in MOVES]
            for text in (choose, report)
        }
        generator = np.random.default_rng(seed)
        self._counts = np.vstack([np.ones(REPORTED), resample_counts(REPORTED, RESAMPLES, generator)])

    def rows(self) -> Iterator[Row]:
        """What each kind of deviation changes."""
        for setting, known, features in self._features():
            yield self._followed(setting, known, features)
        yield from self._measured_allocations()
        yield from self._sites()

    def _features(self) -> Iterator[tuple[str, bool, Mapping[StudiedText, Feature]]]:
        texts = (self._fit, self._choose, self._report)

        def everywhere(feature: Feature) -> dict[StudiedText, Feature]:
            return dict.fromkeys(texts, feature)

        at_none = {self._fit: self._plain, **{t: moved[MOVES.index(0.0)] for t, moved in self._moved.items()}}
        yield (
            "its own divergence: an oracle",
            False,
            {text: given(price(lost)[..., None]) for text, lost in at_none.items()},
        )
        yield "position: the first 1, 4, 16, 64, 256", True, everywhere(positions(self._fit.ids.shape[1]))
        yield "kept share of the block before, and of all before", True, everywhere(kept_before)
        yield "size of the residual stream", True, everywhere(stream_size)
        yield "the residual stream: a linear probe in every block", True, everywhere(stream_itself)

    def _followed(self, setting: str, known: bool, features: Mapping[StudiedText, Feature]) -> Row:
        weights = fitted(features[self._fit], self._plain, self._fit.batch_size)

        def lost(text: StudiedText, strength: float) -> Lost:
            shift = Followed(features[text], weights, strength)
            return text.lost(self._dense[text], Deviation(shift=shift))

        tried = {strength: lost(self._choose, strength) for strength in STRENGTHS}
        ones = np.ones((1, CHOSEN))
        changes = {s: self._change(found, self._choose, ones)[0] for s, found in tried.items()}
        strength = min(changes, key=changes.__getitem__)
        found = lost(self._report, strength)
        return self.row("token", setting, known, found) | {"strength": f"{strength:g}"}

    def _sites(self) -> Iterator[Row]:
        """Top-k in place of thresholds, in one kind of projection and in all."""
        shapes = self._report.plan.shapes
        kept = self._kept_channels()
        for kind in (*PROJECTIONS, "all"):
            top_k = {name: kept[name] for name in shapes if kind in (split_key(name)[1], "all")}
            found = self._report.lost(self._dense[self._report], Deviation(top_k=top_k))
            yield self.row("site", f"top-k of each token in {kind}", True, found)

    def _measured_allocations(self) -> Iterator[Row]:
        """Each group's thresholds moved to where the measured losses of all groups are least together."""
        shapes, text = self._report.plan.shapes, self._choose
        plain = self._moved[text][MOVES.index(0.0)]
        for part, groups in enumerate(("block", "kind")):
            group_of, curves = {name: split_key(name)[part] for name in shapes}, {}
            for group in dict.fromkeys(group_of.values()):
                of_group = [name for name in shapes if group_of[name] == group]
                alone = [
                    plain
                    if move == 0.0
                    else text.lost(self._dense[text], Deviation(moves=dict.fromkeys(of_group, move)))
                    for move in GROUP_MOVES
                ]
                pairs = [(float(lost.read.mean()), float(lost.divergence.mean())) for lost in alone]
                curves[group] = np.array(pairs) - pairs[GROUP_MOVES.index(0.0)]
            found = least_together(curves)
            moves = {name: found[group] for name, group in group_of.items()}
            lost = self._report.lost(self._dense[self._report], Deviation(moves=moves))
            yield self.row("allocation", f"moved by {groups}: least sum of measured divergences", True, lost)

    def _kept_channels(self) -> dict[str, int]:
        """Channels that the plan keeps in the mean, by projection."""
        sparsities = self._report.plan.provenance.details["sparsities"]
        return {
            name: round((1.0 - sparsities[name]) * inner)
            for name, (_, inner) in self._report.plan.shapes.items()
        }

    def of_plan(self, plan: SparsityPlan) -> Lost:
        """What another plan loses on the text that is reported, in bases that are in place."""
        text = replace(self._report, plan=plan)
        return text.lost(text.dense_states(), Deviation())

    def row(self, part: str, setting: str, known: bool, found: Lost) -> Row:
        """What a setting changes of the divergence from the dense model, at the weights that it reads."""
        row = {"part": part, "setting": setting, "known_while_decoding": str(known).lower(), "strength": ""}
        row["read"] = f"{float(found.read.mean()):.4f}"
        drawn = self._change(found, self._report, self._counts)
        spread = interval(drawn[0], drawn[1:])
        return row | {
            "divergence": f"{spread.value:.4f}",
            "divergence_low": f"{spread.low:.4f}",
            "divergence_high": f"{spread.high:.4f}",
        }

    def _change(self, found: Lost, text: StudiedText, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share by which the divergence differs from the plan's own at the same weights read, by resample."""
        reads = np.array([float(lost.read.mean()) for lost in self._moved[text]])
        order, read = np.argsort(reads), float(found.read.mean())
        if not reads.min() <= read <= reads.max():
            raise UserError(f"a setting reads {read:.3f} of the weights, the plan {reads.min():.3f} or more")
        own = np.stack([_mean(lost.divergence, counts) for lost in self._moved[text]])[order]
        upper = int(np.clip(np.searchsorted(reads[order], read), 1, len(reads) - 1))
        low, high = reads[order][upper - 1 : upper + 1]
        share = (read - low) / (high - low)
        at_read = np.exp((1 - share) * np.log(own[upper - 1]) + share * np.log(own[upper]))
        return _mean(found.divergence, counts) / at_read - 1.0


def least_together(curves: Mapping[int | str, NDArray[np.float64]]) -> dict[int | str, float]:
    """Moves of groups that lose least together and read as much as without, on a fine grid of `GROUP_MOVES`.

    curves: (moves, 2) what a group's moves change of what is read and of the loss. The least sum under a price
    of what is read, which is halved down to the one at which as much is read: the Lagrangian of dynamic
    programming.
    """
    fine = np.linspace(GROUP_MOVES[0], GROUP_MOVES[-1], 101)
    grids = {
        group: np.stack([np.interp(fine, GROUP_MOVES, curve[:, column]) for column in (0, 1)])
        for group, curve in curves.items()
    }
    cheap, dear = 0.0, 1e6
    for _ in range(100):
        price = (cheap + dear) / 2
        chosen = {group: int(np.argmin(loss + price * read)) for group, (read, loss) in grids.items()}
        if sum(grids[group][0][at] for group, at in chosen.items()) > 0.0:
            cheap = price
        else:
            dear = price
    return {group: float(fine[at]) for group, at in chosen.items()}


def _mean(values: Tensor, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return counts @ values.double().mean(dim=1).numpy() / counts.sum(axis=1)


@mistakes_in_one_line()
def main() -> None:
    """Measure one seed, and write its rows beside those of others."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", required=True, type=Path, help="CSV")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparsity", type=float, default=0.5)
    chosen = parser.parse_args()
    register_resolvers()
    of = {"seed": f"{chosen.seed}", "sparsity": f"{chosen.sparsity:g}"}
    before = read_rows(chosen.output) if chosen.output.exists() else []
    rows = [row for row in before if any(row[name] != value for name, value in of.items())]
    for row in study(chosen.seed, chosen.sparsity):
        rows.append(row | of)
        write_text(chosen.output, csv_text(COLUMNS, rows))


if __name__ == "__main__":
    main()
