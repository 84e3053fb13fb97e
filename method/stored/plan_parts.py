"""What a sparsity plan holds: as tensors and a JSON document, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from ...kernels.plan.bases import FoldedBases
from ...kernels.plan.heads import HeadRule
from ...kernels.plan.projection_rule import ProjectionRule
from ...kernels.plan.proxies import ProxyRule
from ...kernels.plan.routers import NeuronRouter
from ...kernels.plan.signs import SignRule
from ...kernels.weight_samples import Samples
from ..provenance import PlanProvenance

P = TypeVar("P", bound="PlanParts")
FOLDED, STREAM = "folded", "stream"
"""Part of the tensors of folded bases, and the owner of that of the residual stream; the others' is a block."""

SAMPLES = "weight_samples"
"""Entry of a document with samples of the weights that a plan was made of."""


@dataclass
class PlanParts:
    """Rules for the projections of one model; a projection without a rule stays dense."""

    shapes: dict[str, tuple[int, int]]
    """(out, in) of every block projection of the model that the plan was made for."""
    rules: dict[str, ProjectionRule] = field(default_factory=dict)
    gate_thresholds: dict[int, Tensor] = field(default_factory=dict)
    """(ffn,) thresholds on |silu(gate)| by block: a dropped neuron skips a row of up and a column of down."""
    rotations: dict[str, Tensor] = field(default_factory=dict)
    """(hidden, hidden) orthogonal matrices by block and site (`3.mlp_input`), which its projections' inputs are
    multiplied with; rules then are on the rotated channels."""
    gains_kept: bool = False
    """Whether what is rotated has the norm's gains; else the weights behind the norm take them over."""
    signs: dict[int, SignRule] = field(default_factory=dict)
    """Which neurons of a block are taken to be zero by signs alone."""
    proxies: dict[int, ProxyRule] = field(default_factory=dict)
    """How proxies of gate and up choose the neurons of a block."""
    routers: dict[int, NeuronRouter] = field(default_factory=dict)
    """Routers that choose the neurons of a block."""
    heads: dict[int, HeadRule] = field(default_factory=dict)
    """Which key-value groups attention looks at, by block; a block without a rule looks at all."""
    provenance: PlanProvenance = field(default_factory=PlanProvenance)
    """Method, sparsity, what making the plan took, and what the method found."""
    quantisation: str | None = None
    """Format and settings of the quantised weights that it was made on; None: the model's own."""
    weight_samples: Samples | None = None
    """Samples of the model's own weights that it was made of; None: nobody knows them."""
    folded: FoldedBases | None = None
    """Bases that the model's weights are turned into, for free; rules then are on the new channels."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by owner and part."""
        found = {
            f"{name}.{part}": value
            for name, rule in self.rules.items()
            for part, value in vars(rule).items()
            if isinstance(value, Tensor)
        }
        found |= {f"gate_thresholds.{block}": value for block, value in self.gate_thresholds.items()}
        found |= {f"{site}.rotation": basis for site, basis in self.rotations.items()}
        found |= {f"{block}.signs": rule.signs for block, rule in self.signs.items()}
        found |= {f"{block}.neurons": rule.weight for block, rule in self.routers.items()}
        for block, rule in self.heads.items():
            found |= {f"{block}.router.weight": rule.weight, f"{block}.router.bias": rule.bias}
        if self.folded is not None:
            found |= {f"{STREAM}.{FOLDED}": basis for basis in (self.folded.stream,) if basis is not None}
            found |= {f"{block}.{FOLDED}": bases for block, bases in self.folded.values.items()}
        # Copies: a file holds every tensor once, and rules may share their weights or be parts of one tensor.
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}

    def document(self) -> dict[str, Any]:
        """All that is no tensor; JSON-able."""
        shared = {name: rule.shared for name, rule in self.rules.items() if rule.shared is not None}
        bounds = {name: rule.bounds for name, rule in self.rules.items() if rule.bounds is not None}
        return {
            "shapes": self.shapes,
            "rules": list(self.rules),
            "top_k": {name: int(rule.top_k) for name, rule in self.rules.items() if rule.top_k is not None},
            "provenance": self.provenance.to_dict(),
            **({"shared": shared} if shared else {}),
            **({"bounds": bounds} if bounds else {}),
            **({} if self.quantisation is None else {"quantisation": self.quantisation}),
            **({} if self.weight_samples is None else {SAMPLES: dict(self.weight_samples)}),
            **({"heads": self._heads_document()} if self.heads else {}),
            **({"gains_kept": True} if self.gains_kept else {}),
            **({"signs": {str(block): rule.limit for block, rule in self.signs.items()}} if self.signs else {}),
            **({"proxies": {str(b): asdict(rule) for b, rule in self.proxies.items()}} if self.proxies else {}),
            **(
                {"routers": {str(b): rule.threshold for b, rule in self.routers.items()}}
                if self.routers
                else {}
            ),
        }

    def _heads_document(self) -> dict[str, dict[str, int]]:
        return {str(block): {"groups": rule.groups, "kept": rule.kept} for block, rule in self.heads.items()}

    @classmethod
    def from_parts(cls: type[P], document: dict[str, Any], tensors: Mapping[str, Tensor]) -> P:
        """Parts of a `document` and its `tensors`."""
        parts: dict[str, dict[str, Tensor | int]] = {name: {} for name in document["rules"]}
        gates: dict[int, Tensor] = {}
        rotations: dict[str, Tensor] = {}
        routers: dict[int, dict[str, Tensor]] = {int(block): {} for block in document.get("heads", {})}
        folded: dict[str, Tensor] = {}
        signs: dict[int, SignRule] = {}
        neurons: dict[int, NeuronRouter] = {}
        for full_name, tensor in tensors.items():
            owner, part = full_name.rsplit(".", 1)
            if owner == "gate_thresholds":
                gates[int(part)] = tensor
            elif owner.endswith(".router"):
                routers[int(owner.removesuffix(".router"))][part] = tensor
            elif part == "signs":
                signs[int(owner)] = SignRule(tensor, document["signs"][owner])
            elif part == "neurons":
                neurons[int(owner)] = NeuronRouter(tensor, document["routers"][owner])
            elif part == "rotation":
                rotations[owner] = tensor
            elif part == FOLDED:
                folded[owner] = tensor
            else:
                parts[owner][part] = tensor
        for name, k in document["top_k"].items():
            parts[name]["top_k"] = k
        for name, combined in document.get("shared", {}).items():
            parts[name]["shared"] = combined
        for name, pair in document.get("bounds", {}).items():
            parts[name]["bounds"] = tuple(pair)
        return cls(
            shapes={name: tuple(shape) for name, shape in document["shapes"].items()},
            rules={name: ProjectionRule(**fields) for name, fields in parts.items()},
            gate_thresholds=gates,
            rotations=rotations,
            heads={
                block: HeadRule(**router, **document["heads"][str(block)]) for block, router in routers.items()
            },
            signs=signs,
            proxies={int(b): ProxyRule(**given) for b, given in document.get("proxies", {}).items()},
            routers=neurons,
            gains_kept=document.get("gains_kept", False),
            quantisation=document.get("quantisation"),
            weight_samples=document.get(SAMPLES),
            folded=_folded(folded),
            provenance=PlanProvenance.from_dict(document["provenance"]),
        )


def _folded(tensors: dict[str, Tensor]) -> FoldedBases | None:
    stream = tensors.pop(STREAM, None)
    values = {int(block): bases for block, bases in tensors.items()}
    return None if stream is None and not values else FoldedBases(stream, values)
