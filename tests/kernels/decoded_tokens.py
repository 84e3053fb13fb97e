"""What transformers generates under hooks, and logits of single tokens: what the engine is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from wisparse.kernels.cpu.gemv import choose_backend
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes
from wisparse.method.running.apply import applied
from wisparse.method.token_policy import TokenPolicy

from ..conftest import make_protocol


def prompts(model: PreTrainedModel, batch: int, length: int = 12, seed: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, model.config.vocab_size, (batch, length), generator=generator)


def generated(
    model: PreTrainedModel,
    plan: SparsityPlan,
    protocol: str | TokenPolicy,
    input_ids: Tensor,
    new_tokens: int,
    mask: Tensor | None = None,
    **keywords: Any,
) -> Tensor:
    mask = torch.ones_like(input_ids) if mask is None else mask
    policy = make_protocol(protocol) if isinstance(protocol, str) else protocol
    with applied(model, plan, policy):
        return model.generate(
            input_ids, attention_mask=mask, max_new_tokens=new_tokens, eos_token_id=None, pad_token_id=0,
            do_sample=False, **keywords,
        )  # fmt: skip


def with_biases(plan: SparsityPlan, size: float = 0.5) -> SparsityPlan:
    """The plan with a drawn bias at every projection that has a rule."""
    generator = torch.Generator().manual_seed(7)
    biases = {
        name: torch.randn(plan.shapes[name][0], generator=generator) * size for name in sorted(plan.rules)
    }
    return replace(plan, rules={name: replace(plan.rules[name], bias=bias) for name, bias in biases.items()})


def steps_of_both_backends(model: PreTrainedModel, plan: SparsityPlan) -> list[Tensor]:
    """Logits of one step of three rows behind a prompt, by C++ and by torch."""
    found = []
    for backend in ("c++", "torch"):
        choose_backend(backend)
        with DecodeEngine(model, plan, batch=3, capacity=8) as engine:
            engine.prefill(prompts(model, 3, length=4))
            found.append(engine.step(torch.tensor([5, 6, 7])).clone())
    return found


class DecodedTokens:
    """Logits of the token behind one prompt, for several tokens: by the engine, by transformers, exact.

    All of them have the same weights of half precision and the same cache, which transformers filled.
    """

    def __init__(
        self, make: Callable[[], PreTrainedModel], plan: SparsityPlan | None, tokens: int = 16
    ) -> None:
        self.model, self.exact_model = make(), make().double()
        self.engine = DecodeEngine(self.model, plan, capacity=40)
        self.plan = plan or SparsityPlan(projection_shapes(self.model))
        self.prompt = prompts(self.model, 1)
        self.tokens = prompts(self.model, tokens, length=1, seed=5)

    @torch.inference_mode()
    def _hooked(self, model: PreTrainedModel) -> Tensor:
        cache = self.model(self.prompt, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(self.tokens))
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.to(model.dtype), layer.values.to(model.dtype)
            layer.dtype = model.dtype
        with applied(model, self.plan, make_protocol("decode_only")):
            return model(self.tokens, past_key_values=cache).logits[:, -1].double()

    def exact(self) -> Tensor:
        return self._hooked(self.exact_model)

    def of_transformers(self) -> Tensor:
        return self._hooked(self.model)

    def of_the_engine(self) -> Tensor:
        logits = []
        for token in self.tokens:
            self.engine.prefill(self.prompt)
            logits.append(self.engine.step(token)[0].double())
        return torch.stack(logits)


def typical_error(logits: Tensor, exact: Tensor) -> float:
    """Median of the tokens' relative errors.

    Not their mean: where |x| of a channel lies at its threshold, the least rounding decides whether the channel
    is dropped, and such a token says nothing of how large rounding is.
    """
    return float(((logits - exact).norm(dim=1) / exact.norm(dim=1)).median())
