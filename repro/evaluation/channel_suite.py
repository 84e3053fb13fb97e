"""Input magnitudes beside column norms, channel by channel: whether small activations meet small weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...method.errors import UserError
from ...method.passes.collectors import ChannelMoments, collected_inputs
from ...method.projections import PROJECTIONS, block_projections, decoder_blocks
from .passes.context import Session, naming
from .passes.scoring import require_finite
from .suites import Evaluation


class Text(Protocol):
    """Anything `conf/calibration/*.yaml` can name."""

    batch_size: int

    def input_ids(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """(sequences, length)."""
        ...


@dataclass(frozen=True)
class ChannelSuite:
    """E|x_i| and ‖W[:, i]‖₂ of every input channel of some projections of one block.

    Source: WiSparse, arXiv 2602.14452, Figure 2. `block` None: the middle one.
    """

    name: str
    text: Text
    block: int | None
    projections: Sequence[str]

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.projections) - set(PROJECTIONS)):
            raise UserError(
                f"suite.projections: no projection {', '.join(unknown)}; there are {', '.join(PROJECTIONS)}"
            )

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError for a block that the model does not have."""
        self._block(model)

    def _block(self, model: PreTrainedModel) -> int:
        blocks = len(decoder_blocks(model))
        block = blocks // 2 if self.block is None else self.block
        if not 0 <= block < blocks:
            raise UserError(f"suite.block={block}: this model has blocks 0 to {blocks - 1}")
        return block

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, session: Session | None
    ) -> Evaluation:
        """Details: the block, and by projection `magnitudes` and `column_norms`, one number a channel.

        Raises UserError for a block that the model does not have, and for inputs that are not finite.
        """
        block = self._block(model)
        linears = {name: block_projections(decoder_blocks(model)[block])[name] for name in self.projections}
        kinds = {name: ChannelMoments() for name in linears}
        moments = collected_inputs(kinds, linears, model, self.text.input_ids(tokenizer), self.text.batch_size)
        for name in linears:
            with naming(lambda _, name=name: f"inputs of {name} in block {block}"):
                require_finite(model, [float(moments[name].mean_absolute().sum())])
        channels = {
            name: {
                "magnitudes": moments[name].mean_absolute().tolist(),
                "column_norms": linear.weight.detach().float().norm(dim=0).tolist(),
            }
            for name, linear in linears.items()
        }
        return Evaluation(details={"block": block, "projections": channels})

    def texts(self) -> tuple[()]:
        """Nothing is asked."""
        return ()
