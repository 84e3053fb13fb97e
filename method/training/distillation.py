"""Thresholds and biases fitted to the dense model's predictions, at a fixed share of weights not read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...kernels.plan.folding import bases_of
from ..calibration import Calibration
from ..equal_loss.block_backward import backward_through_blocks
from ..errors import UserError
from ..hooks import hooked
from ..plan import ProjectionRule
from ..projections import NORM_PATHS, SITE_OF_PROJECTION, decoder_of, model_projections, split_key
from ..running.precision import coarse_products
from ..search.block_probe import block_keywords
from ..settings import Settings
from .trained_rules import Biases, TrainedBasis, TrainedProjection

WARM_UP = 20
"""Steps over which the rates rise."""
MEMORY = 0.95
"""Share that the estimate of the price keeps at each step."""
CONTROL = 0.2
"""Share of what the sparsity is off by that one shift of all thresholds takes back."""


@dataclass(frozen=True)
class TrainedRules:
    """What a training has found."""

    rules: dict[str, ProjectionRule]
    """Rules of projections, by key."""
    stream: Tensor | None
    """(hidden, hidden) basis of the stream that the rules are in, from the one before; None: the same."""
    losses: list[float]
    """KL(dense ‖ sparse) a sparse token of every tenth step."""


@dataclass(frozen=True)
class Distillation(Settings):
    """Settings of the training."""

    steps: int = 300
    sequences: int = 16
    """Sequences of a step, drawn from all of the text."""
    bias_rate: float = 2e-3
    """Largest step of a bias, or of a vector that becomes one."""
    threshold_rate: float = 0.01
    """Largest step of a threshold, in octaves; 0: they stay as they are."""
    biases: Biases = "output"
    basis_rate: float = 0.0
    """Typical angle, in radians, by which a step turns the residual stream's basis; 0: it stays as it is."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise UserError(f"training.steps={self.steps}: a training needs at least one step")

    @coarse_products()
    def run(
        self, calibration: Calibration, rules: Mapping[str, ProjectionRule], sparsity: float
    ) -> TrainedRules:
        """Rules after the training, and what else was found in it.

        Raises UserError where a basis is to be trained of a model whose weights are not in folded bases.
        """
        linears = model_projections(calibration.model)
        thresholds, basis = self.threshold_rate > 0, self._basis(calibration)
        trained = {
            name: TrainedProjection(
                linears[name], rule, self.biases, thresholds, basis if reads_stream(name) else None
            )
            for name, rule in rules.items()
        }
        groups = [{"params": [one.vector for one in trained.values()], "lr": self.bias_rate}]
        if thresholds:
            levels = [one.log2_thresholds for one in trained.values()]
            groups.append({"params": levels, "lr": self.threshold_rate})
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share_of_rate)
        budget = _Budget(calibration, trained, sparsity) if thresholds else None
        text, losses = _Text(calibration, self.sequences, self.seed), []
        with hooked(handle for one in trained.values() for handle in one.hooks(text.positions)):
            for step in tqdm(range(self.steps), desc="training", unit="step", leave=False):
                loss = text.backward()
                if step % 10 == 0:
                    losses.append(loss)
                if budget is not None:
                    budget.hold(text.sparse_tokens)
                if basis is not None:
                    basis.turn(self.basis_rate * self._share_of_rate(step))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        found = {name: one.rule() for name, one in trained.items()}
        stream = None if basis is None else basis.matrix.detach()
        return TrainedRules(found, stream, torch.stack(losses).tolist())

    def _basis(self, calibration: Calibration) -> TrainedBasis | None:
        if not self.basis_rate:
            return None
        if bases_of(calibration.model) is None:
            raise UserError(
                "training.basis_rate turns a basis that is folded into the weights; set it to 0 outside of a "
                "method in folded bases"
            )
        return TrainedBasis(calibration.shapes["0.q"][1], calibration.device)

    def _share_of_rate(self, step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))


def reads_stream(name: str) -> bool:
    """Whether a projection, by key, reads the residual stream behind a norm."""
    return SITE_OF_PROJECTION[split_key(name)[1]] in NORM_PATHS


class _Text:
    """Sequences drawn from the calibration text, and the divergence on them sent back."""

    def __init__(self, calibration: Calibration, sequences: int, seed: int) -> None:
        self._calibration, self._sequences = calibration, sequences
        self._generator = torch.Generator().manual_seed(seed)
        first = calibration.input_ids[:1].to(calibration.device)
        with torch.no_grad():
            self._keywords = block_keywords(calibration.model, first)
        positions = calibration.search_positions(first)
        self.positions = torch.ones_like(first, dtype=torch.bool) if positions is None else positions
        """(1, length) tokens that are sparse."""
        self.sparse_tokens = sequences * int(self.positions.sum())
        """Sparse tokens of one step."""

    def backward(self) -> Tensor:
        """Gradients of the mean divergence of the sparse tokens of other sequences; returns that mean."""
        calibration, total = self._calibration, torch.zeros((), device=self._calibration.device)
        rows = torch.randint(len(calibration.input_ids), (self._sequences,), generator=self._generator)
        for part in rows.split(calibration.batch_size):
            dense = calibration.final_states[part].flatten(0, 1)

            def slope(logits: Tensor, which: slice, dense: Tensor = dense) -> Tensor:
                with torch.no_grad():
                    expected = decoder_of(calibration.model).lm_head(dense[which]).float().log_softmax(dim=-1)
                found = logits.log_softmax(dim=-1)
                divergence = nn.functional.kl_div(found, expected, reduction="sum", log_target=True)
                total.add_(divergence / self.sparse_tokens)
                return found.exp_().sub_(expected.exp_()).div_(self.sparse_tokens)

            input_ids = calibration.input_ids[part].to(calibration.device)
            backward_through_blocks(calibration.model, input_ids, self._keywords, slope)
        return total


class _Budget:
    """Holds the share of weights that are not read.

    What a threshold gains in divergence is set off against what it saves, at one price for all weights: the
    ratio at which moving all of them together gains nothing. A shift of all takes back what is still off.
    """

    def __init__(
        self, calibration: Calibration, trained: Mapping[str, TrainedProjection], sparsity: float
    ) -> None:
        self._trained, self._sparsity = trained, sparsity
        shapes = [calibration.shapes[name] for name in trained]
        total = sum(math.prod(shape) for shape in calibration.shapes.values())
        self._saved = torch.tensor([out / total for out, _ in shapes], device=calibration.device)
        """Share of all weights that one channel of each projection is."""
        self._mean: Tensor | None = None

    @torch.no_grad()
    def hold(self, tokens: int) -> None:
        """Change the thresholds' gradients and the thresholds, after the passes of a step on so many tokens."""
        trained = list(self._trained.values())
        savings = [one.density.grad * saved / tokens for one, saved in zip(trained, self._saved, strict=True)]
        losses = torch.stack([one.log2_thresholds.grad.sum() for one in trained]).sum()
        gained = torch.stack([saving.sum() for saving in savings]).sum()
        now = torch.stack([losses, gained])
        self._mean = now if self._mean is None else MEMORY * self._mean + (1 - MEMORY) * now
        price = self._mean[0] / self._mean[1]
        dropped = torch.stack([torch.as_tensor(one.dropped) for one in trained]).float()
        realised = (dropped * self._saved).sum() / tokens
        shift = (CONTROL * (self._sparsity - realised) / gained.clamp_min(1e-9)).clamp(-0.5, 0.5)
        for one, saving in zip(trained, savings, strict=True):
            one.log2_thresholds.grad -= price * saving
            one.log2_thresholds += shift
            one.density.grad, one.dropped = None, 0
