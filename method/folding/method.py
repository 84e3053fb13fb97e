"""Another method in bases that are folded into the weights, where activations gather in few channels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...kernels.errors import KernelError
from ...kernels.model.executable import check_stream
from ...kernels.plan.bases import FoldedBases
from ...kernels.plan.mechanism import Mechanism, in_words
from ..base import AroundAnother
from ..calibration import Calibration
from ..equal_loss.sensitivity import known_sensitivities
from ..errors import UserError
from ..plan import SparsityPlan
from ..projections import decoder_of
from ..provenance import SearchCost
from ..rotation import folded_into
from ..running.half_attention import coarse_passes
from .bases import bases_at, shared_bases
from .fishers import Fishers
from .stream_basis import BasisSettings


@dataclass(frozen=True)
class Folded(AroundAnother):
    """The inner method on the channels of folded bases; all that it measures is measured there.

    The dense model computes the same function, so that dense tokens stay as they are, and a token reads no more
    than the inner method's plan says.
    """

    basis_sequences: int
    """Calibration sequences that the bases are found on, where there are as many."""
    basis: BasisSettings = field(default_factory=BasisSettings)
    """How that of the residual stream is fitted."""
    sparse_rounds: int = 0
    """Times that the bases are then found again, at the sparse model of the plan so far."""

    needs = frozenset()  # what activations look like in the bases is measured there

    def __post_init__(self) -> None:
        super().__post_init__()
        if others := self.inner.mechanisms & {Mechanism.ROTATION, Mechanism.ROUTER}:
            raise UserError(
                f"{self.name}: {self.inner.name} has {in_words(others)}, which are of the model's own bases; "
                "take folded bases for another method"
            )

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """What the inner method's plans are made of, in folded bases."""
        return self.inner.mechanisms | {Mechanism.FOLDED}

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        if sparsity == 0.0:  # nothing is dropped in any basis
            calibration.prepare(self.inner.needs)
            return self.inner._plan(calibration, sparsity, cost)
        try:
            check_stream(decoder_of(calibration.model))  # before any work
        except KernelError as error:
            raise UserError(str(error)) from error
        with cost.stage("bases"):
            bases, fishers = shared_bases(calibration, self.basis_sequences, self.basis)
        inside = calibration.remembered(("folded", id(bases)), lambda: replace(calibration))
        plan = self._in_bases(bases, fishers, inside, sparsity, cost)
        for _ in range(self.sparse_rounds):
            with cost.stage("bases"), folded_into(calibration.model, plan.folded):
                bases = bases_at(calibration, plan.rules, plan.folded, self.basis_sequences, self.basis)
            plan = self._in_bases(bases, fishers, replace(calibration), sparsity, cost)
        return plan

    def _in_bases(
        self, bases: FoldedBases, fishers: Fishers, inside: Calibration, sparsity: float, cost: SearchCost
    ) -> SparsityPlan:
        """The inner method's plan; `inside` is what it measures in these bases."""
        with cost.stage("bases"):
            known_sensitivities(
                inside, self.basis.seed, self.basis_sequences, lambda: fishers.sensitivities(bases)
            )
        with folded_into(inside.model, bases):
            with cost.stage("calibration"), coarse_passes(inside.model):
                inside.prepare(self.inner.needs)
            plan = self.inner._plan(inside, sparsity, cost)
        return replace(plan, folded=bases if plan.folded is None else bases.then(plan.folded))
