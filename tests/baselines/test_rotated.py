"""Rotated bases: rotated dense equals dense, the published form gives the same, and every byte is counted."""

import copy
import itertools
import math

import pytest
import torch
from wisparse.baselines.rotated import ROTATED_FOR
from wisparse.method.errors import OutOfReachError
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import NORM_PATHS, block_projections, model_projections, projection_shapes
from wisparse.method.rotation import orthogonal_column_bases, rotated
from wisparse.method.running.apply import applied
from wisparse.method.running.projection_hooks import sparse_projections

from ..conftest import make_calibration, make_method, make_protocol

IDS = torch.randint(1, 128, (3, 20), generator=torch.Generator().manual_seed(5))


def in_float64(model):
    """The model in float64 throughout: transformers' norms compute in float32."""
    owners = [(model.model, "norm"), *itertools.product(model.model.layers, NORM_PATHS.values())]
    for owner, name in owners:
        norm = getattr(owner, name)
        exact = torch.nn.RMSNorm(len(norm.weight), eps=norm.variance_epsilon, dtype=torch.float64)
        exact.weight.data.copy_(norm.weight)
        setattr(owner, name, exact.requires_grad_(False))
    return model.double()


def exactly_orthogonal(bases):
    """Bases as plans hold them are rounded to float32."""
    return {site: torch.linalg.qr(basis.double()).Q for site, basis in bases.items()}


@pytest.mark.parametrize("exact", [False, True])
def test_rotated_dense_equals_dense(tiny_model, exact):
    model = in_float64(tiny_model) if exact else tiny_model
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    dense = model(input_ids=IDS).logits
    bases = orthogonal_column_bases(model, ROTATED_FOR)
    with rotated(model, exactly_orthogonal(bases) if exact else bases):
        turned = model(input_ids=IDS).logits
    assert not torch.equal(turned, dense)
    assert torch.allclose(turned, dense, atol=(1e-11 if exact else 2e-4) * dense.abs().max())
    assert torch.equal(model(input_ids=IDS).logits, dense)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def test_k_and_gate_get_orthogonal_columns(llama):
    bases = orthogonal_column_bases(llama, ROTATED_FOR)
    with rotated(llama, bases):
        for block in llama.model.layers:
            linears = block_projections(block)
            for name in ROTATED_FOR.values():
                gram = linears[name].weight.T @ linears[name].weight
                off_diagonal = gram - gram.diag().diag()
                assert off_diagonal.abs().max() < 1e-4 * gram.diag().max()
                assert (gram.diag().diff() < 1e-4 * gram.diag().max()).all()  # in falling order
            others = linears["q"].weight.T @ linears["q"].weight
            assert (others - others.diag().diag()).abs().max() > 0.1 * others.diag().max()


@pytest.mark.parametrize("name", ["teal_rotated", "wina_rotated"])
def test_the_published_form_computes_the_same(tiny_model, name):
    """Rotating the residual stream itself (embeddings, o, down and lm_head included) gives the same logits."""
    model = in_float64(tiny_model)
    calibration = make_calibration(model)
    plan = make_method(name).plan(calibration, 0.3)
    plan.rotations = exactly_orthogonal(plan.rotations)
    with applied(model, plan, make_protocol("all")):
        ours = model(input_ids=IDS).logits
    assert (ours - model(input_ids=IDS).logits).abs().max() > 1e-3
    assert torch.allclose(published_logits(model, plan), ours, atol=1e-6)


def published_logits(model: torch.nn.Module, plan: SparsityPlan) -> torch.Tensor:
    """Logits of a copy whose residual stream is in the basis of the projections that read it."""
    keywords = {}
    handle = model.model.layers[0].register_forward_pre_hook(lambda *a: keywords.update(a[2]), with_kwargs=True)
    model(input_ids=IDS, use_cache=False)
    handle.remove()
    published = copy.deepcopy(model)
    layers, last = published.model.layers, len(published.model.layers) - 1
    attention = [plan.rotations[f"{index}.attention_input"] for index in range(last + 1)]
    mlp = [plan.rotations[f"{index}.mlp_input"] for index in range(last + 1)]
    after = [*attention[1:], mlp[last]]  # the last block stays in its own basis
    published.model.embed_tokens.weight.data @= attention[0]
    for index, block in enumerate(layers):
        linears = block_projections(block)
        for norm, basis, names in (
            (block.input_layernorm, attention[index], "qkv"),
            (block.post_attention_layernorm, mlp[index], ("gate", "up")),
        ):
            for name in names:
                linears[name].weight.data = linears[name].weight * norm.weight @ basis
            norm.weight.data.fill_(1.0)
        linears["o"].weight.data = mlp[index].T @ linears["o"].weight
        linears["down"].weight.data = after[index].T @ linears["down"].weight
    published.lm_head.weight.data = published.lm_head.weight * published.model.norm.weight @ mlp[last]
    published.model.norm.weight.data.fill_(1.0)
    with sparse_projections(model_projections(published), plan.rules):
        hidden = published.model.embed_tokens(IDS)
        for index, block in enumerate(layers):
            attended, _ = block.self_attn(hidden_states=block.input_layernorm(hidden), **keywords)
            hidden = hidden @ attention[index].T @ mlp[index] + attended
            hidden = hidden @ mlp[index].T @ after[index] + block.mlp(block.post_attention_layernorm(hidden))
    return published.lm_head(published.model.norm(hidden))


@pytest.mark.slow
def test_rotations_are_counted_as_bytes_and_flops(llama):
    calibration = make_calibration(llama)
    counted = make_method("teal_rotated").plan(calibration, 0.4)
    published = make_method("teal_rotated", "method.rotation_counted=false").plan(calibration, 0.4)
    reports = []
    for plan in (counted, published):
        with applied(llama, plan, make_protocol("all")) as session:
            llama(input_ids=calibration.input_ids)
        reports.append(session.report())
    weights = sum(math.prod(shape) for shape in projection_shapes(llama).values())
    rotations = 2 * 2 * 48 * 48
    for report, net in zip(reports, (0.4, 0.4 - rotations / weights), strict=True):
        assert report["rotation_share"] == pytest.approx(rotations / weights)
        assert report["realised_sparsity"] - report["rotation_share"] == pytest.approx(net, abs=0.03)
        read = (1 - report["realised_sparsity"]) * weights + rotations
        always = report["dense_bytes_per_token"] / 4 - weights
        assert report["bytes_per_token"] == pytest.approx(4 * (read + always))
        assert report["flops_per_token"] == pytest.approx(2 * (read + 48 * 128))


def test_what_the_rotations_leave_no_room_for_is_refused(llama):
    with pytest.raises(OutOfReachError, match=r"maximum is below 0\.750"):
        make_method("wina_rotated").plan(make_calibration(llama), 0.75)
