"""Start a launch twice without a GPU: Triton compiles for sm_90, and what it would hand to the driver is kept.

Run as a program, without TRITON_INTERPRET. Prints how often Triton was asked, and how many arguments were the
same both times and how many were others.
"""

import torch
import triton
from compile_for_hopper import HopperDriver
from triton.compiler.compiler import CompiledKernel

NO_ARGUMENT = "LazyDict"
"""What hooks of a launch are told of it, made anew for each."""


def main():
    triton.runtime.driver.set_active(HopperDriver())
    from wisparse.kernels.quantised.int4 import int4_rounded
    from wisparse.kernels.triton.dequantise import Dequantisation

    started = []
    CompiledKernel._init_handles = lambda self: None
    CompiledKernel.run = property(lambda self: lambda *arguments: started.append(arguments))
    ones = torch.ones(32, 256)
    stored, rows = int4_rounded(ones, 128, symmetric=False), torch.zeros(32, 256, dtype=torch.bfloat16)
    writes = Dequantisation(stored)
    asked = []
    run = triton.JITFunction.run
    triton.JITFunction.run = lambda self, *some, **named: asked.append(self) or run(self, *some, **named)
    writes(rows)
    writes(rows)
    pairs = [pair for pair in zip(*started, strict=True) if type(pair[0]).__name__ != NO_ARGUMENT]
    same = [
        one is other or (type(one) is type(other) and not isinstance(one, torch.Tensor) and one == other)
        for one, other in pairs
    ]
    print(len(asked), sum(same), len(same) - sum(same))


if __name__ == "__main__":
    main()
