"""Greedy decoding, timed: what a decoder is, and what its repeats took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Decoder(Protocol):
    """Interface of a decoder that can be timed."""

    def prefill(self, input_ids: Tensor) -> Tensor:
        """(batch, length) → logits of the last token (batch, vocabulary)."""
        ...

    def step(self, token_ids: Tensor) -> Tensor:
        """(batch,) → logits (batch, vocabulary)."""
        ...


@dataclass(frozen=True)
class Timing:
    """Repeats of one decoder; seconds."""

    prefill: list[float]
    decode: list[float]
    """Seconds of all decoded tokens but the first, which prefill gives."""
    steps: int
    batch: int

    @property
    def tok_s(self) -> float:
        """Tokens a second while decoding, over all rows; median of the repeats."""
        return self.batch * self.steps / statistics.median(self.decode)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        rates = sorted(self.batch * self.steps / seconds for seconds in self.decode)
        return {
            "tok_s": self.tok_s,
            "tok_s_lowest": rates[0],
            "tok_s_highest": rates[-1],
            "prefill_seconds": statistics.median(self.prefill),
            "repeats": len(rates),
        }


def interleaved(
    decoders: Mapping[str, Decoder], prompt: Tensor, new_tokens: int, repeats: int
) -> tuple[dict[str, Timing], dict[str, Tensor]]:
    """Timings of decoders, and the tokens that each generated, by name.

    They decode in turn, repeat by repeat; the first round warms up and is not counted.
    """
    prefill: dict[str, list[float]] = {name: [] for name in decoders}
    decode: dict[str, list[float]] = {name: [] for name in decoders}
    sequences: dict[str, Tensor] = {}
    for _ in range(1 + repeats):
        for name, decoder in decoders.items():
            *found, sequences[name] = _timed_generation(decoder, prompt, new_tokens)
            prefill[name].append(found[0])
            decode[name].append(found[1])
    timings = {
        name: Timing(prefill[name][1:], decode[name][1:], new_tokens - 1, len(prompt)) for name in decoders
    }
    return timings, sequences


def _timed_generation(decoder: Decoder, prompt: Tensor, new_tokens: int) -> tuple[float, float, Tensor]:
    """Seconds of prefill and of decoding, and (batch, prompt + new) tokens."""
    device = prompt.device
    _wait(device)
    started = time.perf_counter()
    tokens = decoder.prefill(prompt).argmax(dim=-1)
    _wait(device)
    prefilled = time.perf_counter()
    found = [tokens]
    for _ in range(new_tokens - 1):
        tokens = decoder.step(tokens).argmax(dim=-1)
        found.append(tokens)
    _wait(device)
    finished = time.perf_counter()
    return prefilled - started, finished - prefilled, torch.cat([prompt, torch.stack(found, dim=1)], dim=1)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
