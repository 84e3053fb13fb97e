"""Which launches of a decode step are CUDA C++: products that list their channels themselves, attention."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from ..cuda.attention import CUDAAttentionTile, suits_cuda_attention
from ..cuda.head import RESIDENT as BLOCKS_OF_A_MULTIPROCESSOR
from ..cuda.head import suits_cuda_head
from ..cuda.product import CUDATile, runs_cuda_products, suits_cuda_products
from ..cuda.stored_weight import HALF, LEAST_GROUP, Storage, storage_of
from ..errors import KernelError
from ..model.decoder import DecoderShape, Product, products_of
from ..model.decoder_weights import LM_HEAD, PROXIES, DecoderWeights
from ..plan.mechanism import Mechanism
from ..quantised.packed import PackedInt8, PackedWeight
from ..triton.launch import blocks_of
from .step_tiles import LONGEST_SHORT, Auto, Chosen, Never

TILES: dict[int, dict[str, tuple[CUDATile, ...]]] = {
    16: {
        "qkv": (CUDATile(cluster=6, unroll=4, resident=5),),
        "o": (CUDATile(warps=4, cluster=8, unroll=6),),
        "gate_up": (
            CUDATile(columns=128, cluster=3, resident=3),
            CUDATile(columns=128, cluster=3, unroll=6, resident=4),
        ),
        "down": (CUDATile(cluster=8, unroll=3),),
    },
    8: {
        "qkv": (
            CUDATile(columns=256, cluster=8, unroll=4),
            CUDATile(columns=128, cluster=6, unroll=4, resident=3),
        ),
        "o": (CUDATile(cluster=7, resident=4), CUDATile(cluster=8, unroll=4, resident=4)),
        "gate_up": (
            CUDATile(columns=256, cluster=4, unroll=4),
            CUDATile(columns=128, cluster=2),
            CUDATile(columns=128, cluster=2, unroll=4, resident=3),
        ),
        "down": (
            CUDATile(columns=256, warps=16, cluster=6, unroll=4, resident=1),
            CUDATile(columns=128, cluster=8, unroll=4),
        ),
        LM_HEAD: (CUDATile(columns=256, unroll=4),),
    },
    4: {
        "qkv": (
            CUDATile(columns=256, warps=16, cluster=4, unroll=4, resident=1),
            CUDATile(columns=128, cluster=8, unroll=4, resident=3),
        ),
        "o": (CUDATile(columns=128, warps=16, cluster=3, resident=1),),
        "gate_up": (
            CUDATile(columns=256, cluster=4, unroll=4),
            CUDATile(columns=256, cluster=3, unroll=4),
            CUDATile(columns=128, cluster=4, unroll=4, resident=4),
        ),
        "down": (CUDATile(columns=256, warps=16, cluster=6, resident=1), CUDATile(columns=128, cluster=8)),
        LM_HEAD: (CUDATile(columns=128, ahead=2),),
    },
}
"""Tiles by bits of a stored value and by product; of each the first that fits and whose thread blocks all run
at once. From sweeps of some hundred tiles in a decode step, one H200: of 16 bits at shapes of Llama-3.1-8B and
Qwen2.5-7B; of 8 and 4, in groups of 128, of Llama-3.1-8B at half sparsity, with lm_head in 8."""
DENSE_TILES: dict[int, dict[str, tuple[CUDATile, ...]]] = {
    4: {
        "qkv": (CUDATile(columns=256, cluster=8, unroll=4),),
        "gate_up": (CUDATile(columns=256, cluster=4),),
    },
}
"""Tiles that come before them where a step keeps all channels, and has more rows to wait for."""
FEW_BITS = frozenset({Mechanism.THRESHOLD, Mechanism.TOP_K, Mechanism.BOUNDED, Mechanism.BIAS})
"""What of a plan goes with weights in few bits."""
SHORT_ATTENTION = CUDAAttentionTile()
"""Up to LONGEST_SHORT slots: 2.3 µs at 205 of Llama-3.1-8B's shapes on one H100, behind a dependent launch; the
larger tile takes 3.1."""
ATTENTION = CUDAAttentionTile(warps=8)
"""Tile for longer contexts: one of ten within 6 % of the fastest at 2,048 and 8,192 slots there."""
ATTENTION_BY_CONTEXTS = {
    8: CUDAAttentionTile(warps=8, unroll=8),
    16: CUDAAttentionTile(warps=8, cluster=6, unroll=8),
    32: CUDAAttentionTile(cluster=7, unroll=8),
    64: CUDAAttentionTile(warps=8, cluster=2, unroll=8),
    128: CUDAAttentionTile(warps=8, cluster=1, unroll=8),
    256: CUDAAttentionTile(cluster=1, unroll=8),
}
"""Tiles by the contexts that attention looks at, one for each row and key-value group; the nearest counts.
Best is where the clusters of all contexts run at once, and each processor has enough on its way. The fastest of
24 or more at 8,192 slots of Llama-3.1-8B's shapes, one H200.
"""
LONGEST_CLUSTERED = 16384
"""Slots up to which one cluster a key-value head is taken; measured up to half of it."""


def chosen(
    cuda: Auto | Never | Chosen,
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    capacity: int,
    storages: Mapping[str, Storage] | None = None,
    dense: bool = False,
) -> Chosen:
    """Tiles of the CUDA C++ launches of a step over a cache of so many slots; for the rest see `cuda_tiles`."""
    if isinstance(cuda, Chosen):
        return cuda
    if isinstance(cuda, Never):
        return Chosen({})
    common = (shape, dtype, device, batch)
    attention = cuda_attention_tile(*common, capacity)
    selecting = {}
    if attention is not None:
        selecting = {kept: tile_of_contexts(shape, batch * kept) for kept in range(1, shape.kv_heads)}
    heads = batch == 1 and runs_cuda_products(device) and suits_cuda_head(dtype, shape.hidden)
    blocks = BLOCKS_OF_A_MULTIPROCESSOR * multiprocessors_of(device) if heads else 0
    together = batch > 1 and runs_cuda_products(device) and dtype in (torch.bfloat16, torch.float16)
    return Chosen(cuda_tiles(*common, storages, dense), attention, blocks, selecting, together)


def cuda_tiles(
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    storages: Mapping[str, Storage] | None = None,
    dense: bool = False,
) -> dict[str, CUDATile]:
    """Tiles by product; none for a batch, and where the device or the model's sizes do not allow it.

    storages: how weights are stored, by product; those of a block that are not named are in half precision.
    dense: whether all channels are kept.
    """
    if batch > 1 or not runs_cuda_products(device):
        return {}
    multiprocessors, storages = multiprocessors_of(device), storages or {}
    found = {}
    for one in cuda_products_of(shape, storages):
        storage = storages.get(one.name, HALF)
        tile = tile_of(one, multiprocessors, storage, dense)
        if suits_cuda_products(dtype, one.widths, one.inner, storage) and tile.fits(
            one.inner, one.widths, storage
        ):
            found[one.name] = tile
    return found


def cuda_products_of(shape: DecoderShape, storages: Mapping[str, Storage]) -> tuple[Product, ...]:
    """The products of a block, the head where it is in few bits, for torch computes others, and proxies'."""
    head = (Product(LM_HEAD, shape.hidden, (shape.vocabulary,)),) if LM_HEAD in storages else ()
    proxies = ()
    if PROXIES in storages:
        groups = blocks_of(shape.ffn, storages[PROXIES].group)
        proxies = (Product(PROXIES, shape.hidden, (groups * storages[PROXIES].group,) * 2),)
    return (*products_of(shape), *head, *proxies)


def storages_of(weights: DecoderWeights) -> dict[str, Storage]:
    """How weights in few bits are stored, by product. Raises KernelError where blocks differ."""
    found: dict[str, Storage] = {}
    named = [*vars(weights).items(), *(item for block in weights.blocks for item in vars(block).items())]
    for name, weight in named:
        if not isinstance(weight, PackedWeight):
            continue
        storage = storage_of(weight)
        if found.setdefault(name, storage) != storage:
            raise KernelError(f"{name} is in {storage} in one block and in {found[name]} in another")
    return found


def check_few_bits(
    dtype: torch.dtype, device: torch.device, batch: int, mechanisms: Collection[Mechanism]
) -> None:
    """Raise KernelError for what has no kernel that reads weights in few bits."""
    if batch > 1:
        raise KernelError(f"on a GPU the decode engine reads weights in few bits for one row, not for {batch}")
    if dtype not in (torch.bfloat16, torch.float16):
        raise KernelError(
            f"on a GPU weights in few bits are multiplied with activations in bfloat16 or float16, not in "
            f"{dtype}; take model.dtype=bfloat16"
        )
    if not runs_cuda_products(device):
        raise KernelError(
            "weights in few bits need a GPU of compute capability 9.0 or newer, and cuda-bindings"
        )
    if lacking := [one.value for one in Mechanism if one in set(mechanisms) - FEW_BITS]:
        raise KernelError(
            f"with weights in few bits the decode engine does not execute {' and '.join(lacking)} on a GPU; "
            "take a method without, quantisation=none, or latency=none"
        )


def check_groups(shape: DecoderShape, formats: Mapping[str, int]) -> None:
    """Raise KernelError for projections of sizes or groups that no kernel reads in few bits.

    formats: how many outputs share a scale; 0: all do.
    """
    for format, group in formats.items():
        storage = Storage(8 if format == PackedInt8.format else 4, group)
        for one in products_of(shape):
            if not storage.suits(one.widths):
                widths = ", ".join(map(str, one.widths))
                raise KernelError(
                    f"on a GPU weights in {storage} need projections of multiples of {storage.multiple} "
                    f"outputs, and groups of multiples of {LEAST_GROUP}; {one.name} has {widths}: take another "
                    "quantisation.group, or evaluate the plan without the engine (latency=none)"
                )


def multiprocessors_of(device: torch.device) -> int:
    """Multiprocessors of a CUDA device."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def tile_of(product: Product, multiprocessors: int, storage: Storage = HALF, dense: bool = False) -> CUDATile:
    """The tile of a product on a device of so many multiprocessors; dense: where it keeps all channels."""
    first = DENSE_TILES.get(storage.bits, {}).get(product.name, ()) if dense else ()
    name = "gate_up" if product.name == PROXIES else product.name
    *wanted, last = (*first, *TILES[storage.bits][name])
    fitting = (
        tile
        for tile in wanted
        if tile.blocks(product.tiled_widths) <= tile.resident * multiprocessors
        and tile.fits(product.inner, product.widths, storage)
    )
    return next(fitting, last)


def cuda_attention_tile(
    shape: DecoderShape, dtype: torch.dtype, device: torch.device, batch: int, capacity: int
) -> CUDAAttentionTile | None:
    """The tile of attention over a cache of so many slots; None where a Triton kernel does it."""
    tile = SHORT_ATTENTION if capacity <= LONGEST_SHORT else ATTENTION
    if batch > 1:
        tile = tile_of_contexts(shape, batch * shape.kv_heads)
    suits = suits_cuda_attention(dtype, shape.head_dim) and tile.fits(
        shape.heads // shape.kv_heads, shape.head_dim
    )
    pays = batch > 1 or capacity <= LONGEST_CLUSTERED
    return tile if suits and pays and runs_cuda_products(device) else None


def tile_of_contexts(shape: DecoderShape, contexts: int) -> CUDAAttentionTile:
    """The tile of attention over so many contexts, with warps that have shared memory for what they find."""
    nearest = min(ATTENTION_BY_CONTEXTS, key=lambda known: abs(math.log2(known / contexts)))
    tile, group = ATTENTION_BY_CONTEXTS[nearest], shape.heads // shape.kv_heads
    while tile.warps > 1 and not tile.fits(group, shape.head_dim):
        tile = replace(tile, warps=tile.warps // 2)
    return tile
