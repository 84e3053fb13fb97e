"""Realised sparsity and the bytes of weights that a sparsely computed token reads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..kernels.plan_data import Mechanism
from .plan import SparsityPlan
from .projections import PROJECTIONS, decoder_of, key, model_projections, split_key
from .quantisation.model import LM_HEAD, quantisation_of


class TrafficCounter:
    """Counts dropped channels during evaluation; sums stay on the device until `report`."""

    def __init__(self, model: PreTrainedModel, plan: SparsityPlan) -> None:
        decoder, linears = decoder_of(model), model_projections(model)
        self._shapes = {name: tuple(linear.weight.shape) for name, linear in linears.items()}
        self._bytes_per_weight = next(iter(linears.values())).weight.element_size()
        quantised = quantisation_of(model)
        self._stored = {} if quantised is None else {n: w.stored_bytes() for n, w in quantised.weights.items()}
        """Bytes of quantised weights: none, or those of every projection, and of the head where it is."""
        self._blocks = len(decoder.blocks)
        self._besides: Counter[Mechanism] = Counter()
        """Weights that a mechanism reads for every sparse token beside the kept channels."""
        for block in plan.block_plans():
            self._besides.update(block.mechanisms())
        self._always_read = sum(  # biases and norms of the blocks, the last norm and lm_head, as weights
            parameter.numel() for parameter in decoder.blocks.parameters() if parameter.ndim == 1
        )
        self._lm_head = decoder.lm_head.weight.numel()
        self._always_read += decoder.final_norm.weight.numel()
        self._head_bytes = self._stored[LM_HEAD].total if LM_HEAD in self._stored else 0
        if LM_HEAD not in self._stored:
            self._always_read += self._lm_head
        self._dropped: dict[str, Tensor] = {}
        self._tokens: Tensor | int = 0
        self._sparse_tokens: Tensor | int = 0

    def add_tokens(self, real: Tensor, sparse: Tensor) -> None:
        """Count one forward pass: which tokens are real, and which computed sparsely; (rows, length) bool."""
        self._tokens = self._tokens + real.sum()
        self._sparse_tokens = self._sparse_tokens + sparse.sum()

    def add_kept(self, name: str, mask: Tensor) -> None:
        """Count the dropped channels of one projection in one forward pass.

        mask: (rows, length, channels), 1 where a channel is kept and 0 where it is dropped. Whole numbers below
        2^24 are exact in float32, so each token's sum is.
        """
        kept = mask.sum(dim=-1, dtype=torch.float32).sum(dtype=torch.int64)
        self._dropped[name] = self._dropped.get(name, 0) + mask.numel() - kept

    def _kept_shares(self, sparse_tokens: int) -> dict[str, float]:
        """Share of its weights that each projection reads for a sparse token, low-rank factors left out."""
        shares = dict.fromkeys(self._shapes, 1.0)
        if not sparse_tokens:
            return shares
        for name, dropped in self._dropped.items():
            block, part = split_key(name)
            if part == "gate_activation":
                neurons = self._shapes[key(block, "down")][1]
                share = 1.0 - int(dropped) / (sparse_tokens * neurons)
                shares[key(block, "up")] = shares[key(block, "down")] = share
            else:
                shares[name] = 1.0 - int(dropped) / (sparse_tokens * self._shapes[name][1])
        return shares

    def _bytes(self, shares: dict[str, float], weights: float, besides: int) -> float:
        """Bytes of a token that reads these shares of the projections, so many weights, and others besides."""
        stored: float = self._head_bytes
        if self._stored:
            weights = 0
            gated = {split_key(name)[0] for name in self._dropped if name.endswith(".gate_activation")}
            by_neuron = {key(block, "up") for block in gated}  # a dropped neuron is a column of up
            for name, share in shares.items():
                found = self._stored[name]
                stored += found.of_columns(share) if name in by_neuron else found.of_rows(share)
        return (weights + besides + self._always_read) * self._bytes_per_weight + stored

    def report(self) -> dict[str, Any]:
        """JSON-able; sparsities are means weighted by matrix size, bytes are per decoded token.

        Without a sparse token so far, the realised figures are those of dense computation.
        """
        tokens, sparse_tokens = int(self._tokens), int(self._sparse_tokens)
        shares = self._kept_shares(sparse_tokens)
        sizes = {name: out * inner for name, (out, inner) in self._shapes.items()}

        def sparsity(names: list[str]) -> float:
            return 1.0 - sum(shares[n] * sizes[n] for n in names) / sum(sizes[n] for n in names)

        overall = sparsity(list(sizes))
        sparse_share = sparse_tokens / tokens if tokens else 0.0
        dense_weights = sum(sizes.values())
        kept, besides = dense_weights * (1.0 - overall), self._besides.total()
        read = kept + besides
        return {
            "realised_sparsity": overall,
            "realised_sparsity_all_tokens": overall * sparse_share,
            "sparse_token_share": sparse_share,
            "by_projection": {
                name: sparsity([n for n in sizes if split_key(n)[1] == name]) for name in PROJECTIONS
            },
            "by_block": [
                sparsity([n for n in sizes if split_key(n)[0] == block]) for block in range(self._blocks)
            ],
            "low_rank_share": self._besides[Mechanism.LOW_RANK] / dense_weights,
            "rotation_share": self._besides[Mechanism.ROTATION] / dense_weights,
            "bytes_per_token": self._bytes(shares, kept, besides),
            "dense_bytes_per_token": self._bytes(dict.fromkeys(shares, 1.0), dense_weights, 0),
            "flops_per_token": 2 * (read + self._lm_head),
            "dense_flops_per_token": 2 * (dense_weights + self._lm_head),
            "tokens": tokens,
            "sparse_tokens": sparse_tokens,
        }


class BatchTrafficCounter(TrafficCounter):
    """Counts what the rows of a batch read together at one position: a channel that any of them keeps.

    Its token is a decode step of all rows; rows are of equal length.
    """

    def add_tokens(self, real: Tensor, sparse: Tensor) -> None:
        """See `TrafficCounter`."""
        super().add_tokens(real.any(dim=0), sparse.any(dim=0))

    def add_kept(self, name: str, mask: Tensor) -> None:
        """See `TrafficCounter`."""
        super().add_kept(name, mask.amax(dim=0))
