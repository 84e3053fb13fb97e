"""Print a hash of the machine code of every launch of a decode step, for sm_90, on a machine without a GPU.

`python -m tests.kernels.gpu.machine_code > before`, the same after a change, then `diff before after`: moves
and renames leave it empty. Steps have the shapes of 7-8B models. Names of kernels and files do not count, nor
do line numbers. NVRTC and cuda-bindings, of torch's CUDA build, must be there. Run it without TRITON_INTERPRET.
"""

import hashlib
import os
import subprocess
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import triton

os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
from ..triton.compile_for_hopper import HopperDriver

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MULTIPROCESSORS = 132
printed = []


def of_instructions(cubin):
    """Hash of the instructions alone."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [TOOLS / "cuobjdump", "--dump-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
    instructions = [line.strip() for line in listing.splitlines() if line.lstrip().startswith("/*")]
    assert instructions, "no machine code"
    return f"{len(instructions):6d} lines {hashlib.sha256('|'.join(instructions).encode()).hexdigest()[:16]}"


def triton_launch(kernel, grid, *arguments, warps=4, stages=1, pdl=False, **meta):
    """`launch`, but only compiled."""
    options = {"num_warps": warps, "num_stages": stages, "launch_pdl": True, "PDL": True}
    compiled = kernel.warmup(*arguments, grid=grid, **options, **meta)
    printed.append(f"triton {grid} {warps} warps {of_instructions(compiled.asm['cubin'])}")


def cuda_launch(name, constants, blocks, threads, arguments, pdl):
    """`cuda.compiled.launch`, but only compiled."""
    printed.append(
        f"cuda {blocks} blocks {threads} threads {cuda_code(name, tuple(sorted(constants.items())))}"
    )


@cache
def cuda_code(name, constants):
    from wisparse.kernels.cuda import compiled

    return of_instructions(compiled.compiled(name, dict(constants), (9, 0)))


def block_of(shape, bias, gated):
    from wisparse.kernels.model.decoder_weights import BlockWeights

    def weight(*size):
        return torch.zeros(size, dtype=torch.bfloat16)

    hidden, ffn, width = shape.hidden, shape.ffn, shape.attention_width
    qkv = width + 2 * shape.kv_width
    return BlockWeights(
        input_norm=weight(hidden),
        qkv=weight(hidden, qkv),
        qkv_bias=weight(qkv) if bias else None,
        o=weight(width, hidden),
        mlp_norm=weight(hidden),
        gate_up=None if gated else weight(hidden, 2 * ffn),
        gate=weight(hidden, ffn) if gated else None,
        up_rows=weight(ffn, hidden) if gated else None,
        down=weight(ffn, hidden),
    )


def rules_of(kind, shape):
    from wisparse.kernels.plan.block_plan import BlockPlan, GateRule
    from wisparse.kernels.plan.projection_rule import ProjectionRule

    inner = dict.fromkeys(("q", "k", "v", "gate", "up"), shape.hidden)
    inner |= {"o": shape.attention_width, "down": shape.ffn}
    if kind == "dense":
        return BlockPlan()
    if kind == "gated":
        rules = {
            name: ProjectionRule(thresholds=torch.zeros(inner[name])) for name in ("q", "k", "v", "o", "gate")
        }
        return BlockPlan(rules, GateRule(torch.zeros(shape.ffn)))
    if kind == "top-k":
        rule = {name: ProjectionRule(top_k=n // 2, weights=torch.ones(n)) for name, n in inner.items()}
        return BlockPlan(rule)
    rules = {name: ProjectionRule(thresholds=torch.zeros(n)) for name, n in inner.items()}
    if kind == "low-rank":
        left, right = (
            torch.zeros(size, dtype=torch.bfloat16) for size in ((shape.hidden, 64), (64, shape.ffn))
        )
        rules["down"] = ProjectionRule(thresholds=torch.zeros(shape.ffn), left=left, right=right)
    return BlockPlan(rules)


def launches(name, kind, batch, capacity, cuda):
    """Lay a step of one block out and compile all of it."""
    from wisparse.kernels.bench.parts.model_shapes import MODEL_SHAPES
    from wisparse.kernels.gpu.step import GPUDecodeStep
    from wisparse.kernels.gpu.step_tiles import Never, default_tiles
    from wisparse.kernels.model.decoder_weights import DecoderWeights
    from wisparse.kernels.model.static_cache import StaticCache

    shape = replace(MODEL_SHAPES[name], blocks=1, vocabulary=64, windows=(128 if "mistral" in name else None,))
    embedding = torch.zeros(64, shape.hidden, dtype=torch.bfloat16)
    block = block_of(shape, "qwen2" in name, kind == "gated")
    weights = DecoderWeights(shape, (block,), embedding, embedding[0].clone(), embedding)
    slots = torch.zeros(1, batch, shape.kv_heads, capacity, shape.head_dim, dtype=torch.bfloat16)
    angles, integers = torch.zeros(capacity, shape.head_dim), torch.zeros(batch, dtype=torch.int32)
    kv = StaticCache(slots, slots.clone(), integers[:1].clone(), integers, angles, angles)
    tiles = None if cuda else replace(default_tiles(shape, batch, capacity), cuda=Never())
    GPUDecodeStep(weights, (rules_of(kind, shape),), kv, tiles)(torch.zeros(batch, dtype=torch.int64))


def main():
    triton.runtime.driver.set_active(HopperDriver())
    from wisparse.kernels.triton import launch as launching

    launching.launch = triton_launch
    launching.require_runnable = lambda device: None
    from wisparse.kernels.cuda import attention, product, select
    from wisparse.kernels.gpu import cuda_tiles

    for module in (attention, product, select):
        module.launch = cuda_launch
    cuda_tiles.runs_cuda_products = lambda device: True
    cuda_tiles.multiprocessors_of = lambda device: MULTIPROCESSORS
    cases = [
        (name, kind, 1, 205, True) for name in ("llama", "qwen") for kind in ("dense", "thresholds", "top-k")
    ]
    cases += [("mistral", "thresholds", 1, 205, True), ("llama", "thresholds", 1, 4096, True)]
    cases += [("qwen", kind, 1, 205, False) for kind in ("dense", "thresholds", "top-k", "low-rank", "gated")]
    cases += [("llama", "thresholds", batch, 4096, False) for batch in (1, 2)]
    names = {"llama": "llama3.1-8b", "qwen": "qwen2.5-7b", "mistral": "mistral-7b"}
    for name, kind, batch, capacity, cuda in cases:
        printed.clear()
        launches(names[name], kind, batch, capacity, cuda)
        for place, line in enumerate(printed):
            print(f"{name} {kind} batch {batch} capacity {capacity} {place:2d}: {line}", flush=True)


if __name__ == "__main__":
    main()
