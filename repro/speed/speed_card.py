"""The card printed before decode speed is measured: what a token reads, and what speed that allows at best."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from ...method.projections import decoder_of

SPARSITIES = (0.0, 0.25, 0.4, 0.5, 0.6, 0.7)


def print_card(model: PreTrainedModel, device_name: str, bandwidth: float) -> None:
    """Print bytes by projection and ceilings of tokens a second at the measured bandwidth (bytes a second)."""
    by_projection: dict[str, list[int]] = defaultdict(list)
    shapes: dict[str, str] = {}
    decoder = decoder_of(model)
    for projection in decoder.projections():
        linear = projection.linear
        by_projection[projection.kind].append(linear.weight.nbytes)
        shapes[projection.kind] = f"{linear.in_features} → {linear.out_features}"
    blocks = sum(sum(sizes) for sizes in by_projection.values())
    lm_head = decoder.lm_head.weight.nbytes

    title = f"{device_name}: {bandwidth / 1e9:,.1f} GB/s measured"
    card = Table(title=title, title_justify="left")
    for column in ("projection", "in → out", "blocks", "MB a token", "µs a launch at best"):
        card.add_column(column, justify="left" if column == "projection" else "right")
    for name, sizes in by_projection.items():
        launch = 1e6 * sizes[0] / bandwidth
        card.add_row(name, shapes[name], str(len(sizes)), f"{sum(sizes) / 1e6:,.1f}", f"{launch:,.1f}")
    head = f"{decoder.lm_head.in_features} → {decoder.lm_head.out_features}"
    card.add_row("lm_head", head, "", f"{lm_head / 1e6:,.1f}", f"{1e6 * lm_head / bandwidth:,.1f}")
    card.add_section()
    for sparsity in SPARSITIES:
        read = blocks * (1.0 - sparsity) + lm_head
        speedup = f"{(blocks + lm_head) / read:.2f} ×" if sparsity else ""
        card.add_row(
            f"{sparsity:.0%} sparse, at best",
            speedup,
            "",
            f"{read / 1e6:,.1f}",
            f"{bandwidth / read:,.0f} tok/s",
        )
    Console().print(card)
