"""The card printed before decode speed is measured: what a token reads, and what speed that allows at best."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from ...kernels.model.decoder_weights import LM_HEAD
from ...kernels.quantised.stored import StoredBytes
from ...method.projections import decoder_of
from ...method.quantised_model import quantisation_of

SPARSITIES = (0.0, 0.25, 0.4, 0.5, 0.6, 0.7)


def print_card(model: PreTrainedModel, device_name: str, bandwidth: float) -> None:
    """Print bytes by projection and ceilings of tokens a second at the measured bandwidth (bytes a second).

    Bytes are those of the weights as they are stored, where the model computes with quantised ones.
    """
    by_projection: dict[str, list[StoredBytes]] = defaultdict(list)
    shapes: dict[str, str] = {}
    for kind, shape, stored in _weights(model):
        by_projection[kind].append(stored)
        shapes[kind] = shape
    (lm_head,) = by_projection.pop(LM_HEAD)
    blocks = [stored for found in by_projection.values() for stored in found]
    dense = sum(stored.total for stored in blocks) + lm_head.total

    title = f"{device_name}: {bandwidth / 1e9:,.1f} GB/s measured"
    card = Table(title=title, title_justify="left")
    for column in ("projection", "in → out", "blocks", "MB a token", "µs a launch at best"):
        card.add_column(column, justify="left" if column == "projection" else "right")
    for name, found in by_projection.items():
        launch = 1e6 * found[0].total / bandwidth
        megabytes = sum(stored.total for stored in found) / 1e6
        card.add_row(name, shapes[name], str(len(found)), f"{megabytes:,.1f}", f"{launch:,.1f}")
    launch = 1e6 * lm_head.total / bandwidth
    card.add_row(LM_HEAD, shapes[LM_HEAD], "", f"{lm_head.total / 1e6:,.1f}", f"{launch:,.1f}")
    card.add_section()
    for sparsity in SPARSITIES:
        read = sum(stored.read(1.0 - sparsity) for stored in blocks) + lm_head.total
        speedup = f"{dense / read:.2f} ×" if sparsity else ""
        card.add_row(
            f"{sparsity:.0%} sparse, at best",
            speedup,
            "",
            f"{read / 1e6:,.1f}",
            f"{bandwidth / read:,.0f} tok/s",
        )
    Console().print(card)


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, str, StoredBytes]]:
    """Kind, shape in words and bytes of every projection's weight, and of the head's."""
    decoder, quantised = decoder_of(model), quantisation_of(model)
    stored = {} if quantised is None else quantised.weights

    def read(name: str, weight: Tensor) -> StoredBytes:
        return stored[name].stored_bytes() if name in stored else StoredBytes(weight.nbytes, 0, 0)

    for one in decoder.projections():
        linear = one.linear
        yield one.kind, f"{linear.in_features} → {linear.out_features}", read(one.key, linear.weight)
    head = decoder.lm_head
    yield LM_HEAD, f"{head.in_features} → {head.out_features}", read(LM_HEAD, head.weight)
