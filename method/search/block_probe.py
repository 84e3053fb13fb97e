"""One block at a time: its dense inputs and outputs, and the error that sparse projections cause there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration import Calibration
from ..hooks import hooked
from ..projections import block_projections, decoder_of, parameter_shares
from ..running.candidates import CandidateRules
from ..running.projection_hooks import sparse_projections
from .block_error import BlockError
from .turns import Turns


@dataclass
class BlockProbe:
    """A block with the hidden states that enter it and the dense ones that leave it."""

    index: int
    block: nn.Module
    hidden: Tensor
    """(rows, length, hidden) input: dense, or what the blocks before it make of it under their rules."""
    keywords: dict[str, Any]
    """Keyword arguments that the model passes to the block: rotary embeddings, mask."""
    output: Tensor
    """(rows, length, hidden) dense output."""
    batch_tokens: int
    """Tokens a forward pass."""
    turns: Turns
    """Candidates, where there are more than fit into a pass."""
    sparse_positions: Tensor | None
    """(1, length) bool, tokens computed sparsely; None: every token."""
    sparse_output: Tensor | None = None
    """(rows, length, hidden) output under the rules that were settled on; None: none were."""

    @property
    def shares(self) -> dict[str, float]:
        """Parameter share of each projection."""
        return parameter_shares(self.block)

    def errors(self, rules: Mapping[str, CandidateRules], candidates: int, error: BlockError) -> Tensor:
        """Output error of each candidate; rules by projection.

        A rule with one candidate serves all. Returns (candidates,) on the CPU, float64.
        """
        rows, length = self.hidden.shape[:2]
        linears = block_projections(self.block)

        def measured(part: slice) -> Tensor:
            index = torch.arange(part.start, part.stop)
            chosen = {
                name: (rule if len(rule) == 1 else rule.select(index)).for_rows(rows)
                for name, rule in rules.items()
            }
            with sparse_projections(linears, chosen, self.sparse_positions):
                output = self.block(self.hidden.repeat(len(index), 1, 1), **self.keywords)
            return error(output.view(len(index), rows, length, -1) - self.output, self.output)

        return torch.cat([found for _, found in self.turns.over(candidates, measured)]).double().cpu()

    def settle(self, rules: Mapping[str, CandidateRules]) -> None:
        """Let the next block's input be this block's output under rules of one candidate, by projection."""
        linears = block_projections(self.block)
        rows, parts = max(1, self.batch_tokens // self.hidden.shape[1]), []
        for hidden in self.hidden.split(rows):
            chosen = {name: rule.for_rows(len(hidden)) for name, rule in rules.items()}
            with sparse_projections(linears, chosen, self.sparse_positions):
                parts.append(self.block(hidden, **self.keywords))
        self.sparse_output = torch.cat(parts)


@torch.inference_mode()
def walk_blocks(calibration: Calibration, tokens: int, batch_tokens: int) -> Iterator[BlockProbe]:
    """Every block in order, on the hidden states of the first `tokens` calibration tokens.

    They are dense, and so is what a block is compared with. A block's input is what the block before makes of
    its own where rules were settled on there (`BlockProbe.settle`). Only one block's states are held at a time.
    """
    decoder, input_ids = decoder_of(calibration.model), calibration.search_tokens(tokens)
    positions = calibration.search_positions(input_ids)
    keywords = block_keywords(calibration.model, input_ids[:1])
    hidden = dense = decoder.embedding(input_ids)
    rows = max(1, batch_tokens // input_ids.shape[1])
    turns = Turns(batch_tokens // input_ids.numel())
    for index, block in enumerate(decoder.blocks):
        dense = torch.cat([block(part, **keywords[index]) for part in dense.split(rows)])
        probe = BlockProbe(index, block, hidden, keywords[index], dense, batch_tokens, turns, positions)
        yield probe
        hidden = dense if probe.sparse_output is None else probe.sparse_output


def entering_blocks(calibration: Calibration) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """What enters the first block of the calibration text, a batch each, and the keywords of every block."""
    batches = [batch.to(calibration.device) for batch in calibration.input_ids.split(calibration.batch_size)]
    embedding = decoder_of(calibration.model).embedding
    return [embedding(batch) for batch in batches], block_keywords(calibration.model, batches[0][:1])


def block_keywords(model: PreTrainedModel, input_ids: Tensor) -> list[dict[str, Any]]:
    """Keyword arguments that the model gives to each block; taken with one row, so that they broadcast."""
    decoder = decoder_of(model)
    seen: list[dict[str, Any]] = []
    with hooked(
        block.register_forward_pre_hook(lambda _, __, keywords: seen.append(keywords), with_kwargs=True)
        for block in decoder.blocks
    ):
        decoder.inner(input_ids=input_ids, use_cache=False)
    return seen
