"""What of a model the decode engine would leave out without a word: looked for, and refused."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import chain
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from ..errors import KernelError
from . import stored_linears, turned_norms
from .decoder import (
    ATTENTION_PATH,
    GATE_ACTIVATION_PATH,
    HEAD_NORM_PATHS,
    NORM_PATHS,
    PROJECTION_PATHS,
    SITES,
    Decoder,
    Family,
)

OBSERVERS = (
    "transformers.utils.output_capturing",
    "transformers.modeling_utils",
    stored_linears.__name__,
    turned_norms.__name__,
)
"""Modules of functions on a model that change no number, or such that kernels see: of hooks that transformers
leaves where it was asked for hidden states or gradient checkpoints, of linears whose stored weights an engine
reads, and of norms whose bases lie beside a block's weights."""

ACTIVATION_CLASSES = {"silu": ("SiLU", "SiLUActivation"), "relu": ("ReLU",)}
"""Classes of modules that compute an activation, by its name in config.json."""

CLOSE = 0.05
"""Largest error of a norm, over its largest output, that bfloat16 and an epsilon may make."""
CONTAINERS = (nn.ModuleList, nn.Embedding)
"""Classes of modules besides linears that are torch's; all others are of the family's own module."""
LIBRARIES = ("torch", "transformers")
"""Where the functions are from that kernels stand for."""


def check_executable(decoder: Decoder) -> None:
    """Raise KernelError for parts of a model that kernels do not execute.

    Those are parameters, classes and hooks that its family does not have, functions that were put in the place
    of its family's, and settings of its modules that are not those of its configuration.
    """
    for problem in _problems(decoder):
        raise KernelError(f"{problem}; the decode engine does not execute it, `wisparse.sparse` does")


def check_stream(decoder: Decoder) -> None:
    """Raise KernelError for parts that would compute something else on a residual stream in another basis.

    Those are parameters, classes, functions and hooks on the stream's way that its family does not have, and
    norms whose gains are not their weight: a second way around a projection, a hook that steers the stream.
    """
    found = _other_parameters(decoder, allowed={f"{path}.bias" for path in PROJECTION_PATHS.values()})
    paths = (ATTENTION_PATH, GATE_ACTIVATION_PATH.rpartition(".")[0])
    parts = [[block, *map(block.get_submodule, paths)] for block in decoder.blocks]
    modules = _named(decoder, [decoder.embedding, *chain(*parts)])
    _refuse_bases(chain(_count(decoder), found, _classes(decoder, modules), _hooks(decoder, modules)))
    norms = [[block.get_submodule(path) for path in NORM_PATHS.values()] for block in decoder.blocks]
    check_norms(decoder, [*chain(*norms), decoder.final_norm])


def check_linears(decoder: Decoder) -> None:
    """Raise KernelError for projections that are no linear layers of floats, blocks that are one module, and
    weights of several types, on which a model of transformers does not run.

    What is planned of a layer that an adapter was put around leaves the adapter out.
    """
    if len(set(map(id, decoder.blocks))) < len(decoder.blocks):
        raise KernelError("some blocks of the model are one module; give a model whose blocks are their own")
    for projection in decoder.projections():
        linear, kind = projection.linear, type(projection.linear)
        if not isinstance(linear, nn.Linear) or not linear.weight.is_floating_point():
            raise KernelError(
                f"{projection.key} is a {kind.__name__} of {kind.__module__}, no linear layer of floats; merge "
                "an adapter into the model (merge_and_unload), and load weights unquantised"
            )
    parts = (decoder.embedding, *decoder.blocks, decoder.final_norm, decoder.lm_head)
    types = {str(parameter.dtype) for part in parts for parameter in part.parameters()}
    if len(types) > 1:
        raise KernelError(
            f"the model's weights are in {' and '.join(sorted(types))}; load it in one type, as with "
            "from_pretrained(..., dtype=torch.bfloat16), or call model.to(torch.bfloat16)"
        )


def check_norms(decoder: Decoder, norms: Iterable[nn.Module]) -> None:
    """Raise KernelError for norms whose gains are not their weight, which those behind them could take over."""
    modules = _named(decoder, norms)
    others = (name for name, norm in modules.items() if not _has_gains(norm))
    said = (f"{name} is a {type(modules[name]).__name__} whose gains are not its weight" for name in others)
    _refuse_bases(chain(said, _hooks(decoder, modules)))


def _has_gains(norm: nn.Module) -> bool:
    """Whether a norm, of whatever class, gives x over its root mean square times its weight."""
    weight = getattr(norm, "weight", None)
    if weight is None:
        return False
    with torch.no_grad():
        x = torch.linspace(-1.0, 3.0, weight.numel(), device=weight.device, dtype=weight.dtype)[None]
        expected = x.float() * x.float().square().mean().rsqrt() * weight.float()
        found = norm.forward(x).float()
    return torch.allclose(found, expected, rtol=0.0, atol=float(CLOSE * expected.abs().max()))


def _named(decoder: Decoder, parts: Iterable[nn.Module]) -> dict[str, nn.Module]:
    known = {id(part) for part in parts}
    return {name: module for name, module in decoder.model.named_modules() if id(module) in known}


def _refuse_bases(problems: Iterable[str]) -> None:
    for problem in problems:
        raise KernelError(
            f"{problem}, and a plan in other bases would change what the model computes; take a method without "
            "them, as equal_loss or teal"
        )


def _problems(decoder: Decoder) -> Iterator[str]:
    yield from _count(decoder)
    yield from _parameters(decoder)
    modules = {name: module for name, module in decoder.model.named_modules() if name}
    yield from _classes(decoder, {"the model": decoder.model, **modules})
    yield from _functions(decoder)
    yield from _hooks(decoder, {"the model": decoder.model, **modules})
    yield from _settings(decoder, modules)


def _count(decoder: Decoder) -> Iterator[str]:
    """Blocks that are more or fewer than those of the configuration."""
    if len(decoder.blocks) != (stated := decoder.model.config.num_hidden_layers):
        yield f"the model has {len(decoder.blocks)} blocks, and config.json {stated}"


def _parameters(decoder: Decoder) -> Iterator[str]:
    """Parameters that kernels would skip, and those that they would miss."""
    title = decoder.family.title
    yield from _other_parameters(decoder)
    linears = [*(projection.linear for projection in decoder.projections()), decoder.lm_head]
    types = sorted({str(linear.weight.dtype).removeprefix("torch.") for linear in linears})
    if len(types) > 1:
        yield f"the model's linear layers are in {' and '.join(types)}"
    known = {id(parameter) for parameter in decoder.blocks.parameters()}
    known |= {id(module.weight) for module in (decoder.embedding, decoder.final_norm, decoder.lm_head)}
    for name, parameter in decoder.model.named_parameters():
        if id(parameter) not in known:
            yield f"the model has {name}, unlike other {title} models"


def _other_parameters(decoder: Decoder, allowed: Collection[str] = ()) -> Iterator[str]:
    """Parameters of blocks that are not their family's; it may lack or have those that are allowed."""
    expected = set(_parameter_names(decoder.family))
    for index, block in enumerate(decoder.blocks):
        found = {name for name, _ in block.named_parameters()}
        for names, problem in ((found - expected, "has"), (expected - found, "lacks")):
            if names := names.difference(allowed):
                title = decoder.family.title
                yield f"block {index} {problem} {', '.join(sorted(names))}, unlike other {title} models"


def _parameter_names(family: Family) -> Iterable[str]:
    """Parameters of a block of the family, as its module names them."""
    yield from (f"{path}.weight" for path in (*PROJECTION_PATHS.values(), *NORM_PATHS.values()))
    if family.qkv_bias:
        yield from (f"{PROJECTION_PATHS[name]}.bias" for name in SITES["attention_input"])
    if family.query_key_norm:
        yield from (f"{path}.weight" for path in HEAD_NORM_PATHS.values())


def _classes(decoder: Decoder, modules: dict[str, nn.Module]) -> Iterator[str]:
    """Modules that compute something else than the family's do."""
    linears = {id(projection.linear) for projection in decoder.projections()} | {id(decoder.lm_head)}
    activations = {id(block.get_submodule(GATE_ACTIVATION_PATH)) for block in decoder.blocks}
    home = _home(decoder)
    for name, module in modules.items():
        kind = type(module)
        if id(module) in linears:
            usual = kind is nn.Linear
        elif id(module) in activations:
            usual = kind.__name__ in ACTIVATION_CLASSES[decoder.shape.activation]
        else:
            usual = kind in CONTAINERS or kind.__module__ == home
        if not usual:
            yield f"{name} is a {kind.__name__}, unlike in other {decoder.family.title} models"
        own = vars(module).get("forward")
        if (own != MethodType(kind.forward, module) and _changes(own)) or _foreign(kind.forward):
            yield f"{name} has a forward of its own"


def _home(decoder: Decoder) -> str | None:
    """Name of the module of transformers that defines the model's parts; None where another does."""
    home = type(decoder.inner).__module__
    return home if home.startswith("transformers.models.") else None


def _functions(decoder: Decoder) -> Iterator[str]:
    """Functions of the family's module that were replaced, and attention by one of a user's."""
    # Only here: kernels import with torch and triton alone.
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for name, function in vars(sys.modules[type(decoder.inner).__module__]).items():
        if isinstance(function, FunctionType) and _foreign(function):
            yield f"{name} of {decoder.family.title} models was replaced"
    for block in decoder.blocks:
        name = block.get_submodule(ATTENTION_PATH).config._attn_implementation
        function = ALL_ATTENTION_FUNCTIONS.get(name)
        if function is not None and _foreign(function):
            yield f"attention is computed by '{name}', which is not transformers' own"


def _foreign(function: Any) -> bool:
    """Whether a function is not of torch or transformers, whatever it names itself."""
    while isinstance(function, partial):
        function = function.func
    home = getattr(function, "__globals__", {}).get("__name__", "")
    return home.partition(".")[0] not in LIBRARIES


def _hooks(decoder: Decoder, modules: dict[str, nn.Module]) -> Iterator[str]:
    """Modules with hooks that may change what they compute."""
    for name, module in modules.items():
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if any(map(_changes, hooks)):
            yield f"{name} has a forward hook"


def _changes(function: Any) -> bool:
    """Whether a function that was put on a module may change what it computes; None never does."""
    return function is not None and getattr(function, "__module__", None) not in OBSERVERS


def _settings(decoder: Decoder, modules: dict[str, nn.Module]) -> Iterator[str]:
    """Numbers of modules that are not those of the configuration."""
    shape = decoder.shape
    scaling = shape.head_dim**-0.5
    attentions = {id(block.get_submodule(ATTENTION_PATH)) for block in decoder.blocks}
    for name, module in modules.items():
        epsilon = getattr(module, "variance_epsilon", shape.norm_epsilon)
        if epsilon != shape.norm_epsilon:
            yield f"{name} has the epsilon {epsilon}, and config.json {shape.norm_epsilon}"
        if id(module) in attentions and not math.isclose(found := module.scaling, scaling):
            yield f"{name} scales by {found:g}, and heads of {shape.head_dim} by {scaling:g}"
