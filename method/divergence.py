"""How far a sparse model's predictions are from the dense model's: the fitness of the block allocation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .apply import sparse_projections
from .calibration import Calibration
from .plan import ProjectionRule
from .projections import model_projections
from .rules import for_rows, select


class OutputDivergence:
    """Mean over tokens of KL(dense ‖ sparse) of the next-token distributions, for many candidates at once."""

    @torch.inference_mode()
    def __init__(self, calibration: Calibration, tokens: int, batch_tokens: int) -> None:
        """Measure on the first `tokens` calibration tokens, at most `batch_tokens` a forward pass."""
        self._model = calibration.model
        self._input_ids = calibration.search_tokens(tokens)
        self._positions = calibration.search_positions(self._input_ids)
        self._turn = max(1, batch_tokens // self._input_ids.numel())
        self._linears = model_projections(self._model)
        dense = self._log_probabilities(1)[0]
        self._dense_probabilities = dense.exp()
        self._dense_entropy = -(self._dense_probabilities * dense).sum(dim=-1).mean()

    def _log_probabilities(self, candidates: int) -> Tensor:
        ids = self._input_ids.repeat(candidates, 1)
        logits = self._model(input_ids=ids, use_cache=False).logits
        return logits.float().log_softmax(dim=-1).view(candidates, *self._input_ids.shape, -1)

    @torch.inference_mode()
    def __call__(self, rules: Mapping[str, ProjectionRule], candidates: int) -> Tensor:
        """Divergence of each candidate in nats; rules by key, all with `candidates`.

        Returns (candidates,) float64 on the CPU.
        """
        rows = len(self._input_ids)
        found = []
        for index in torch.arange(candidates, device=self._input_ids.device).split(self._turn):
            chosen = {name: for_rows(select(rule, index), rows) for name, rule in rules.items()}
            with sparse_projections(self._linears, chosen, self._positions):
                sparse = self._log_probabilities(len(index))
            cross_entropy = -(self._dense_probabilities * sparse).sum(dim=-1).flatten(1).mean(dim=1)
            found.append(cross_entropy - self._dense_entropy)
        return torch.cat(found).double().cpu()
