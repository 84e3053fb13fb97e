"""GGUF files of random weights in few bits: how fast llama.cpp is at a model's shapes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from ...kernels.model.decoder import DecoderShape

CONTEXT = 1024
FORMATS = {8: gguf.GGMLQuantizationType.Q8_0, 4: gguf.GGMLQuantizationType.Q4_0}
"""llama.cpp's blocks of 32 values of one output with a scale in float16, by the bits of a value."""
PROJECTIONS = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
PROJECTIONS |= {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}


def write_random_gguf(path: Path, shape: DecoderShape, bits: int, head_bits: int) -> None:
    """Write a Llama of this shape, block weights in `bits` and the embedding, its head, in `head_bits`.

    Sums are about as large as what enters, so that nothing overflows.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.blocks)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    draw = np.random.default_rng(0)

    def add(name: str, outputs: int, inner: int, of_bits: int) -> None:
        values = _random_blocks(draw, outputs, inner, of_bits)
        writer.add_tensor(f"{name}.weight", values, raw_dtype=FORMATS[of_bits])

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(shape.hidden, dtype=np.float32))

    add("token_embd", shape.vocabulary, shape.hidden, head_bits)
    for index in range(shape.blocks):
        for name, (outputs, inner) in shape.projection_shapes().items():
            add(f"blk.{index}.{PROJECTIONS[name]}", outputs, inner, bits)
        add_norm(f"blk.{index}.attn_norm")
        add_norm(f"blk.{index}.ffn_norm")
    add_norm("output_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random_blocks(draw: np.random.Generator, outputs: int, inner: int, bits: int) -> np.ndarray:
    """Rows of blocks as bytes, (outputs, bytes of a row): a scale and 32 values each."""
    size, length = gguf.GGML_QUANT_SIZES[FORMATS[bits]]
    found = draw.integers(0, 256, (outputs, inner // size, length), dtype=np.uint8)
    scale = inner**-0.5 / 2.0 ** (bits - 2)  # over about the standard deviation of the values
    found[..., :2] = np.frombuffer(np.float16(scale).tobytes(), dtype=np.uint8)
    return found.reshape(outputs, -1)
