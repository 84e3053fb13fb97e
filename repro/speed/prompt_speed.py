"""Prompts on weights in few bits: milliseconds and memory on dequantised linears, and on the stored rows.

    python -m wisparse.repro.speed.prompt_speed --model llama3.1-8b --csv results/prompts.csv

Random weights of the model's sizes. Dequantised linears are what a quantised model holds for its evaluation; an
engine computes a prompt from the stored rows instead, and holds nothing else of these weights.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ...kernels.bench.parts.arguments import count
from ...kernels.bench.parts.measured_rows import print_rows
from ...kernels.bench.parts.model_shapes import architecture_of
from ...kernels.engine.decode_engine import DecodeEngine
from ...kernels.gpu.tuning.timing import device_name
from ...method.calibration import Calibration
from ...method.quantisation.quantisers import Int4, Int8, Quantiser
from ...method.quantised_model import QuantisedWeights, quantised
from ..configuration import mistakes_in_one_line
from ..models.checkpoint import resolve_device
from ..models.weights import ATTENTION

REPEATS = 7
SPARE = 8
"""Slots of the engine's cache behind the longest prompt."""


def quantiser(bits: int, group: int) -> Quantiser:
    """What `quantisation=int8` and `int4` store, in groups of so many outputs."""
    if bits == 8:
        return Int8("int8", lm_head="int8")
    return Int4("int4", lm_head="int8", group=group, symmetric=True)


def drawn_model(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model of the sizes of conf/model/NAME.yaml with random weights, drawn where they stay."""
    config = AutoConfig.for_model(**architecture_of(name))
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    return model.eval().requires_grad_(False)


def milliseconds(read: Callable[[Tensor], Any], prompt: Tensor) -> float:
    """Median of several passes over a prompt behind one that is not counted; the device's work included."""
    found = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        read(prompt)
        if prompt.is_cuda:
            torch.cuda.synchronize(prompt.device)
        found.append(1000 * (time.perf_counter() - started))
    return median(found[1:])


def allocated(device: torch.device) -> int | None:
    """Bytes of tensors on a GPU; None on a CPU, where nothing counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def peak(device: torch.device, work: Callable[[], Any]) -> int | None:
    """Most bytes of tensors on a GPU while something works."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device)


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row of each format and length of prompt."""
    device = torch.device(options.device)
    model = drawn_model(options.model, getattr(torch, options.dtype), device)
    longest, generator = options.prompts[-1], torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, longest), generator=generator).to(device)
    prompts = [ids[:, :length] for length in options.prompts]
    for bits in options.bits:
        found = quantiser(bits, options.group).weights(Calibration(model, ids, 1))
        with quantised(model, found):
            for prompt, timed in zip(prompts, _compared(model, found, prompts), strict=True):
                yield {
                    "device": device_name(device) if device.type == "cuda" else "CPU",
                    "model": options.model,
                    "dtype": options.dtype,
                    "bits": bits,
                    "prompt": prompt.shape[1],
                    **timed,
                    "stored_bytes": sum(one.stored_bytes().total for one in found.weights.values()),
                    "commit": os.environ.get("GIT_COMMIT", ""),
                }
        del found


@torch.inference_mode()
def _compared(
    model: PreTrainedModel, found: QuantisedWeights, prompts: Sequence[Tensor]
) -> Iterator[dict[str, Any]]:
    """Milliseconds of each prompt on dequantised linears and in an engine, and bytes while either is there."""
    device = prompts[0].device
    before = [milliseconds(lambda ids: model(input_ids=ids, logits_to_keep=1), ids) for ids in prompts]
    held = allocated(device)
    with DecodeEngine(model, quantised=found, capacity=prompts[-1].shape[1] + SPARE) as engine:
        alone = allocated(device)
        for ids, dequantised in zip(prompts, before, strict=True):
            yield {
                "ms_dequantised": f"{dequantised:.3f}",
                "ms_stored": f"{milliseconds(engine.prefill, ids):.3f}",
                "held_bytes_dequantised": held,
                "held_bytes_engine": alone,
                "peak_bytes_engine": peak(device, partial(engine.prefill, ids)),
            }


@mistakes_in_one_line()
def main() -> None:
    """Print a line of JSON for each setting as it is measured: milliseconds, and bytes of a GPU's tensors."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="llama3.1-8b", help="a model of conf/model that states its sizes")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--bits", type=int, choices=(8, 4), nargs="+", default=[8, 4])
    parser.add_argument("--group", type=count, default=128, help="outputs that share a scale in 4 bits")
    parser.add_argument("--prompts", type=count, nargs="+", default=[5, 128, 1024, 4096])
    parser.add_argument("--device", default="auto", help="cuda or cpu; by default a GPU where there is one")
    parser.add_argument("--csv", type=Path, help="append the rows to this table, too")
    options = parser.parse_args()
    options.prompts.sort()
    options.device = resolve_device(options.device)
    print_rows(rows(options), options.csv)


if __name__ == "__main__":
    main()
