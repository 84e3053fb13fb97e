"""Routers of heads: one linear layer a block that predicts which heads put out most (Polar Sparsity).

From the published code: a token's label is its heads of the largest output, by L2 norm before o; the loss is
binary cross-entropy, weighted by y·(1 − w) + w for the share w of ones; the model stays as it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from ...kernels.plan.heads import HeadRule
from ..calibration import Calibration
from ..errors import UserError
from ..hooks import hooked
from ..projections import NORM_PATHS, PROJECTION_PATHS, decoder_of
from ..search.block_probe import entering_blocks
from ..settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RouterTraining(Settings):
    """Settings of AdamW and of the text that it does not see."""

    learning_rate: float
    weight_decay: float
    batch: int
    """Tokens of a step."""
    epochs: int
    epoch_tokens: int
    """Tokens of an epoch: shorter text is gone through as often as makes up for it; longer text is one."""
    held_out_share: float
    """Share of the calibration sequences, one at least, that routers are checked on and not trained on."""

    def passes(self, tokens: int) -> int:
        """How often a text of so many tokens is gone through."""
        return math.ceil(self.epochs * max(1.0, self.epoch_tokens / tokens))

    def announced(self, tokens: int, routers: int) -> str:
        """One line on how long routers are trained on a text of so many tokens, and on what shortens it."""
        passes = self.passes(tokens)
        shorter = f"heads.training.epoch_tokens (now {self.epoch_tokens:,})"
        if self.epoch_tokens <= tokens:
            shorter = "heads.training.epochs or calibration.sequences"
        return (
            f"training routers of heads for {routers} of the blocks, each on {passes * tokens:,} tokens "
            f"({passes:,} times the {tokens:,} of the calibration text): a smaller {shorter} makes it shorter"
        )


@dataclass(frozen=True)
class Observed:
    """What a block's attention reads, and what its heads put out, over all tokens in order."""

    inputs: Tensor
    """(tokens, hidden), in the model's dtype."""
    norms: Tensor
    """(tokens, heads) float32 L2 norms of the heads' outputs before o."""

    def labels(self, heads: int) -> Tensor:
        """1 at the so many heads of the largest norm of each token, (tokens, heads) float32."""
        best = self.norms.topk(heads, dim=-1).indices
        return torch.zeros_like(self.norms).scatter_(-1, best, 1.0)

    def split(self, tokens: int) -> tuple[Observed, Observed]:
        """The first so many tokens, and the others."""
        return (
            Observed(self.inputs[:tokens], self.norms[:tokens]),
            Observed(self.inputs[tokens:], self.norms[tokens:]),
        )


def trained_routers(
    calibration: Calibration, kept: int, dense_blocks: int, training: RouterTraining, seed: int
) -> tuple[dict[int, HeadRule], dict[str, Any]]:
    """Routers by block from `dense_blocks` on, and how good they are on text that they did not see, by block.

    kept: groups that a token looks at. Blocks come one after the other: the states of one are in memory.
    Raises UserError for text too short, and for what is not finite.
    """
    sequences, length = calibration.input_ids.shape
    held_out = max(1, round(training.held_out_share * sequences))
    if held_out >= sequences:
        raise UserError(
            f"{sequences} calibration sequences leave none to train routers of heads on beside {held_out} to "
            "check them on; raise calibration.sequences or lower heads.training.held_out_share"
        )
    groups = calibration.model.config.num_key_value_heads
    learnt = (sequences - held_out) * length
    log.info(training.announced(learnt, len(decoder_of(calibration.model).blocks) - dense_blocks))
    rules: dict[int, HeadRule] = {}
    quality: dict[str, list[float]] = {"recall": [], "precision": [], "groups_found": []}
    for index, observed in _observed(calibration, dense_blocks):
        if not (observed.norms.isfinite().all() and observed.inputs.isfinite().all()):
            raise UserError(
                f"block {index}: attention is not finite on the calibration text; try model.dtype=float32 or "
                "bfloat16, and look at the checkpoint where that does not help"
            )
        known, unseen = observed.split(learnt)
        heads = kept * (observed.norms.shape[1] // groups)
        weight, bias = fitted(known.inputs, known.labels(heads), training, seed)
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise UserError(
                f"block {index}: the router of heads did not stay finite in its training; lower "
                f"heads.training.learning_rate={training.learning_rate:g}"
            )
        rules[index] = HeadRule(weight.cpu(), bias.cpu(), groups, kept)
        of_model = rules[index].to(unseen.inputs.device, unseen.inputs.dtype)  # as it is executed
        for name, value in checked(of_model, unseen, heads).items():
            quality[name].append(round(value, 4))
    return rules, {**quality, "trained_tokens": learnt, "checked_tokens": held_out * length}


@torch.no_grad()
def fitted(inputs: Tensor, labels: Tensor, training: RouterTraining, seed: int) -> tuple[Tensor, Tensor]:
    """Weight (heads, hidden) and bias (heads,) float32 of a router for inputs (tokens, hidden) and labels."""
    generator, reach = torch.Generator().manual_seed(seed), inputs.shape[1] ** -0.5
    heads = labels.shape[1]
    drawn = torch.rand(heads, inputs.shape[1] + 1, generator=generator) * 2 * reach - reach
    router = nn.Linear(inputs.shape[1], heads, device=inputs.device)
    router.weight.data.copy_(drawn[:, :-1])
    router.bias.data.copy_(drawn[:, -1])
    optimiser = torch.optim.AdamW(
        router.parameters(),
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        fused=inputs.is_cuda,  # half of the time of a step, which is all launches
    )
    share = labels.mean()
    for _ in tqdm(range(training.passes(len(inputs))), desc="router", unit="pass", leave=False):
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for tokens in order.split(training.batch):
            wanted = labels[tokens]
            x = inputs[tokens].float()
            error = (router(x).sigmoid() - wanted) * (wanted * (1 - share) + share) / wanted.numel()
            # The gradient of the mean loss, written out: a graph of it takes longer than all of its products.
            router.weight.grad, router.bias.grad = error.T @ x, error.sum(0)
            optimiser.step()
    return router.weight.detach(), router.bias.detach()


def checked(rule: HeadRule, unseen: Observed, heads: int) -> dict[str, float]:
    """Recall and precision of a router's heads, and the share of the best groups that it chooses.

    A head is predicted where its logit is above 0, and right where it is among the `heads` of the largest norm.
    A group is among the best by the largest norm of its heads.
    """
    labels = unseen.labels(heads).bool()
    predicted = rule.logits(unseen.inputs) > 0
    right = (predicted & labels).sum().item()
    by_group = unseen.norms.unflatten(-1, (rule.groups, -1)).amax(-1)
    best = torch.zeros_like(by_group, dtype=torch.bool).scatter_(-1, by_group.topk(rule.kept).indices, True)
    return {
        "recall": right / labels.sum().item(),
        "precision": right / max(1, predicted.sum().item()),
        "groups_found": (rule.chosen(unseen.inputs) & best).sum().item() / best.sum().item(),
    }


@torch.no_grad()
def _observed(calibration: Calibration, first: int) -> Iterator[tuple[int, Observed]]:
    """What every block from `first` on reads and puts out on the calibration text, one block at a time."""
    model, decoder = calibration.model, decoder_of(calibration.model)
    heads = model.config.num_attention_heads
    hidden, keywords = entering_blocks(calibration)
    for index, block in enumerate(tqdm(decoder.blocks, desc="routers", unit="block", leave=False)):
        inputs: list[Tensor] = []
        norms: list[Tensor] = []
        with hooked(_recorders(block, heads, inputs, norms) if index >= first else ()):
            hidden = [block(states, **keywords[index]) for states in hidden]
        if index >= first:
            yield index, Observed(torch.cat(inputs), torch.cat(norms))


def _recorders(
    block: nn.Module, heads: int, inputs: list[Tensor], norms: list[Tensor]
) -> Iterator[RemovableHandle]:
    """Register what appends the inputs of a block's attention and the norms of its heads' outputs."""

    def read(_: nn.Module, __: tuple[Tensor, ...], x: Tensor) -> None:
        inputs.append(x.flatten(0, -2))

    def put_out(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        norms.append(given[0].flatten(0, -2).float().unflatten(-1, (heads, -1)).norm(dim=-1))

    yield block.get_submodule(NORM_PATHS["attention_input"]).register_forward_hook(read)
    yield block.get_submodule(PROJECTION_PATHS["o"]).register_forward_pre_hook(put_out)
