"""One decoded token on a CPU without a compiler, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.decoder import ACTIVATIONS, SITES, DecoderShape
from ..model.decoder_weights import BlockWeights, DecoderWeights
from ..model.static_cache import StaticCache
from ..plan.block_plan import BlockPlan
from ..plan.projection_rule import LEAST, ProjectionRule
from ..plan.signs import negative_products, plus_minus
from ..quantised.packed import PackedWeight, separate
from ..reference import dropped_by_shared_top_k, dropped_within_bounds, low_rank_product
from .gemv import backend, compact_by_threshold, compact_by_top_k, gather_gemv, keep_all, row_dots
from .kept_channels import KeptChannels
from .sites import Part, parts_of, ranking, whole


class SparseColumns:
    """Projections side by side in one `(in, out)` weight, each with its own rule, applied to one input."""

    def __init__(self, parts: tuple[Part, ...], bias: Tensor | None, batch: int) -> None:
        """bias: (out,) float32, added to the products; None: there is none."""
        self._parts, self._bias = parts, bias
        self._kept = KeptChannels(parts[0].weight.shape[0], batch)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (batch, in) float32 → (batch, out) float32."""
        found = []
        for part in self._parts:
            kept = _select(x, part.rule, self._kept)
            out = gather_gemv(kept, part.weight)
            if part.rule is not None and part.rule.left is not None:
                left, right = part.rule.left, part.rule.right
                out.add_(low_rank_product(_dropped(x, kept).to(left.dtype), left, right))
            found.append(out)
        out = torch.cat(found, dim=1)
        return out if self._bias is None else out.add_(self._bias)


def _select(x: Tensor, rule: ProjectionRule | None, kept: KeptChannels) -> KeptChannels:
    if rule is None:
        return keep_all(x, kept)
    if rule.bounds is not None:
        return _nonzero(x.masked_fill(dropped_within_bounds(x, rule.thresholds, *rule.bounds), 0.0), kept)
    if rule.thresholds is not None:
        return compact_by_threshold(x, rule.thresholds, kept)
    if rule.shared is not None and len(x) > 1:
        everyone = torch.ones(len(x), dtype=torch.bool)
        dropped = dropped_by_shared_top_k(x, rule.weights, rule.top_k, rule.shared, everyone)[0]
        return compact_by_threshold(x, torch.where(dropped, torch.inf, 0.0), kept)
    return compact_by_top_k(x, rule.weights, rule.top_k, kept)


def _nonzero(x: Tensor, kept: KeptChannels) -> KeptChannels:
    return compact_by_threshold(x, torch.full((x.shape[1],), LEAST, dtype=torch.float32), kept)


def _dropped(x: Tensor, kept: KeptChannels) -> Tensor:
    """Activation that the selection left out, (batch, in), with zeros at the kept channels of each row."""
    dense = torch.zeros_like(x)
    dense[:, kept.channels] = kept.values.T
    return x - dense


class TorchBlock:
    """One block of the decoder."""

    def __init__(
        self, weights: BlockWeights, rules: BlockPlan, shape: DecoderShape, index: int, cache: StaticCache
    ) -> None:
        self._weights, self._shape, self._rules = weights, shape, rules
        self._keys, self._values = cache.keys[index], cache.values[index]
        self._window = shape.windows[index]
        self._input_norm, self._mlp_norm = weights.input_norm.float(), weights.mlp_norm.float()
        self._query_norm, self._key_norm = (
            None if gains is None else gains.float() for gains in (weights.query_norm, weights.key_norm)
        )

        def columns(weight: Tensor | PackedWeight, *names: str, bias: Tensor | None = None) -> SparseColumns:
            widths = {name: shape.projection_shapes()[name][0] for name in names}
            return SparseColumns(parts_of(weight, names, shape, rules), rules.bias(widths, bias), cache.batch)

        self._qkv = columns(weights.qkv, *SITES["attention_input"], bias=weights.qkv_bias)
        self._o = columns(weights.o, "o")
        self._down = columns(weights.down, "down")
        self._input_basis, self._mlp_basis, self._adapter = (
            None if basis is None else SparseColumns(whole(basis), None, cache.batch)
            for basis in (weights.input_basis, weights.mlp_basis, weights.adapter)
        )
        self._activation = ACTIVATIONS[shape.activation]
        self._neurons = KeptChannels(shape.ffn, cache.batch)
        if rules.signs is not None:
            self._signs = plus_minus(rules.signs.signs, shape.hidden)
        elif rules.proxies is not None:
            self._ranking = SparseColumns((ranking(weights.proxies, rules.proxies),), None, cache.batch)
            self._ones = torch.ones(shape.ffn, dtype=torch.float32)
        elif weights.gate_up is not None:
            self._gate_up = columns(weights.gate_up, *SITES["mlp_input"])
        elif weights.gate is not None:
            self._gate = columns(weights.gate, "gate")

    def __call__(self, hidden: Tensor, position: _Position) -> Tensor:
        """hidden: (batch, hidden) float32, the residual stream; returns it behind the block."""
        x = _turned(self._normed(hidden, self._input_norm), self._input_basis)
        hidden = hidden + self._o(self._attention(x, position))
        hidden = hidden + self._mlp(_turned(self._normed(hidden, self._mlp_norm), self._mlp_basis))
        return _turned(hidden, self._adapter)

    def _normed(self, x: Tensor, gains: Tensor | None) -> Tensor:
        """RMSNorm over the last dimension; x as it is where there is no norm."""
        return x if gains is None else F.rms_norm(x, gains.shape, gains, self._shape.norm_epsilon)

    def _attention(self, x: Tensor, position: _Position) -> Tensor:
        shape, batch, slot = self._shape, x.shape[0], position.slot
        qkv = self._qkv(x)
        heads = qkv.view(batch, -1, shape.head_dim)
        q, k, v = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
        q, k = self._normed(q, self._query_norm), self._normed(k, self._key_norm)
        self._keys[:, :, slot] = position.rotated(k)
        self._values[:, :, slot] = v
        begin, mask = position.visible(self._window)
        context = F.scaled_dot_product_attention(
            position.rotated(q)[:, :, None].to(self._keys.dtype),
            self._keys[:, :, begin : slot + 1],
            self._values[:, :, begin : slot + 1],
            attn_mask=mask,
            enable_gqa=True,
        )
        if self._rules.heads is not None:
            looked_at = self._rules.heads.chosen(x)[:, :, None, None]  # (batch, groups, 1, 1)
            of_groups = context.view(batch, shape.kv_heads, -1, shape.head_dim)
            context = of_groups.masked_fill(~looked_at, 0.0)
        return context.reshape(batch, -1).float()

    def _mlp(self, x: Tensor) -> Tensor:
        if self._rules.proxies is not None:
            neurons = self._ranked(x)
        elif self._rules.router is not None:
            neurons = self._routed(x)
        elif self._rules.signs is not None:
            neurons = _nonzero(self._predicted_gates(x), self._neurons)
        elif self._rules.gate is None:
            gate, up = self._gate_up(x).chunk(2, dim=1)
            return self._down(self._activation(gate) * up)
        else:
            gates = self._activation(self._gate(x))
            neurons = compact_by_threshold(gates, self._rules.gate.thresholds, self._neurons)
        neurons.values.mul_(row_dots(x, self._weights.up_rows, neurons))
        return gather_gemv(neurons, self._weights.down)

    def _ranked(self, x: Tensor) -> KeptChannels:
        """Activated gates of the neurons that proxies choose, whose rows alone are read."""
        gate, up = (part[:, : self._shape.ffn] for part in self._ranking(x).chunk(2, dim=1))
        scores = self._activation(gate) * up
        return self._computed(x, compact_by_top_k(scores, self._ones, self._rules.proxies.kept, self._neurons))

    def _routed(self, x: Tensor) -> KeptChannels:
        """Activated gates of the neurons that a router chooses, whose rows alone are read."""
        chosen = self._rules.router.chosen(x, self._shape.ffn).float()
        return self._computed(x, _nonzero(chosen, self._neurons))

    def _computed(self, x: Tensor, neurons: KeptChannels) -> KeptChannels:
        gates = self._activation(row_dots(x, self._weights.gate_rows, neurons))
        neurons.values.copy_(gates.masked_fill_(neurons.values == 0.0, 0.0))  # a zero: only another row's
        return neurons

    def _predicted_gates(self, x: Tensor) -> Tensor:
        """Activated gates (batch, ffn); zeros where signs say so, whose rows of gate are not read."""
        computed = (negative_products(x, self._signs) <= self._rules.signs.limit).float()
        neurons = _nonzero(computed, self._neurons)
        neurons.values.mul_(self._activation(row_dots(x, self._weights.gate_rows, neurons)))
        gates = torch.zeros_like(computed)
        gates[:, neurons.channels] = neurons.values.T
        return gates


def _turned(x: Tensor, basis: SparseColumns | None) -> Tensor:
    return x if basis is None else basis(x)


class _Position:
    """Where the next token stands: its slot, the rotary angles of each row, and which slots it sees."""

    def __init__(self, cache: StaticCache) -> None:
        self.slot = int(cache.length)
        self._first = cache.first
        self._padded = bool(cache.first.any())
        places = (self.slot - cache.first).long()
        self._cosines = cache.cosines[places][:, None]
        self._sines = cache.sines[places][:, None]

    def rotated(self, heads: Tensor) -> Tensor:
        """heads: (batch, heads, head_dim), turned by the angles of their position."""
        lower, upper = heads.chunk(2, dim=-1)
        return heads * self._cosines + torch.cat([-upper, lower], dim=-1) * self._sines

    def visible(self, window: int | None) -> tuple[int, Tensor | None]:
        """First slot seen by any row, and a mask (batch, 1, 1, slots) from there on where rows are padded."""
        begin = 0 if window is None else max(0, self.slot + 1 - window)
        if not self._padded:
            return begin, None
        slots = torch.arange(begin, self.slot + 1)
        return begin, (slots >= self._first[:, None])[:, None, None]


class TorchDecodeStep:
    """Decodes one token of each row; see `DecodeStep`. The residual stream and activations are float32."""

    def __init__(self, weights: DecoderWeights, rules: tuple[BlockPlan, ...], cache: StaticCache) -> None:
        self._weights, self._cache = weights, cache
        entries = weights.shape.vocabulary
        self._final_norm = weights.final_norm.float()
        self._vocabulary = keep_all(
            torch.ones(cache.batch, entries, dtype=torch.float32), KeptChannels(entries, cache.batch)
        )
        self._blocks = [
            TorchBlock(block, rule, weights.shape, index, cache)
            for index, (block, rule) in enumerate(zip(weights.blocks, rules, strict=True))
        ]

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids: (batch,). Returns logits (batch, vocabulary) float32."""
        weights, shape = self._weights, self._weights.shape
        position = _Position(self._cache)
        hidden = weights.embedding[token_ids].float()
        for block in self._blocks:
            hidden = block(hidden, position)
        self._cache.length.add_(1)
        hidden = F.rms_norm(hidden, (shape.hidden,), self._final_norm, shape.norm_epsilon)
        if not isinstance(weights.lm_head, Tensor):
            return gather_gemv(keep_all(hidden), *separate(weights.lm_head))
        # Every row of lm_head, which transformers stores by vocabulary entry.
        return row_dots(hidden, weights.lm_head, self._vocabulary).T

    @staticmethod
    def ran() -> dict[str, str]:
        """Language of the kernels of each part; see `DecodeStep`."""
        compiled = dict.fromkeys(("lm_head", "products", "selection"), backend())
        return {"attention": "torch", "norms": "torch"} | compiled
