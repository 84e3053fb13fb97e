"""The rule of a block: how large a product with the proxies is, and how many neurons it chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from .mechanism import Mechanism

SCALE_BYTES = 2
"""Bytes of the scale of a group in float16."""
WEIGHT_BYTES = 2
"""Bytes of a weight as which proxies are counted."""


@dataclass(frozen=True)
class ProxyRule:
    """A neuron that the proxies of gate and up do not choose skips a row of either and a column of down.

    The proxies are gate's and up's weights in 4 bits, symmetric, in groups of neurons that share a scale; they
    follow from the weights, so that a plan holds their settings alone.
    """

    neurons: int
    """Neurons of the block."""
    channels: int
    """Input channels of gate and up."""
    kept: int
    """Neurons that are computed for each token."""
    read: int
    """Channels of the largest |x| of each token that are multiplied with the proxies."""
    group: int
    """Neurons that share a scale."""

    @property
    def bytes_read(self) -> int:
        """Bytes of both proxies that a token reads: values of the channels that are read, and their scales."""
        values, groups = -(-self.neurons // 2), -(-self.neurons // self.group)
        return 2 * self.read * (values + SCALE_BYTES * groups)

    def misfit(self, shapes: Mapping[str, tuple[int, int]]) -> str | None:
        """What does not fit a block of projections of these (out, in); None where all does."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        if odd := {name: value for name, value in settings.items() if type(value) is not int or value < 0}:
            return f"of its proxies, {odd} is no whole number"
        if self.group == 0:
            return "its proxies have groups of no neuron"
        for name in ("gate", "up"):
            if shapes.get(name) != (self.neurons, self.channels):
                return (
                    f"its proxies are for a {name} of {(self.neurons, self.channels)}, not {shapes.get(name)}"
                )
        if self.kept > self.neurons or self.read > self.channels:
            return (
                f"its proxies read {self.read} of {self.channels} channels and choose {self.kept} of "
                f"{self.neurons} neurons"
            )
        return None

    def mechanisms(self) -> dict[Mechanism, int]:
        """See `ProjectionRule`: a value of a proxy is a quarter of a weight, as beside weights in 16 bits."""
        return {Mechanism.PROXY: -(-self.bytes_read // WEIGHT_BYTES)}
