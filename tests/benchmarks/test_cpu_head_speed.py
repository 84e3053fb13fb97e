"""Rows of decode steps over chosen key-value groups on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.bench.cpu_heads import chosen_groups, step_rows
from wisparse.kernels.bench.parts.drawn import bytes_read, random_weights
from wisparse.kernels.bench.parts.model_shapes import shape_of
from wisparse.kernels.bench.parts.shared_masks import SharedMask

SHAPE = replace(
    shape_of("smollm2-135m"), blocks=2, hidden=64, ffn=64, heads=4, kv_heads=2, head_dim=32, vocabulary=32,
    windows=(None, None),
)  # fmt: skip


def test_rows_say_what_was_read():
    weights = random_weights(SHAPE, 16, 16, torch.bfloat16, torch.device("cpu"))
    whole, half = step_rows("a shape", weights, 2, 40, (2, 1), rounds=1, peak=10.0)
    assert (half.part, half.batch, half.context, half.groups, half.kept) == ("step", 2, 40, 2, 1)
    cached = 2 * 2 * 2 * 40 * 32 * 2  # keys and values of two rows and groups of a block
    read = {row.kept: row.gb_s * row.us * 1e3 - bytes_read(weights, 0.0) for row in (whole, half)}
    assert read[2] == pytest.approx(2 * cached)
    assert read[1] == pytest.approx(1.5 * cached)  # block 0 looks at all groups


def test_a_mask_that_rows_share_leaves_bytes_unread_beside_all_and_some_groups():
    weights = random_weights(SHAPE, 16, 16, torch.bfloat16, torch.device("cpu"))
    masks = (SharedMask(), SharedMask("ffn", 0.5), SharedMask("all", 0.25))
    rows = list(step_rows("a shape", weights, 2, 40, (2, 1), 1, 10.0, masks))
    assert [(row.masked, row.sparsity, row.kept) for row in rows] == [
        (mask.projections, mask.sparsity, kept) for mask in masks for kept in (2, 1)
    ]
    read = {(row.masked, row.kept): row.gb_s * row.us * 1e3 for row in rows}
    mlp, attention = 2 * 3 * 64 * 64 * 2, 2 * (64 * (128 + 2 * 64) + 128 * 64) * 2
    assert read["none", 2] - read["ffn", 2] == pytest.approx(mlp / 2)
    assert read["none", 1] - read["all", 1] == pytest.approx((mlp + attention) / 4)


def test_all_groups_stand_first():
    assert chosen_groups(SHAPE, None) == (2, 1)
    assert chosen_groups(replace(SHAPE, heads=9, kv_heads=3), None) == (3, 2)
    assert chosen_groups(SHAPE, [2, 1]) == (2, 1)
