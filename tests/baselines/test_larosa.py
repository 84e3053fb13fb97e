"""La RoSA: principal axes by hand, a dense model left alone, the split of sparsity, the bytes."""

import math

import pytest
import torch
from wisparse.baselines.larosa import LaRoSA
from wisparse.method.errors import OutOfReachError, UserError
from wisparse.method.projections import NORM_PATHS, block_projections, projection_shapes
from wisparse.method.rotation import principal_bases, rotated
from wisparse.method.running.apply import applied

from ..conftest import make_calibration, make_method, make_protocol

SITES = ("attention_input", "mlp_input")
FORMS = {"larosa": 2, "larosa_adapter": 1, "larosa_each": 2}
"""Dense products a block of each form."""


def inputs_of(model, calibration, block, site):
    """What enters a site's projections, (tokens, hidden) float64, without the suite's own collectors."""
    seen = []
    linear = block_projections(model.model.layers[block])["q" if site == "attention_input" else "gate"]
    handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1).double()))
    model(input_ids=calibration.input_ids)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("gains_kept", [True, False])
def test_the_axes_make_the_calibration_inputs_uncorrelated(llama, gains_kept):
    calibration = make_calibration(llama)
    bases = principal_bases(calibration, SITES, gains_kept)
    for block in range(2):
        for site in SITES:
            x = inputs_of(llama, calibration, block, site)
            if not gains_kept:
                x = x / llama.model.layers[block].get_submodule(NORM_PATHS[site]).weight.double()
            turned = x @ bases[f"{block}.{site}"].double()
            products = turned.T @ turned
            off = products - products.diag().diag()
            assert off.abs().max() < 1e-4 * products.diag().max()
            assert (products.diag().diff() > -1e-4 * products.diag().max()).all()
            before = x.T @ x
            assert (before - before.diag().diag()).abs().max() > 0.05 * before.diag().max()


@pytest.mark.parametrize("name", FORMS)
def test_rotation_alone_leaves_the_dense_output(tiny_model, name):
    plan = make_method(name).plan(make_calibration(tiny_model), 0.3)
    ids = torch.randint(1, 128, (3, 20), generator=torch.Generator().manual_seed(5))
    dense = tiny_model(input_ids=ids).logits
    with rotated(tiny_model, plan.rotations, plan.gains_kept):
        turned = tiny_model(input_ids=ids).logits
    assert not torch.equal(turned, dense)
    assert torch.allclose(turned, dense, atol=2e-4 * dense.abs().max())
    assert torch.equal(tiny_model(input_ids=ids).logits, dense)


def test_masks_see_what_the_released_code_sees(llama):
    """One block by hand: x·D with gains, the k largest kept, times Dᵀ, in float64; D is the attention's."""
    calibration = make_calibration(llama)
    plan = make_method("larosa").plan(calibration, 0.3)
    assert torch.equal(plan.rotations["1.attention_input"], plan.rotations["1.mlp_input"])
    linear = block_projections(llama.model.layers[0])["q"]
    x = inputs_of(llama, calibration, 0, "attention_input")
    _, basis = torch.linalg.eigh(x.T @ x)
    k = plan.rules["0.q"].top_k
    turned = x @ basis
    smallest = turned.abs().sort(dim=-1).values[:, -k, None]
    expected = torch.where(turned.abs() >= smallest, turned, 0.0) @ basis.T @ linear.weight.double().T
    seen = []
    with applied(llama, plan, make_protocol("all")):
        handle = linear.register_forward_hook(lambda _, __, output: seen.append(output.flatten(0, 1)))
        llama(input_ids=calibration.input_ids)
        handle.remove()
    assert torch.allclose(seen[0].double(), expected, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("name", FORMS)
def test_the_sparsity_asked_for_is_net_of_the_dense_products(llama, name):
    shapes = projection_shapes(llama)
    weights = sum(math.prod(shape) for shape in shapes.values())
    rotations = FORMS[name] * 2 * 48 * 48 / weights
    calibration = make_calibration(llama)
    plan = make_method(name).plan(calibration, 0.4)
    nominal = plan.provenance.details["nominal"]
    found = plan.provenance.details["sparsities"]
    for full_name, sparsity in found.items():
        assert sparsity == pytest.approx(nominal * (1.2 if full_name[2:] in ("o", "down") else 0.8))
        channels = shapes[full_name][1]
        assert 0 <= (1 - sparsity) * channels - plan.rules[full_name].top_k < 1 + 1e-4  # rounded down
    dropped = sum(found[full_name] * math.prod(shape) for full_name, shape in shapes.items()) / weights
    assert dropped - rotations == pytest.approx(0.4)
    with applied(llama, plan, make_protocol("all")) as session:
        llama(input_ids=calibration.input_ids)
    report = session.report()
    assert report["rotation_share"] == pytest.approx(rotations)
    saved = report["dense_bytes_per_token"] - report["bytes_per_token"]
    assert saved == pytest.approx(4 * weights * (report["realised_sparsity"] - rotations))
    # k is rounded down, by less than a channel of 48.
    assert -1e-6 < report["realised_sparsity"] - rotations - 0.4 < 1.01 / 48


def test_published_figures_leave_the_dense_products_out(llama):
    plan = make_method("larosa", "method.rotation_counted=false").plan(make_calibration(llama), 0.5)
    shapes = projection_shapes(llama)
    weights = sum(math.prod(shape) for shape in shapes.values())
    plain = sum(math.prod(shape) for name, shape in shapes.items() if name[2:] in ("o", "down")) / weights
    assert plan.provenance.details["nominal"] == pytest.approx(0.5 / (0.8 * (1 - plain) + 1.2 * plain))


def test_what_o_and_down_would_be_dropped_whole_for_is_refused(llama):
    # 1.2 of the nominal sparsity reaches 1 at 5/6, where the block is at (0.8·2/3 + 1.2/3)/1.2 = 7/9.
    with pytest.raises(OutOfReachError, match=r"maximum is below 0\.528"):
        make_method("larosa").plan(make_calibration(llama), 0.53)
    with pytest.raises(UserError, match=r"plain_share=0\.0 is not a number above 0"):
        LaRoSA(plain_share=0.0)
