"""Decoding with transformers' own forward pass: what a user has today, and what speed is compared with."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

EAGER = "eager"
COMPILE_MODES = {"cuda": ("default", "reduce-overhead", "max-autotune"), "cpu": ("default",)}
"""Modes of torch.compile tried on a device; those left out on a CPU concern CUDA graphs and GPU kernels."""
COMPILERS = {"cuda": ("cc", "gcc", "clang"), "cpu": ("g++", "clang++")}
"""Any of these is what torch.compile needs on a device, unless CC or CXX names another."""


def finds_compiler(device: str) -> bool:
    """Whether torch.compile finds the C or C++ compiler that it needs on a type of device."""
    named = os.environ.get("CC" if device == "cuda" else "CXX")
    return any(shutil.which(one) for one in ((named,) if named else COMPILERS[device]))


@dataclass
class TransformersDecode:
    """Greedy decoding with a static cache, its step compiled in one mode of `torch.compile`, or not at all."""

    model: nn.Module
    mode: str
    """`eager`, or a mode of torch.compile."""
    capacity: int
    _cache: Any = field(default=None, repr=False)
    _forward: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        from transformers import DynamicCache, StaticCache

        if self.mode == EAGER:
            self._new_cache = DynamicCache  # in eager mode a growing cache is the faster one
            self._forward = self.model
        else:
            static = StaticCache(config=self.model.config, max_cache_len=self.capacity)
            self._new_cache = lambda: static
            torch._dynamo.reset()  # modes must not share what was compiled before
            self._forward = torch.compile(self.model, mode=self.mode, fullgraph=True, dynamic=False)

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor) -> Tensor:
        """Read a prompt (batch, length), never compiled; returns the last token's logits."""
        self._cache = self._new_cache()
        if self.mode != EAGER:
            self._cache.reset()
        output = self.model(input_ids=input_ids, past_key_values=self._cache, logits_to_keep=1)
        return output.logits[:, -1]

    @torch.inference_mode()
    def step(self, token_ids: Tensor) -> Tensor:
        """Decode one token (batch,) further; returns its logits (batch, vocabulary)."""
        output = self._forward(input_ids=token_ids[:, None], past_key_values=self._cache)
        return output.logits[:, -1]
