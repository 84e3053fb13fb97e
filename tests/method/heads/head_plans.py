"""Plans with routers of heads that are drawn, not trained."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedModel
from wisparse.kernels.plan.heads import HeadRule
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes


def drawn_heads(model: PreTrainedModel, kept: int, first: int = 1) -> dict[int, HeadRule]:
    """A router for every block from `first` on."""
    config, generator = model.config, torch.Generator().manual_seed(2)
    return {
        block: HeadRule(
            torch.randn(config.num_attention_heads, config.hidden_size, generator=generator),
            torch.randn(config.num_attention_heads, generator=generator),
            config.num_key_value_heads,
            kept,
        )
        for block in range(first, config.num_hidden_layers)
    }


def with_heads(
    model: PreTrainedModel, kept: int, plan: SparsityPlan | None = None, first: int = 1
) -> SparsityPlan:
    """A plan, or one that drops nothing else, with drawn routers."""
    plan = plan or SparsityPlan(projection_shapes(model))
    return replace(plan, heads=drawn_heads(model, kept, first))
