"""Feed-forward parts of a step that choose one row's neurons before their gate: by signs, proxies, a router."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..cuda.predicted import PredictedTile, SignWords, cuda_predicted
from ..cuda.product import Given, Normed, cuda_neurons, runs_cuda_products
from ..cuda.ranked import cuda_ranked
from ..cuda.select import cuda_select
from ..errors import KernelError
from ..model.decoder import DecoderShape
from ..model.decoder_weights import BlockWeights
from ..plan.block_plan import BlockPlan
from ..plan.projection_rule import ProjectionRule
from ..triton.group_choice import group_choice
from .site_launches import Norm, SiteLaunches
from .sites import Site, proxies_site
from .step_tiles import StepTiles


class ChosenNeurons:
    """Launches that read rows of gate and of up of chosen neurons, and columns of down of what is not zero."""

    def __init__(self, sites: SiteLaunches, shape: DecoderShape, tiles: StepTiles) -> None:
        self._sites, self._shape, self._tiles = sites, shape, tiles

    def lay_out(self, packed: BlockWeights, rules: BlockPlan, squares: Tensor) -> Tensor:
        """Add a block's launches; squares are those of the residual stream, before and returned behind it.

        Raises KernelError for several rows, and for a GPU without the kernels that read rows of neurons.
        """
        buffers = self._sites.buffers
        if rules.proxies is not None:
            name, choose = "proxies", self._by_proxies
        elif rules.router is not None:
            name, choose = "routers", self._by_router
        else:
            name, choose = "signs", self._by_signs
        if buffers.batch != 1:
            raise KernelError(
                f"{name} choose the neurons of one row, not of {buffers.batch}; take them as dense"
            )
        if buffers.device.type == "cuda" and not runs_cuda_products(buffers.device):
            raise KernelError(
                f"on a GPU, rows of neurons that {name} choose are read from compute capability 9.0 on and "
                "with cuda-bindings; evaluate the plan without the engine (latency=none)"
            )
        down = self._down_of_nonzero(packed)
        choose(packed, rules, (squares, packed.mlp_norm), down.reads.x)
        return self._sites.onto_residual(down)

    def _by_signs(self, packed: BlockWeights, rules: BlockPlan, norm: Norm, hidden: Tensor) -> None:
        """One launch for the neurons, most of which are zero."""
        source = Normed(self._sites.residual, *norm, self._shape.norm_epsilon)
        self._sites.add(
            cuda_predicted, source, SignWords.of(rules.signs), packed.gate_rows, packed.up_rows, hidden,
            PredictedTile(), nonlinearity=self._shape.activation,
        )  # fmt: skip

    def _by_proxies(self, packed: BlockWeights, rules: BlockPlan, norm: Norm, hidden: Tensor) -> None:
        """The product with the proxies ranks all neurons, and rows of the highest are read."""
        sites, buffers = self._sites, self._sites.buffers
        ranking = proxies_site(packed.proxies, rules.proxies, self._tiles, buffers)
        scores, smallest = buffers.x("scores", ranking.widths[0]), buffers.sums("chosen", 1, 1)
        through = {"nonlinearity": self._shape.activation}
        sites.add_cuda(ranking, cuda_neurons, scores, behind=norm, **through)
        ones = torch.ones(scores.shape, dtype=torch.float32, device=buffers.device)
        kept = torch.tensor([rules.proxies.kept], dtype=torch.int32, device=buffers.device)
        sites.add(cuda_select, Given(scores), ones, kept, smallest)
        self._add_rows(ranking.reads.x, scores, smallest, packed, hidden)

    def _by_router(self, packed: BlockWeights, rules: BlockPlan, norm: Norm, hidden: Tensor) -> None:
        """A product with the router, and the neurons of the groups that it chooses."""
        sites, buffers, router = self._sites, self._sites.buffers, rules.router
        x, scores = buffers.x("routed", self._shape.hidden), buffers.x("scores", self._shape.ffn)
        logits = sites.logits(norm, router.weight.T.contiguous(), x)
        sites.add(group_choice, logits, router.threshold, scores)
        one = buffers.once("one", partial(torch.ones, 1, 1, dtype=torch.float32, device=buffers.device))
        self._add_rows(x, scores, one, packed, hidden)

    def _add_rows(
        self, x: Tensor, scores: Tensor, smallest: Tensor, packed: BlockWeights, hidden: Tensor
    ) -> None:
        """The neurons whose score reaches the smallest."""
        self._sites.add(
            cuda_ranked, x, scores, smallest, packed.gate_rows, packed.up_rows, hidden, PredictedTile(),
            nonlinearity=self._shape.activation,
        )  # fmt: skip

    def _down_of_nonzero(self, packed: BlockWeights) -> Site:
        """Down, of whose input a kernel writes all, and which reads the columns of what is not zero."""
        nonzero = BlockPlan({"down": ProjectionRule.of_nonzero(self._shape.ffn, self._sites.buffers.device)})
        return replace(self._sites.site("down", packed.down, nonzero, self._tiles.list_block), whole=True)
