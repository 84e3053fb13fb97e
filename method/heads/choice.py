"""Whether attention looks at all key-value groups, and if not, how many: what `conf/heads` builds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from ...kernels.model.decoder import Decoder
from ...kernels.model.held_weights import own_samples
from ...kernels.plan.bases import FoldedBases
from ...kernels.plan.heads import HeadRule
from ...kernels.plan.mechanism import Mechanism
from ..calibration import Calibration
from ..errors import UserError
from ..plan import SparsityPlan
from ..projections import decoder_of
from ..provenance import PlanProvenance, SearchCost
from ..quantised_model import description_of
from ..running.precision import own_precision
from ..settings import Settings, check_setting
from .training import RouterTraining, trained_routers

FORGIVEN = 0.03
"""Share of a group by which a density may be short of a whole number: 0.33 of three groups are one."""


@dataclass(frozen=True)
class AllHeads(Settings):
    """Every head looks at its keys and values."""

    name: str

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """What plans are made of besides the method's."""
        return frozenset()

    def check_method(self, mechanisms: Collection[Mechanism]) -> None:
        """Nothing to refuse."""

    def check_model(self, model: PreTrainedModel) -> None:
        """Nothing to refuse."""


@dataclass(frozen=True)
class PolarHeads(Settings):
    """The groups that a trained router chooses for each token (Polar Sparsity, arXiv 2505.14884)."""

    name: str
    density: float
    """Share of key-value groups that a sparse token looks at, rounded down to whole groups."""
    dense_blocks: int
    """First blocks that look at all groups."""
    training: RouterTraining

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """See `AllHeads`."""
        return frozenset({Mechanism.HEADS})

    def check_method(self, mechanisms: Collection[Mechanism]) -> None:
        """Raises UserError for a method whose plans this cannot go with; asked before weights are loaded."""
        if Mechanism.ROTATION in mechanisms:
            raise UserError(
                f"heads={self.name}: routers read what q, k and v read, and this method rotates it; take a "
                "method without rotations, or heads=none"
            )

    def check_model(self, model: PreTrainedModel) -> None:
        """Raises UserError where there is nothing to choose."""
        self.kept(model)
        if self.dense_blocks >= (blocks := len(decoder_of(model).blocks)):
            raise UserError(
                f"heads.dense_blocks={self.dense_blocks} leaves none of the model's {blocks} blocks"
            )

    def kept(self, model: PreTrainedModel) -> int:
        """Groups that a token looks at. Raises UserError where that is none, or there is only one."""
        groups = model.config.num_key_value_heads
        if groups == 1:
            raise UserError(f"heads={self.name}: the model has one key-value group, there is nothing to choose")
        kept = int(self.density * groups + FORGIVEN)
        if kept < 1:
            raise UserError(
                f"heads.density={self.density:g} keeps none of the model's {groups} key-value groups; take "
                f"heads.density={1 / groups:.3f} or more"
            )
        return kept

    @own_precision()
    def plan(self, calibration: Calibration, seed: int) -> SparsityPlan:
        """A plan of routers alone, trained on the calibration text; none where all groups are kept.

        Raises UserError for what `check_model` refuses, for text too short, and for what is not finite.
        """
        check_setting(int, seed, "seed", "seed")
        calibration.check_same_weights()
        model, cost = calibration.model, SearchCost()
        self.check_model(model)
        groups, kept = model.config.num_key_value_heads, self.kept(model)
        details: dict[str, object] = {"groups": groups, "kept": kept, "dense_blocks": self.dense_blocks}
        rules = {}
        if kept < groups:
            with cost.stage("routers"):
                rules, found = trained_routers(calibration, kept, self.dense_blocks, self.training, seed)
            details |= found
        return SparsityPlan(
            shapes=calibration.shapes,
            heads=rules,
            quantisation=description_of(model),
            weight_samples=calibration.weight_samples,
            provenance=PlanProvenance(search=cost, details={"heads": details}),
        )


def with_heads(plan: SparsityPlan, heads: SparsityPlan, model: PreTrainedModel) -> SparsityPlan:
    """A method's plan with routers; its provenance says what both took and found.

    In a plan of folded bases routers read the new channels, and choose what they chose from the old ones.
    Raises PlanError where either was made of other weights than the model's.
    """
    for made in (plan, heads):
        made.check_weights(own_samples(model))
    ours, theirs = plan.provenance, heads.provenance
    search = SearchCost(
        ours.search.stages | theirs.search.stages, ours.search.evaluations | theirs.search.evaluations
    )
    provenance = replace(ours, search=search, details={**ours.details, **theirs.details})
    return replace(plan, heads=_in_bases(heads.heads, plan.folded, decoder_of(model)), provenance=provenance)


def _in_bases(rules: dict[int, HeadRule], bases: FoldedBases | None, decoder: Decoder) -> dict[int, HeadRule]:
    """Routers of what q, k and v read in folded bases: x/g·Q for the norm's gains g, and no longer x."""
    if bases is None or bases.stream is None:
        return rules
    stream = bases.stream.cpu().double()
    gains = {block: decoder.gains(block, "attention_input").cpu().double() for block in rules}
    return {
        block: replace(rule, weight=(rule.weight.double() * gains[block] @ stream).float())
        for block, rule in rules.items()
    }
