"""Random checkpoints decode alike in the engine, under hooks and in transformers, or are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.model.decoder import check_windows
from wisparse.method.errors import UserError
from wisparse.method.plan import SparsityPlan
from wisparse.method.running.apply import applied
from wisparse.repro.models.weights import check_runs

from ..conftest import make_calibration, make_method, make_protocol, with_routers
from ..kernels.decoded_tokens import DecodedTokens, generated, typical_error, with_biases
from .conftest import examples
from .drawn_checkpoints import DrawnCheckpoint, checkpoints

pytestmark = pytest.mark.slow

METHODS = {
    "dense": (),
    "teal_uniform": (),
    "wina": ("method.greedy=false",),
    "cats": (),
    "chess": (),
    "rsparse": ("method.search=false", "method.share=0.7"),
    "larosa": (),
    "larosa_adapter": (),
    "larosa_each": (),
    "lte": (),
    "prox": (),
    "relu_zeros": (),
    "sparseinfer": (),
    "teal_folded": (),
    "teal_uniform_shared": (),
    "topk_guided": (),
    "wina_rotated": ("method.greedy=false",),
    "biases": (),
}
"""Every mechanism that an engine executes, and none. Biases are drawn: those of a training are near zero."""
OF_RELU = ("relu_zeros", "sparseinfer", "lte")
"""Methods of models whose gates are behind a ReLU."""
SPARSITY = 0.3  # within reach of CATS and CHESS, most often
NEW_TOKENS = 10


@contextmanager
def refused() -> Iterator[list[str]]:
    """Context that a mistake of the user ends; gives the list of its one line, empty where there is none."""
    lines: list[str] = []
    try:
        yield lines
    except (KernelError, UserError) as error:
        lines.append(str(error))
    assert "\n" not in "".join(lines)


def drawn_model(drawn: DrawnCheckpoint) -> PreTrainedModel:
    """The model, where transformers can run it; what it cannot is refused when a checkpoint is loaded."""
    try:
        model = drawn.model()
        model(torch.tensor([[5, 6, 7]]))
    except Exception:
        assume(False)
    with refused() as refusals:
        check_windows(model.config)
        check_runs(model, drawn.family)
    assume(not refusals)
    return model


def drawn_plan(model: PreTrainedModel, method: str, folder: Path | None = None) -> SparsityPlan:
    calibration, plan = make_calibration(model, sequences=4, length=24), None
    if method == "lte":
        with_routers(model, folder, size=next(size for size in (4, 3, 2, 1) if not ffn_of(model) % size))
    with refused():
        if method == "biases":
            plan = with_biases(make_method("teal_uniform").plan(calibration, SPARSITY))
        else:
            plan = make_method(method, *METHODS[method]).plan(calibration, SPARSITY)
    assume(plan is not None)
    return plan


def ffn_of(model: PreTrainedModel) -> int:
    return model.config.intermediate_size


def prompts(model: PreTrainedModel, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Random prompts of these lengths, padded on the left, and their mask."""
    generator = torch.Generator().manual_seed(len(lengths))
    longest = max(lengths)
    ids = torch.randint(1, model.config.vocab_size, (len(lengths), longest), generator=generator)
    mask = (torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]).long()
    return ids.masked_fill(mask == 0, 0), mask


def hangs_on_rounding(model: PreTrainedModel, run, found: list[list[int]]) -> bool:
    """Whether weights changed by as little as sums of float32 differ by give other tokens than these.

    Then an activation lies at its threshold, or two tokens have one logit, and no order of sums is wrong.
    """
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    try:
        for _ in range(12):
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(weights[name] * (1 + 1e-6 * noise))
            if run().tolist() != found:
                return True
        return False
    finally:
        for name, parameter in model.named_parameters():
            parameter.data.copy_(weights[name])


@examples(25)
@given(
    drawn=checkpoints(dtypes=("float32",)),
    method=st.sampled_from(sorted(METHODS)),
    protocol=st.sampled_from(("half", "decode_only", "all")),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
)
def test_the_engine_decodes_as_hooks_and_transformers_do(tmp_path_factory, drawn, method, protocol, lengths):
    if method in OF_RELU:
        drawn = replace(drawn, settings=drawn.settings | {"hidden_act": "relu"})
    model = drawn_model(drawn)
    plan = drawn_plan(model, method, tmp_path_factory.mktemp("routers"))
    ids, mask = prompts(model, lengths)
    policy = replace(make_protocol(protocol), rows_sharing=len(lengths))
    hooks = partial(generated, model, plan, policy, ids, NEW_TOKENS, mask)
    expected = hooks().tolist()
    if method == "dense":
        plain = model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0,
            do_sample=False,
        )  # fmt: skip
        assert expected == plain.tolist()
    engine_plan = None if method == "dense" else plan
    reading = partial(applied, model, plan, policy)
    before = {name: parameter.stride() for name, parameter in model.named_parameters()}
    size = {"batch": len(lengths), "capacity": ids.shape[1] + NEW_TOKENS}
    found = None
    with refused(), DecodeEngine(model, engine_plan, **size, reading_prompts=reading) as engine:
        found = engine.generate(ids, mask, new_tokens=NEW_TOKENS).tolist()
    assert {name: parameter.stride() for name, parameter in model.named_parameters()} == before
    assert hooks().tolist() == expected  # the engine left the model as it was
    if found is not None and found != expected:
        assume(not hangs_on_rounding(model, hooks, expected))
        assert found == expected


@examples(6)
@given(drawn=checkpoints(dtypes=("bfloat16", "float16")), sparse=st.booleans())
def test_logits_of_half_precision_are_as_near_to_exact_ones_as_those_of_transformers(drawn, sparse):
    model = drawn_model(drawn)
    plan = drawn_plan(model.float(), "teal_uniform") if sparse else None
    with refused() as refusals:
        decoded = DecodedTokens(drawn.model, plan)
    assume(not refusals)
    exact = decoded.exact()
    ours, theirs = (
        typical_error(logits, exact) for logits in (decoded.of_the_engine(), decoded.of_transformers())
    )
    assert ours <= 2 * theirs
