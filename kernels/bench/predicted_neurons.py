"""Whole decode steps with neurons that signs predict, beside dense ones and known zeros: random weights.

    python -m wisparse.kernels.bench.predicted_neurons --shape llama3.1-8b --computed 0.2 0.3

Of random weights half of the gates are above zero, so that the share of neurons that is computed is forced: by
how many signs may be unlike; where zeros are known once gate is computed, by a threshold above them. --trained
takes three shares of a trained model: of neurons computed, active of these, and active where none are predicted
(`by_projection` of its cells under sparseinfer and relu_zeros). On a CPU all kinds of plans take turns, so that
what else the machine does meets them alike.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import NormalDist

import torch

from ..errors import KernelError
from ..model.decoder import DecoderShape
from ..model.decoder_weights import DecoderWeights
from ..plan.block_plan import BlockPlan, GateRule
from ..plan.projection_rule import ProjectionRule
from ..plan.signs import SignRule, negative_products, packed_signs, plus_minus
from ..program_end import ends_in_one_line
from .parts.arguments import device_of, share, step_parser
from .parts.drawn import random_weights, row_weights
from .parts.measured_rows import print_rows
from .parts.model_shapes import shape_of
from .parts.steps_in_turn import Case, Row, timed_rows

DRAWN = 64
"""Activations on which shares of rows are counted."""
ALONE = {"dense": (1.0, 1.0), "nothing": (0.0, 0.0), "signs": (0.0, 0.0)}
"""Shares of neurons computed and active of the kinds of plans that there is one of."""


def nothing_read(shape: DecoderShape, device: torch.device) -> tuple[BlockPlan, ...]:
    """Plans whose MLPs drop every channel."""

    def rule(channels: int) -> ProjectionRule:
        return ProjectionRule(thresholds=torch.full((channels,), torch.inf, device=device))

    hidden, ffn = rule(shape.hidden), rule(shape.ffn)
    return (BlockPlan({"gate": hidden, "up": hidden, "down": ffn}),) * shape.blocks


def predicting(weights: DecoderWeights, computed: float) -> tuple[BlockPlan, ...]:
    """Plans under which about this share of neurons is computed; 0: none."""
    channels = weights.shape.hidden
    limit = channels / 2 + NormalDist().inv_cdf(computed) * channels**0.5 / 2 if computed else 0.0
    return tuple(
        BlockPlan(signs=SignRule(packed_signs(block.gate_rows), round(limit))) for block in weights.blocks
    )


def gated_weights(weights: DecoderWeights, by_row: DecoderWeights) -> DecoderWeights:
    """The same weights with gate by itself and rows of up by neurons, which are those of `by_row`."""
    blocks = (
        replace(rows, gate=block.gate_up.chunk(2, dim=1)[0].contiguous(), gate_rows=None)
        for block, rows in zip(weights.blocks, by_row.blocks, strict=True)
    )
    return replace(weights, blocks=tuple(blocks))


def knowing(weights: DecoderWeights, active: float) -> tuple[BlockPlan, ...]:
    """Plans that compute gate whole and keep about this share of neurons, those of the largest gates."""
    shape, gate = weights.shape, weights.blocks[0].gate
    x = torch.randn(DRAWN, shape.hidden, device=gate.device).to(gate.dtype)
    gates = (x @ gate).relu().float().flatten().sort().values
    above_all = gates.new_tensor([math.inf])
    least = torch.cat([gates, above_all])[int((1.0 - active) * DRAWN * shape.ffn)]
    thresholds = least.expand(shape.ffn).contiguous()
    return (BlockPlan(gate=GateRule(thresholds)),) * shape.blocks


def silenced(weights: DecoderWeights, kept: float) -> DecoderWeights:
    """The same weights with the rows of gate zero but for about this share, so that fewer are active."""
    drawn = (torch.rand(len(block.gate_rows), 1) < kept for block in weights.blocks)
    blocks = (
        replace(block, gate_rows=block.gate_rows * keep.to(block.gate_rows))
        for block, keep in zip(weights.blocks, drawn, strict=True)
    )
    return replace(weights, blocks=tuple(blocks))


def shares_read(weights: DecoderWeights, plan: BlockPlan) -> tuple[float, float]:
    """Shares of neurons that are computed, and that are not zero then, of activations drawn at random."""
    rows = weights.blocks[0].gate_rows
    x = torch.randn(DRAWN, rows.shape[1], device=rows.device)
    unlike = negative_products(x, plus_minus(plan.signs.signs, rows.shape[1]))
    computed = unlike <= plan.signs.limit
    active = computed & (x.to(rows.dtype) @ rows.T > 0)
    return computed.float().mean().item(), active.float().mean().item()


def as_active(weights: DecoderWeights, plan: BlockPlan, active: float) -> DecoderWeights:
    """The same weights with about this share of neurons active. Raises KernelError for one out of reach."""
    computed, most = shares_read(weights, plan)
    if active > most:
        raise KernelError(
            f"--trained: of random weights at most {most:.2f} of the neurons are active where {computed:.2f} "
            f"are computed; {active} are not"
        )
    return silenced(weights, active / most if most else 0.0)


def _facts(computed: float, active: float) -> Row:
    return {"computed": round(computed, 4), "active": round(active, 4)}


def rows(name: str, shape: DecoderShape, device: torch.device, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of predicted_neurons.csv: a decode step of each kind of plan, and of each share of neurons computed.

    kind: `dense`; `nothing`: no weights of the MLP are read; `signs`: nothing but signs is; `predicted`;
    `known`, behind the plan that it is compared with: gate is read whole, and of up and down what that reads,
    or what a trained model has above zero. computed: share of neurons whose row of gate is read; active: those
    whose row of up and column of down are. Raises KernelError for a share of a trained model that random
    weights do not reach.
    """
    dense = random_weights(shape, 16, 16, torch.bfloat16, device)
    by_row = row_weights(dense)
    cases: list[Case] = [
        ("dense", dense, (BlockPlan(),) * shape.blocks),
        ("nothing", dense, nothing_read(shape, device)),
        ("signs", by_row, predicting(by_row, 0.0)),
    ]
    described = [(case, _facts(*ALONE[case[0]])) for case in cases]
    gated = gated_weights(dense, by_row)
    forced = [*((computed, None, None) for computed in options.computed), *options.trained]
    for computed, active, nonzero in forced:
        rules = predicting(by_row, computed)
        weights = by_row if active is None else as_active(by_row, rules[0], active)
        found = shares_read(weights, rules[0])
        known = found[1] if nonzero is None else nonzero
        described.append((("predicted", weights, rules), _facts(*found)))
        described.append((("known", gated, knowing(gated, known)), _facts(1.0, known)))
    yield from timed_rows(name, described, options.context, device)


@ends_in_one_line()
def main() -> None:
    """Print a line of JSON for each kind of plan, and append it to a CSV, if one is named."""
    parser = step_parser(__doc__)
    parser.add_argument("--computed", type=share, nargs="*", default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument(
        "--trained",
        type=share,
        nargs=3,
        action="append",
        default=[],
        metavar=("COMPUTED", "ACTIVE", "NONZERO"),
        help="shares of neurons; may be given several times",
    )
    options = parser.parse_args()
    device = device_of(parser, options)
    with torch.inference_mode():
        shape = replace(shape_of(options.shape, options.blocks), activation="relu")
        print_rows(rows(options.shape, shape, device, options), options.csv)


if __name__ == "__main__":
    main()
