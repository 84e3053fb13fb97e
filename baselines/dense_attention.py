"""Methods that choose neurons and leave attention dense: what they can reach."""

from __future__ import annotations

from ..method.calibration import Calibration
from ..method.errors import OutOfReachError
from ..method.projections import decoder_blocks, parameter_shares


def neuron_share(calibration: Calibration) -> float:
    """Share of a block's weights that is gate's, up's and down's."""
    shares = parameter_shares(decoder_blocks(calibration.model)[0])
    return shares["gate"] + shares["up"] + shares["down"]


def check_neurons_reach(
    name: str, sparsity: float, calibration: Calibration, read: float = 0.0, what: str = ""
) -> None:
    """Raise OutOfReachError where dropping all neurons does not make a block sparse enough.

    read: weights that choosing them reads for every token, `what` in words, as a share of the blocks'.
    """
    reach = neuron_share(calibration) - read
    if sparsity and sparsity >= reach:
        reads = f", reads {what} of {read:.3f} of the blocks' weights" if what else ""
        raise OutOfReachError(
            f"{name} leaves attention dense{reads} and cannot reach block sparsity {sparsity} on this model; "
            f"the maximum is below {reach:.3f}",
            maximum=reach,
        )
