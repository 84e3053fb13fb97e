"""GGUF files that tests write as llama.cpp's converter would: a tiny model with a tokenizer of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BYTES = (
    [chr(byte) for byte in range(0x21, 0x7F)]
    + [chr(byte) for byte in range(0xA1, 0xAD)]
    + [chr(byte) for byte in range(0xAE, 0x100)]
    + [chr(byte) for byte in range(0x100, 0x144)]
)
"""The 256 letters that byte-level vocabularies write bytes in."""

MERGES = ["Ġ Ġ", "ĠĠ Ġ", "t h", "th e", "Ġ the"]
CONTROL, NORMAL = 3, 1
SPECIAL = ["<|end|>", "<|begin|>", "<|turn|>"]
VOCABULARY = [*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|turn|>{% endfor %}"


def name_in_file(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, block, *part, kind = name.split(".")
    return f"blk.{block}.{PARTS['.'.join(part)]}.{kind}"


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp keeps those of a Llama: 0, half, 1, half + 1, … of each head."""
    size = len(rows) // heads
    order = [
        head * size + row + offset
        for head in range(heads)
        for row in range(size // 2)
        for offset in (0, size // 2)
    ]
    return rows[order]


def tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    config = model.config
    found = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.float().numpy()
        if config.model_type in ("llama", "mistral"):
            for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
                if f"{part}.weight" in name:
                    values = paired(values, heads)
        found[name_in_file(name)] = values
    return found


def keys(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }


def write(
    path: Path,
    model: PreTrainedModel,
    quantisation: str = "F32",
    changed_keys: dict[str, Any] | None = None,
    changed_tensors: dict[str, np.ndarray | None] | None = None,
    changed_tokenizer: dict[str, Any] | None = None,
    changed_general: dict[str, Any] | None = None,
    raw: tuple[str, np.ndarray, gguf.GGMLQuantizationType] | None = None,
    architecture: str | None = None,
    endian: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> Path:
    """Write a model into a GGUF file; None leaves a key or tensor out, matrices alone are quantised.

    raw: name, bytes and type of one more tensor.
    """
    family = model.config.model_type
    architecture = architecture or ("llama" if family == "mistral" else family)
    writer = gguf.GGUFWriter(path, architecture, endianess=endian)
    writer.add_name(f"Tiny {family}")
    for key, value in (changed_general or {}).items():
        _add(writer, key, value)
    for key, value in (keys(model) | (changed_keys or {})).items():
        _add(writer, f"{architecture}.{key}", value)
    tokens = VOCABULARY[: model.config.vocab_size]
    tokens += [f"[PAD{index}]" for index in range(len(tokens), model.config.vocab_size)]
    tokenizer = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [CONTROL if token in SPECIAL else NORMAL for token in tokens],
        "merges": MERGES,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "add_bos_token": True,
    }
    for key, value in (tokenizer | (changed_tokenizer or {})).items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    writer.add_chat_template(TEMPLATE)
    kind = gguf.GGMLQuantizationType[quantisation]
    for name, values in (tensors(model) | (changed_tensors or {})).items():
        if values is None:
            continue
        if values.ndim == 1 or quantisation == "F32":
            writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
        elif quantisation == "F16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    if raw:
        name, values, kind = raw
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def dequantised(model: PreTrainedModel, quantisation: str) -> PreTrainedModel:
    """The same model with every matrix rounded as in a file of this type, by tensors of its own order."""
    kind = gguf.GGMLQuantizationType[quantisation]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                values = gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)
                weight.copy_(torch.from_numpy(np.array(values, dtype=np.float32).reshape(weight.shape)))
    return model
