"""The sparsity plan: all that a method decides, and all that any runtime needs to execute it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT_VERSION = 1


class PlanError(Exception):
    """A stored plan cannot be read, or a plan does not belong to the model it is applied to."""


@dataclass(frozen=True)
class ProjectionRule:
    """How one projection drops input channels: by static thresholds or by per-token top-k.

    Exactly one of `thresholds` and `top_k` is given. A low-rank pair adds back an approximation of what the
    dropped channels would have contributed.

    In a search the tensors carry a leading candidate dimension: thresholds (candidates, 1, in), top_k
    (candidates, 1, 1). A plan holds thresholds (in,) and an int.
    """

    thresholds: Tensor | None = None
    """(in,) float32; channel i is kept where |x_i| ≥ thresholds[i]."""
    top_k: int | Tensor | None = None
    """Number of channels kept for each token."""
    weights: Tensor | None = None
    """(in,) channel weights of the top-k score |x_i|·weights[i]."""
    left: Tensor | None = None
    """(out, rank) factor of the low-rank path."""
    right: Tensor | None = None
    """(rank, in) factor of the low-rank path."""

    def __post_init__(self) -> None:
        if (self.thresholds is None) == (self.top_k is None):
            raise ValueError("a projection rule needs either thresholds or top_k")
        if (self.top_k is None) != (self.weights is None):
            raise ValueError("a top-k rule needs the channel weights of its score")
        if (self.left is None) != (self.right is None):
            raise ValueError("a low-rank path needs both of its factors")

    @property
    def rank(self) -> int:
        """Rank of the low-rank path, 0 where there is none."""
        return 0 if self.left is None else self.left.shape[1]

    def to(self, device: torch.device | str) -> ProjectionRule:
        """The same rule with its tensors on `device`."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})


@dataclass
class SparsityPlan:
    """Rules for the projections of one model; a projection without a rule stays dense."""

    shapes: dict[str, tuple[int, int]]
    """(out, in) of every block projection of the model that the plan was made for."""
    rules: dict[str, ProjectionRule] = field(default_factory=dict)
    gate_thresholds: dict[int, Tensor] = field(default_factory=dict)
    """(ffn,) thresholds on |silu(gate)| by block: a dropped neuron skips a row of up and a column of down."""
    rotations: dict[str, Tensor] = field(default_factory=dict)
    """(hidden, hidden) orthogonal matrices by block and site (`3.mlp_input`), which its projections' inputs are
    multiplied with; rules then are on the rotated channels."""
    provenance: dict[str, object] = field(default_factory=dict)
    """JSON-able facts: method, sparsity, stages in seconds, evaluations, allocation, ..."""

    def check_model(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raises PlanError when a model with projections of these shapes is not the plan's model."""
        if dict(shapes) != self.shapes:
            raise PlanError(
                f"this plan is for another model: it has {len(self.shapes)} projections, first "
                f"{next(iter(self.shapes.items()), None)}; the model has {len(shapes)}, first "
                f"{next(iter(shapes.items()), None)}"
            )

    def save(self, folder: Path | str) -> None:
        """Write `plan.safetensors` and `plan.json` into `folder`, which appears complete or not at all."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        top_k: dict[str, int] = {}
        for name, rule in self.rules.items():
            for part, value in vars(rule).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}.{part}"] = value.detach().cpu().contiguous()
            if rule.top_k is not None:
                top_k[name] = int(rule.top_k)
        for block, thresholds in self.gate_thresholds.items():
            tensors[f"gate_thresholds.{block}"] = thresholds.detach().cpu().contiguous()
        for site, basis in self.rotations.items():
            tensors[f"{site}.rotation"] = basis.detach().cpu().contiguous()
        document = {
            "format": FORMAT_VERSION,
            "shapes": self.shapes,
            "rules": list(self.rules),
            "top_k": top_k,
            "provenance": self.provenance,
        }
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            save_file(tensors, temporary / "plan.safetensors")
            (temporary / "plan.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> SparsityPlan:
        """Read what `save` wrote. Raises PlanError when it is missing, truncated or of another format."""
        folder = Path(folder)
        try:
            document = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
            if document["format"] != FORMAT_VERSION:
                raise PlanError(f"{folder}: plan format {document['format']}, expected {FORMAT_VERSION}")
            parts: dict[str, dict[str, Tensor | int]] = {name: {} for name in document["rules"]}
            gates: dict[int, Tensor] = {}
            rotations: dict[str, Tensor] = {}
            with safe_open(folder / "plan.safetensors", "pt", device=str(device)) as stored:
                for full_name in stored.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    owner, part = full_name.rsplit(".", 1)
                    if owner == "gate_thresholds":
                        gates[int(part)] = stored.get_tensor(full_name)
                    elif part == "rotation":
                        rotations[owner] = stored.get_tensor(full_name)
                    else:
                        parts[owner][part] = stored.get_tensor(full_name)
            for name, k in document["top_k"].items():
                parts[name]["top_k"] = k
            return cls(
                shapes={name: tuple(shape) for name, shape in document["shapes"].items()},
                rules={name: ProjectionRule(**fields) for name, fields in parts.items()},
                gate_thresholds=gates,
                rotations=rotations,
                provenance=document["provenance"],
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise PlanError(f"{folder}: not a readable plan ({error})") from error
