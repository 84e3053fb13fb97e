"""Sizes of the models whose speed is measured with random weights."""

from __future__ import annotations

from ..decoder import DecoderShape

MODEL_SHAPES = {
    "llama-3.1-8b": DecoderShape(32, 4096, 14336, 32, 8, 128, 128256, 1e-5, (None,) * 32),
    "mistral-7b": DecoderShape(32, 4096, 14336, 32, 8, 128, 32768, 1e-5, (None,) * 32),
    "qwen2.5-7b": DecoderShape(28, 3584, 18944, 28, 4, 128, 152064, 1e-6, (None,) * 28),
}
