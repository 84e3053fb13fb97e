"""Training-free activation sparsity for language models: plan it, run it, decode fast with it.

plan = wisparse.plan(model, tokenizer, texts, method="teal", sparsity=0.5)
with wisparse.sparse(model, plan): model.generate(**inputs)
with wisparse.engine(model, plan) as engine: engine.generate(ids, new_tokens=200)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalogue import MethodDescription, methods
    from .decoding import Engine, engine, sparse
    from .planning import load_plan, plan

__all__ = ["Engine", "MethodDescription", "engine", "load_plan", "methods", "plan", "sparse"]

HOMES = {
    "Engine": "decoding",
    "MethodDescription": "catalogue",
    "engine": "decoding",
    "load_plan": "planning",
    "methods": "catalogue",
    "plan": "planning",
    "sparse": "decoding",
}


def __getattr__(name: str) -> Any:
    # On first use: importing the package, as a console command does, must not wait for torch.
    if name not in HOMES:
        raise AttributeError(f"module 'wisparse' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])
