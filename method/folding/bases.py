"""Bases in which a decoder's activations gather in few channels, measured on the calibration text.

The residual stream has one basis for all blocks, fitted so that dropping its channels by one threshold on
the expected loss costs least. A head's values have one in each block: the principal axes of what o reads of it,
over all heads of q that share it. Both cost nothing a token (`kernels.plan.folding`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from ...kernels.plan.bases import FoldedBases
from ..calibration import Calibration
from ..equal_loss.block_backward import backward_through_blocks
from ..equal_loss.sensitivity import label_slope
from ..errors import UserError
from ..hooks import hooked
from ..plan import ProjectionRule
from ..projections import (
    NORM_PATHS,
    PROJECTION_PATHS,
    decoder_of,
    key,
    model_projections,
    projections_of_site,
    split_key,
)
from ..running.half_attention import coarse_passes
from ..running.projection_hooks import sparse_projections
from ..search.block_probe import block_keywords
from .fishers import Fishers
from .stream_basis import BasisSample, BasisSettings, fitted_basis

NOT_FINITE = "activations or gradients are not finite on the calibration text; try model.dtype=float32"


def shared_bases(
    calibration: Calibration, sequences: int, settings: BasisSettings
) -> tuple[FoldedBases, Fishers]:
    """Bases of the residual stream and of each block's values, found on so many sequences; computed once.

    With them the Fisher matrices that they were found from. Raises UserError where activations or gradients are
    not finite.
    """

    def find() -> tuple[FoldedBases, Fishers]:
        sample = _Measured(calibration, sequences, settings, {})
        return _found(sample, settings), sample.fishers

    return calibration.remembered(("shared bases", sequences, settings), find)


def bases_at(
    calibration: Calibration,
    rules: Mapping[str, ProjectionRule],
    reached: FoldedBases,
    sequences: int,
    settings: BasisSettings,
) -> FoldedBases:
    """Bases found in the same way on the model that is sparse by these rules, its weights in bases `reached`.

    Returned are bases of the model's own weights. Raises as `shared_bases`.
    """
    return reached.then(_found(_Measured(calibration, sequences, settings, rules), settings))


def _found(sample: _Measured, settings: BasisSettings) -> FoldedBases:
    axes = _axes(torch.stack(sample.values))
    if settings.value_steps:
        by_head = axes.flatten(0, 1)
        fitted = fitted_basis(sample.heads().turned(by_head), settings, settings.value_steps)
        axes = (by_head @ fitted).view_as(axes)
    return FoldedBases(
        fitted_basis(sample.stream(), settings, settings.steps), dict(enumerate(axes.contiguous()))
    )


class _Measured:
    """What bases are found from: one forward and one backward pass over some of the calibration text."""

    def __init__(
        self,
        calibration: Calibration,
        sequences: int,
        settings: BasisSettings,
        rules: Mapping[str, ProjectionRule],
    ) -> None:
        self._calibration, self._decoder = calibration, decoder_of(calibration.model)
        input_ids = calibration.input_ids[calibration.spread(sequences)].to(calibration.device)
        positions = calibration.search_positions(input_ids)
        self._positions = torch.ones_like(input_ids[:1], dtype=torch.bool) if positions is None else positions
        self._rules = rules
        places = self._positions[0].nonzero()[:, 0].tolist()
        self._sparse = _evenly(places, calibration.device)
        self._tokens = len(input_ids) * len(places)
        self._stride = max(1, self._tokens // settings.tokens)
        self._value_steps = settings.value_steps
        self._inputs: dict[str, list[Tensor]] = {}
        self._gradients: dict[str, Tensor] = {}
        shape = self._decoder.shape
        self._grouped = (shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
        self.values: list[Tensor] = [torch.zeros(())] * shape.blocks
        """Σ v vᵀ (kv heads, head_dim, head_dim) float64 of what o reads, by block."""
        self._pass_over(input_ids, settings.seed)
        self.fishers = self._means()
        """Fisher matrices of the model that the pass was over."""

    def _means(self) -> Fishers:
        means = {name: found / self._tokens for name, found in self._gradients.items()}
        if not all(found.isfinite().all() for found in means.values()):
            raise UserError(NOT_FINITE)
        heads, down = (
            {name: found for name, found in means.items() if split_key(name)[1] == projection}
            for projection in ("o", "down")
        )
        stream = {name: found for name, found in means.items() if name not in heads.keys() | down.keys()}
        return Fishers(stream, heads, down)

    def stream(self) -> BasisSample:
        """What the projections read of the residual stream, and how much they depend on it."""
        places = [(block, site) for block in range(len(self._decoder.blocks)) for site in NORM_PATHS]
        sites, fishers, outs = [], [], []
        for index, (block, site) in enumerate(places):
            for projection in projections_of_site(site):
                sites.append(index)
                fishers.append(self.fishers.stream[key(block, projection)])
                outs.append(self._calibration.shapes[key(block, projection)][0])
        inputs = torch.stack([torch.cat(self._inputs[key(*place)]) for place in places])
        return _finite(BasisSample(inputs, torch.tensor(sites), torch.stack(fishers), torch.tensor(outs)))

    def heads(self) -> BasisSample:
        """What o reads of every head of v, a group each, the heads of q that share it as its sites."""
        names = [key(block, "o") for block in range(len(self._decoder.blocks))]
        inputs = torch.cat([torch.cat(self._inputs[name]).permute(1, 2, 0, 3) for name in names])
        fishers = torch.cat([self.fishers.heads[name] for name in names])
        sharing = torch.arange(inputs.shape[1])
        outs = torch.full_like(sharing, self._calibration.shapes[names[0]][0])
        return _finite(BasisSample(inputs, sharing, fishers, outs))

    def _pass_over(self, input_ids: Tensor, seed: int) -> None:
        model = self._calibration.model
        generator = torch.Generator(input_ids.device).manual_seed(seed)
        with torch.no_grad():
            keywords = block_keywords(model, input_ids[:1])
        sparse = sparse_projections(model_projections(model), self._rules, self._positions)
        # What is recorded is there before channels are dropped.
        with coarse_passes(model), hooked(self._hooks()), sparse:
            batches = input_ids.split(self._calibration.rows_a_walk(len(input_ids)))
            for batch in tqdm(batches, desc="bases", leave=False):
                slope = label_slope(self._positions.expand_as(batch), generator)
                backward_through_blocks(model, batch, keywords, slope)

    def _hooks(self) -> Iterator[RemovableHandle]:
        linears = model_projections(self._calibration.model)
        for index, block in enumerate(self._decoder.blocks):
            for site, path in NORM_PATHS.items():
                norm = block.get_submodule(path)
                yield norm.register_forward_pre_hook(self._of_norm(key(index, site)))
                for projection in projections_of_site(site):
                    name = key(index, projection)
                    yield linears[name].register_full_backward_hook(self._of_gradient(name, norm))
            heads = block.get_submodule(PROJECTION_PATHS["o"])
            yield heads.register_forward_pre_hook(self._of_heads(index))
            yield heads.register_full_backward_hook(self._of_head_gradient(key(index, "o")))
            down = linears[key(index, "down")]
            yield down.register_full_backward_hook(self._of_down(key(index, "down")))

    def _of_norm(self, name: str) -> Callable[..., None]:
        def record(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
            if torch.is_grad_enabled():  # a block is computed twice
                hidden = inputs[0].detach()[:, self._sparse].flatten(0, 1)[:: self._stride].float()
                scale = torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon)
                self._inputs.setdefault(name, []).append(hidden * scale)

        return record

    def _of_gradient(self, name: str, norm: nn.Module) -> Callable[..., None]:
        def record(_: nn.Linear, at_input: tuple[Tensor, ...], __: tuple[Tensor, ...]) -> None:
            gradient = at_input[0][:, self._sparse].flatten(0, 1).float()
            gains = norm.weight.detach().float()
            products = (gradient.T @ gradient).mul_(gains).mul_(gains[:, None])
            self._gradients[name] = self._gradients.get(name, 0.0) + products

        return record

    def _of_heads(self, block: int) -> Callable[..., None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if torch.is_grad_enabled():  # heads of q that share one of k and v lie side by side
                by_head = self._by_head(inputs[0].detach())
                if self._value_steps:
                    kept = by_head.flatten(0, 1)[:: self._stride].float()
                    self._inputs.setdefault(key(block, "o"), []).append(kept)
                products = _products(by_head).sum(dim=1)
                self.values[block] = self.values[block].to(products) + products

        return record

    def _of_head_gradient(self, name: str) -> Callable[..., None]:
        def record(_: nn.Linear, at_input: tuple[Tensor, ...], __: tuple[Tensor, ...]) -> None:
            products = _products(self._by_head(at_input[0])).float()
            self._gradients[name] = self._gradients.get(name, 0.0) + products

        return record

    def _of_down(self, name: str) -> Callable[..., None]:
        def record(_: nn.Linear, at_input: tuple[Tensor, ...], __: tuple[Tensor, ...]) -> None:
            gradient = at_input[0][:, self._sparse].flatten(0, 1).float()
            squares = torch.linalg.vector_norm(gradient, dim=0).square()
            self._gradients[name] = self._gradients.get(name, 0.0) + squares

        return record

    def _by_head(self, x: Tensor) -> Tensor:
        """(rows, sparse tokens, kv heads, heads of q that share one, head_dim) of what o reads."""
        return x[:, self._sparse].unflatten(-1, self._grouped)


def _products(by_head: Tensor) -> Tensor:
    """Σ x xᵀ over rows and tokens (rows, tokens, kv heads, heads, head_dim), by head; float64.

    Each row's sum is float32, so that a GPU has enough products to be busy with.
    """
    of_rows = by_head.float().permute(0, 2, 3, 1, 4)
    return (of_rows.mT @ of_rows).double().sum(dim=0)


def _evenly(places: list[int], device: torch.device) -> slice | Tensor:
    """Places as a slice, where they are evenly apart, which copies nothing; else as indices on the device."""
    apart = places[1] - places[0] if len(places) > 1 else 1
    if places == list(range(places[0], places[-1] + 1, apart)):
        return slice(places[0], places[-1] + 1, apart)
    return torch.tensor(places, device=device)


def _finite(sample: BasisSample) -> BasisSample:
    if not sample.inputs.isfinite().all():
        raise UserError(NOT_FINITE)
    return sample


def _axes(moments: Tensor) -> Tensor:
    """Eigenvectors (..., channels, channels) float32, those of the largest eigenvalues first.

    Found on the CPU: a GPU takes such small matrices one after the other, and longer for each.
    """
    return torch.linalg.eigh(moments.cpu()).eigenvectors.flip(-1).float().contiguous().to(moments.device)
