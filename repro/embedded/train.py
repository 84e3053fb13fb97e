"""Train the embedded models from scratch on one GPU: `make train-embedded`.

    python -m wisparse.repro.embedded.train OUTPUT_FOLDER [MODEL ...]

Writes one folder a model: safetensors shards, tokenizer, config and `training.json`.
Nothing but torch, transformers and tokenizers is needed, so it runs on a bare GPU machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ...kernels.model.decoder import Decoder
from ...kernels.program_end import ends_in_one_line
from ...method.errors import UserError, mistake
from .corpus import HELD_OUT_PACKAGES
from .recipes import BEGIN_OF_TEXT, RECIPES, Recipe
from .step_memory import check_memory
from .training_text import HELD_OUT_LENGTH, Text, prepare

HELD_OUT_WINDOWS = 1024
"""Held-out perplexity is taken on the first 524,288 held-out tokens, in windows of 512."""
LARGEST_SHARD = "12MB"


def token_losses(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in nats of `ids` (sequences, length)."""
    decoder = Decoder.of(model)
    hidden = decoder.inner(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits = F.linear(hidden, decoder.lm_head.weight).flatten(0, 1).float()
    return F.cross_entropy(logits, ids[:, 1:].flatten())


@torch.no_grad()
def held_out_nats(model: PreTrainedModel, ids: torch.Tensor, windows: int | None = None) -> tuple[float, int]:
    """Mean cross-entropy over the first `windows` windows of HELD_OUT_LENGTH tokens (all), and their tokens."""
    whole = ids[: len(ids) // HELD_OUT_LENGTH * HELD_OUT_LENGTH].view(-1, HELD_OUT_LENGTH)[:windows]
    losses = [token_losses(model, chunk.long()).item() * len(chunk) for chunk in whole.split(32)]
    return sum(losses) / len(whole), whole.numel()


def make_optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices inside blocks and AdamW for the rest."""
    matrices = [p for p in Decoder.of(model).blocks.parameters() if p.ndim == 2]
    matrix_ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in matrix_ids]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    adamw = {"betas": (0.9, 0.95), "fused": True, "lr": rate}
    if recipe.optimizer == "muon":
        return [
            torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, weight_decay=0.0, **adamw),
        ]
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW(groups, **adamw)]


def learning_rate_share(step: int, steps: int, recipe: Recipe) -> float:
    """Trapezoid: linear warm-up, constant, linear decay to zero over the last `decay_share`."""
    return min(1.0, (step + 1) / recipe.warmup_steps, (steps - step) / (steps * recipe.decay_share))


def batches(ids: torch.Tensor, recipe: Recipe, steps: int) -> torch.Tensor:
    """Start of every training sequence, (steps, batch): each epoch visits every token once."""
    generator = torch.Generator().manual_seed(recipe.seed)
    needed, starts = steps * recipe.batch, []
    while sum(map(len, starts)) < needed:
        offset = torch.randint(recipe.length, (1,), generator=generator).item()
        epoch = torch.arange(offset, len(ids) - recipe.length, recipe.length)
        starts.append(epoch[torch.randperm(len(epoch), generator=generator)])
    return torch.cat(starts)[:needed].view(steps, recipe.batch)


def train(recipe: Recipe, training: torch.Tensor, device: str) -> tuple[PreTrainedModel, int]:
    """Train one model from scratch; returns it with the number of steps taken."""
    torch.manual_seed(recipe.seed)
    model = AutoModelForCausalLM.from_config(recipe.architecture, dtype=torch.float32).to(device)
    return model, fit(model, recipe, training, device)


def fit(
    model: PreTrainedModel,
    recipe: Recipe,
    training: torch.Tensor,
    device: str,
    loss_of: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor] = token_losses,
    before_step: Callable[[float], None] = lambda progress: None,
    besides: Sequence[nn.Parameter] = (),
    rate_of_model: Callable[[float], float] = lambda progress: 1.0,
) -> int:
    """Train a model as it is by now; returns the number of steps taken.

    loss_of: of the model and ids (sequences, length). before_step: told the share of training done so far.
    besides: what is trained with the model by AdamW and is no part of it. rate_of_model: share of its learning
    rate that the model has after a share of training.
    """
    of_model = make_optimizers(model, recipe)
    optimizers = [*of_model, *([torch.optim.AdamW(besides, weight_decay=0.0)] if besides else [])]
    steps = max(1, recipe.training_tokens // (recipe.batch * recipe.length))
    starts, offsets = batches(training, recipe, steps).to(device), torch.arange(recipe.length)
    training, offsets = training.to(device), offsets.to(device)
    compiled = torch.compile(loss_of) if device == "cuda" else loss_of
    started = time.time()
    for step in range(steps):
        before_step(step / steps)
        share = learning_rate_share(step, steps, recipe)
        for optimizer in optimizers:
            rate = rate_of_model(step / steps) if optimizer in of_model else 1.0
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * share * rate
        ids = training[starts[step][:, None] + offsets].long()
        with torch.autocast(device, torch.bfloat16):
            loss = compiled(model, ids)
        loss.backward()
        nn.utils.clip_grad_norm_([*model.parameters(), *besides], 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 250 == 0:
            speed = (step + 1) * recipe.batch * recipe.length / (time.time() - started)
            print(f"step {step}/{steps} loss {loss.item():.4f} {speed / 1e6:.2f} M tokens/s", flush=True)
    return steps


def train_and_save(name: str, recipe: Recipe, text: Text, output: Path, device: str) -> dict[str, object]:
    """Train one model from scratch, evaluate the weights as they are stored (bf16) and save it."""
    tokenizer, training, held_out, facts = text
    started = time.time()
    model, steps = train(recipe, training, device)
    record = {
        "model": name,
        "text": facts,
        "recipe": {k: v for k, v in dataclasses.asdict(recipe).items() if k != "architecture"},
        "steps": steps,
        "tokens_seen": steps * recipe.batch * recipe.length,
        "seconds": round(time.time() - started, 1),
    }
    return evaluate_and_save(model, as_transformers(tokenizer), held_out.to(device), record, output / name)


def as_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer of an embedded model as transformers saves it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN_OF_TEXT,
        eos_token=BEGIN_OF_TEXT,
        pad_token=BEGIN_OF_TEXT,
        unk_token=BEGIN_OF_TEXT,  # else the tokenizer class of Qwen2 adds a token that the model does not have
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def evaluate_and_save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: torch.Tensor,
    record: dict[str, object],
    folder: Path,
) -> dict[str, object]:
    """Measure the weights as they are stored (bf16), and save them with their tokenizer and record.

    record: what is known of the training. Returns it with what was measured, as `training.json` holds it, which
    is written once the weights are. Raises UserError for a model that did not stay finite.
    """
    model = model.bfloat16().float().eval()  # what is stored is what is measured
    nats, tokens = held_out_nats(model, held_out, HELD_OUT_WINDOWS)
    nats_all, _ = held_out_nats(model, held_out)
    if not math.isfinite(nats + nats_all):
        raise UserError(f"{record['model']} did not stay finite in its training; nothing of it is kept")
    facts = record["text"]
    bytes_per_token = facts["held_out_bytes"] / facts["held_out_tokens"]
    device = held_out.device.type
    record = {
        "model": record["model"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out_packages": HELD_OUT_PACKAGES,
        **record,
        "held_out_perplexity": math.exp(nats),
        "held_out_perplexity_tokens": tokens,
        "held_out_perplexity_all": math.exp(nats_all),
        "held_out_bits_per_byte_all": nats_all / math.log(2) / bytes_per_token,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (folder / "training.json").unlink(missing_ok=True)  # of a training before, whose weights are replaced now
    model.bfloat16().save_pretrained(folder, max_shard_size=LARGEST_SHARD)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record), flush=True)
    return record


def check_arguments(
    parser: argparse.ArgumentParser, device: str, names: Collection[str], known: Collection[str]
) -> None:
    """End with one line and code 2 where there is no GPU for the training, or no recipe of a name."""
    if device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "error: training needs a CUDA GPU; run this on a machine that has one\n")
    if unknown := set(names) - set(known):
        parser.exit(2, f"error: no recipe for {', '.join(unknown)}; there are {', '.join(known)}\n")


@ends_in_one_line(mistake)
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(RECIPES)}; all")
    parser.add_argument("--text-cache", type=Path, default=Path("/tmp/wisparse-text"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    check_arguments(parser, arguments.device, arguments.models, RECIPES)
    names = arguments.models or RECIPES
    check_memory(parser, arguments.device, (RECIPES[name] for name in names))
    torch.set_float32_matmul_precision("high")
    text = prepare(arguments.text_cache)
    for name in names:
        train_and_save(name, RECIPES[name], text, arguments.output, arguments.device)


if __name__ == "__main__":
    main()
