"""How many tokens' logits are made at once: those of all would fill a device where the vocabulary is large."""

from __future__ import annotations

from transformers import PreTrainedModel

LOGITS_AT_ONCE = 1 << 27
"""Half a gigabyte in float32."""


def tokens_at_once(model: PreTrainedModel) -> int:
    """Tokens whose logits are made at once, at least one."""
    return max(1, LOGITS_AT_ONCE // model.config.vocab_size)
