"""Stored weights in a file: for their model alone, whole, and on a disk that has room."""

from __future__ import annotations

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.method.errors import UserError
from wisparse.method.quantisation.files import load_weights, save_weights
from wisparse.method.quantised_model import description_of, quantised
from wisparse.method.stored.routers import save_routers

from ...conftest import make_calibration, make_tiny_model
from .test_quantisation import CALIBRATED, INT4, INT8, INT8_HEAD

OF_ANOTHER = r"few bits is of another model.*embed_tokens"


@pytest.fixture
def calibration(llama):
    return make_calibration(llama)


@pytest.mark.parametrize(
    "quantiser", [INT8, INT4, CALIBRATED, INT8_HEAD], ids=lambda one: f"{one.name}-{one.lm_head}"
)
def test_stored_weights_come_back_and_are_for_their_model_alone(llama, calibration, quantiser, tmp_path):
    found, file = quantiser.weights(calibration), tmp_path / "weights.safetensors"
    save_weights(file, found)
    loaded = load_weights(file, quantiser)
    assert loaded.weights.keys() == found.weights.keys()
    for name, weight in found.weights.items():
        same = loaded.weights[name]
        assert (same.shape, same.format) == (weight.shape, weight.format)
        for part, tensor in weight.tensors().items():
            assert torch.equal(same.tensors()[part], tensor)
            assert same.tensors()[part].dtype == tensor.dtype
    with quantised(llama, found):
        expected = llama(calibration.input_ids).logits
    with quantised(llama, loaded):
        assert torch.equal(llama(calibration.input_ids).logits, expected)
        assert description_of(llama) == found.description
    other = make_tiny_model("llama", seed=7)
    with pytest.raises(UserError, match=OF_ANOTHER), quantised(other, loaded):
        pass
    with pytest.raises(KernelError, match=OF_ANOTHER):
        DecodeEngine(other, quantised=loaded, capacity=8)
    with pytest.raises(UserError, match="take the settings that it was written with"):
        load_weights(file, INT8 if quantiser is not INT8 else INT4)


def test_a_disk_without_room_is_named_and_nothing_is_left(calibration, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("wisparse.method.stored.tensor_files.save_file", full)
    for write in (
        lambda: save_weights(tmp_path / "weights.safetensors", INT8.weights(calibration)),
        lambda: save_routers(tmp_path, {0: torch.zeros(2, 3)}, {}),
    ):
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
            write()
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_what_was_written_are_refused(calibration, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_weights(file, INT8.weights(calibration))
    written = bytearray(file.read_bytes())
    written[-7] ^= 1
    file.write_bytes(written)
    with pytest.raises(UserError, match="it is not what was written"):
        load_weights(file, INT8)
    for content in (b"no weights", save({"0.q/values": torch.ones(2)}, {"wisparse_quantised": "{}"})):
        file.write_bytes(content)
        with pytest.raises(UserError, match="no readable file of quantised weights"):
            load_weights(file, INT8)
