"""Masks of weights that the rows of a batch share: one top-k of their |x| together, drawn for no model."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch

from ...model.decoder import DecoderShape
from ...model.decoder_weights import DecoderWeights
from ...plan.block_plan import BlockPlan
from ...plan.projection_rule import ProjectionRule
from .arguments import share
from .drawn import bytes_read

FFN = ("gate", "up", "down")
MASKED = {"none": (), "ffn": FFN, "all": ("q", "k", "v", "o", *FFN)}
"""Projections under the mask, by what rows of a table call them."""
READ = {"none": (), "ffn": ("gate_up", "down"), "all": ("qkv", "o", "gate_up", "down")}
"""Weights of a block that those are stored in."""


@dataclass(frozen=True)
class SharedMask:
    """The same share of input channels dropped in some projections of every block, for all rows together."""

    projections: str = "none"
    """One of `MASKED`."""
    sparsity: float = 0.0

    def over(
        self, plans: tuple[BlockPlan, ...], shape: DecoderShape, device: torch.device
    ) -> tuple[BlockPlan, ...]:
        """The plans with these rules besides; of a channel's score the weight is 1, as of TEAL's."""
        sizes = {name: inner for name, (_, inner) in shape.projection_shapes().items()}
        ones = {inner: torch.ones(inner, device=device) for inner in sizes.values()}
        rules = {
            name: ProjectionRule(
                top_k=round((1.0 - self.sparsity) * sizes[name]), weights=ones[sizes[name]], shared="sum"
            )
            for name in MASKED[self.projections]
        }
        return tuple(replace(plan, rules={**plan.rules, **rules}) for plan in plans)

    def bytes_read(self, weights: DecoderWeights) -> float:
        """Bytes of a step's weights: of those under the mask the share that it keeps."""
        masked = sum(getattr(block, name).nbytes for block in weights.blocks for name in READ[self.projections])
        return bytes_read(weights, 0.0) - self.sparsity * masked


def mask_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which masks steps are timed under."""
    parser.add_argument(
        "--masked", choices=MASKED, nargs="+", default=["none"],
        help="projections under a mask of weights that the batch shares",
    )  # fmt: skip
    parser.add_argument("--sparsity", type=share, default=0.5, help="share of channels that the mask drops")


def masks_of(options: argparse.Namespace) -> tuple[SharedMask, ...]:
    """The masks that `mask_arguments` name, in their order."""
    return tuple(
        SharedMask() if name == "none" else SharedMask(name, options.sparsity) for name in options.masked
    )
