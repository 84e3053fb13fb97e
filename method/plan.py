"""The sparsity plan: all that a method decides, and all that any runtime needs to execute it."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..kernels.model.decoder import PROJECTIONS, split_key
from ..kernels.plan.bases import Rotation
from ..kernels.plan.block_plan import BlockPlan, GateRule
from ..kernels.plan.projection_rule import ProjectionRule
from ..kernels.plan.whole_plan import of_another_model, of_other_weights
from ..kernels.shared_files import make_folder, replacing
from ..kernels.weight_samples import Samples
from .errors import UserError
from .seal import seal_of
from .stored.plan_parts import PlanParts
from .stored.tensor_files import write_tensors

log = logging.getLogger(__name__)

__all__ = ["PlanError", "ProjectionRule", "SparsityPlan"]

FORMAT_VERSION, WITHOUT_SEAL = 2, 1
"""Version of what is written, and the one before, which is read as it is."""
SEAL = "content_sha256"
"""Entry of a document with the hash of all else that is stored."""
TENSORS, DOCUMENT = "plan.safetensors", "plan.json"
"""Files of a plan that is a folder."""
METADATA = "wisparse_plan"
"""Entry of the safetensors metadata that holds the JSON document of a plan that is one file."""
KEY = re.compile(rf"(0|[1-9]\d*)\.({'|'.join(PROJECTIONS)})")
"""Block and projection, as `split_key` reads them."""


class PlanError(UserError):
    """A stored plan cannot be read, or a plan does not belong to the model it is applied to."""


class SparsityPlan(PlanParts):
    """All that a method decides: what it holds, whether it fits, and how it is saved."""

    @property
    def is_dense(self) -> bool:
        """Whether it leaves nothing out, in whatever bases."""
        return not any((self.rules, self.gate_thresholds, self.heads, self.signs, self.proxies, self.routers))

    def check_model(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raises PlanError when a model with projections of these shapes is not the plan's model."""
        if problem := of_another_model(self.shapes, shapes):
            raise PlanError(problem)

    def check_quantisation(self, description: str | None) -> None:
        """Raises PlanError when it was made on other weights than a model computes with now."""
        if self.quantisation != description:
            made, there = (found or "the model's own weights" for found in (self.quantisation, description))
            raise PlanError(f"this plan was made for {made}, and the model has {there}; make it anew on these")

    def check_weights(self, there: Samples) -> None:
        """Raises PlanError when it was made of other weights than those that these samples are of."""
        if problem := of_other_weights("this plan", self.weight_samples, there):
            raise PlanError(problem)

    def block_plans(self) -> tuple[BlockPlan, ...]:
        """The plan of every block, in order: what runtimes execute."""
        blocks = 1 + max((split_key(name)[0] for name in self.shapes), default=-1)
        rules: list[dict[str, ProjectionRule]] = [{} for _ in range(blocks)]
        rotations: list[dict[str, Rotation]] = [{} for _ in range(blocks)]
        for name, rule in self.rules.items():
            block, projection = split_key(name)
            rules[block][projection] = rule
        for name, basis in self.rotations.items():
            block, site = split_key(name)
            rotations[block][site] = Rotation(basis, self.gains_kept)
        gates = {block: GateRule(thresholds) for block, thresholds in self.gate_thresholds.items()}
        others = (self.heads, self.signs, self.proxies, self.routers)
        return tuple(
            BlockPlan(rules[block], gates.get(block), rotations[block], *(part.get(block) for part in others))
            for block in range(blocks)
        )

    def expected_sparsity(self, name: str) -> float | None:
        """The sparsity that its method gave a projection; else that of all blocks, where it is known."""
        given = self.provenance.details.get("sparsities")
        return given.get(name) if isinstance(given, Mapping) and name in given else self.provenance.sparsity

    def without(self, names: Collection[str]) -> SparsityPlan:
        """The plan with these projections dense; a gate's neurons go with up."""
        return replace(
            self,
            rules={name: rule for name, rule in self.rules.items() if name not in names},
            gate_thresholds={b: t for b, t in self.gate_thresholds.items() if f"{b}.up" not in names},
            signs={block: rule for block, rule in self.signs.items() if f"{block}.up" not in names},
            proxies={block: rule for block, rule in self.proxies.items() if f"{block}.up" not in names},
            routers={block: rule for block, rule in self.routers.items() if f"{block}.up" not in names},
        )

    def not_a_number(self) -> str | None:
        """Block, projection and part of the first tensor that holds what is no number; None where all are.

        An infinite threshold is one: it drops a channel at every token.
        """
        for name, tensor in self.tensors().items():
            infinite = "thresholds" not in name and bool(tensor.isinf().any())
            if infinite or tensor.isnan().any():
                return name
        return None

    def misfit(self) -> str | None:
        """What in the plan fits no model of its shapes, or excludes each other; None where all fits."""
        for name, shape in self.shapes.items():
            sizes = [size for size in shape if type(size) is int and size > 0]
            if not KEY.fullmatch(name) or len(shape) != 2 or len(sizes) != 2:
                return f"{name} of shape {list(shape)} is no projection"
        blocks = {str(split_key(name)[0]) for name in self.shapes}
        for name in (
            *self.rules,
            *self.rotations,
            *map(str, (*self.gate_thresholds, *self.heads, *self.signs, *self.proxies, *self.routers)),
        ):
            if name.partition(".")[0] not in blocks:
                return f"{name} is of no block of its model"
        if self.folded is not None:
            if self.rotations:
                return "it has rotated and folded bases; take one"
            if problem := self.folded.misfit(self.shapes):
                return f"folded bases: {problem}"
        for index, block in enumerate(self.block_plans()):
            of_block = {name: shape for name, shape in self.shapes.items() if split_key(name)[0] == index}
            if problem := block.misfit({split_key(name)[1]: shape for name, shape in of_block.items()}):
                return f"block {index}: {problem}"
        return None

    def save(self, path: Path | str) -> None:
        """Write the plan to `path`, which appears complete or not at all.

        `NAME.safetensors` becomes one file; any other path a folder with `plan.safetensors` and `plan.json`.
        Raises PlanError for a folder that holds anything but a plan, and for what is no path.
        """
        path = _path(path)
        _check_replaceable(path)
        with replacing(path) as unfinished:
            if path.suffix == ".safetensors":
                metadata = {METADATA: json.dumps(self._sealed_document())}
                write_tensors(self.tensors(), unfinished, metadata, path.parent)
            else:
                make_folder(unfinished)
                write_tensors(self.tensors(), unfinished / TENSORS, None, path.parent)
                document = json.dumps(self._sealed_document(), indent=1) + "\n"
                (unfinished / DOCUMENT).write_text(document, encoding="utf-8")
                shutil.rmtree(path, ignore_errors=True)

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> SparsityPlan:
        """Read what `save` wrote, file or folder.

        Raises PlanError for what is missing, no plan, or not what was written. Warns of a plan that does not
        say which weights it was made of, as those of versions before do not.
        """
        path = _path(path)
        try:
            folder = path.is_dir()
            with safe_open(path / TENSORS if folder else path, "pt", device=str(device)) as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
                metadata = stored.metadata() or {}
            text = (path / DOCUMENT).read_text(encoding="utf-8") if folder else metadata[METADATA]
            document = json.loads(text)
            if document["format"] not in (FORMAT_VERSION, WITHOUT_SEAL):
                raise PlanError(f"{path}: plan format {document['format']}, expected {FORMAT_VERSION}")
            if document["format"] == FORMAT_VERSION and document.pop(SEAL) != seal_of(document, tensors):
                raise PlanError(f"{path} is not what was written; make the plan anew")
            plan = cls.from_parts(document, tensors)
            if broken := plan.not_a_number():
                raise PlanError(f"{path}: {broken} is not a number; make the plan anew")
            if problem := plan.misfit():
                raise PlanError(f"{path}: {problem}; make the plan anew")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            raise PlanError(f"{path}: not a readable plan ({error})") from error
        if plan.weight_samples is None:
            log.warning(
                "%s does not say which weights it was made of: on another model of the same shapes it would be "
                "wrong without a word; make it anew to be sure",
                path,
            )
        return plan

    def _sealed_document(self) -> dict[str, Any]:
        document = {"format": FORMAT_VERSION} | self.document()
        return document | {SEAL: seal_of(document, self.tensors())}


def _path(given: object) -> Path:
    """The path that a user gave. Raises PlanError for what is none."""
    if not isinstance(given, str | os.PathLike) or not os.fspath(given) or "\0" in str(given):
        raise PlanError(f"{given!r} is no path of a plan; give the name of a file or a folder")
    return Path(given)


def _check_replaceable(path: Path) -> None:
    """Raises PlanError where saving a plan would take away a folder that is no plan."""
    if not path.is_dir():
        return
    if path.suffix == ".safetensors":
        raise PlanError(f"{path} is a folder; a plan of that name is one file: choose another name")
    if others := sorted({entry.name for entry in path.iterdir()} - {TENSORS, DOCUMENT}):
        raise PlanError(f"{path} is a folder with other files, {others[0]} for one; choose another name")
