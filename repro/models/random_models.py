"""Full-size models with random weights: for cost and latency, and to run everything without a download.

Their accuracy is chance and is meant to be. What they cost to calibrate, to search and to run is what the real
model costs, as far as it does not depend on the values.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ...method.errors import UserError
from ...method.projections import check_family
from .config_values import check_values
from .content_hash import FoundFiles, companions
from .offload import streams
from .weights import ATTENTION


@dataclass(frozen=True)
class RandomCheckpoint:
    """An architecture with a seed, where a real checkpoint has a folder of weights."""

    name: str
    family: str
    architecture: str
    """Values of config.json, as canonical JSON."""
    seed: int
    tokenizer_folder: Path
    """Folder of another model's tokenizer: random weights have none of their own."""
    dtype: str
    device: str
    offload: str
    fingerprint: str
    """sha256 over the architecture, the seed and the tokenizer; what is drawn depends on the device too."""
    beside: FoundFiles
    """The tokenizer's files as they were found; see `Checkpoint`."""
    origin: ClassVar[None] = None
    """No file: see `Checkpoint`."""

    @property
    def companions(self) -> str:
        """sha256 over the files of the tokenizer's folder; see `Checkpoint`."""
        return self.beside.names_sha256(self.tokenizer_folder)


def random_checkpoint(model: dict[str, Any], device: str) -> RandomCheckpoint:
    """Check a `model` configuration with `weights: random`; raises UserError where something is missing."""
    architecture = model.get("architecture")
    if not architecture:
        raise UserError("model.weights=random needs model.architecture; model=llama3.1-8b has one")
    check_family(architecture["model_type"])
    check_values(architecture, "model.architecture")
    folder = Path(model["tokenizer"] or "").expanduser()
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"model.weights=random needs model.tokenizer=DIR, a folder with a tokenizer.json; {folder} has none"
        )
    beside = FoundFiles.find(companions(folder))  # before it is hashed
    values, seed = json.dumps(architecture, sort_keys=True), model["weights_seed"]
    content = f"{values}\0{seed}\0".encode() + (folder / "tokenizer.json").read_bytes()
    return RandomCheckpoint(
        name=f"{model['name']}-random",
        family=architecture["model_type"],
        architecture=values,
        seed=seed,
        tokenizer_folder=folder,
        dtype=model["dtype"],
        device=device,
        offload=model.get("offload", "auto"),
        fingerprint=hashlib.sha256(content).hexdigest(),
        beside=beside,
    )


def build_random_model(checkpoint: RandomCheckpoint, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model with weights drawn on its device, or in main memory where they do not fit there.

    Weights have the standard deviation that the architecture's `initializer_range` says. Begin, end and padding
    follow the tokenizer. Raises UserError for an architecture that transformers does not take.
    """
    try:
        config = AutoConfig.for_model(**json.loads(checkpoint.architecture))
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, token, getattr(tokenizer, token))
        # On meta nothing is drawn yet; otherwise torch would initialise everything, and transformers again.
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, checkpoint.dtype), attn_implementation=ATTENTION
            )
    except (StrictDataclassError, TypeError, ValueError, KeyError, RuntimeError, ZeroDivisionError) as error:
        brief = " ".join(str(error).split())[:200]
        raise UserError(f"model.architecture is not one of a {checkpoint.family} model ({brief})") from error
    weight_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    device = "cpu" if streams(weight_bytes, checkpoint.device, checkpoint.offload) else checkpoint.device
    model = model.to_empty(device=device)
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(checkpoint.seed)
        model.initialize_weights()
        _draw_padding(model)
    model.tie_weights()
    return model


@torch.no_grad()
def _draw_padding(model: PreTrainedModel) -> None:
    """Draw the embedding of the padding token as all others.

    Transformers leaves it at 0. Where it begins every text, too, its activations are 0 in every block, and each
    RMSNorm multiplies its gradient by 1/√epsilon, until it is infinite.
    """
    embedding = model.get_input_embeddings()
    if embedding.padding_idx is not None:
        embedding.weight[embedding.padding_idx].normal_(std=model.config.initializer_range)
