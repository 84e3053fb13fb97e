"""Compile what steps and prompts launch for sm_90, on a machine without a GPU: prints each kernel's name.

Run as a program, without TRITON_INTERPRET: the interpreter accepts more than the compiler does.
"""

import sys
from dataclasses import replace

import torch
import triton
from triton.backends.compiler import GPUTarget


class HopperDriver:
    """Says which GPU to compile for; nothing is launched."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, _):
        return 0


def compile_only(kernel, grid, *arguments, warps=4, stages=1, pdl=False, **meta):
    kernel.warmup(*arguments, grid=grid, PDL=True, num_warps=warps, num_stages=stages, launch_pdl=True, **meta)
    print(kernel.__name__)


def main(batch):
    triton.runtime.driver.set_active(HopperDriver())
    from wisparse.kernels.triton import launch as triton_launch

    triton_launch.launch = compile_only
    triton_launch.require_runnable = lambda device: None
    from wisparse.kernels.gpu import site_launches
    from wisparse.kernels.gpu.step import GPUDecodeStep
    from wisparse.kernels.gpu.step_tiles import default_tiles
    from wisparse.kernels.model.decoder import DecoderShape
    from wisparse.kernels.model.decoder_weights import BlockWeights, DecoderWeights
    from wisparse.kernels.model.static_cache import StaticCache
    from wisparse.kernels.plan.block_plan import BlockPlan, GateRule
    from wisparse.kernels.plan.heads import HeadRule
    from wisparse.kernels.plan.projection_rule import ProjectionRule
    from wisparse.kernels.quantised.int4 import int4_rounded
    from wisparse.kernels.quantised.int8 import int8_rounded
    from wisparse.kernels.triton.dequantise import Dequantisation
    from wisparse.kernels.triton.group_choice import group_choice

    hidden, ffn, heads, kv_heads, head_dim, vocabulary = 512, 1024, 8, 2, 64, 64
    shape = DecoderShape(3, hidden, ffn, heads, kv_heads, head_dim, vocabulary, 1e-5, (None, 64, None))

    def weight(*size):
        return torch.zeros(size, dtype=torch.bfloat16)

    def block(gated):
        qkv = (heads + 2 * kv_heads) * head_dim
        gate = (
            (None, weight(hidden, ffn), weight(ffn, hidden)) if gated else (weight(hidden, 2 * ffn), None, None)
        )
        norms = weight(hidden), weight(hidden)
        return BlockWeights(
            norms[0],
            weight(hidden, qkv),
            weight(qkv),
            weight(512, hidden),
            norms[1],
            *gate,
            weight(ffn, hidden),
        )

    def threshold(channels, **factors):
        return ProjectionRule(thresholds=torch.zeros(channels), **factors)

    outputs = {name: out for name, (out, _) in shape.projection_shapes().items()}
    rules = {name: threshold(hidden, bias=weight(outputs[name])) for name in ("k", "o", "up")}
    rules["gate"] = threshold(hidden)
    rules["v"] = threshold(hidden, bounds=(1, 100))
    rules["q"] = threshold(hidden, left=weight(heads * head_dim, 8), right=weight(8, hidden))
    rules["down"] = ProjectionRule(top_k=100, weights=torch.ones(ffn))
    shared = {
        name: ProjectionRule(top_k=inner // 2, weights=torch.ones(inner), shared="sum")
        for names, inner in (("qkvo", hidden), (("gate", "up"), hidden), (("down",), ffn))
        for name in names
    }
    weights = DecoderWeights(
        shape,
        (block(False), block(True), block(False)),
        weight(vocabulary, hidden),
        weight(hidden),
        weight(vocabulary, hidden),
    )
    slots = weight(3, batch, kv_heads, 256, head_dim)
    angles, integers = torch.zeros(256, head_dim), torch.zeros(batch, dtype=torch.int32)
    cache = StaticCache(slots, slots.clone(), integers[:1].clone(), integers, angles, angles)
    router = HeadRule(weight(heads, hidden), weight(heads), kv_heads, 1)
    plans = (BlockPlan(rules), BlockPlan({}, GateRule(torch.zeros(ffn)), heads=router), BlockPlan(shared))
    site_launches.library_product = lambda *_, **__: None  # torch's product in half precision needs a GPU
    library = frozenset({"qkv", "o", "gate_up", "down"}) if batch > 1 else frozenset()
    tiles = default_tiles(shape, batch, 256)
    basis = weight(hidden, hidden)
    bases = {"input_basis": basis, "mlp_basis": basis, "adapter": basis}
    turned = replace(weights, blocks=tuple(replace(one, **bases) for one in weights.blocks))
    unrouted = (plans[0], replace(plans[1], heads=None), plans[2])
    dense = (BlockPlan(), plans[1], BlockPlan())
    for read, of_blocks in ((weights, plans), (weights, dense), (turned, unrouted)):
        step = GPUDecodeStep(read, of_blocks, cache, replace(tiles, library=library))
        step(torch.zeros(batch, dtype=torch.int64))
    ones = torch.ones(32, 256)
    for stored in (int8_rounded(ones), int4_rounded(ones, 128, True), int4_rounded(ones, 128, False)):
        Dequantisation(stored)(weight(32, 256))
    group_choice(torch.zeros(1, 4), 0.5, weight(1, ffn))
    compile_statistics()


def compile_statistics():
    from wisparse.kernels.triton.statistics import magnitudes, near_thresholds, thresholded, turned

    for module in (magnitudes, near_thresholds, thresholded, turned):
        module.require_runnable = lambda device: None
    x, thresholds, tokens = torch.zeros(2, 32, 96), torch.zeros(96), torch.ones(1, 32, dtype=torch.bool)
    counts, broken = torch.zeros(96, 544, dtype=torch.int32), torch.zeros((), dtype=torch.int64)
    magnitudes.count_magnitudes(x, counts, broken, -22, 16)
    for positions in (None, tokens):
        near_thresholds.near_costs(x, x, thresholds, thresholds, positions, 1.5)
        thresholded.thresholded(x, thresholds, positions)
    readers = torch.tensor([[0, 1], [2, -1]], dtype=torch.int32)
    turned.relative_slopes(x, torch.zeros(3, 96), torch.ones(3), readers)


if __name__ == "__main__":
    main(int(sys.argv[1]))
