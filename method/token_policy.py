"""Token policy: which tokens are computed sparsely. It moves accuracy more than the method does."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from .errors import UserError


@dataclass(frozen=True)
class TokenPolicy:
    """Which positions of a sequence are computed densely; all others, and all generated tokens, are sparse.

    Positions count real tokens only, never padding. In a scored sequence (prompt and continuation in one
    forward pass) `dense_share` and `dense_tokens` apply to the whole sequence, as the published code does.
    """

    name: str
    source: str
    dense_tokens: int = 0
    """Number of first positions computed densely."""
    dense_share: float = 0.0
    """Share of first positions computed densely, rounded up."""
    dense_prompt: bool = False
    """The whole prompt is dense; only continuation and generated tokens are sparse."""
    rows_sharing: int = 1
    """Rows of a forward pass, after each other, that stand for a batch of an engine. What they read together is
    counted once, and where a plan has masks that a batch shares, they share one at each position."""

    def __post_init__(self) -> None:
        if not _is_whole(self.rows_sharing) or self.rows_sharing < 1:
            raise UserError(
                f"protocol.rows_sharing={self.rows_sharing!r} is no number of rows; 1 is every row alone"
            )
        if not _is_whole(self.dense_tokens) or self.dense_tokens < 0:
            raise UserError(
                f"dense_tokens={self.dense_tokens!r} of a token policy is not a whole number from 0 up"
            )
        share = self.dense_share
        if isinstance(share, bool) or not isinstance(share, Real) or not 0.0 <= share <= 1.0:
            raise UserError(f"dense_share={share!r} of a token policy is not a number from 0 to 1")
        if not isinstance(self.dense_prompt, bool):
            raise UserError(f"dense_prompt={self.dense_prompt!r} of a token policy is not True or False")

    def describe(self) -> str:
        """One sentence for records and tables."""
        if self.dense_prompt:
            prompt = "prompt tokens dense, continuation tokens sparse"
        elif self.dense_share:
            prompt = f"first {self.dense_share:.0%} of a sequence's tokens dense, the rest sparse"
        elif self.dense_tokens:
            prompt = f"first {self.dense_tokens} token(s) of a sequence dense, the rest sparse"
        else:
            prompt = "all tokens sparse"
        together = f"; {self.rows_sharing} rows read together" if self.rows_sharing > 1 else ""
        return f"{prompt}; generated tokens sparse ({self.source}){together}"

    @property
    def needs_length(self) -> bool:
        """Whether which tokens are dense depends on how long the prompt is."""
        return self.dense_prompt or self.dense_share > 0

    def sparse_positions(self, real: Tensor, prompt_lengths: Tensor | None, past: Tensor | int = 0) -> Tensor:
        """Which tokens of a forward pass are sparse; it may be one of several over the same sequences.

        real: (rows, length) bool, False at padding on either side; prompt_lengths: (rows,) number of real
        tokens that are prompt, None where all are; past: (rows,) number of real tokens that earlier passes have
        read. A first pass that holds the whole prompt is a scored sequence. In later passes, and where the
        first is shorter than the prompt, a share is that of the prompt, and what follows it is generated.
        Returns (rows, length) bool, False at padding.
        """
        before = torch.as_tensor(past, device=real.device).expand(real.shape[0])[:, None]
        position = before + real.long().cumsum(dim=1) - 1
        length = before + real.sum(dim=1, keepdim=True)
        prompt = length if prompt_lengths is None else prompt_lengths.to(real.device)[:, None]
        if self.dense_prompt:
            dense = prompt
        else:
            total = torch.where(before > 0, prompt, torch.maximum(prompt, length))
            # The subtraction keeps 0.9 · 10 at 9 whatever the rounding of the product is.
            share = torch.ceil(total.double() * self.dense_share - 1e-9).long()
            dense = torch.minimum(share.clamp_min(self.dense_tokens), total)
        return real & (position >= dense)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


GENERATED = TokenPolicy(name="decode_only", source="generated tokens", dense_prompt=True)
"""What a decode step reads: under it a pass over prompt and continuation counts the latter alone."""
