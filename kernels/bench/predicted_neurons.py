"""Whole decode steps with neurons that signs predict, beside dense ones: random weights, no model.

    python -m wisparse.kernels.bench.predicted_neurons --shape llama3.1-8b --computed 0.2 0.3

Of random weights half of the gates are above zero, so that the share of neurons that is computed is forced: by
how many signs may be unlike. On a CPU all kinds of plans take turns, so that what else the machine does meets
them alike.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist, median

import torch

from ..cpu.step import decode_step
from ..model.decoder import DecoderShape
from ..model.decoder_weights import DecoderWeights
from ..model.static_cache import StaticCache
from ..plan.block_plan import BlockPlan
from ..plan.projection_rule import ProjectionRule
from ..plan.signs import SignRule, negative_products, packed_signs, plus_minus
from ..program_end import ends_in_one_line
from .arguments import count, gpu, share
from .bandwidth import read_bandwidth
from .cpu_heads import cpu_step_times, device_name
from .drawn import filled_cache, random_weights
from .measured_rows import print_rows
from .model_shapes import shape_of

DRAWN = 64
"""Activations on which shares of rows are counted."""
ROUNDS, STEPS = 8, 6
"""Turns of every plan on a CPU, and its steps in a turn, of which the first is not counted."""

Row = dict[str, str | float]
Case = tuple[str, DecoderWeights, tuple[BlockPlan, ...]]
"""Kind of plan, the weights laid out for it, and a plan for each block."""


def row_weights(weights: DecoderWeights) -> DecoderWeights:
    """The same weights, with rows of gate and of up by neurons."""

    def by_neuron(weight: torch.Tensor) -> torch.Tensor:
        return weight.T.contiguous()

    blocks = []
    for block in weights.blocks:
        gate, up = block.gate_up.chunk(2, dim=1)
        rows = {"gate_rows": by_neuron(gate), "up_rows": by_neuron(up), "gate_up": None}
        blocks.append(replace(block, **rows))
    return replace(weights, blocks=tuple(blocks))


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


def shares_read(weights: DecoderWeights, plan: BlockPlan) -> tuple[float, float]:
    """Shares of neurons that are computed, and that are not zero then, of activations drawn at random."""
    rows = weights.blocks[0].gate_rows
    x = torch.randn(DRAWN, rows.shape[1], device=rows.device)
    unlike = negative_products(x, plus_minus(plan.signs.signs, rows.shape[1]))
    computed = unlike <= plan.signs.limit
    active = computed & (x.to(rows.dtype) @ rows.T > 0)
    return computed.float().mean().item(), active.float().mean().item()


def cpu_milliseconds(cases: Sequence[Case], cache: StaticCache) -> list[float]:
    """Milliseconds of each case's step on a CPU: of the medians of its turns the fastest."""
    context = int(cache.length)
    steps = [decode_step(weights, rules, cache) for _, weights, rules in cases]
    turns = [[median(cpu_step_times(step, cache, context, STEPS)[1:]) for step in steps] for _ in range(ROUNDS)]
    return [min(found) for found in zip(*turns, strict=True)]


def gpu_milliseconds(cases: Sequence[Case], cache: StaticCache) -> list[float]:
    """Milliseconds of each case's captured step on a GPU."""
    from ..gpu.step import GPUDecodeStep
    from ..gpu.tuning.steps import step_clock

    return [step_clock(GPUDecodeStep(weights, rules, cache)) for _, weights, rules in cases]


def timed_rows(
    name: str, described: Sequence[tuple[Case, Row]], context: int, device: torch.device
) -> Iterator[Row]:
    """A row of each case's step behind so many tokens: what is said of the case stands between kind and ms.

    name: of the shapes. read_gb_s: bandwidth of the machine in this run.
    """
    on_gpu = device.type == "cuda"
    cases = [case for case, _ in described]
    cache = filled_cache(cases[0][1].shape, torch.bfloat16, device, context)
    bandwidth = read_bandwidth(device) / 1e9
    times = (gpu_milliseconds if on_gpu else cpu_milliseconds)(cases, cache)
    for ((kind, weights, _), facts), ms in zip(described, times, strict=True):
        yield {
            "device": torch.cuda.get_device_name(device) if on_gpu else device_name(),
            "shape": name,
            "blocks": weights.shape.blocks,
            "kind": kind,
            **facts,
            "ms": round(ms, 4),
            "read_gb_s": round(bandwidth, 1),
            "commit": os.environ.get("GIT_COMMIT", ""),
        }


def step_parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments of every table of such steps: shapes, device, context, and the table."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="llama3.1-8b", help="a model of conf/model")
    parser.add_argument("--blocks", type=count, default=None, help="blocks of the model; as it has")
    parser.add_argument("--context", type=count, default=128)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--csv", type=Path, help="append the rows to this table, too")
    return parser


def device_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> torch.device:
    """The device that was asked for; ends the command where it is a GPU and there is none."""
    return gpu(parser) if options.device == "cuda" else torch.device("cpu")


def rows(name: str, shape: DecoderShape, device: torch.device, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of predicted_neurons.csv: a decode step of each kind of plan, and of each share of neurons computed.

    kind: `dense`; `nothing`: no weights of the MLP are read; `signs`: nothing but signs is; `predicted`.
    computed: share of neurons whose row of gate is read; active: those whose row of up and column of down are.
    """
    dense = random_weights(shape, 16, 16, torch.bfloat16, device)
    by_row = row_weights(dense)
    cases: list[Case] = [
        ("dense", dense, (BlockPlan(),) * shape.blocks),
        ("nothing", dense, nothing_read(shape, device)),
        ("signs", by_row, predicting(by_row, 0.0)),
        *(("predicted", by_row, predicting(by_row, share)) for share in options.computed),
    ]
    described: list[tuple[Case, Row]] = []
    for case in cases:
        kind, weights, rules = case
        shares = {"dense": (1.0, 1.0), "nothing": (0.0, 0.0), "signs": (0.0, 0.0)}.get(kind)
        computed, active = shares or shares_read(weights, rules[0])
        described.append((case, {"computed": round(computed, 4), "active": round(active, 4)}))
    yield from timed_rows(name, described, options.context, device)


@ends_in_one_line()
def main() -> None:
    """Print a line of JSON for each kind of plan, and append it to a CSV, if one is named."""
    parser = step_parser(__doc__)
    parser.add_argument("--computed", type=share, nargs="+", default=[0.1, 0.2, 0.3, 0.5])
    options = parser.parse_args()
    device = device_of(parser, options)
    with torch.inference_mode():
        shape = replace(shape_of(options.shape, options.blocks), activation="relu")
        print_rows(rows(options.shape, shape, device, options), options.csv)


if __name__ == "__main__":
    main()
