"""Attention in float16 for passes whose products are TF32: as many digits, at the speed of a fused kernel.

torch has no fused attention for float32 where heads share keys: it writes every score to memory, several times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .fused_norms import fused_norms
from .precision import coarse_products

OWN, HALF = "sdpa", "wisparse_half"
"""Names of attention in the configuration of a model: that which is replaced, and what replaces it."""
FUSED_FROM, WIDEST_HEAD = (8, 0), 192
"""Compute capability of GPUs that have the fused kernel, and the channels of a head that it takes on all."""


@contextmanager
def coarse_passes(model: PreTrainedModel) -> Iterator[None]:
    """Context in which a GPU computes a float32 model to the digits of TF32: for gradients and statistics."""
    config = model.config
    with ExitStack() as stack:
        stack.enter_context(coarse_products())
        if model.device.type == "cuda":
            stack.enter_context(fused_norms(model))
        if _has_fused(model.device) and config._attn_implementation == OWN:
            stack.callback(setattr, config, "_attn_implementation", OWN)
            config._attn_implementation = HALF
        yield


def _has_fused(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FUSED_FROM


def half_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> tuple[Tensor, Tensor | None]:
    """Causal attention of float32 queries (rows, heads, length, head_dim) in float16, as transformers asks.

    What is in another type, or masked otherwise, is as it would be without.
    """
    causal = keywords.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    other = keywords.get("dropout", 0.0) > 0.0 or keywords.get("position_bias") is not None
    other |= attention_mask is not None or not causal or query.shape[-1] > WIDEST_HEAD
    if query.dtype != torch.float32 or other:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **keywords)
    scaling = keywords.get("scaling")
    attend = _HalfAttention.apply if torch.is_grad_enabled() else _attended
    found = attend(query, key, value, scaling)
    return found.transpose(1, 2).contiguous(), None


def _attended(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    return _in_half(query.half(), key.half(), value.half(), scaling).float()


def _in_half(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    shared = query.shape[1] != key.shape[1]
    # No other kernel is chosen: one plans anew for each length, one writes all scores.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, scale=scaling, enable_gqa=shared
        )


class _HalfAttention(torch.autograd.Function):
    """The same with gradients, which pass through float16 in units of the largest: they have no scale of it."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        with torch.enable_grad():
            ctx.inputs = [x.detach().half().requires_grad_() for x in (query, key, value)]
            ctx.found = _in_half(*ctx.inputs, scaling)
        return ctx.found.detach().float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        largest = torch.linalg.vector_norm(gradient, torch.inf).clamp_min(torch.finfo(gradient.dtype).tiny)
        # Written in the other type at once: a pass over memory each.
        scaled = torch.div(gradient, largest, out=torch.empty_like(gradient, dtype=torch.float16))
        with _in_one_order():
            found = torch.autograd.grad(ctx.found, ctx.inputs, scaled)
        return *(one * largest.view(1, 1, 1, 1) for one in found), None


@contextmanager
def _in_one_order() -> Iterator[None]:
    """Context in which the fused kernel adds gradients up in one order: a plan is the same each time."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


AttentionInterface.register(HALF, half_attention)
AttentionMaskInterface.register(HALF, sdpa_mask)
