"""One decoded token in one call of C++ (step.cpp): what its structures say of a model, and the call."""

from __future__ import annotations

import weakref
from ctypes import Array, Structure, addressof, byref, c_double, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from ..errors import KernelError
from ..model.decoder import SITES
from ..model.decoder_weights import BlockWeights, DecoderWeights
from ..model.static_cache import StaticCache
from ..plan.block_plan import BlockPlan
from ..plan.projection_rule import LEAST, ProjectionRule
from ..plan.signs import SignRule
from ..quantised.packed import PackedWeight, separate
from .compiled import CompiledKernels, check_layout
from .sites import Part, parts_of, ranking, whole
from .weights import WeightFields, check_weight, fields_of

LARGEST_HEAD = 1024
"""Dimensions of one head for which step.cpp has room."""
WORD_BYTES = 8
"""A word of packed signs (signs.h)."""
ALL, THRESHOLD, TOP_K, SHARED_SUM, SHARED_MAXIMUM, BOUNDED = range(6)
SHARED = {None: TOP_K, "sum": SHARED_SUM, "maximum": SHARED_MAXIMUM}
"""How channels are kept, by how the rows of a step share a top-k."""


class RuleFields(Structure):
    """`Rule` of step.h."""

    _fields_ = (("keeping", c_int64), ("numbers", c_void_p), ("top_k", c_int64), ("fewest", c_int64))


class PartFields(Structure):
    """`Part` of step.h."""

    _fields_ = (("weight", WeightFields), ("rule", RuleFields), ("first_column", c_int64), ("rank", c_int64))
    _fields_ += (("right", WeightFields), ("left", WeightFields))


class SiteFields(Structure):
    """`Site` of step.h."""

    _fields_ = (("parts", c_void_p), ("count", c_int64), ("channels", c_int64), ("columns", c_int64))
    _fields_ += (("bias", c_void_p),)


class BlockFields(Structure):
    """`Block` of step.h."""

    _fields_ = tuple((name, c_void_p) for name in ("input_norm", "mlp_norm", "query_norm", "key_norm"))
    _fields_ += tuple((name, SiteFields) for name in ("qkv", "o", "gate_up", "down"))
    _fields_ += tuple((name, SiteFields) for name in ("input_basis", "mlp_basis", "adapter"))
    _fields_ += (("gate_thresholds", c_void_p), ("up_rows", WeightFields), ("gate_rows", WeightFields))
    _fields_ += (("signs", c_void_p), ("sign_limit", c_int64), ("proxies", SiteFields), ("chosen", c_int64))
    _fields_ += (("keys", c_void_p), ("values", c_void_p), ("window", c_int64))
    _fields_ += (("neuron_router", WeightFields), ("router_threshold", c_double))
    _fields_ += (("router", WeightFields), ("router_bias", c_void_p), ("kept_groups", c_int64))


class ModelFields(Structure):
    """`Model` of step.h."""

    _sizes = ("batch", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocabulary", "capacity")
    _fields_ = (("blocks", c_void_p), ("block_count", c_int64), *((name, c_int64) for name in _sizes))
    _fields_ += (("norm_epsilon", c_double), ("embedding", WeightFields), ("final_norm", c_void_p))
    _fields_ += (("head", WeightFields), ("head_site", SiteFields))
    _fields_ += (
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("first", c_void_p),
        ("cache_is_bfloat16", c_int64),
        ("relu", c_int64),
    )


class NativeDecodeStep:
    """Decodes one token of each row; see `DecodeStep`. The residual stream and activations are float32.

    Raises KernelError for weights that the kernels do not read, and later for tokens that are no entries of the
    vocabulary or for which the cache has no slot.
    """

    def __init__(
        self,
        kernels: CompiledKernels,
        weights: DecoderWeights,
        rules: tuple[BlockPlan, ...],
        cache: StaticCache,
    ) -> None:
        self._library, self._cache = kernels.library, cache
        self._alive: list[Any] = [weights, rules, cache]  # what the structures point to
        if weights.shape.head_dim > LARGEST_HEAD:
            raise KernelError(f"heads of {weights.shape.head_dim} dimensions exceed {LARGEST_HEAD}")
        check_layout(self._library.block_bytes, BlockFields)
        check_layout(self._library.model_bytes, ModelFields)
        self._tokens = torch.zeros(cache.batch, dtype=torch.int64)
        self._logits = torch.empty(cache.batch, weights.shape.vocabulary, dtype=torch.float32)
        self._run = self._library.run_step
        self._run.argtypes, self._run.restype = (c_void_p, c_void_p, c_int64, c_void_p, c_int), None
        self._library.make_step.restype = c_void_p
        self._library.free_step.argtypes, self._library.free_step.restype = (c_void_p,), None
        self._step = self._library.make_step(byref(self._model(weights, rules)))
        weakref.finalize(self, self._library.free_step, self._step)

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids: (batch,). Returns logits (batch, vocabulary) float32."""
        slot, entries = int(self._cache.length), self._logits.shape[1]
        if slot >= self._cache.capacity:
            raise KernelError(f"the cache has {self._cache.capacity} slots, and all are filled")
        self._tokens.copy_(token_ids)
        if not all(0 <= token < entries for token in self._tokens.tolist()):
            raise KernelError(f"tokens are 0 to {entries - 1}, not {self._tokens.tolist()}")
        self._run(self._step, self._tokens.data_ptr(), slot, self._logits.data_ptr(), torch.get_num_threads())
        self._cache.length.add_(1)
        return self._logits

    @staticmethod
    def ran() -> dict[str, str]:
        """Language of the kernels of each part; see `DecodeStep`."""
        parts = ("attention", "lm_head", "norms", "products", "selection")
        return dict.fromkeys(parts, CompiledKernels.name)

    def _model(self, weights: DecoderWeights, rules: tuple[BlockPlan, ...]) -> ModelFields:
        shape, cache = weights.shape, self._cache
        fields = ModelFields(
            block_count=shape.blocks,
            batch=cache.batch,
            hidden=shape.hidden,
            ffn=shape.ffn,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            vocabulary=shape.vocabulary,
            capacity=cache.capacity,
            norm_epsilon=shape.norm_epsilon,
            embedding=self._weight(weights.embedding),
            final_norm=self._floats(weights.final_norm),
            cosines=self._floats(cache.cosines),
            sines=self._floats(cache.sines),
            first=cache.first.data_ptr(),
            cache_is_bfloat16=cache.keys.dtype is torch.bfloat16,
            relu=shape.activation == "relu",
        )
        if isinstance(weights.lm_head, Tensor):
            fields.head = self._weight(weights.lm_head)
        else:
            (head,) = separate(weights.lm_head)
            fields.head_site = self._site(whole(head))
        blocks = [
            self._block(weights, index, block, rule)
            for index, (block, rule) in enumerate(zip(weights.blocks, rules, strict=True))
        ]
        fields.blocks = self._array(BlockFields, blocks)
        return fields

    def _block(self, weights: DecoderWeights, index: int, block: BlockWeights, rules: BlockPlan) -> BlockFields:
        shape, cache = weights.shape, self._cache

        def site(weight: Tensor | PackedWeight, *names: str, bias: Tensor | None = None) -> SiteFields:
            widths = {name: shape.projection_shapes()[name][0] for name in names}
            return self._site(parts_of(weight, names, shape, rules), rules.bias(widths, bias))

        heads, proxies, neurons = rules.heads, rules.proxies, rules.router
        gated, chosen = block.gate is not None, block.gate_rows is not None
        if chosen:
            gate_up = SiteFields()
        else:
            gate_up = site(block.gate, "gate") if gated else site(block.gate_up, *SITES["mlp_input"])
        return BlockFields(
            input_norm=self._floats(block.input_norm),
            mlp_norm=self._floats(block.mlp_norm),
            query_norm=self._floats(block.query_norm),
            key_norm=self._floats(block.key_norm),
            qkv=site(block.qkv, *SITES["attention_input"], bias=block.qkv_bias),
            o=site(block.o, "o"),
            gate_up=gate_up,
            down=site(block.down, "down"),
            input_basis=self._basis(block.input_basis),
            mlp_basis=self._basis(block.mlp_basis),
            adapter=self._basis(block.adapter),
            gate_thresholds=self._floats(rules.gate.thresholds) if gated else None,
            up_rows=self._weight(block.up_rows) if gated or chosen else WeightFields(),
            gate_rows=self._weight(block.gate_rows) if chosen else WeightFields(),
            signs=None if rules.signs is None else self._signs(rules.signs),
            sign_limit=0 if rules.signs is None else rules.signs.limit,
            proxies=SiteFields() if proxies is None else self._site((ranking(block.proxies, proxies),)),
            chosen=0 if proxies is None else proxies.kept,
            keys=cache.keys[index].data_ptr(),
            values=cache.values[index].data_ptr(),
            window=shape.windows[index] or 0,
            neuron_router=WeightFields() if neurons is None else self._weight(neurons.weight),
            router_threshold=0.0 if neurons is None else neurons.threshold,
            router=WeightFields() if heads is None else self._weight(heads.weight),
            router_bias=None if heads is None else self._floats(heads.bias),
            kept_groups=shape.kv_heads if heads is None else heads.kept,
        )

    def _basis(self, basis: Tensor | None) -> SiteFields:
        """A dense product with a basis; without a part where there is none."""
        return SiteFields() if basis is None else self._site(whole(basis))

    def _site(self, parts: tuple[Part, ...], bias: Tensor | None = None) -> SiteFields:
        channels = parts[0].weight.shape[0]
        fields = [self._part(part, channels) for part in parts]
        columns = parts[-1].columns.stop
        return SiteFields(self._array(PartFields, fields), len(fields), channels, columns, self._floats(bias))

    def _part(self, part: Part, channels: int) -> PartFields:
        check_weight(part.weight, channels)
        fields = PartFields(
            weight=self._weight(part.weight), rule=self._rule(part.rule), first_column=part.columns.start
        )
        if part.rule is not None and part.rule.rank:
            fields.rank = part.rule.rank
            fields.right, fields.left = self._weight(part.rule.right), self._weight(part.rule.left)
        return fields

    def _rule(self, rule: ProjectionRule | None) -> RuleFields:
        if rule is None:
            return RuleFields(ALL)
        if rule.bounds is not None:
            fewest, most = rule.bounds
            return RuleFields(BOUNDED, self._floats(rule.thresholds.clamp_min(LEAST)), most, fewest)
        if rule.thresholds is not None:
            return RuleFields(THRESHOLD, self._floats(rule.thresholds))
        return RuleFields(SHARED[rule.shared], self._floats(rule.weights), rule.top_k)

    def _weight(self, weight: Any) -> WeightFields:
        self._alive.append(weight)
        # Products by integers are off by less than what a model in bfloat16 rounds activations by.
        return fields_of(weight, by_integers=self._cache.keys.dtype is torch.bfloat16)

    def _floats(self, values: Tensor | None) -> int | None:
        """Address of a vector in float32; None where there is none."""
        if values is None:
            return None
        values = values.float().contiguous()
        self._alive.append(values)
        return values.data_ptr()

    def _signs(self, rule: SignRule) -> int:
        """Address of the packed signs, each row filled up to whole words."""
        neurons, own = rule.signs.shape
        words = torch.zeros(neurons, -(-own // WORD_BYTES) * WORD_BYTES, dtype=torch.uint8)
        words[:, :own] = rule.signs
        self._alive.append(words)
        return words.data_ptr()

    def _array(self, kind: type[Structure], fields: list[Any]) -> int:
        array: Array[Any] = (kind * len(fields))(*fields)
        self._alive.append(array)
        return addressof(array)
