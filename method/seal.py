"""A hash of all that a file holds, kept in the file: a byte that has changed is noticed when it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def seal_of(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of JSON-able facts and of tensors by name, with their types and shapes."""
    # As they come back from JSON, where every key is text: the order of keys must be the same then.
    plain = json.loads(json.dumps(facts))
    hasher = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()
