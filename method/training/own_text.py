"""Text that the dense model writes itself, beside the calibration text: as much as is wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from ..base import AroundAnother
from ..calibration import Calibration
from ..errors import UserError
from ..passes.dense_pass import not_finite
from ..plan import SparsityPlan
from ..provenance import SearchCost
from ..running.precision import coarse_products
from ..tokens import in_turn

FREE = -1
"""Where a prompt leaves the token to the model."""


@torch.inference_mode()
@coarse_products()
def own_text(model: PreTrainedModel, input_ids: Tensor, sequences: int, prompt: int, seed: int) -> Tensor:
    """Sequences (sequences, length) that the dense model continues, each drawn token by token as it predicts.

    All begin with the first token of a row of input_ids (rows, length). Every second one goes on with `prompt`
    tokens out of a row's middle, the others with one of the vocabulary's tokens, any as likely as the next: so
    that they are about what the calibration text is about, and about anything else. Special tokens may follow.
    Raises UserError where a prediction is no number.
    """
    device, length = next(model.parameters()).device, input_ids.shape[1]
    if not 1 <= prompt < length - 1:
        raise UserError(f"method.prompt={prompt} must be at least 1 and leave room in {length} tokens")
    on_cpu = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(input_ids), (sequences,), generator=on_cpu)
    first = torch.randint(1, length - prompt + 1, (sequences, 1), generator=on_cpu)
    any_token = torch.randint(model.config.vocab_size, (sequences, 1), generator=on_cpu)
    given = input_ids[rows[:, None], first + torch.arange(prompt)]
    given[1::2, :1], given[1::2, 1:] = any_token[1::2], FREE
    given, found = given.to(device), input_ids[rows, :1].to(device)
    drawing, cache, new = torch.Generator(device).manual_seed(seed), DynamicCache(), found
    finite = torch.ones((), dtype=torch.bool, device=device)  # looked at once: a GPU is not waited for
    for place in tqdm(range(length - 1), desc="own text", unit="token", leave=False):
        logits = model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        likely = logits.float().softmax(dim=-1)
        finite &= likely.isfinite().all()
        new = torch.multinomial(likely.nan_to_num(1.0), 1, generator=drawing)
        if place < prompt:
            wanted = given[:, place : place + 1]
            new = torch.where(wanted == FREE, new, wanted)
        found = torch.cat([found, new], dim=1)
    if not finite:
        raise not_finite("the model's predictions", "text of its own")
    return found.cpu()


@dataclass(frozen=True)
class OnOwnText(AroundAnother):
    """The inner method on the calibration text and on text that the dense model writes, half of it on that."""

    own_sequences: int = 256
    """Sequences that the model writes, of the calibration text's length."""
    prompt: int = 8
    """Tokens of the calibration text that every second one begins with."""
    seed: int = 0
    """Seed of the pieces and of the text."""

    needs = frozenset()  # the text is measured once it is there

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        with cost.stage("own text"):
            longer = calibration.remembered(
                ("own text", self.own_sequences, self.prompt, self.seed), lambda: self._longer(calibration)
            )
        with cost.stage("calibration"):
            longer.prepare(self.inner.needs)
        return self.inner._plan(longer, sparsity, cost)

    def _longer(self, calibration: Calibration) -> Calibration:
        """Both texts, their sequences in turn, so that any share of them has its part of both."""
        given, model = calibration.input_ids, calibration.model
        own = own_text(model, given, self.own_sequences, self.prompt, self.seed)
        return replace(calibration, input_ids=in_turn([given.cpu(), own]))
