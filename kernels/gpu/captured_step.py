"""A decode step as a CUDA graph: one call of the driver instead of some hundred launches."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..errors import KernelError
from ..model.decoder_weights import DecoderWeights
from ..model.static_cache import StaticCache

WARM_UPS = 2


class CapturableStep(Protocol):
    """A decode step whose launches depend on nothing that happens on the host."""

    weights: DecoderWeights
    cache: StaticCache

    @property
    def batch(self) -> int:
        """Rows of every token."""
        ...

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Logits (batch, vocabulary) after token_ids (batch,)."""
        ...

    def ran(self) -> dict[str, str]:
        """Language of the launches of each part."""
        ...

    def freeze(self) -> None:
        """Keep every launch as it is from here on."""
        ...


class CapturedStep:
    """Replays a decode step. The graph reads `tokens` (batch,) and writes `logits` (batch, vocabulary)."""

    def __init__(self, step: CapturableStep, feed_back: bool) -> None:
        """feed_back: the graph ends by writing the most likely tokens into `tokens`, so that greedy decoding is
        `replay` after `replay`. Raises KernelError without a CUDA GPU.
        """
        device = step.weights.device
        if device.type != "cuda":
            raise KernelError(f"CUDA graphs need a CUDA GPU, the model is on {device}; call the step itself")
        self._step = step  # the graph holds addresses of its buffers, but not the buffers
        self.tokens: Tensor = torch.zeros(step.batch, dtype=torch.int64, device=device)
        length = step.cache.length.clone()
        # Kernels are compiled and libraries set up outside the capture. What warm-ups write lies beyond the
        # cache's length, which is put back.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step.cache.length.copy_(length)
                step(self.tokens)
            step.cache.length.copy_(length)
        torch.cuda.current_stream(device).wait_stream(stream)
        step.freeze()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.logits: Tensor = step(self.tokens)
            if feed_back:
                self.tokens.copy_(self.logits.argmax(-1))

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Logits after token_ids (batch,) int64; the tensor returned is overwritten by the next replay."""
        self.tokens.copy_(token_ids)
        return self.replay()

    def ran(self) -> dict[str, str]:
        """Language of the launches of each part; see `DecodeStep`."""
        return self._step.ran()

    def replay(self) -> Tensor:
        """Logits after what `tokens` holds."""
        self._graph.replay()
        return self.logits
