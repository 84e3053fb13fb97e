"""Realised sparsity and the bytes of weights that a sparsely computed token reads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...kernels.plan.mechanism import Mechanism
from ..plan import SparsityPlan
from ..projections import PROJECTIONS, decoder_of, key, model_projections, split_key
from ..quantised_model import LM_HEAD, quantisation_of

NEURONS = {
    "gate_activation": ("up", "down"),
    "predicted": ("gate",),
    "activated": ("up", "down"),
    "chosen": ("gate", "up", "down"),
}
"""Projections whose weights belong to the neurons of a mask, by how the mask is counted."""


class TrafficCounter:
    """Counts dropped channels during evaluation; sums stay on the device until `report`.

    Where rows stand for a batch, so many after each other, its token is a decode step of all of them: a channel
    is read where any of those that are sparse keeps it.
    """

    def __init__(self, model: PreTrainedModel, plan: SparsityPlan, rows_together: int = 1) -> None:
        self._rows_together = rows_together
        self._sparse = torch.zeros(0, 0, dtype=torch.bool)
        """(rows, length) tokens of this forward pass that are sparse, where rows stand for a batch."""
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
        # A product with a proxy has a factor for each value, however few its bits.
        values = sum(2 * rule.read * rule.neurons for rule in plan.proxies.values())
        self._unlike_weights = values - self._besides[Mechanism.PROXY]
        self._sign_bytes = sum(rule.signs.nbytes for rule in plan.signs.values())
        self._always_read = sum(  # biases and norms of the blocks, the last norm and lm_head, as weights
            parameter.numel() for parameter in decoder.blocks.parameters() if parameter.ndim == 1
        )
        self._lm_head = decoder.lm_head.weight.numel()
        self._always_read += decoder.final_norm.weight.numel()
        self._head_bytes = self._stored[LM_HEAD].total if LM_HEAD in self._stored else 0
        if LM_HEAD not in self._stored:
            self._always_read += self._lm_head
        self._heads = plan.heads
        self._kept_heads: dict[str, Tensor] = {}
        """Groups kept of each position in the current pass, by the q whose columns they are."""
        self._ruled = frozenset(plan.rules)
        self._dropped: dict[str, Tensor] = {}
        """Dropped channels by projection; of a q with chosen groups, channels times groups."""
        self._unread: dict[str, Tensor] = {}
        """Groups whose columns of q no token of a position read, by q."""
        self._unseen: Tensor | int = 0
        """Groups whose keys and values sparse tokens did not look at, of all blocks."""
        self._sparse_rows: Tensor | int = 0
        """Sparse tokens of all rows, where several count as one token."""
        self._tokens: Tensor | int = 0
        self._sparse_tokens: Tensor | int = 0

    def add_tokens(self, real: Tensor, sparse: Tensor) -> None:
        """Count one forward pass: which tokens are real, and which computed sparsely; (rows, length) bool."""
        self._sparse_rows = self._sparse_rows + sparse.sum()
        if self._rows_together > 1:
            self._sparse = sparse
            real, sparse = (self._together(tokens).any(dim=1) for tokens in (real, sparse))
        self._tokens = self._tokens + real.sum()
        self._sparse_tokens = self._sparse_tokens + sparse.sum()

    def add_kept(self, name: str, mask: Tensor) -> None:
        """Count the dropped channels of one projection in one forward pass.

        mask: (rows, length, channels), 1 where a channel is kept and 0 where it is dropped. Whole numbers below
        2^24 are exact in float32, so each token's sum is.
        """
        mask = self._read_together(mask)
        kept = mask.sum(dim=-1, dtype=torch.float32)
        parts, groups = 1, self._kept_heads.get(name)
        if groups is not None:
            parts, kept = self._parts(name), kept.long() * groups
        self._dropped[name] = self._dropped.get(name, 0) + mask.numel() * parts - kept.sum(dtype=torch.int64)

    def add_groups(self, block: int, mask: Tensor) -> None:
        """Count what a block's attention does not look at in one forward pass; before q's channels are counted.

        mask: (rows, length, groups) bool. Columns of q of other groups are not read. Keys and values are each
        row's own, columns of q those of all rows that stand for a batch.
        """
        self._unseen = self._unseen + (~mask).sum()
        read = self._read_together(mask)
        name, kept = key(block, "q"), read.sum(dim=-1)
        self._unread[name] = self._unread.get(name, 0) + (~read).sum()
        self._kept_heads[name] = kept
        if name not in self._ruled:
            self.add_kept(name, mask.new_ones(1, 1, 1).expand(*mask.shape[:2], self._shapes[name][1]))

    def _parts(self, name: str) -> int:
        """What a projection's dropped channels are multiplied with."""
        block, part = split_key(name)
        return self._heads[block].groups if part == "q" and block in self._heads else 1

    def _read_together(self, mask: Tensor) -> Tensor:
        """(batches, length, channels) of a mask (rows, length, channels): what rows that stand for one read."""
        if self._rows_together == 1:
            return mask
        sparse = self._sparse[..., None]
        read, counted = self._together(mask * sparse).amax(dim=1), self._together(sparse).any(dim=1)
        return read.masked_fill(~counted, 1)

    def _together(self, rows: Tensor) -> Tensor:
        """(batches, rows of each, ...) of rows (rows, ...), with zeros where the last batch lacks some."""
        lacking = -rows.shape[0] % self._rows_together
        padded = torch.cat([rows, rows.new_zeros(lacking, *rows.shape[1:])]) if lacking else rows
        return padded.unflatten(0, (-1, self._rows_together))

    def _kept_shares(self, sparse_tokens: int) -> dict[str, float]:
        """Share of its weights that each projection reads for a sparse token, low-rank factors left out."""
        shares = dict.fromkeys(self._shapes, 1.0)
        if not sparse_tokens:
            return shares
        for name, dropped in self._dropped.items():
            block, part = split_key(name)
            if part in NEURONS:
                neurons = self._shapes[key(block, "down")][1]
                share = 1.0 - int(dropped) / (sparse_tokens * neurons)
                shares |= {key(block, projection): share for projection in NEURONS[part]}
            else:
                everything = sparse_tokens * self._shapes[name][1] * self._parts(name)
                shares[name] = 1.0 - int(dropped) / everything
        return shares

    def _column_share(self, name: str, sparse_tokens: int) -> float:
        """Share of a q's columns that a sparse token reads; 1 where all groups are looked at."""
        unread = int(self._unread.get(name, 0))
        if not (unread and sparse_tokens):  # no tokens: what a dense one would read
            return 1.0
        return 1.0 - unread / (sparse_tokens * self._parts(name))

    def _bytes(self, shares: dict[str, float], weights: float, besides: int, sparse_tokens: int = 0) -> float:
        """Bytes of a token that reads these shares of the projections, so many weights, and others besides."""
        stored: float = self._head_bytes
        if self._stored:
            weights = 0
            dropped = [split_key(name) for name in self._dropped]
            # A dropped neuron is a column of gate and of up.
            by_neuron = {key(block, name) for block, part in dropped for name in NEURONS.get(part, ())}
            by_neuron -= {name for name in shares if split_key(name)[1] == "down"}
            for name, share in shares.items():
                found = self._stored[name]
                columns = self._column_share(name, sparse_tokens)
                stored += found.read(1.0, share) if name in by_neuron else found.read(share / columns, columns)
        if sparse_tokens:
            stored += self._sign_bytes
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
            **self._choosing_figures(dense_weights),
            **self._head_figures(dense_weights),
            "bytes_per_token": self._bytes(shares, kept, besides, sparse_tokens),
            "dense_bytes_per_token": self._bytes(dict.fromkeys(shares, 1.0), dense_weights, 0),
            "flops_per_token": 2 * (read + self._unlike_weights + self._lm_head),
            "dense_flops_per_token": 2 * (dense_weights + self._lm_head),
            "tokens": tokens,
            "sparse_tokens": sparse_tokens,
        }

    def _choosing_figures(self, dense_weights: int) -> dict[str, float]:
        """Size of what is read to choose neurons, a value of proxies as a quarter of a weight; none without."""
        read = {"proxy_share": Mechanism.PROXY, "neuron_router_share": Mechanism.ROUTER}
        return {
            name: self._besides[which] / dense_weights for name, which in read.items() if self._besides[which]
        }

    def _head_figures(self, dense_weights: int) -> dict[str, float]:
        """Share of keys and values that a sparse token looks at, and size of the routers; none without any."""
        if not self._heads:
            return {}
        every = int(self._sparse_rows) * self._blocks * next(iter(self._heads.values())).groups
        return {
            "key_value_share": 1.0 - int(self._unseen) / every if every else 1.0,
            "router_share": self._besides[Mechanism.HEADS] / dense_weights,
        }
