"""Perplexity with one block alone sparse, block after block: how much each block minds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...method.errors import UserError
from ...method.projections import decoder_blocks
from ...method.running.apply import SparseSession
from .suites import DocumentLikelihood, Evaluation, Suite


@dataclass(frozen=True)
class OneBlockSuite:
    """The documents of another suite, once dense and once for each block with that block alone sparse.

    Source: WiSparse, arXiv 2602.14452, Figure 3.
    """

    name: str
    text: Suite
    """Any suite with a perplexity; tasks it has are run too and not used."""

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError for what the other suite refuses."""
        self.text.check(model, tokenizer)

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, session: SparseSession
    ) -> Evaluation:
        """Details: nats of every document, dense and by block, and the block's own realised sparsity.

        The evaluation has no perplexity of its own. Raises UserError where the other suite has none.
        """

        def documents() -> list[DocumentLikelihood]:
            return self.text.run(model, tokenizer, session).documents

        with session.only_blocks():
            dense = documents()
        if not dense:
            raise UserError("suite.text has no documents: suite=one_block wants a suite with a perplexity")
        blocks = []
        for block in tqdm(range(len(decoder_blocks(model))), desc="one block", unit="block", leave=False):
            before = session.report()["sparse_tokens"]
            with session.only_blocks(block):
                nats = [document.nats for document in documents()]
            blocks.append({"realised_sparsity": _own_sparsity(session.report(), block, before), "nats": nats})
        tokens = [document.tokens for document in dense]
        return Evaluation(
            details={"tokens": tokens, "dense": [document.nats for document in dense], "blocks": blocks}
        )

    def texts(self) -> Iterable[tuple[str, str]]:
        """See `Suite`."""
        return self.text.texts()

    def files(self) -> list[Path]:
        """Files that the other suite reads."""
        return getattr(self.text, "files", list)()


def _own_sparsity(report: dict[str, Any], block: int, before: int) -> float:
    """Sparsity of a block that was sparse for the last tokens alone: its drops over those, not over all."""
    tokens = report["sparse_tokens"]
    return report["by_block"][block] * tokens / (tokens - before) if tokens > before else 0.0
