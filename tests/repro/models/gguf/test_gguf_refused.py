"""GGUF files that are damaged, or of which something would be lost: refused in one line, or made anew."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from wisparse.method.errors import UserError
from wisparse.repro.models.checkpoint import find_checkpoint

from ..tiny_gguf import write
from .tiny_models import settings, tiny


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(content)


KEPT_DAMAGES = {
    "a byte of the weights": lambda folder: _flip(folder / "model.safetensors"),
    "truncated weights": lambda folder: os.truncate(folder / "model.safetensors", 5000),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "another configuration": lambda folder: _flip(folder / "config.json"),
    "a file more": lambda folder: (folder / "added_tokens.json").write_text("{}"),
    "no JSON": lambda folder: (folder / "gguf.json").write_text("{"),
    "no hashes": lambda folder: (folder / "sha256.json").unlink(),
    "nothing": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", KEPT_DAMAGES)
def test_a_damaged_conversion_is_made_anew(damage, tmp_path, caplog):
    path = write(tmp_path / "tiny.gguf", tiny("llama"))
    found = find_checkpoint(settings(path))
    whole = {file.name: file.read_bytes() for file in found.folder.iterdir()}
    KEPT_DAMAGES[damage](found.folder)
    again = find_checkpoint(settings(path))
    assert "is damaged or incomplete, and is made anew" in caplog.text
    assert {file.name: file.read_bytes() for file in again.folder.iterdir()} == whole
    caplog.clear()
    assert find_checkpoint(settings(path)) == again
    assert caplog.text == ""


def _start(path: Path, content: bytes) -> None:
    path.write_bytes(content + path.read_bytes()[len(content) :])


DAMAGES = {
    "it does not begin with GGUF": lambda path: _start(path, b"<htm"),
    "is truncated: it has": lambda path: path.write_bytes(path.read_bytes()[:-4000]),
    "is truncated or damaged": lambda path: path.write_bytes(path.read_bytes()[:700]),
    "is truncated or damaged: its header": lambda path: path.write_bytes(path.read_bytes()[:8]),
    "is GGUF of version 1": lambda path: _start(path, b"GGUF\1\0\0\0"),
    "big-endian": lambda path: write(path, tiny("llama"), endian=gguf.GGUFEndian.BIG),
}


@pytest.mark.parametrize("mistake", DAMAGES)
def test_a_damaged_file_is_one_line(mistake, tmp_path):
    path = write(tmp_path / "tiny.gguf", tiny("llama"))
    DAMAGES[mistake](path)
    with pytest.raises(UserError, match=mistake) as error:
        find_checkpoint(settings(path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache" / "gguf").is_dir() or not list((tmp_path / "cache" / "gguf").glob("*[!s]"))


def test_an_unknown_type_is_one_line(tmp_path):
    path = write(tmp_path / "tiny.gguf", tiny("llama"))
    content = path.read_bytes()
    name = b"output_norm.weight"
    place = content.index(name) + len(name) + 4 + 8
    path.write_bytes(content[:place] + (99).to_bytes(4, "little") + content[place + 4 :])
    with pytest.raises(UserError, match="type 99"):
        find_checkpoint(settings(path))


REFUSED = {
    "the model family 'gemma2' is not supported": {"architecture": "gemma2"},
    "lacks 1 of the weights of a llama model, first blk.1.ffn_up.weight": {
        "changed_tensors": {"blk.1.ffn_up.weight": None}
    },
    "holds 1 tensors that a llama model does not have, first blk.0.attn_q.bias": {
        "changed_tensors": {"blk.0.attn_q.bias": np.zeros(128, dtype=np.float32)}
    },
    "output.weight is of shape": {"changed_tensors": {"output.weight": np.zeros((3, 64), dtype=np.float32)}},
    "not finite": {"changed_tensors": {"output_norm.weight": np.full(64, np.nan, dtype=np.float32)}},
    "sets llama.expert_count to 8": {"changed_keys": {"expert_count": 8}},
    "sets llama.attention.clamp_kqv to 4.0": {"changed_keys": {"attention.clamp_kqv": 4.0}},
    "rope.dimension_count is 16": {"changed_keys": {"rope.dimension_count": 16}},
    "does not say block_count": {"changed_keys": {"block_count": None}},
    "scaled by 'longrope'": {"changed_keys": {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}},
    "another one in each block": {"changed_keys": {"attention.head_count": [4, 4]}},
    "called 'newest'": {"changed_tokenizer": {"pre": "newest"}},
    "kind 't5'": {"changed_tokenizer": {"model": "t5"}},
    "lacks tokenizer.ggml.model, a part of its tokenizer": {"changed_tokenizer": {"model": None}},
    "lacks tokenizer.ggml.tokens, a part of its tokenizer": {"changed_tokenizer": {"tokens": None}},
    "lacks tokenizer.ggml.merges, a part of its tokenizer": {"changed_tokenizer": {"merges": None}},
    "join them first": {"changed_general": {"split.count": 3}},
}


EPSILON, KV_HEADS = "attention.layer_norm_rms_epsilon", "attention.head_count_kv"
WRONG_KEYS = [
    *((EPSILON, value) for value in ("abc", math.nan, -1.0, 0.0, True)),
    *(("rope.freq_base", value) for value in ("x", 0.0, math.nan, -5.0)),
    *((KV_HEADS, value) for value in (0, "2", 2.0)),
    *(("attention.key_length", value) for value in (0, 32.0, "x")),
    *(("attention.sliding_window", value) for value in (0, "x")),
    *(("rope.scaling.factor", value) for value in ("x", 0.0, -2.0)),
    *(("rope.scaling.type", value) for value in (3, True)),
    ("block_count", 0),
    ("context_length", "128"),
]


@pytest.mark.parametrize(("key", "value"), WRONG_KEYS)
def test_a_key_of_a_wrong_type_or_value_is_one_line(key, value, tmp_path):
    _refused(write(tmp_path / "tiny.gguf", tiny("llama"), changed_keys={key: value}), rf"{key} is .*, not ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"changed_general": {"split.count": "x"}}, "split.count is 'x', not a whole number"),
        ({"changed_general": {"general.alignment": "x"}}, "general.alignment is 'x', not a positive whole"),
        ({"changed_tokenizer": {"bos_token_id": "x"}}, "bos_token_id is 'x', not a whole number"),
        ({"changed_tokenizer": {"padding_token_id": 99999}}, "padding_token_id 99999 is none of its"),
        ({"changed_tokenizer": {"eot_token_id": 99999}}, "eot_token_id 99999 is none of its"),
        ({"changed_tokenizer": {"add_bos_token": "no"}}, "add_bos_token is 'no', not true or false"),
        ({"changed_keys": {KV_HEADS: 3}}, "4 heads do not share 3"),
    ],
)
def test_other_values_of_a_wrong_type_are_one_line(changes, message, tmp_path):
    _refused(write(tmp_path / "tiny.gguf", tiny("llama"), **changes), message)


def test_arrays_of_arrays_are_one_line(tmp_path):
    path = tmp_path / "nested.gguf"
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)
    path.write_bytes(start + 3000 * struct.pack("<IQ", 9, 1))
    _refused(path, "its header cannot be read")


def test_tensors_that_share_bytes_are_one_line(tmp_path):
    path = write(tmp_path / "tiny.gguf", tiny("llama"))
    content = bytearray(path.read_bytes())
    up, gate = (
        content.index(name) + len(name) + 4 + 16 + 4
        for name in (b"blk.0.ffn_up.weight", b"blk.0.ffn_gate.weight")
    )
    content[up : up + 8] = content[gate : gate + 8]
    path.write_bytes(content)
    _refused(path, "blk.0.ffn_gate.weight and blk.0.ffn_up.weight share bytes")


def _refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        find_checkpoint(settings(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_cannot_come_over_is_refused_before_a_conversion_is_announced(mistake, tmp_path, capsys):
    path = write(tmp_path / "tiny.gguf", tiny("llama"), **REFUSED[mistake])
    with pytest.raises(UserError, match=mistake):
        find_checkpoint(settings(path))
    # Values are read while they are dequantised, which is said before.
    assert ("dequantised once" in capsys.readouterr().err) == (mistake == "not finite")


def test_one_of_several_files_must_be_named(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"holds 2 GGUF files.*a\.gguf"):
        find_checkpoint(settings(tmp_path, source="folder"))
    (tmp_path / "part-00002-of-00003.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="join them first"):
        find_checkpoint(settings(tmp_path / "part-00002-of-00003.gguf"))
    with pytest.raises(UserError, match="is not there"):
        find_checkpoint(settings(tmp_path / "c.gguf"))
    with pytest.raises(UserError, match=r"model=gguf needs model\.path"):
        find_checkpoint(settings(tmp_path) | {"path": None})
