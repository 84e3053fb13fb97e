"""One decoded token on a CPU: the weights of channels that a plan drops are never read."""

from __future__ import annotations

from ..errors import KernelError
from ..model.decoder_weights import DecoderWeights
from ..model.static_cache import StaticCache
from ..plan.block_plan import BlockPlan
from ..plan.mechanism import Mechanism
from .gemv import kernels
from .kept_channels import LARGEST_BATCH
from .native_step import NativeDecodeStep
from .plain import TorchKernels
from .sites import skipping_zeros
from .torch_step import TorchDecodeStep

MECHANISMS = frozenset(Mechanism)
"""What of a plan a step executes."""


def decode_step(
    weights: DecoderWeights, rules: tuple[BlockPlan, ...], cache: StaticCache
) -> NativeDecodeStep | TorchDecodeStep:
    """The step in C++; in plain torch where that cannot be compiled, which a warning has said.

    Raises KernelError for more rows than the products have room for.
    """
    if not 1 <= cache.batch <= LARGEST_BATCH:
        raise KernelError(f"on a CPU a step takes 1 to {LARGEST_BATCH} rows, not {cache.batch}")
    rules = tuple(skipping_zeros(block, weights.shape) for block in rules)
    chosen = kernels()
    if isinstance(chosen, TorchKernels):
        return TorchDecodeStep(weights, rules, cache)
    return NativeDecodeStep(chosen, weights, rules, cache)
