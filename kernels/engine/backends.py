"""The decode steps of each device, and what they would refuse of a model and a plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn

from ..cpu.kept_channels import LARGEST_BATCH as ROWS_ON_A_CPU
from ..errors import KernelError
from ..model.decoder import SITES, Decoder
from ..model.decoder_weights import NO_BASES_IN_FEW_BITS, NO_GATES_IN_FEW_BITS, DecoderWeights
from ..model.executable import check_executable
from ..model.static_cache import StaticCache, check_positions
from ..model.stored_linears import StoredProducts
from ..plan.block_plan import BlockPlan
from ..plan.block_rules import check_supported
from ..plan.mechanism import Mechanism
from ..quantised.int4 import Int4Weight
from ..quantised.packed import FORMATS, check_widths

LARGEST_BATCH = {"cuda": 64, "cpu": ROWS_ON_A_CPU}
"""Most rows by device."""
MOST_ROWS = 48
"""Rows of a prompt up to which a CPU's products read stored weights as they are. From 64 on, values made first
are as fast or faster: SmolLM2-135M on one core, in float32 with AVX-512 and with AVX2 alone, in bfloat16 with
AVX-512."""


class DecodeStep(Protocol):
    """One token a row: appends to the static cache and returns what comes next."""

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids: (batch,). Returns logits (batch, vocabulary) float32, overwritten by the next call."""
        ...

    def ran(self) -> dict[str, str]:
        """Language of the kernels of each part (products, attention, norms, ...), for records."""
        ...


MakeStep = Callable[[DecoderWeights, tuple[BlockPlan, ...], StaticCache, float | None], DecodeStep]
"""Makes the step of a backend; the last argument is `tuned_for` of `DecodeEngine`."""


def _gpu_step(
    weights: DecoderWeights, rules: tuple[BlockPlan, ...], cache: StaticCache, tuned_for: float | None
) -> DecodeStep:
    from ..gpu.captured_step import CapturedStep
    from ..gpu.step import GPUDecodeStep
    from ..gpu.tuning.steps import tuned_step_tiles

    tiles = None if tuned_for is None else tuned_step_tiles(weights, rules, cache, tuned_for)
    return CapturedStep(GPUDecodeStep(weights, rules, cache, tiles), feed_back=False)


def _cpu_step(
    weights: DecoderWeights, rules: tuple[BlockPlan, ...], cache: StaticCache, _: float | None
) -> DecodeStep:
    from ..cpu.step import decode_step

    return decode_step(weights, rules, cache)


def _gpu_mechanisms() -> frozenset[Mechanism]:
    from ..gpu.step import GPUDecodeStep

    return GPUDecodeStep.supports


def _cpu_mechanisms() -> frozenset[Mechanism]:
    from ..cpu import step

    return step.MECHANISMS


BACKENDS: dict[str, MakeStep] = {"cuda": _gpu_step, "cpu": _cpu_step}
"""Steps by the device that weights are on; imported at first use, for none needs the other's compilers."""


def _gpu_stored_products() -> StoredProducts:
    from ..triton.dequantise import Dequantisation

    return StoredProducts(Dequantisation)


def _cpu_stored_products() -> StoredProducts:
    from ..cpu.gemv import all_times, backend

    return StoredProducts(multiply=all_times, most_rows=MOST_ROWS) if backend() == "c++" else StoredProducts()


STORED_PRODUCTS: dict[str, Callable[[], StoredProducts]] = {
    "cuda": _gpu_stored_products,
    "cpu": _cpu_stored_products,
}
"""How each of them reads a prompt on weights in few bits."""

MECHANISMS = {"cuda": _gpu_mechanisms, "cpu": _cpu_mechanisms}
"""What of a plan each of them executes."""

DTYPES = {
    "cuda": (torch.bfloat16, torch.float16, torch.float32),
    "cpu": (torch.float32, torch.bfloat16),
}
"""Data types of weights that each of them reads."""


def check_decodable(
    model: nn.Module,
    batch: int,
    capacity: int,
    mechanisms: Collection[Mechanism] = (),
    formats: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Raise KernelError for what an engine would refuse of a model, before a plan is made or weights are moved.

    capacity: tokens of prompt and continuation; mechanisms: what the plan will be made of, as far as is known;
    formats: those of weights in few bits, and how many outputs share a scale; 0: all do.
    """
    decoder = Decoder.of(model)
    shape = decoder.shape  # raises for an activation or a rotary embedding that no kernel has
    check_executable(decoder)
    weight = next(decoder.projections()).linear.weight if shape.blocks else decoder.lm_head.weight
    device = weight.device.type
    if device not in BACKENDS:
        raise KernelError(f"the decode engine runs on {' and '.join(BACKENDS)}, not on {device}")
    if not 1 <= batch <= LARGEST_BATCH[device]:
        raise KernelError(f"on {device} the decode engine takes 1 to {LARGEST_BATCH[device]} rows, not {batch}")
    if weight.dtype not in DTYPES[device]:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES[device])
        raise KernelError(f"on {device} the decode engine reads weights in {names}, not in {weight.dtype}")
    check_positions(model, capacity)
    check_supported(mechanisms, MECHANISMS[device](), "a GPU" if device == "cuda" else "a CPU")
    if lacking := sorted(set(formats) - set(FORMATS)):
        raise KernelError(
            f"the decode engine has no kernels for {' and '.join(lacking)} weights yet; "
            "evaluate the plan without the engine (latency=none)"
        )
    if formats and {Mechanism.GATE, Mechanism.SIGNS, Mechanism.PROXY, Mechanism.ROUTER} & set(mechanisms):
        raise KernelError(NO_GATES_IN_FEW_BITS)
    if formats and {Mechanism.FOLDED, Mechanism.ROTATION} & set(mechanisms):
        raise KernelError(NO_BASES_IN_FEW_BITS)
    if Int4Weight.format in formats:
        for names in SITES.values():
            check_widths([shape.projection_shapes()[name][0] for name in names])
    if formats and device == "cuda":
        from ..gpu.cuda_tiles import check_few_bits, check_groups

        check_few_bits(weight.dtype, weight.device, batch, mechanisms)
        check_groups(shape, formats)
