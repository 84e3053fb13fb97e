"""Milliseconds of a decode step on a CPU by bits of the weights, in turn with llama.cpp on the same shapes.

    python -m wisparse.repro.speed.cpu_steps --shape smollm2-135m --output results/cpu_steps.csv --llama PYTHON

Random weights and masks; where weights are in 8 or 4 bits the head is in 8. PYTHON is one that has
llama-cpp-python; without it llama.cpp is left out. Rows of the table that are measured anew are replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ...kernels.bench.parts.arguments import count, share
from ...kernels.bench.parts.bandwidth import read_bandwidth
from ...kernels.bench.parts.cpu_times import cpu_step_times
from ...kernels.bench.parts.drawn import bytes_read, dropping, filled_cache, random_weights
from ...kernels.bench.parts.model_shapes import shape_of
from ...kernels.cpu.build import cpu_facts, march
from ...kernels.cpu.step import decode_step
from ...kernels.model.decoder import DecoderShape
from ...kernels.plan.block_rules import block_rules
from ...method.errors import UserError
from ..configuration import mistakes_in_one_line
from ..records import git_state, write_text
from ..tables.csv_rows import csv_text, place_by, read_rows, renewed
from .random_gguf import FORMATS, write_random_gguf

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GROUP = 64
"""Outputs that share a scale in 4 bits; it divides those of all projections of SmolLM2-135M."""
TOKENS = 10
"""Decoded by one of those that take turns before the next; the first two are not counted."""
REST_SECONDS = 0.02
"""Until the threads of the one before sleep."""
COLUMNS = (
    "device", "threads", "instructions", "shape", "decoder", "dtype", "bits", "sparsity", "context", "ms",
    "fastest_ms", "tok_s", "gb_s", "read_gb_s", "load", "commit",
)  # fmt: skip
SAME = COLUMNS[:9]
Clock = Callable[[int], list[float]]
"""Milliseconds of each of so many further tokens."""


def this_commit() -> str:
    """Short name of this checkout's commit, with + where tracked files differ from it; empty without one."""
    state = git_state()
    return "" if state is None else state.commit[:7] + "+" * state.dirty


class OwnDecoder:
    """The engine's step on random weights; `clock` decodes."""

    def __init__(self, shape: DecoderShape, dtype: str, bits: int, sparsity: float, context: int) -> None:
        device = torch.device("cpu")
        weights = random_weights(shape, bits, min(16, max(bits, 8)), DTYPES[dtype], device, GROUP)
        rules = dropping(shape, sparsity, device) or block_rules(None, shape, device, DTYPES[dtype])
        self._cache = filled_cache(shape, DTYPES[dtype], device, context)
        self._context, self._step = context, decode_step(weights, rules, self._cache)
        self.bytes = bytes_read(weights, sparsity)

    def clock(self, tokens: int) -> list[float]:
        """Every token stands behind the same context."""
        return cpu_step_times(self._step, self._cache, self._context, tokens)


@contextmanager
def llama_cpp(python: Path, model: Path, context: int) -> Iterator[Clock]:
    """The clock of a process of llama.cpp on a GGUF file, with as many threads as torch has."""
    script = Path(__file__).with_name("llama_cpp_clock.py")
    command = [str(python), str(script), str(model), str(torch.get_num_threads()), str(context)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:

        def clock(tokens: int) -> list[float]:
            process.stdin.write(f"{tokens}\n")
            process.stdin.flush()
            if not (answer := process.stdout.readline()):
                raise SystemExit(f"error: llama.cpp ended; try: echo 1 | {' '.join(command)}")
            return json.loads(answer)

        if not process.stdout.readline():
            raise SystemExit(f"error: {python} does not run llama.cpp; try: echo 1 | {' '.join(command)}")
        yield clock
        process.stdin.close()


def in_turn(clocks: dict[Any, Clock], rounds: int) -> dict[Any, list[float]]:
    """Milliseconds of tokens, a few of each in every round."""
    found: dict[Any, list[float]] = {name: [] for name in clocks}
    for _ in range(rounds):
        for name, clock in clocks.items():
            time.sleep(REST_SECONDS)
            found[name] += clock(TOKENS)[2:]
    return found


def measured_rows(options: argparse.Namespace, bits: int) -> list[dict[str, Any]]:
    """Rows of weights in so many bits: dense, sparse, and llama.cpp's dense ones."""
    shape, context = shape_of(options.shape), options.context
    sizes: dict[tuple[str, str, float], float] = {}
    with ExitStack() as stack:
        clocks: dict[tuple[str, str, float], Clock] = {}
        for dtype in options.dtypes:
            for sparsity in options.sparsities:
                own = OwnDecoder(shape, dtype, bits, sparsity, context)
                clocks["engine", dtype, sparsity], sizes["engine", dtype, sparsity] = own.clock, own.bytes
        if options.llama and bits in FORMATS:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.temporary))) / "model.gguf"
            write_random_gguf(path, shape, bits, head_bits=8)
            name = (f"llama.cpp {FORMATS[bits].name}", "", 0.0)
            clocks[name] = stack.enter_context(llama_cpp(options.llama, path, context))
            sizes[name] = path.stat().st_size
        found = in_turn(clocks, options.rounds)
    about = {
        "device": cpu_facts().get("model name", "CPU"),
        "threads": torch.get_num_threads(),
        "instructions": options.instructions or march(),
        "shape": options.shape,
        "bits": bits,
        "context": context,
        "read_gb_s": f"{read_bandwidth(torch.device('cpu')) / 1e9:.1f}",
        "load": f"{os.getloadavg()[0]:.1f}",
        "commit": options.commit,
    }
    rows = []
    for (decoder, dtype, sparsity), times in found.items():
        ms = median(times)
        rows.append(
            about
            | {"decoder": decoder, "dtype": dtype, "sparsity": sparsity, "ms": f"{ms:.3f}"}
            | {"fastest_ms": f"{min(times):.3f}", "tok_s": f"{1e3 / ms:.1f}"}
            | {"gb_s": f"{sizes[decoder, dtype, sparsity] / ms / 1e6:.1f}"}
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


@mistakes_in_one_line()
def main() -> None:
    """Print a line of JSON for each row, and write the rows into a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m", help="a model of conf/model whose shapes are taken")
    parser.add_argument("--bits", type=int, nargs="+", choices=(16, 8, 4), default=[16, 8, 4])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of activations")
    parser.add_argument("--sparsities", type=share, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--context", type=count, default=100)
    parser.add_argument("--rounds", type=count, default=10)
    parser.add_argument("--llama", type=Path, default=None, help="a Python that has llama-cpp-python")
    parser.add_argument(
        "--instructions", default=None, help="what the rows say, where llama.cpp was built for it"
    )
    parser.add_argument("--temporary", type=Path, default=None, help="a folder with room for a GGUF file")
    parser.add_argument("--commit", default=None, help="what the rows name (this checkout's, + where changed)")
    parser.add_argument("--output", type=Path, default=None, help="path of the .csv")
    options = parser.parse_args()
    if options.llama and not shutil.which(options.llama):
        raise UserError(f"--llama {options.llama} is no program; give a Python that has llama-cpp-python")
    if options.commit is None:  # before the first rows change a table of this checkout
        options.commit = this_commit()
    for bits in options.bits:
        rows = measured_rows(options, bits)
        if options.output:
            table = renewed(read_rows(options.output), rows, place_by(SAME))
            write_text(options.output, csv_text(COLUMNS, table))


if __name__ == "__main__":
    main()
