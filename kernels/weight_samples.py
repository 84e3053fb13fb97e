"""Samples of a model's weights, which tell them from others of the same shapes.

What is made of one model's weights fits any other of its shapes, and is wrong there. So it keeps a few values
of every parameter, exactly, and they are compared. They are taken at the same places on every machine and
device; a checkpoint that was loaded in two types has the same ones, once they are rounded to the narrower type.
The same weights under another `hidden_act` are another model: values of each block's activation function count.
"""

from __future__ import annotations

import base64
import binascii
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from .errors import KernelError

Samples = Mapping[str, str]
"""Type and values of each parameter and activation function, by name, or by each of its names; bytes are in
base64."""

ACTIVATION = "act_fn"
"""What transformers calls a module that is an activation function."""
COUNT = 32
"""Values of a parameter. Training changes all of them or whole matrices, of which a model has many."""
STEP = 0x9E3779B97F4A7C15
"""Odd, and 2⁶⁴ over the golden ratio: its multiples fall all over a tensor, and not into one column."""
POINTS = torch.linspace(-6.0, 6.0, COUNT, dtype=torch.float64, device="cpu")
"""Where activation functions are sampled: all that are in use bend there."""
TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}


@torch.no_grad()
def weight_samples(model: nn.Module) -> dict[str, str]:
    """Samples of all parameters and activation functions as they are now, by name.

    Raises KernelError for weights that are nowhere.
    """
    found = {name: weight[_places(tuple(weight.shape), weight.device)] for name, weight in _weights(model)}
    alike = defaultdict(list)
    for name, values in found.items():
        alike[values.device, values.dtype].append(name)
    texts = {}
    for names in alike.values():
        rows = torch.stack([found[name] for name in names]).cpu()  # once: each copy waits for a GPU
        texts |= {name: _text(row) for name, row in zip(names, rows, strict=True)}
    return {name: texts[name] for name in found} | dict(_activations(model))


def _text(values: Tensor) -> str:
    stored = base64.b64encode(values.view(torch.uint8).numpy().tobytes()).decode()
    return f"{str(values.dtype).removeprefix('torch.')} {stored}"


def _activations(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Values of the activation functions at POINTS; one that has parameters is known by these."""
    for name, module in model.named_modules():
        if _is_activation(name) and not any(True for _ in module.parameters()):
            # Past hooks, which a user may count calls with. Half the digits: a machine's last one is its own.
            yield name, _text(module.forward(POINTS).to("cpu", torch.float16))


def _is_activation(name: str) -> bool:
    return name.rpartition(".")[2] == ACTIVATION


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters that hold anything; those that accelerate has put away are read from where they are."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.numel():
            continue
        if not parameter.is_meta:
            yield name, parameter
            continue
        owner, _, own = name.rpartition(".")
        put_away = getattr(getattr(modules[owner], "_hf_hook", None), "weights_map", None)
        if put_away is None:
            raise KernelError(f"{name} is not in memory; load the model with its weights")
        yield name, put_away[own]


@lru_cache(maxsize=256)
def _places(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Indices of the values, a tensor (COUNT,) for each dimension."""
    size = torch.Size(shape).numel()
    flat = torch.tensor([number * STEP % size for number in range(COUNT)], device="cpu")
    return tuple(index.to(device) for index in torch.unravel_index(flat, shape))


def first_difference(made_of: Samples, there: Samples) -> str | None:
    """The first parameter or activation function that is none of those that something was made of; None where
    all are. What was made by versions before says nothing of activation functions.
    """
    others = (name for name in there if name not in made_of and not _is_activation(name))
    for name in (*made_of, *others):
        ours, theirs = made_of.get(name), there.get(name)
        if ours != theirs and (ours is None or theirs is None or not _agree(ours, theirs)):
            return name
    return None


def _agree(first: str, second: str) -> bool:
    """Whether two texts, which differ, can be of one parameter in two types."""
    ours, theirs = _values(first), _values(second)
    if ours is None or theirs is None or ours.dtype == theirs.dtype:
        return False
    both = torch.promote_types(ours.dtype, theirs.dtype)
    if both == ours.dtype:
        return torch.equal(ours.to(theirs.dtype), theirs)
    if both == theirs.dtype:
        return torch.equal(theirs.to(ours.dtype), ours)
    # Neither of the two with 16 bits holds the other: both are roundings of what is stored.
    relative = torch.finfo(torch.bfloat16).eps / 2 + torch.finfo(torch.float16).eps
    smallest = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
    return torch.allclose(ours.to(both), theirs.to(both), rtol=relative, atol=smallest)


def _values(text: str) -> Tensor | None:
    """Values of a text; None of one that holds none of `TYPES`."""
    name, _, values = text.partition(" ")
    if name not in TYPES:
        return None
    try:
        return torch.frombuffer(bytearray(base64.b64decode(values, validate=True)), dtype=TYPES[name])
    except (binascii.Error, ValueError):
        return None
