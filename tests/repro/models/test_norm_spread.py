"""The rescale changes no output, and separates scores that know the weights from those that do not."""

import pytest
import torch
from wisparse.repro.models.norm_spread import spread_norms

from ...conftest import make_calibration, make_method, make_tiny_model

IDS = torch.randint(1, 128, (2, 24), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_no_output_changes_and_every_site_does(tiny_model, sigma):
    family = tiny_model.config.model_type
    plain, dense = make_tiny_model(family), tiny_model(input_ids=IDS).logits
    if family == "qwen2":
        for block in tiny_model.model.layers:
            block.self_attn.v_proj.bias.uniform_(-1, 1)
        dense = tiny_model(input_ids=IDS).logits
    spread_norms(tiny_model, sigma, seed=1)
    assert torch.allclose(tiny_model(input_ids=IDS).logits, dense, atol=2e-4 * dense.abs().max())
    before, after = make_calibration(plain).column_norms, make_calibration(tiny_model).column_norms
    for name, norms in before.items():
        spread = (after[name] / norms).log().std()
        assert spread == pytest.approx(sigma, rel=0.35)


def test_a_score_that_knows_the_weights_follows_and_the_magnitude_alone_does_not():
    models = [make_tiny_model("llama") for _ in range(2)]
    spread_norms(models[1], 2.0, seed=1)
    plain, spread = map(make_calibration, models)
    moved = {}
    for name in ("teal_uniform", "wisparse_alpha_1"):
        overrides = () if name == "teal_uniform" else ("allocation=uniform", "method.fine=false")
        before, after = (make_method(name, *overrides).plan(one, 0.5).rules for one in (plain, spread))
        # The factor by which a channel's activations shrank; its threshold should shrink alike.
        factors = {key: spread.column_norms[key] / plain.column_norms[key] for key in before}
        # v's and up's rows are rescaled too, which changes what their columns' norms say.
        seen = [key for key in before if not key.endswith((".v", ".up"))]
        ratios = [after[key].thresholds * factors[key] / before[key].thresholds for key in seen]
        moved[name] = max(ratio.log().abs().max().item() for ratio in ratios)
    assert moved["wisparse_alpha_1"] < 0.05
    assert moved["teal_uniform"] > 2.0
