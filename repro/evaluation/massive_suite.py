"""Massive activations: what the first token's residual stream holds, and what sparsity does to that token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...kernels.model.decoder import ATTENTION_PATH
from ...method.errors import UserError
from ...method.hooks import hooked
from ...method.projections import block_projections, decoder_blocks
from ...method.running.apply import SparseSession
from ...method.tokens import check_input_ids
from .channel_suite import Text
from .passes.context import naming
from .passes.scoring import require_finite
from .suites import Evaluation

LARGEST, ATTENTION, DROPPED, ERROR = "largest", "attention_on_first", "dropped", "error"


@dataclass(frozen=True)
class MassiveSuite:
    """The first token beside all others, block by block, dense and sparse, on a text's sequences.

    Every sequence runs twice: dense, with attention's weights, and under the plan.
    """

    name: str
    text: Text

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError for sequences of one token."""
        if self.text.input_ids(tokenizer).shape[1] < 2:
            raise UserError("suite=massive compares the first token with others: calibration.length is 1")

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, session: SparseSession
    ) -> Evaluation:
        """Details: lists over the blocks, of pairs: the first token, all others.

        `largest`: largest |x| of the dense model's residual stream behind the block. `attention_on_first`: mean
        weight that a later token puts on the first, 0 for the first itself. `dropped`: share of the input
        channels of the block's projections that are zero, weighted by matrix size. `error`: norm of what
        sparsity changes in the residual stream, as a share of the dense one's, mean over tokens.

        Raises UserError for sequences of one token, and for a residual stream that is not finite.
        """
        self.check(model, tokenizer)
        sequences = self.text.input_ids(tokenizer)
        check_input_ids(sequences, model)
        found: dict[str, list[Tensor]] = defaultdict(list)
        for number, ids in enumerate(sequences.to(next(model.parameters()).device)):
            dense, sparse = _Seen(model), _Seen(model)
            with torch.inference_mode():
                with session.only_blocks(), _eager_attention(model), hooked(dense.hooks()):
                    model(input_ids=ids[None], use_cache=False)
                with hooked(sparse.hooks()):
                    model(input_ids=ids[None], use_cache=False)
            sums = [float(seen.streams.sum()) for seen in (dense, sparse)]
            with naming(lambda row, number=number: f"sequence {number}, {('dense', 'sparse')[row]}"):
                require_finite(model, sums)
            change = (sparse.streams - dense.streams).norm(dim=-1) / dense.streams.norm(dim=-1)
            found[LARGEST].append(_first_and_others(dense.streams.abs().amax(dim=-1), torch.amax))
            found[ATTENTION].append(dense.attention)
            found[DROPPED].append(_first_and_others(sparse.dropped, torch.mean))
            found[ERROR].append(_first_and_others(change, torch.mean))
        details = {
            measure: (
                torch.stack(values).amax(0) if measure == LARGEST else torch.stack(values).mean(0)
            ).tolist()
            for measure, values in found.items()
        }
        return Evaluation(details=details)

    def texts(self) -> tuple[()]:
        """Nothing is asked."""
        return ()


class _Seen:
    """What hooks see of one forward pass of one sequence, block by block."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._blocks = decoder_blocks(model)
        self._streams: list[Tensor] = []
        self._attention: list[Tensor] = []
        self._dropped: list[Tensor] = []

    @property
    def streams(self) -> Tensor:
        """(blocks, length, hidden) residual stream behind each block."""
        return torch.stack(self._streams)

    @property
    def attention(self) -> Tensor:
        """(blocks, 2): 0, and the mean weight of the later tokens, over the heads, on the first."""
        on_first = torch.stack(self._attention)
        return torch.stack([torch.zeros_like(on_first), on_first], dim=1)

    @property
    def dropped(self) -> Tensor:
        """(blocks, length) share of zero input channels of the projections, weighted by matrix size."""
        return torch.stack(self._dropped)

    def hooks(self) -> Iterator[RemovableHandle]:
        """Register them behind those of the plan, so that projections' inputs are seen with their zeros."""
        for block in self._blocks:
            yield block.register_forward_hook(self._on_block)
            yield block.get_submodule(ATTENTION_PATH).register_forward_hook(self._on_attention)
            yield block.register_forward_pre_hook(self._before_block)
            linears = block_projections(block).values()
            total = sum(linear.weight.numel() for linear in linears)
            for linear in linears:
                yield linear.register_forward_pre_hook(self._on_projection(linear.weight.numel() / total))

    def _before_block(self, _: nn.Module, __: Any) -> None:
        self._dropped.append(torch.zeros(()))

    def _on_block(self, _: nn.Module, __: Any, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        self._streams.append(stream[0].float())

    def _on_attention(self, _: nn.Module, __: Any, output: Any) -> None:
        if output[1] is not None:
            self._attention.append(output[1][0, :, 1:, 0].float().mean())

    def _on_projection(self, weight: float) -> Any:
        def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            zeros = (inputs[0][0] == 0).float().mean(dim=-1)
            self._dropped[-1] = self._dropped[-1].to(zeros.device) + weight * zeros

        return count


def _first_and_others(by_token: Tensor, reduce: Any) -> Tensor:
    """(blocks, 2) of (blocks, length)."""
    return torch.stack([by_token[:, 0], reduce(by_token[:, 1:], dim=1)], dim=1)


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Context in which attention gives its weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
