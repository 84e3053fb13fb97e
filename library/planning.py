"""A plan from a model and texts: `plan`, and `load_plan` for one that was saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .catalogue import make_method, token_policy
from .method.base import Method
from .method.calibration import Calibration
from .method.errors import UserError
from .method.plan import SparsityPlan
from .method.running.acting import ENGINE, PLANNING, acting_on, at_rest
from .method.settings import BOUNDS
from .method.token_policy import TokenPolicy
from .method.tokens import pack

SEQUENCES, LENGTH = 16, 512
"""Calibration tokens, as `conf/calibration/embedded.yaml` has them."""


def plan(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    texts: str | Sequence[str] | Tensor,
    *,
    method: str | Method = "wisparse",
    sparsity: float = 0.5,
    search: str = "quick",
    sequences: int = SEQUENCES,
    length: int = LENGTH,
    batch_size: int = 4,
    search_tokens: str | TokenPolicy | None = None,
    seed: int = 0,
) -> SparsityPlan:
    """The plan of a method for a model at a block sparsity, calibrated on texts.

    texts: one or several texts, which `tokenizer` turns into (sequences, length) token ids; or such ids, (n,
    length) int64, and then `tokenizer`, `sequences` and `length` are not used. method: a name that `methods()`
    lists, or an object. sparsity: share of the block projections' weights not read, in [0, 1). search: the
    budget of a method's searches, quick, medium or paper. batch_size: sequences a forward pass. search_tokens:
    which tokens are sparse while the method searches; None: all.

    The model is as before afterwards. Raises UserError for what cannot be planned.
    """
    _check_numbers(sparsity, {"sequences": sequences, "length": length, "batch_size": batch_size}, seed)
    recipe = make_method(method, search, int(seed)) if isinstance(method, str) else method
    if not isinstance(recipe, Method):
        raise UserError(f"method={method!r} is no method; give a name that wisparse.methods() lists")
    ids = _token_ids(texts, tokenizer, sequences, length)
    policy = None if search_tokens is None else token_policy(search_tokens)
    with acting_on(model, PLANNING, beside=ENGINE), at_rest(model):
        torch.manual_seed(int(seed))
        return recipe.plan(Calibration(model, ids, batch_size, policy), float(sparsity))  # NumPy's is no JSON


def load_plan(path: Path | str) -> SparsityPlan:
    """The plan that `plan.save(path)` wrote; raises PlanError when it is missing, truncated or of another
    format.
    """
    return SparsityPlan.load(path)


def _check_numbers(sparsity: float, counts: Mapping[str, int], seed: int) -> None:
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise UserError(f"sparsity={sparsity!r} is no number; try sparsity=0.5")
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise UserError(f"{name}={count!r} is not a whole number of at least 1")
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not BOUNDS["seed"].holds(seed):
        raise UserError(f"seed={seed!r} is not a whole number {BOUNDS['seed'].text}")


def _token_ids(
    texts: str | Sequence[str] | Tensor, tokenizer: PreTrainedTokenizerBase | None, sequences: int, length: int
) -> Tensor:
    if isinstance(texts, Tensor):
        return texts
    if tokenizer is None:
        raise UserError("texts need a tokenizer; without one give token ids, (sequences, length) int64")
    texts = [texts] if isinstance(texts, str) else texts
    # What a tokenizer returns is a mapping, whose keys are texts, too.
    several = isinstance(texts, Iterable) and not isinstance(texts, Mapping)
    texts = list(texts) if several else [texts]
    if not all(isinstance(text, str) for text in texts):
        raise UserError("texts are strings, or one tensor of token ids (sequences, length)")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(f"tokenizer={tokenizer!r} is none; give the model's, of AutoTokenizer.from_pretrained")
    return pack(texts, tokenizer, sequences, length, "the calibration text")
