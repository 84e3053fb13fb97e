"""Load a checkpoint of a supported family, and say in one line what is wrong with one that cannot be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...kernels.model.decoder import FAMILIES
from ...method.errors import UserError
from .config_values import check_values
from .content_hash import FoundFiles, companions
from .gguf.conversion import Origin, converted, is_gguf, only_gguf
from .hub import fetch_model
from .norm_spread import LARGEST_SPREAD, spread_norms
from .random_models import RandomCheckpoint, build_random_model, random_checkpoint
from .tokenizer import check_token_ids, load_tokenizer
from .weight_files import read_json, weight_files
from .weights import check_finite, check_runs, load_config, load_weights
from .wheel import Wheel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds a complete checkpoint, and how to load it."""

    name: str
    folder: Path
    family: str
    weight_files: tuple[Path, ...]
    dtype: str
    device: str
    beside: FoundFiles
    """Settings, tokenizer, chat template, generation, as they were found."""
    content: FoundFiles
    """config.json and the weights as they were found: a checkpoint whose files changed is another one."""
    offload: str = "auto"
    norm_spread: float = 0.0
    """σ of a rescale of the channels that changes no output; see `spread_norms`."""
    norm_spread_seed: int = 0
    origin: Origin | None = None
    """The GGUF file that the folder was made of."""

    @property
    def companions(self) -> str | None:
        """sha256 over the files beside the weights: settings, tokenizer, chat template, generation.

        None of a GGUF file, which holds all of them: what it was read with writes its own version into them.
        """
        return None if self.origin else self.beside.names_sha256(self.folder)

    @property
    def fingerprint(self) -> str:
        """sha256 of the GGUF file, or over config.json and the weight files; a rescale is named behind it."""
        files = self.origin.sha256 if self.origin else self.content.sha256()
        return f"{files} × {self.norm_spread:g}, {self.norm_spread_seed}" if self.norm_spread else files


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to be measured, with its own tokenizer."""

    checkpoint: Checkpoint | RandomCheckpoint
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def check_weights(self) -> None:
        """Raises UserError where the weights may no longer be those that the checkpoint's identity names."""
        if isinstance(self.checkpoint, Checkpoint):
            self.checkpoint.content.check_not_overwritten()


def find_checkpoint(model: dict[str, Any]) -> Checkpoint | RandomCheckpoint:
    """Check a `model` configuration and the files it names without loading any weights.

    Raises UserError when the family is not supported or the checkpoint is missing, truncated or incomplete.
    """
    if model["dtype"] not in DTYPES:
        raise UserError(f"model.dtype={model['dtype']} is not supported; choose from {', '.join(DTYPES)}")
    device = resolve_device(model["device"])
    weights = model.get("weights", "pretrained")
    if weights == "random":
        return random_checkpoint(model, device)
    if weights != "pretrained":
        raise UserError(f"model.weights={weights} is not supported; choose pretrained or random")
    from_hub = model["source"] == "hub" and not model.get("path")
    folder, origin = (_hub_folder(model), None) if from_hub else _local_folder(model)
    config = read_json(folder / "config.json", folder)
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UserError(
            f"{folder}: the model family '{family}' is not supported; "
            f"take a model of {', '.join(known.title for known in FAMILIES.values())}"
        )
    check_values(config, f"{folder}/config.json")
    if config.get("quantization_config"):
        raise UserError(f"{folder}: quantized checkpoints are not supported; take the unquantized one")
    if (folder / ADAPTER).exists():
        raise UserError(f"{folder} holds an adapter ({ADAPTER}); merge it into the weights, or take it away")
    name = model["name"] or (
        model["id"] if from_hub else Path(model["path"]).resolve().name.removesuffix(".gguf")
    )
    files = weight_files(folder, config)
    return Checkpoint(
        name,
        folder,
        family,
        files,
        model["dtype"],
        device,
        FoundFiles.find(companions(folder)),
        FoundFiles.find((folder / "config.json", *files)),
        offload=model.get("offload", "auto"),
        norm_spread=_checked_spread(model.get("norm_spread", 0.0)),
        norm_spread_seed=model.get("norm_spread_seed", 0),
        origin=origin,
    )


def _checked_spread(spread: Any) -> float:
    if isinstance(spread, bool) or not isinstance(spread, int | float) or not 0 <= spread <= LARGEST_SPREAD:
        raise UserError(f"model.norm_spread={spread} is not between 0 and {LARGEST_SPREAD:g}")
    return float(spread)


@lru_cache(maxsize=1)  # the cells of a sweep share one model; two large ones would not fit
def load_model(checkpoint: Checkpoint | RandomCheckpoint) -> LoadedModel:
    """Load or draw the weights, and load the tokenizer.

    Raises UserError when they do not fit together, and for files that changed since the checkpoint was found:
    what is computed would be recorded under the identity of others.
    """
    from .offload import place

    if isinstance(checkpoint, RandomCheckpoint):
        origin, tokenizer = checkpoint.tokenizer_folder, load_tokenizer(checkpoint.tokenizer_folder)
        model = build_random_model(checkpoint, tokenizer)
    else:
        config = load_config(checkpoint.folder)  # first: transformers reads it for the tokenizer, too
        origin, tokenizer = checkpoint.folder, load_tokenizer(checkpoint.folder)
        model = load_weights(checkpoint.folder, config, checkpoint.dtype)
        if checkpoint.norm_spread:
            spread_norms(model, checkpoint.norm_spread, checkpoint.norm_spread_seed)
        checkpoint.content.check_unchanged()
    checkpoint.beside.check_unchanged()
    check_token_ids(model, tokenizer, origin)
    check_runs(model, checkpoint.name)
    model.requires_grad_(False)
    model = place(model.eval(), checkpoint.device, checkpoint.offload)
    check_finite(model, origin, checkpoint.dtype)  # where the model is: a GPU reads it in a moment
    return LoadedModel(checkpoint, model, tokenizer)


def resolve_device(device: str) -> str:
    """`auto` becomes cuda where there is one; raises UserError for a device that is not here."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UserError(f"model.device={device} is not supported; choose auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"model.device={device} is not here: torch sees {torch.cuda.device_count()} CUDA device(s); "
            "use model.device=auto"
        )
    return str(device)


def _local_folder(model: dict[str, Any]) -> tuple[Path, Origin | None]:
    """The folder that holds config.json, and the GGUF file that it was made of."""
    if model["source"] == "wheel":
        wheel = Wheel.of_model(model)
        folder, origin = converted(wheel.gguf())
        return folder, replace(origin, package=wheel.origin)
    if not model["path"]:
        if model["source"] == "gguf":
            raise UserError("model=gguf needs model.path=FILE, a GGUF file")
        raise UserError("model=local needs model.path=DIR, a folder with a checkpoint and its tokenizer")
    path = Path(model["path"]).expanduser()
    file = only_gguf(path) if path.is_dir() else path
    if file and (model["source"] == "gguf" or is_gguf(file)):
        return converted(file)
    if not path.is_dir():
        raise UserError(
            f"model.path={path} is not a folder; give the folder that holds config.json, or a GGUF file"
        )
    return path, None


def _hub_folder(model: dict[str, Any]) -> Path:
    if not model["id"]:
        raise UserError("model=hub needs model.id=ORG/NAME, for example model.id=Qwen/Qwen2.5-7B-Instruct")
    return fetch_model(model["id"], model.get("revision"))
