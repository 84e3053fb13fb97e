"""Whole decode steps with neurons that signs predict, beside dense ones: random weights, no model.

    python -m wisparse.kernels.bench.predicted_neurons --shape llama3.1-8b --computed 0.2 0.3

Of random weights half of the gates are above zero, so that the share of neurons that is computed is forced: by
how many signs may be unlike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist, median

import torch

from ..cpu.step import decode_step
from ..model.decoder import DecoderShape
from ..model.decoder_weights import DecoderWeights
from ..model.static_cache import StaticCache
from ..plan.block_plan import BlockPlan
from ..plan.projection_rule import ProjectionRule
from ..plan.signs import SignRule, negative_products, packed_signs, plus_minus
from .bandwidth import read_bandwidth
from .cpu_clock import cpu_step_times
from .drawn import filled_cache, random_weights
from .model_shapes import shape_of

DRAWN = 64
"""Activations on which shares of rows are counted."""
CPU_STEPS = 11


@dataclass(frozen=True)
class PredictedSpeed:
    """A decode step of one kind of plan."""

    device: str
    shape: str
    blocks: int
    kind: str
    """`dense`; `nothing`: no weights of the MLP are read; `signs`: nothing but signs is; `predicted`."""
    computed: float
    """Share of neurons whose row of gate is read."""
    active: float
    """Share of neurons whose row of up and column of down are read."""
    ms: float
    read_gb_s: float
    """Bandwidth of the machine in this run."""


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


def cpu_clock(weights: DecoderWeights, rules: tuple[BlockPlan, ...], cache: StaticCache) -> float:
    """Milliseconds of a step on a CPU, the median of some."""
    return median(cpu_step_times(decode_step(weights, rules, cache), cache, int(cache.length), CPU_STEPS))


def gpu_clock(weights: DecoderWeights, rules: tuple[BlockPlan, ...], cache: StaticCache) -> float:
    """Milliseconds of a captured step on a GPU."""
    from ..gpu.step import GPUDecodeStep
    from ..gpu.tuning.steps import step_clock

    return step_clock(GPUDecodeStep(weights, rules, cache))


def measured(name: str, shape: DecoderShape, device: torch.device, computed: list[float], context: int) -> None:
    """Print a line of JSON for each kind of plan, and each share of neurons computed."""
    clock: Callable[..., float] = gpu_clock if device.type == "cuda" else cpu_clock
    dense = random_weights(shape, 16, 16, torch.bfloat16, device)
    by_row = row_weights(dense)
    cache = filled_cache(shape, torch.bfloat16, device, context)
    bandwidth = read_bandwidth(device) / 1e9
    cases = [
        ("dense", dense, (BlockPlan(),) * shape.blocks),
        ("nothing", dense, nothing_read(shape, device)),
        ("signs", by_row, predicting(by_row, 0.0)),
        *(("predicted", by_row, predicting(by_row, share)) for share in computed),
    ]
    for kind, weights, rules in cases:
        shares = {"dense": (1.0, 1.0), "nothing": (0.0, 0.0), "signs": (0.0, 0.0)}.get(kind)
        found = PredictedSpeed(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            shape=name,
            blocks=shape.blocks,
            kind=kind,
            **dict(zip(("computed", "active"), shares or shares_read(weights, rules[0]), strict=True)),
            ms=clock(weights, rules, cache),
            read_gb_s=bandwidth,
        )
        print(json.dumps(asdict(found)), flush=True)


def main() -> None:
    """Print a line of JSON for each kind of plan."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--shape", default="llama3.1-8b", help="a model of conf/model")
    parser.add_argument("--blocks", type=int, default=None, help="blocks of the model; as it has")
    parser.add_argument("--computed", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    shape = shape_of(options.shape)
    blocks = options.blocks or shape.blocks
    shape = replace(shape, blocks=blocks, windows=shape.windows[:blocks], activation="relu")
    with torch.inference_mode():
        measured(options.shape, shape, torch.device(options.device), options.computed, options.context)


if __name__ == "__main__":
    main()
