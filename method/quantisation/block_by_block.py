"""Weights stored block by block: what enters a block is what the stored weights of those before it make."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ...kernels.quantised.stored import StoredWeight
from ..calibration import Calibration
from ..errors import UserError
from ..hooks import hooked
from ..passes.collectors import InputProducts, input_recorder
from ..projections import SITE_OF_PROJECTION, block_projections, decoder_of, key, split_key
from ..quantised_model import replaced, stored_by
from ..running.acting import check_no_plan
from ..search.block_probe import entering_blocks

Prepared = TypeVar("Prepared")


@torch.no_grad()
def stored_block_by_block(
    calibration: Calibration,
    title: str,
    prepare: Callable[[str, Tensor], Prepared],
    store: Callable[[str, Tensor, Prepared], StoredWeight],
    place_of: Callable[[str], str] = SITE_OF_PROJECTION.__getitem__,
) -> tuple[dict[str, StoredWeight], list[Tensor]]:
    """Every block projection by key, and what leaves the last block, a batch each; the model is as before.

    prepare: makes of a place (`3.mlp_input`) and XᵀX of its inputs what all its projections need. store: stores
    a weight (in, out) by its key. place_of: what of a block has products of its own, by projection: its site,
    or each projection itself, where hooks on the linears mask what each of them reads.
    """
    check_no_plan(calibration.model, "a quantisation")
    decoder = decoder_of(calibration.model)
    hidden, keywords = entering_blocks(calibration)
    found: dict[str, StoredWeight] = {}
    for index, block in enumerate(tqdm(decoder.blocks, desc=title, unit="block", leave=False)):
        linears = block_projections(block)
        first = {place_of(name): name for name in reversed(linears)}
        places = {place: InputProducts() for place in first}
        with hooked(
            linears[first[place]].register_forward_pre_hook(input_recorder(one))
            for place, one in places.items()
        ):
            for states in hidden:
                block(states, **keywords[index])
        prepared = {place: prepare(key(index, place), one.matrix) for place, one in places.items()}
        by_key = {key(index, name): linear for name, linear in linears.items()}
        found |= stored_by(
            by_key,
            lambda name, weight, of=prepared: store(name, weight, of[place_of(split_key(name)[1])]),
        )
        with replaced(by_key, found):
            hidden = [block(states, **keywords[index]) for states in hidden]
    return found, hidden


def check_finite(choice: str, place: str, products: Tensor) -> None:
    """Raises UserError that names the choice of quantisation and where inputs are not finite."""
    if not products.isfinite().all():
        raise UserError(
            f"quantisation={choice}: what enters {place} is not finite on the calibration text; "
            "load the model in float32 or bfloat16 (model.dtype)"
        )
