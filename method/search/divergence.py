"""How far a sparse model's predictions are from the dense model's: the fitness of the block allocation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..calibration import Calibration
from ..projections import block_projections, decoder_of, key
from ..running.candidates import CandidateRules
from ..running.precision import coarse_products
from ..running.projection_hooks import sparse_projections
from .block_error import Positions, counted
from .block_probe import block_keywords
from .logits import tokens_at_once
from .turns import Turns


class OutputDivergence:
    """Mean over tokens of KL(dense ‖ sparse) of the next-token distributions, for many candidates at once.

    All candidates pass through one block before any enters the next, and those that were alike in every block
    so far pass as one: offspring differ from their parent in few blocks, and share its hidden states up to the
    first. The device is waited for once, at the end. A GPU multiplies float32 in TF32, for the dense model,
    too; the papers' models are in bfloat16, which is coarser.
    """

    @coarse_products()
    @torch.inference_mode()
    def __init__(
        self, calibration: Calibration, tokens: int, batch_tokens: int, positions: Positions = "all"
    ) -> None:
        """Measure on the first `tokens` calibration tokens, at most `batch_tokens` a pass through a block.

        positions: of each sequence, those whose predictions count.
        """
        self._model = calibration.model
        self._decoder = decoder_of(calibration.model)
        self._input_ids = calibration.search_tokens(tokens)
        self._positions = calibration.search_positions(self._input_ids)
        self._counted = counted(positions, self._input_ids.shape[1])
        self._keywords = block_keywords(self._model, self._input_ids[:1])
        self._turns = Turns(batch_tokens // self._input_ids.numel())
        rows = max(1, batch_tokens // self._input_ids.shape[1])
        normed = [
            self._decoder.inner(input_ids=part, use_cache=False).last_hidden_state[:, self._counted]
            for part in self._input_ids.split(rows)
        ]
        # In the model's own precision, which loses nothing; probabilities are made from them part by part.
        self._dense_logits = self._decoder.lm_head(torch.cat(normed).flatten(0, 1))

    @coarse_products()
    @torch.inference_mode()
    def __call__(self, tables: Mapping[str, CandidateRules], choices: Tensor) -> Tensor:
        """Divergence of each candidate in nats, (candidates,) float64 on the CPU.

        tables: by key, the rules that a projection may have, as candidates of one rule; choices: (candidates,
        blocks) whole numbers on the CPU, which of its blocks' rules a candidate has.
        """
        steps, final = shared_steps(choices)
        # One transfer: the CPU would otherwise wait for the device at every block.
        on_device = torch.cat(steps, dim=1).to(self._input_ids.device)
        hidden = self._decoder.embedding(self._input_ids)[None]
        for block, step in enumerate(on_device.split([step.shape[1] for step in steps], dim=1)):
            hidden = self._through_block(block, tables, hidden, *step)
        return self._divergences(hidden).double().cpu()[final]

    def _through_block(
        self, index: int, tables: Mapping[str, CandidateRules], hidden: Tensor, parents: Tensor, choices: Tensor
    ) -> Tensor:
        """Hidden states (states, rows, length, hidden) behind a block: of `hidden[parents]`, by choice."""
        block, rows = self._decoder.blocks[index], len(self._input_ids)
        linears = block_projections(block)
        rules = {name: tables[key(index, name)] for name in linears}
        behind = hidden.new_empty(len(parents), *hidden.shape[1:])

        def passed(part: slice) -> Tensor:
            chosen = {name: rule.select(choices[part]).for_rows(rows) for name, rule in rules.items()}
            with sparse_projections(linears, chosen, self._positions):
                return block(hidden[parents[part]].flatten(0, 1), **self._keywords[index])

        for part, output in self._turns.over(len(parents), passed):
            behind[part] = output.view_as(behind[part])
        return behind

    def _divergences(self, hidden: Tensor) -> Tensor:
        """Mean divergence of each state (states,) from the hidden states behind the last block."""
        hidden = hidden[:, :, self._counted].flatten(1, 2)
        divergences = hidden.new_empty(hidden.shape[:2], dtype=torch.float32)
        at_once = tokens_at_once(self._model)
        for first in range(0, hidden.shape[1], at_once):
            tokens = slice(first, first + at_once)
            dense = self._dense_logits[tokens].float().log_softmax(dim=-1)
            probabilities = dense.exp()
            entropy = -(probabilities * dense).sum(dim=-1)
            turn = max(1, at_once // len(dense))
            for state in range(0, len(hidden), turn):
                states = slice(state, state + turn)
                logits = self._decoder.lm_head(self._decoder.final_norm(hidden[states, tokens]))
                cross_entropy = -(probabilities * logits.float().log_softmax(dim=-1)).sum(dim=-1)
                divergences[states, tokens] = cross_entropy - entropy
        return divergences.mean(dim=1)


def shared_steps(choices: Tensor) -> tuple[list[Tensor], Tensor]:
    """Steps that candidates (candidates, blocks) have to compute in each block, those they share counted once.

    Returns for each block (2, states): which state before the block each state behind it comes from, and its
    choice; and (candidates,) the last state of each candidate.
    """
    steps = []
    state = torch.zeros(len(choices), dtype=torch.long)
    for choice in choices.T:
        step, state = torch.stack([state, choice]).unique(dim=1, return_inverse=True)
        steps.append(step)
    return steps, state
