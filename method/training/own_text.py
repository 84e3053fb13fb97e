"""Text that the dense model writes itself, beside the calibration text: as much as is wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from ...kernels.plan_data import Mechanism
from ..base import Method
from ..calibration import Calibration
from ..errors import UserError
from ..plan import SparsityPlan
from ..provenance import SearchCost


@torch.inference_mode()
def own_text(model: PreTrainedModel, input_ids: Tensor, sequences: int, prompt: int, seed: int) -> Tensor:
    """Sequences (sequences, length) that the dense model continues, each drawn token by token as it predicts.

    They begin with the first token of a row of input_ids (rows, length) and `prompt` tokens out of its middle,
    so that they are about something. Special tokens may follow, as the model predicts them.
    """
    device, length = next(model.parameters()).device, input_ids.shape[1]
    if not 1 <= prompt < length - 1:
        raise UserError(f"method.prompt={prompt} must be at least 1 and leave room in {length} tokens")
    on_cpu = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(input_ids), (sequences,), generator=on_cpu)
    first = torch.randint(1, length - prompt + 1, (sequences, 1), generator=on_cpu)
    middle = input_ids[rows[:, None], first + torch.arange(prompt)]
    found = torch.cat([input_ids[rows, :1], middle], dim=1).to(device)
    drawing = torch.Generator(device).manual_seed(seed)
    cache, new = DynamicCache(), found
    for _ in tqdm(range(length - found.shape[1]), desc="own text", unit="token", leave=False):
        logits = model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        new = torch.multinomial(logits.float().softmax(dim=-1), 1, generator=drawing)
        found = torch.cat([found, new], dim=1)
    return found.cpu()


@dataclass(frozen=True)
class OnOwnText(Method):
    """The inner method on the calibration text and text that the dense model continues from pieces of it."""

    inner: Method
    """Makes the plan."""
    own_sequences: int = 192
    """Sequences that the model writes, of the calibration text's length."""
    prompt: int = 8
    """Tokens of the calibration text that each begins with."""
    seed: int = 0
    """Seed of the pieces and of the text."""

    needs = frozenset()  # the text is measured once it is there

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """Those of the inner method."""
        return self.inner.mechanisms

    def check_reach(self, calibration: Calibration, sparsity: float) -> None:
        """What the inner method reaches."""
        self.inner.check_reach(calibration, sparsity)

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
        places = torch.cat([(torch.arange(len(rows)) + 0.5) / len(rows) for rows in (given, own)])
        return replace(calibration, input_ids=torch.cat([given.cpu(), own])[places.argsort(stable=True)])
