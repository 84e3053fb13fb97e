"""GPTQ, and weights that it calibrates: what is rounded, made up for, and on what inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from wisparse.kernels.errors import KernelError
from wisparse.kernels.quantised.int4 import int4_rounded
from wisparse.method.projections import model_projections
from wisparse.method.quantisation.calibrated import CalibratedInt4
from wisparse.method.quantisation.gptq import gptq, inverse_factor
from wisparse.method.quantisation.quantisers import Int4

from ...conftest import make_calibration

CALIBRATED = CalibratedInt4("int4_calibrated", lm_head="same", group=8, symmetric=True, damping=0.01)


@pytest.fixture
def calibration(llama):
    return make_calibration(llama)


def textbook_gptq(weight: np.ndarray, hessian: np.ndarray, group: int) -> np.ndarray:
    """Optimal brain quantisation in a fixed order: the inverse is reduced by each channel, not factored."""
    left, inverse = weight.copy(), np.linalg.inv(hessian)
    for i in range(len(weight)):
        row = int4_rounded(torch.from_numpy(left[i : i + 1].copy()), group, symmetric=True).dequantised()[0]
        error = (left[i] - row.double().numpy()) / inverse[i, i]
        left[i] = row.double().numpy()
        left[i + 1 :] -= inverse[i + 1 :, i, None] * error
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return left


def correlated(tokens: int, channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    return torch.randn(tokens, channels, generator=generator, dtype=torch.float64) @ mix


@pytest.mark.parametrize(("channels", "outputs", "group"), [(5, 9, 3), (13, 14, 7), (24, 33, 33)])
def test_gptq_is_the_textbook_s_and_no_worse_than_rounding(channels, outputs, group):
    x, weight = correlated(4 * channels, channels), correlated(channels, outputs)
    hessian, damping = x.T @ x, 0.01
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(channels, dtype=torch.float64)
    found = gptq(weight, inverse_factor(hessian, damping), group, symmetric=True).dequantised().double()
    expected = textbook_gptq(weight.numpy(), damped.numpy(), group)
    assert np.allclose(found.numpy(), expected, atol=1e-6 * np.abs(expected).max())
    nearest = int4_rounded(weight, group, symmetric=True).dequantised().double()
    assert (x @ (weight - found)).norm() < 0.9 * (x @ (weight - nearest)).norm()


def test_gptq_of_inputs_that_were_all_zero_rounds():
    weight = correlated(6, 8)
    found = gptq(weight, inverse_factor(torch.zeros(6, 6), 0.01), 4, symmetric=False)
    assert torch.equal(found.dequantised(), int4_rounded(weight, 4, symmetric=False).dequantised())


def test_gptq_keeps_a_row_of_tiny_weights_and_refuses_one_that_grows_beyond_its_scales():
    """A dead channel is no reason to refuse a model, but all weights together are."""
    weight, alone = torch.ones(2, 4, dtype=torch.float64), inverse_factor(torch.zeros(2, 2), 0.01)
    weight[0] = 1e-9
    assert torch.allclose(gptq(weight, alone, 4, symmetric=True).dequantised()[1], torch.ones(4), rtol=1e-3)
    with pytest.raises(KernelError, match="too small for scales in float16"):
        gptq(weight * 1e-6, alone, 4, symmetric=True)
    weight[0] = torch.tensor([7.0, 0.4, 0.4, 0.4])  # what rounding loses is made up for a million times
    much = torch.tensor([[1.0, 1e7], [0.0, 1.0]], dtype=torch.float64)
    with pytest.raises(KernelError, match="too large for scales in float16"):
        gptq(weight, much, 4, symmetric=True)


@pytest.mark.slow
def test_calibrated_weights_keep_the_products_of_the_first_block(llama, calibration):
    seen = []
    linear = model_projections(llama)["0.q"]
    handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    llama(calibration.input_ids)
    handle.remove()
    exact = seen[0] @ linear.weight.T
    nearest = Int4("int4", lm_head="none", group=8, symmetric=True)
    errors = [
        (seen[0] @ quantiser.weights(calibration).weights["0.q"].dequantised() - exact).norm()
        for quantiser in (CALIBRATED, nearest)
    ]
    assert errors[0] < errors[1]


def test_projections_by_themselves_are_stored_as_their_site_is_where_nothing_masks_what_they_read(
    llama, calibration
):
    of_sites = CALIBRATED.weights(calibration).weights
    by_themselves = CALIBRATED.weights_of_own_inputs(calibration).weights
    assert all(
        torch.equal(of_sites[name].dequantised(), one.dequantised()) for name, one in by_themselves.items()
    )


def test_a_projection_is_stored_for_what_it_reads_itself(llama, calibration):
    """A hook that leaves k nothing to read changes k, which is rounded then, and not q beside it."""
    of_sites = CALIBRATED.weights(calibration).weights
    linears = model_projections(llama)
    handle = linears["0.k"].register_forward_pre_hook(lambda _, inputs: (0 * inputs[0],))
    masked = CALIBRATED.weights_of_own_inputs(calibration).weights
    handle.remove()
    rounded = int4_rounded(linears["0.k"].weight.data.T, group=8, symmetric=True)
    assert torch.equal(masked["0.k"].dequantised(), rounded.dequantised())
    assert not torch.equal(of_sites["0.k"].dequantised(), rounded.dequantised())
    assert torch.equal(masked["0.q"].dequantised(), of_sites["0.q"].dequantised())
