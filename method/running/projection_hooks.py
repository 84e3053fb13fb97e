"""Hooks that drop input channels of linear layers, as a plan's or a search's rules say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...kernels.reference import (
    dropped_by_shared_top_k,
    dropped_by_top_k,
    dropped_within_bounds,
    kept_by_threshold,
    low_rank_product,
)
from ...kernels.triton.statistics.thresholded import thresholded
from ..hooks import hooked
from ..plan import ProjectionRule
from .candidates import CandidateRules
from .traffic import TrafficCounter

Rule = ProjectionRule | CandidateRules
"""How a projection drops channels: one rule for every row, or in a search one for each."""


class ProjectionHooks:
    """Forward hooks that drop input channels of linear layers according to rules.

    `sparse_positions`, (rows, length) bool, says which tokens are computed sparsely; None means all. Under a
    shared rule so many rows after each other share a mask at each position, chosen by those that are sparse.
    """

    def __init__(self, counter: TrafficCounter | None = None, rows_sharing: int = 1) -> None:
        self.sparse_positions: Tensor | None = None
        self.left: dict[str, Tensor] = {}
        """Channels (rows, length, in) that an earlier hook of the pass has left, by projection."""
        self._counter = counter
        self._rows_sharing = rows_sharing

    def on_projection(self, name: str, linear: nn.Linear, rule: Rule) -> Iterator[RemovableHandle]:
        """Register what drops the channels of `linear`'s input that `rule` does not keep."""
        dropped: list[Tensor] = []  # from the pre-hook to the forward hook of the same call

        def drop_channels(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = inputs[0]
            kept = self._kept(name, x, rule)
            if rule.left is not None:
                dropped.append(x - kept)
            return (kept, *inputs[1:])

        def add_low_rank(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # Where a token is dense nothing was dropped, and the product is zero.
            return output + low_rank_product(dropped.pop(), rule.left, rule.right)

        def add_bias(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self.sparse_positions is None:
                return output + rule.bias
            return output + rule.bias * self.sparse_positions[..., None]

        yield linear.register_forward_pre_hook(drop_channels)
        if rule.left is not None:
            yield linear.register_forward_hook(add_low_rank)
        if rule.bias is not None:
            yield linear.register_forward_hook(add_bias)

    def on_gate(self, name: str, activation: nn.Module, thresholds: Tensor) -> Iterator[RemovableHandle]:
        """Register what zeroes the neurons of a gate activation below their thresholds (CATS, CHESS)."""

        def drop_neurons(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return self.selected(name, output, kept_by_threshold(output.detach(), thresholds))

        yield activation.register_forward_hook(drop_neurons)

    def _kept(self, name: str, x: Tensor, rule: Rule) -> Tensor:
        """X with zeros where the rule drops channels, counted; which are kept has no gradient."""
        static = isinstance(rule, ProjectionRule) and rule.thresholds is not None and rule.bounds is None
        if static and x.is_cuda and x.ndim == 3 and self._counter is None and name not in self.left:
            return thresholded(x, rule.thresholds, self.sparse_positions)
        return self.selected(name, x, self._mask(x.detach(), rule))

    def _mask(self, x: Tensor, rule: Rule) -> Tensor:
        """1 where the rule keeps a channel and 0 where it drops it; x's shape and type."""
        if rule.bounds is not None:
            return dropped_within_bounds(x, rule.thresholds, *rule.bounds).logical_not_().to(x.dtype)
        if rule.thresholds is not None:
            return kept_by_threshold(x, rule.thresholds)
        if rule.shared is not None and self._rows_sharing > 1:
            return self._shared_mask(x, rule)
        return dropped_by_top_k(x, rule.weights, rule.top_k).logical_not_().to(x.dtype)

    def _shared_mask(self, x: Tensor, rule: Rule) -> Tensor:
        voting = torch.ones_like(x[..., 0], dtype=torch.bool)
        if self.sparse_positions is not None:
            voting &= self.sparse_positions
        groups = zip(x.split(self._rows_sharing), voting.split(self._rows_sharing), strict=True)
        dropped = [
            dropped_by_shared_top_k(rows, rule.weights, rule.top_k, rule.shared, of).expand_as(rows)
            for rows, of in groups
        ]
        return torch.cat(dropped).logical_not_().to(x.dtype)

    def selected(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
        """X with zeros at the dropped channels of sparse tokens, counted. Overwrites the mask."""
        if self.sparse_positions is not None:
            mask.clamp_min_(self.sparse_positions[..., None].logical_not().to(x.dtype))
        if (left := self.left.pop(name, None)) is not None:
            mask.mul_(left)
        if self._counter is not None:
            self._counter.add_kept(name, mask)
        return x * mask


@contextmanager
def sparse_projections(
    linears: Mapping[str, nn.Linear],
    rules: Mapping[str, Rule],
    sparse_positions: Tensor | None = None,
) -> Iterator[None]:
    """Context in which these layers compute the tokens at `sparse_positions` sparsely.

    (rows or 1, length) bool; None: every token. What searches run under.
    """
    hooks = ProjectionHooks()
    hooks.sparse_positions = sparse_positions
    with hooked(
        handle for name, rule in rules.items() for handle in hooks.on_projection(name, linears[name], rule)
    ):
        yield
