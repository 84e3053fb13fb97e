"""What the console command works on: a checkpoint by its folder or name, and a plan calibrated for it."""

from __future__ import annotations

import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .baselines.dense import Dense
from .catalogue import make_method
from .kernels.plan.mechanism import Mechanism
from .method.errors import UserError
from .method.plan import SparsityPlan
from .method.tokens import docstrings
from .planning import LENGTH, SEQUENCES, plan
from .repro.models.checkpoint import find_checkpoint, load_model, resolve_device
from .repro.text.calibration_text import read_text


@dataclass(frozen=True)
class Recipe:
    """A plan as the command line asks for it; raises UserError for a method or a text that is not there."""

    method: str = "wisparse"
    sparsity: float = 0.5
    search: str = "quick"
    calibration: Path | None = None
    """A UTF-8 text; None: docstrings of Python's library."""

    def __post_init__(self) -> None:
        make_method(self.method, self.search)
        if not 0 <= self.sparsity < 1:
            raise UserError(
                f"--sparsity {self.sparsity} is outside [0, 1); 0.5 leaves half of the weights unread"
            )

    @property
    def drops_nothing(self) -> bool:
        """Whether its plans leave the model dense."""
        return isinstance(make_method(self.method, self.search), Dense)

    def mechanisms(self) -> frozenset[Mechanism]:
        """What every plan of it is made of besides masks."""
        return make_method(self.method, self.search).mechanisms_at(self.sparsity)

    def texts(self) -> list[str]:
        """The calibration text."""
        if self.calibration is None:
            return library_docstrings()
        return [read_text("--calibration", str(self.calibration))]


def load(name: str, device: str | None, dtype: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer of a folder, of a GGUF file, or of a name on the hub.

    device: None for a GPU where there is one. dtype: None for bfloat16 on a GPU and float32 on a CPU. Raises
    UserError for what cannot be loaded whole.
    """
    local = Path(name).expanduser().exists()
    if not local and (name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") != 1):
        raise UserError(
            f"--model {name} is neither a folder nor a name on the hub such as ORG/NAME, nor a GGUF file"
        )
    place = resolve_device(device or "auto")
    loaded = load_model(
        find_checkpoint(
            {
                "name": None,
                "source": "folder" if local else "hub",
                "path": name if local else None,
                "id": name,
                "device": place,
                "dtype": dtype or ("bfloat16" if place.startswith("cuda") else "float32"),
            }
        )
    )
    return loaded.model, loaded.tokenizer


def calibrated_plan(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> SparsityPlan:
    """The plan of a recipe; says on stderr what it is calibrated on."""
    text = recipe.calibration or "docstrings of Python's own library (--calibration FILE for your text)"
    length = min(LENGTH, getattr(model.config, "max_position_embeddings", LENGTH))
    plan_of = f"{recipe.method} at {recipe.sparsity:.0%}"
    print(f"plan: {plan_of}, calibrated on {SEQUENCES} x {length} tokens of {text}", file=sys.stderr)
    return plan(
        model,
        tokenizer,
        recipe.texts(),
        method=recipe.method,
        sparsity=recipe.sparsity,
        search=recipe.search,
        length=length,
    )


def library_docstrings() -> list[str]:
    """English that every machine with Python has: the docstrings of the standard library's own files."""
    folder = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(folder.glob("*.py")):
        try:
            texts.append(docstrings(path.read_text(encoding="utf-8")))
        except (SyntaxError, UnicodeDecodeError):
            continue  # a file of another encoding or of another Python says nothing here
    return [text for text in texts if text]
