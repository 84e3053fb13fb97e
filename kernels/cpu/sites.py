"""Products of a decode step that read the same activation, cut into parts that share a rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from ..model.decoder import DecoderShape
from ..plan.block_plan import BlockPlan
from ..plan.projection_rule import ProjectionRule
from ..plan.proxies import ProxyRule
from ..quantised.packed import PackedInt4, PackedInt8, PackedWeight, some_of
from .weights import AnyWeight


@dataclass(frozen=True)
class Part:
    """One projection, or dense ones beside each other: one product."""

    weight: AnyWeight
    """(in, out)"""
    rule: ProjectionRule | None
    """None: every channel."""
    columns: slice
    """Its place in the site's output."""


def skipping_zeros(rules: BlockPlan, shape: DecoderShape) -> BlockPlan:
    """The same rules, and one of o that drops what attention over chosen groups leaves at zero."""
    if rules.heads is None or rules.of("o") is not None:
        return rules
    return replace(rules, rules={**rules.rules, "o": ProjectionRule.of_nonzero(shape.attention_width)})


def whole(weight: AnyWeight) -> tuple[Part, ...]:
    """The one part of a dense product with a weight (in, out)."""
    return (Part(weight, None, slice(0, weight.shape[1])),)


def parts_of(
    weight: Tensor | PackedWeight, names: tuple[str, ...], shape: DecoderShape, rules: BlockPlan
) -> tuple[Part, ...]:
    """The parts of projections `names`, whose weights lie side by side in `weight`.

    In 8 bits each projection is a product of its own, for its rows have scales of their own.
    """
    widths = {name: out for name, (out, _) in shape.projection_shapes().items() if name in names}
    alone = isinstance(weight, PackedInt8)
    parts, start, first = [], 0, 0
    for _, group in groupby(names, key=lambda name: name if alone or rules.of(name) else "dense"):
        beside = list(group)
        columns = slice(start, start + sum(widths[name] for name in beside))
        own = weight[:, columns] if isinstance(weight, Tensor) else some_of(weight, first, len(beside))
        parts.append(Part(own, rules.of(beside[0]), columns))
        start, first = columns.stop, first + len(beside)
    return tuple(parts)


def ranking(proxies: PackedInt4, rule: ProxyRule) -> Part:
    """The product of the largest |x| with the proxies of gate and up beside each other."""
    largest = ProjectionRule(top_k=rule.read, weights=torch.ones(rule.channels, dtype=torch.float32))
    return Part(some_of(proxies, 0, len(proxies.widths)), largest, slice(0, sum(proxies.widths)))
