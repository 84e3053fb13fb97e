"""Neurons of the groups whose logits are above a threshold (LTE, arXiv 2402.06126)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import KernelError
from .launch import blocks_of, check_tensor, launch

NEURONS = 1024
"""Neurons of a program."""


@triton.jit
def group_choice_kernel(
    logits, scores, THRESHOLD: tl.constexpr, COUNT: tl.constexpr, EACH: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One block of neurons."""
    neuron = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = neuron < COUNT
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    logit = tl.load(logits + neuron // EACH, mask=inside, other=0.0)
    tl.store(scores + neuron, (logit > THRESHOLD).to(scores.dtype.element_ty), mask=inside)


def group_choice(logits: Tensor, threshold: float, scores: Tensor, pdl: bool = False) -> None:
    """Scores (1, neurons): 1 for neurons of groups with logits (1, groups) float32 above it, else 0.

    Groups are neighbours. Raises KernelError for tensors that do not fit.
    """
    groups, neurons = logits.shape[-1], scores.shape[-1]
    check_tensor("logits", logits, (1, groups), torch.float32)
    check_tensor("scores", scores, (1, neurons))
    if neurons % groups:
        raise KernelError(f"{groups} groups do not divide {neurons} neurons")
    launch(
        group_choice_kernel, (blocks_of(neurons, NEURONS),), logits, scores,
        THRESHOLD=threshold, COUNT=neurons, EACH=neurons // groups, BLOCK=NEURONS, pdl=pdl,
    )  # fmt: skip
