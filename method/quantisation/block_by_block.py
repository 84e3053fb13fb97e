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
from ..projections import SITE_OF_PROJECTION, block_projections, decoder_of, key, projections_of_site, split_key
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
) -> tuple[dict[str, StoredWeight], list[Tensor]]:
    """Every block projection by key, and what leaves the last block, a batch each; the model is as before.

    prepare: makes of a site (`3.mlp_input`) and XᵀX of its inputs what all its projections need. store: stores
    a weight (in, out) by its key.
    """
    check_no_plan(calibration.model, "a quantisation")
    decoder = decoder_of(calibration.model)
    hidden, keywords = entering_blocks(calibration)
    found: dict[str, StoredWeight] = {}
    for index, block in enumerate(tqdm(decoder.blocks, desc=title, unit="block", leave=False)):
        linears = block_projections(block)
        sites = {SITE_OF_PROJECTION[name]: InputProducts() for name in linears}
        with hooked(
            linears[projections_of_site(site)[0]].register_forward_pre_hook(input_recorder(one))
            for site, one in sites.items()
        ):
            for states in hidden:
                block(states, **keywords[index])
        prepared = {site: prepare(key(index, site), one.matrix) for site, one in sites.items()}
        by_key = {key(index, name): linear for name, linear in linears.items()}
        found |= stored_by(
            by_key,
            lambda name, weight, of=prepared: store(name, weight, of[SITE_OF_PROJECTION[split_key(name)[1]]]),
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
