"""Train an embedded model on with ReLU, penalties, top-k or routers: `make train-relu`.

    python -m wisparse.repro.train.continued OUTPUT_FOLDER [NAME ...]

Writes a folder a model, as `repro.embedded.train` does, with the share of exact zeros behind its gate.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ...kernels.program_end import ends_in_one_line
from ...kernels.weight_samples import weight_samples
from ...method.errors import mistake
from ...method.hooks import hooked
from ...method.projections import GATE_ACTIVATION_PATH, PROJECTION_PATHS, decoder_blocks, model_projections
from ...method.stored.routers import save_routers
from ..embedded.names import MODELS
from ..embedded.recipes import Recipe
from ..embedded.train import as_transformers, evaluate_and_save, fit, token_losses
from ..embedded.training_text import HELD_OUT_LENGTH, Text
from .command_line import train_named
from .recipes import CONTINUATIONS, START, Continuation, recipe
from .routers import TrainedRouters

Loss = Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]
WINDOWS_FOR_ZEROS = 64
"""Held-out windows on which zeros are counted."""
TOKENS, FILES = 40_000_000, 3_600
"""Tokens that each is trained on, and the training files that these are of, as on the committed cards."""


def straight_through(x: torch.Tensor, kept: float, neighbours: int | None = None) -> torch.Tensor:
    """X (..., channels) with its largest magnitudes alone; its gradient is that of all channels (Q-Sparse).

    neighbours: channels beside each other of which as many are kept each time, which divide all (its block
    variant); None: of all channels.
    """
    grouped = x.unflatten(-1, (-1, neighbours or x.shape[-1]))
    drop = grouped.shape[-1] - max(1, int(kept * grouped.shape[-1]))
    if drop == 0:
        return x
    magnitudes = grouped.detach().abs()
    thresholds = magnitudes.float().kthvalue(drop, dim=-1, keepdim=True).values
    sparse = torch.where(magnitudes > thresholds, grouped, 0.0)
    return (grouped + (sparse - grouped).detach()).flatten(-2)


class Changed(NamedTuple):
    """A model that computes as it is trained."""

    advance: Callable[[float], None]
    """Told the share of training done: sets the penalty's factor, and makes routers hard."""
    loss: Loss
    """Nats a token of a model on ids, the factor times the mean |x| into down, and the routers' loss."""
    routers: TrainedRouters | None


@contextmanager
def changed(model: PreTrainedModel, how: Continuation) -> Iterator[Changed]:
    """Context in which the model computes as it is trained."""
    routers = None if how.routers is None else TrainedRouters(model, how.routers)
    factor = torch.zeros((), device=next(model.parameters()).device)
    magnitudes: list[torch.Tensor] = []

    def penalised(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        magnitudes.append(inputs[0].abs().float().mean())

    def sparse(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (straight_through(inputs[0], how.kept, how.neighbours), *inputs[1:])

    def handles() -> Iterator[RemovableHandle]:
        if how.stages:
            for block in decoder_blocks(model):
                yield block.get_submodule(PROJECTION_PATHS["down"]).register_forward_pre_hook(penalised)
        if how.kept is not None:
            for linear in model_projections(model).values():
                yield linear.register_forward_pre_hook(sparse)
        if routers is not None:
            yield from routers.handles()

    def advance(progress: float) -> None:
        factor.fill_(how.factor(progress))
        if routers is not None:
            routers.advance(progress)

    def loss(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
        magnitudes.clear()
        total = token_losses(model, ids)
        if magnitudes:
            total = total + factor * torch.stack(magnitudes).mean()
        return total if routers is None else total + routers.take_loss()

    with hooked(handles()):
        yield Changed(advance, loss, routers)


@torch.no_grad()
def zero_shares(model: PreTrainedModel, held_out: torch.Tensor) -> list[float]:
    """Share of exact zeros among the activated outputs of gate on held-out text, by block."""
    zeros = [0.0] * len(decoder_blocks(model))

    def counter(index: int) -> Callable[..., None]:
        def count(_: nn.Module, __: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            zeros[index] += (output == 0).float().mean().item()

        return count

    windows = min(WINDOWS_FOR_ZEROS, len(held_out) // HELD_OUT_LENGTH)
    with hooked(
        block.get_submodule(GATE_ACTIVATION_PATH).register_forward_hook(counter(index))
        for index, block in enumerate(decoder_blocks(model))
    ):
        for window in range(windows):
            ids = held_out[window * HELD_OUT_LENGTH : (window + 1) * HELD_OUT_LENGTH]
            model(input_ids=ids.long()[None], use_cache=False)
    return [total / windows for total in zeros]


class Start(NamedTuple):
    """A model that training goes on from."""

    name: str
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    """What is saved beside what was trained."""
    attention: str = "sdpa"
    """Implementation of attention by its name in transformers, while it is trained."""


def train_and_save(name: str, tokens: int, text: Text, output: Path, device: str) -> dict[str, object]:
    """Train one continuation of the embedded model; see `train_from`."""
    start = Start(START, MODELS / START, as_transformers(text[0]))
    return train_from(start, name, recipe(tokens), text, output, device)


def train_from(
    start: Start, name: str, settings: Recipe, text: Text, output: Path, device: str
) -> dict[str, object]:
    """Train one continuation of a model, evaluate the weights as they are stored (bf16) and save them."""
    (_, training, held_out, facts), how = text, CONTINUATIONS[name]
    torch.manual_seed(settings.seed)
    model = AutoModelForCausalLM.from_pretrained(
        start.folder, dtype=torch.float32, hidden_act=how.activation, attn_implementation=start.attention
    ).to(device)
    held_out, started = held_out.to(device), time.time()
    with changed(model, how) as as_trained:
        routers = as_trained.routers
        besides, rates = (), {}
        if routers is not None:
            besides, rates = tuple(routers.layers.parameters()), {"rate_of_model": how.routers.rate_of_model}
        steps = fit(model, settings, training, device, as_trained.loss, as_trained.advance, besides, **rates)
        as_trained.advance(1.0)
        stored = None if routers is None else routers.stored()
        record = {
            "model": f"{start.name}-{name}",
            "starts_from": start.name,
            "continuation": dataclasses.asdict(how),
            "text": facts,
            "recipe": {k: v for k, v in dataclasses.asdict(settings).items() if k != "architecture"},
            "steps": steps,
            "tokens_seen": steps * settings.batch * settings.length,
            "seconds": round(time.time() - started, 1),
            "zeros_by_block": zero_shares(model, held_out),
        }
        found = evaluate_and_save(model, start.tokenizer, held_out, record, output / record["model"])
        if stored is not None:
            save_routers(output / record["model"], stored, weight_samples(model))
        return found


@ends_in_one_line(mistake)
def main() -> None:
    """Train every continuation, or those that are named."""
    train_named(
        __doc__, CONTINUATIONS, train_and_save, lambda name, tokens: recipe(tokens), tokens=TOKENS, files=FILES
    )


if __name__ == "__main__":
    main()
