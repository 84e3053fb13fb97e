"""A model whose linears compute with dequantised weights, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..kernels.model.decoder_weights import LM_HEAD
from ..kernels.model.held_weights import check_held, held, own_samples, remember
from ..kernels.plan.whole_plan import of_other_weights
from ..kernels.quantised.stored import StoredWeight
from ..kernels.weight_samples import Samples
from .errors import UserError
from .projections import decoder_of, model_projections
from .running.acting import check_no_plan


@dataclass(frozen=True, eq=False)
class QuantisedWeights:
    """Stored weights of a model's linears."""

    description: str
    """Format and settings in words: what plans and records name."""
    weights: Mapping[str, StoredWeight]
    """Every block projection by key, and `lm_head` where that is quantised."""
    anew: Callable[[str, Tensor], StoredWeight]
    """Quantises another weight (in, out) of a projection, such as one in a rotated basis; takes its key."""
    weight_samples: Samples
    """Samples of the weights that were quantised."""


@dataclass(frozen=True)
class _Placed:
    found: QuantisedWeights
    originals: Mapping[str, nn.Parameter]


_PLACED: WeakKeyDictionary[nn.Module, _Placed] = WeakKeyDictionary()


def quantised_linears(model: PreTrainedModel, lm_head: bool) -> dict[str, nn.Linear]:
    """The linears that are quantised, by name: all block projections and, where asked for, the head."""
    return model_projections(model) | ({LM_HEAD: decoder_of(model).lm_head} if lm_head else {})


@contextmanager
def quantised(model: PreTrainedModel, found: QuantisedWeights | None) -> Iterator[None]:
    """Context in which the model computes with these weights; after it, it has its own again, bit by bit.

    Its own are kept meanwhile, beside the dequantised ones in the model's dtype. An embedding that shares the
    head's weight stays as it is. None: the model is left alone. Raises UserError for those of other weights,
    and where the model is quantised already or a plan acts on it.
    """
    if found is None:
        yield
        return
    if model in _PLACED:
        raise UserError("the model is quantised already; end that context first")
    check_no_plan(model, "a quantisation")
    if problem := of_other_weights("what is stored in few bits", found.weight_samples, own_samples(model)):
        raise UserError(problem)
    linears = quantised_linears(model, LM_HEAD in found.weights)
    with held(model, "its quantisation"), replaced(linears, found.weights) as originals:
        _PLACED[model] = _Placed(found, originals)
        remember(model)
        try:
            yield
            check_held(model)
        finally:
            del _PLACED[model]


@contextmanager
def replaced(
    linears: Mapping[str, nn.Linear], stored: Mapping[str, StoredWeight]
) -> Iterator[dict[str, nn.Parameter]]:
    """Context in which these linears have dequantised weights, in new parameters; gives those before."""
    originals = {name: linear.weight for name, linear in linears.items()}
    try:
        for name, linear in linears.items():
            linear.weight = nn.Parameter(_as_linear(stored[name], linear.weight), requires_grad=False)
        yield originals
    finally:
        for name, linear in linears.items():
            linear.weight = originals[name]


def _as_linear(stored: StoredWeight, like: Tensor) -> Tensor:
    return stored.dequantised().T.to(like.device, like.dtype).contiguous()


@torch.no_grad()
def relative_error(model: PreTrainedModel, found: QuantisedWeights) -> float:
    """‖Ŵ − W‖ / ‖W‖ of all stored weights Ŵ of a model and its own, W, which it has to have in place."""
    errors, sizes = [], []
    for name, linear in quantised_linears(model, LM_HEAD in found.weights).items():
        own = linear.weight.T.float()
        errors.append(torch.linalg.vector_norm(found.weights[name].dequantised() - own, dtype=torch.float64))
        sizes.append(torch.linalg.vector_norm(own, dtype=torch.float64))
    size = torch.stack(sizes).norm()
    return float(torch.stack(errors).norm() / size) if size else 0.0


def quantisation_of(model: PreTrainedModel) -> QuantisedWeights | None:
    """What the model computes with now; None: its own weights."""
    placed = _PLACED.get(model)
    return None if placed is None else placed.found


def description_of(model: PreTrainedModel) -> str | None:
    """What plans made on the model now are for; None: its own weights."""
    found = quantisation_of(model)
    return None if found is None else found.description


def changed_weight(model: PreTrainedModel, name: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Weight (out, in) of a projection or of `lm_head` after a change, as the model would store it.

    In a quantised model what is changed is the weight before it was quantised, and the outcome is quantised: in
    another basis the stored values would be none of the format's.
    """
    linear, placed = quantised_linears(model, lm_head=True)[name], _PLACED.get(model)
    if placed is None or name not in placed.originals:
        return change(linear.weight.data)
    exact = change(placed.originals[name].data.to(linear.weight.device))
    return _as_linear(placed.found.anew(name, exact.T), linear.weight)


@torch.no_grad()
def stored_by(
    linears: Mapping[str, nn.Linear], store: Callable[[str, Tensor], StoredWeight]
) -> dict[str, StoredWeight]:
    """Weights of these linears as `store` makes them of a name and a weight (in, out)."""
    return {name: store(name, linear.weight.data.T) for name, linear in linears.items()}
