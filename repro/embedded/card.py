"""Model cards of the embedded models: what training recorded, and what the suite measures on the weights.

python -m wisparse.repro.embedded.card [MODEL_FOLDER ...]
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

from ...method.calibration import Calibration
from ...method.plan import ProjectionRule
from ...method.projections import PROJECTIONS, decoder_blocks, key, model_projections, split_key
from ...method.rules import RuleBuilder, StaticThreshold
from ...method.running.projection_hooks import sparse_projections
from ...method.tokens import pack
from ..configuration import mistakes_in_one_line
from ..models.tokenizer import load_tokenizer
from ..records import write_json, write_text
from ..text.installed import package_folder
from .calibration import expected_package_texts
from .corpus import HELD_OUT_PACKAGES, package_sources
from .names import MODELS

SEQUENCES, LENGTH = 32, 512
"""Held-out text on which sensitivity is measured."""
SPARSITY = 0.6


def held_out_sample(tokenizer: object) -> Tensor:
    """(SEQUENCES, LENGTH) tokens of held-out files in shuffled order."""
    texts = [text for package in HELD_OUT_PACKAGES for _, text in package_sources(package_folder(package))]
    random.Random(0).shuffle(texts)
    return pack(texts, tokenizer, SEQUENCES, LENGTH, "the held-out text")


@torch.inference_mode()
def perplexity(model: PreTrainedModel, input_ids: Tensor, rules: dict[str, ProjectionRule]) -> float:
    """Perplexity per token with every token of the given projections sparse."""
    nats = []
    with sparse_projections(model_projections(model), rules):
        for batch in input_ids.split(8):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
            nats.append(F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"))
    return math.exp(torch.cat(nats).mean().item())


def measure(folder: Path) -> dict[str, object]:
    """Sensitivity of each block at SPARSITY and spread of the column norms, as a JSON-able record."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    input_ids = held_out_sample(tokenizer)
    calibration = Calibration(model, pack(expected_package_texts(), tokenizer, 16, LENGTH, "calibration"))
    builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 0.0))
    rules = {name: builder.one(name, SPARSITY).only() for name in calibration.shapes}
    blocks = range(len(decoder_blocks(model)))
    by_block = [
        perplexity(model, input_ids, {n: r for n, r in rules.items() if split_key(n)[0] == block})
        for block in tqdm(blocks, desc=folder.name, unit="block", leave=False)
    ]
    norms = calibration.column_norms
    return {
        "held_out_sample_tokens": input_ids.numel(),
        "dense_perplexity": perplexity(model, input_ids, {}),
        "sparsity": SPARSITY,
        "all_blocks_perplexity": perplexity(model, input_ids, rules),
        "one_block_perplexity": by_block,
        "column_norm_max_over_median": {
            name: [(norms[key(b, name)].max() / norms[key(b, name)].median()).item() for b in blocks]
            for name in PROJECTIONS
        },
        "column_norm_median_over_min": {
            name: [(norms[key(b, name)].median() / norms[key(b, name)].min()).item() for b in blocks]
            for name in PROJECTIONS
        },
    }


def card(name: str, training: dict, measured: dict, configuration: dict) -> str:
    """The card as Markdown."""
    blocks = len(measured["one_block_perplexity"])
    header = "| | " + " | ".join(f"block {block}" for block in range(blocks)) + " |"
    rule = "|---" * (blocks + 1) + "|"

    def row(label: str, values: list[float]) -> str:
        return f"| {label} | " + " | ".join(f"{value:.2f}" for value in values) + " |"

    spread = [
        row(
            f"{projection}: max/median, median/min",
            measured["column_norm_max_over_median"][projection],
        )
        + "\n"
        + row("", measured["column_norm_median_over_min"][projection])
        for projection in PROJECTIONS
    ]
    return f"""# {name}

A small {configuration["architectures"][0]} trained {origin(training)} on
Python source code. It exists to test sparsity methods end to end in minutes; nothing measured on it is a result
for models of 7-8 billion parameters.

{facts(training, configuration)}
Every text must start with the `<|bos|>` token, which the tokenizer does not add by itself.
{tokenizer_note(configuration)}
## What sparsity does to it

Perplexity on {measured["held_out_sample_tokens"]:,} held-out tokens (not the sample above), dense
{measured["dense_perplexity"]:.2f}; at {measured["sparsity"]:.0%} under one threshold on |x| for each
projection, every token sparse: {measured["all_blocks_perplexity"]:.2f} with all blocks sparse, and with one
block alone:

{header}
{rule}
{row("perplexity", measured["one_block_perplexity"])}

Spread of the column norms ‖W[:, i]‖ that weight-aware scores use (first row max/median, second median/min):

{header}
{rule}
{chr(10).join(spread)}
"""


def facts(training: dict, configuration: dict) -> str:
    """Table of a model's shape, training and held-out perplexity, as Markdown."""
    text, recipe = training["text"], training["recipe"]
    window = configuration.get("sliding_window")
    return f"""| | |
|---|---|
| parameters | {training["parameters"]:,} (embeddings tied), stored in bfloat16 |
| shape | hidden {configuration["hidden_size"]}, {configuration["num_hidden_layers"]} blocks, \
{configuration["num_attention_heads"]} heads over {configuration["num_key_value_heads"]} key/value heads, \
feed-forward {configuration["intermediate_size"]}, vocabulary {configuration["vocab_size"]}\
{f", sliding window {window}" if window else ""} |
| training text | {text["training_files"]:,} Python files installed on the training machine, \
{text["training_bytes"] / 1e6:.0f} MB, {text["training_text_tokens"] / 1e6:.1f} M tokens; \
{" and ".join(training["held_out_packages"])} held out entirely |
| training | {training["tokens_seen"] / 1e6:.0f} M tokens \
({training["tokens_seen"] / text["training_text_tokens"]:.1f} epochs), {training["steps"]:,} steps of \
{recipe["batch"]} × {recipe["length"]} tokens, {recipe["optimizer"]}, learning rate {recipe["learning_rate"]}, \
weight decay {recipe["weight_decay"]}, seed {recipe["seed"]} |
| time | {training["seconds"]:.0f} s on one {training["device"]}, torch {training["versions"]["torch"]}, \
transformers {training["versions"]["transformers"]} |
| held-out perplexity | **{training["held_out_perplexity"]:.4f}** on the first \
{training["held_out_perplexity_tokens"]:,} held-out tokens (windows of 512); \
{training["held_out_perplexity_all"]:.3f} on all {text["held_out_tokens"]:,} |
| held-out bits per byte | {training["held_out_bits_per_byte_all"]:.4f} on all \
{text["held_out_bytes"] / 1e6:.1f} MB |
{zeros_row(training)}\
| licence | as the project; the training text belongs to its authors and is not part of the repository |
"""


def origin(training: dict) -> str:
    """How a model came to be: from scratch, or from another one and how."""
    if "continuation" not in training:
        return "from scratch by this project (`make train-embedded`)"
    how = training["continuation"]["title"].rstrip(".")
    return f"on from `{training['starts_from']}` by this project (`make train-relu`; {how})"


def zeros_row(training: dict) -> str:
    """Row of a model with true zeros; nothing for others."""
    if "zeros_by_block" not in training:
        return ""
    zeros = [100 * share for share in training["zeros_by_block"]]
    mean = sum(zeros) / len(zeros)
    spread = f"{mean:.1f} % of neurons on held-out text ({min(zeros):.1f} to {max(zeros):.1f} by block)"
    return f"| exact zeros behind the gate | {spread} |\n"


def tokenizer_note(configuration: dict) -> str:
    """Note for users of AutoTokenizer."""
    if configuration["model_type"] != "qwen2":
        return ""
    return (
        "`AutoTokenizer` gives every Qwen2 checkpoint Qwen2's own pre-tokenization, which splits numbers into\n"
        "single digits where training kept up to three together. The suite takes the tokenizer as stored and\n"
        "says so; records without `companions` were made with what `AutoTokenizer` gives.\n"
    )


@mistakes_in_one_line()
def main() -> None:
    """Write `card.json` (measured) and `README.md` into each model's folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    for folder in parser.parse_args().folders or sorted(MODELS.iterdir()):
        measured = measure(folder)
        write_json(folder / "card.json", measured)
        training = json.loads((folder / "training.json").read_text())
        configuration = json.loads((folder / "config.json").read_text())
        write_text(folder / "README.md", card(folder.name, training, measured, configuration))
        print(folder / "README.md")


if __name__ == "__main__":
    main()
