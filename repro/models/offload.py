"""Where a model's weights lie: on the device, or, block by block, on the device only while they are used."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from ...method.errors import UserError
from ...method.projections import decoder_of

if TYPE_CHECKING:
    from accelerate.hooks import UserCpuOffloadHook

log = logging.getLogger(__name__)

MODES = ("auto", "never", "always")
LARGEST_SHARE = 0.9
"""Share of a GPU's free memory that weights may take before they are streamed; activations have the rest."""


def streams(weight_bytes: int, device: str, offload: str) -> bool:
    """Whether the blocks' weights stay in main memory. Raises UserError for a mode that cannot be."""
    if offload not in MODES:
        raise UserError(f"model.offload={offload} is not supported; choose {', '.join(MODES)}")
    if not device.startswith("cuda"):
        if offload == "always":
            raise UserError(f"model.offload=always streams weights through a GPU, and model.device is {device}")
        return False
    if offload == "auto":
        free, _ = torch.cuda.mem_get_info(torch.device(device))
        return weight_bytes > LARGEST_SHARE * free
    return offload == "always"


def place(model: PreTrainedModel, device: str, offload: str) -> PreTrainedModel:
    """Move a model to its device, whole or, where `streams` says so, block by block as each is needed."""
    weight_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if not streams(weight_bytes, device, offload):
        return model.to(device)
    log.info("%.1f GB of weights stay in main memory; blocks go to %s in turn", weight_bytes / 1e9, device)
    stream_blocks(model, torch.device(device))
    return model


def stream_blocks(model: PreTrainedModel, device: torch.device) -> list[UserCpuOffloadHook]:
    """Keep all but the blocks on `device`; a block goes there for its forward pass and leaves with the next.

    Outside of its pass a block's weights are ordinary tensors in main memory, which searches may read.
    """
    from accelerate import cpu_offload_with_hook  # only here: whoever has room for a model needs no accelerate

    decoder = decoder_of(model)
    for module in (decoder.embedding, decoder.final_norm, decoder.rotary, decoder.lm_head):
        module.to(device)
    hooks: list[UserCpuOffloadHook] = []
    for block in decoder.blocks:
        _, hook = cpu_offload_with_hook(block, device, hooks[-1] if hooks else None)
        hooks.append(hook)
    hooks[0].hook.prev_module_hook = hooks[-1]  # the first block of the next pass sends the last one away
    return hooks
