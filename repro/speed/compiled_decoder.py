"""The fastest decoder that a user can write in plain PyTorch: what speed is compared with beside transformers.

One forward pass of one token: q, k and v in one product, gate and up in one, a static cache, and
`torch.compile` with CUDA graphs and coordinate-descent tuning. It reads every weight.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.errors import KernelError
from ...kernels.model.decoder import ACTIVATIONS, Decoder, DecoderShape, block_projections
from ...kernels.model.decoder_weights import has_turned_norms
from ...kernels.model.executable import check_executable
from ...kernels.model.static_cache import StaticCache
from .compiled_products import FloatProduct, Int4Product, Int8Product, MakeProduct, fixed

COMPILED_DECODER = "compiled-decoder"
COMPILED_INT8, COMPILED_INT4 = f"{COMPILED_DECODER}-int8", f"{COMPILED_DECODER}-int4"
PRODUCTS: dict[str, tuple[MakeProduct, MakeProduct]] = {
    COMPILED_DECODER: (FloatProduct, FloatProduct),
    COMPILED_INT8: (Int8Product, Int8Product),
    COMPILED_INT4: (Int4Product, Int8Product),
}
"""Products of blocks and of the head, by the name of the baseline."""
SLOTS = 8
"""Slots of the cache are a multiple of this, so that every row of scores starts at an aligned address."""


class CompiledDecoder:
    """Greedy decoding with a compact decoder over a model's own weights, whose step is compiled.

    The model goes on working: in floating point its projections become rows of the joined weights, in few bits
    the decoder has weights of its own.
    """

    def __init__(
        self, model: nn.Module, batch: int, capacity: int, compiled: bool = True, name: str = COMPILED_DECODER
    ) -> None:
        """capacity: tokens of prompt and continuation; name: one of PRODUCTS.

        Raises KernelError for a model that it does not know, or weights that torch cannot multiply so.
        """
        self._model = model
        self._decoder = _CompactDecoder(model, batch, capacity, *PRODUCTS[name])
        self._forward: Any = self._decoder
        if compiled:
            torch._dynamo.reset()  # what was compiled before must not share its graphs' memory
            options = torch._inductor.list_mode_options("reduce-overhead") | {"coordinate_descent_tuning": True}
            self._forward = torch.compile(self._decoder, fullgraph=True, dynamic=False, options=options)

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor) -> Tensor:
        """Read a prompt (batch, length) through transformers; returns the last token's logits."""
        from transformers import DynamicCache

        past = DynamicCache()  # not of the model's configuration: a sliding cache would forget early tokens
        output = self._model(input_ids=input_ids, past_key_values=past, logits_to_keep=1)
        for block, layer in zip(self._decoder.blocks, past.layers, strict=True):
            block.keys[:, :, : input_ids.shape[1]] = layer.keys
            block.values[:, :, : input_ids.shape[1]] = layer.values
        self._decoder.length.fill_(input_ids.shape[1])
        return output.logits[:, -1]

    @torch.inference_mode()
    def step(self, token_ids: Tensor) -> Tensor:
        """Decode one token (batch,) further; returns its logits (batch, vocabulary)."""
        return self._forward(token_ids)


class _CompactDecoder(nn.Module):
    """Logits of the next token; what a graph reads at fixed addresses are parameters and buffers."""

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        capacity: int,
        product: MakeProduct,
        head: MakeProduct,
    ) -> None:
        super().__init__()
        decoder = Decoder.of(model)
        check_executable(decoder)
        if has_turned_norms(decoder):
            raise KernelError("this decoder is the dense one in the model's own bases; end the plan's context")
        shape = decoder.shape
        angles = StaticCache.for_model(model, shape, 1, capacity)
        slots = -(-capacity // SLOTS) * SLOTS
        self.blocks = nn.ModuleList(
            _CompactBlock(decoder, index, shape, batch, slots, product) for index in range(shape.blocks)
        )
        self.embedding = fixed(decoder.embedding.weight)
        self.final_norm = fixed(decoder.final_norm.weight)
        self.lm_head = head(decoder.lm_head.weight.data, None)
        self.epsilon = shape.norm_epsilon
        self.register_buffer("cosines", angles.cosines.to(self.embedding.dtype))
        self.register_buffer("sines", angles.sines.to(self.embedding.dtype))
        self.register_buffer("slots", torch.arange(slots, device=self.embedding.device))
        self.register_buffer("length", torch.zeros(1, dtype=torch.int64, device=self.embedding.device))

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids: (batch,) → (batch, vocabulary); the cache grows by one slot."""
        angles = self.cosines[self.length], self.sines[self.length]
        x = F.embedding(token_ids, self.embedding)
        for block in self.blocks:
            x = block(x, angles, self.slots, self.length)
        self.length.add_(1)
        return self.lm_head(_rms_norm(x, self.final_norm, self.epsilon))


class _CompactBlock(nn.Module):
    """One block with its slots of the cache."""

    def __init__(
        self,
        decoder: Decoder,
        index: int,
        shape: DecoderShape,
        batch: int,
        slots: int,
        product: MakeProduct,
    ) -> None:
        super().__init__()
        linears = block_projections(decoder.blocks[index])
        self.shape, self.window = shape, shape.windows[index]
        in_place = product is FloatProduct
        self.qkv = product(*_joined(in_place, linears["q"], linears["k"], linears["v"]))
        self.o = product(*_joined(in_place, linears["o"]))
        self.gate_up = product(*_joined(in_place, linears["gate"], linears["up"]))
        self.down = product(*_joined(in_place, linears["down"]))
        self.input_norm = fixed(decoder.gains(index, "attention_input"))
        self.mlp_norm = fixed(decoder.gains(index, "mlp_input"))
        self.query_norm = fixed(decoder.gains(index, "q"))
        self.key_norm = fixed(decoder.gains(index, "k"))
        empty = torch.zeros(batch, shape.kv_heads, slots, shape.head_dim).to(self.input_norm)
        self.register_buffer("keys", empty)
        self.register_buffer("values", empty.clone())

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], slots: Tensor, length: Tensor) -> Tensor:
        """The residual stream x (batch, hidden) behind this block."""
        x = x + self.o(self._attention(self._normed(x, self.input_norm), angles, slots, length))
        gate, up = self.gate_up(self._normed(x, self.mlp_norm)).chunk(2, dim=-1)
        return x + self.down(ACTIVATIONS[self.shape.activation](gate) * up)

    def _attention(self, x: Tensor, angles: tuple[Tensor, Tensor], slots: Tensor, length: Tensor) -> Tensor:
        shape = self.shape
        widths = (shape.attention_width, shape.kv_width, shape.kv_width)
        q, k, v = (part.view(len(x), -1, 1, shape.head_dim) for part in self.qkv(x).split(widths, dim=-1))
        if self.query_norm is not None:
            q, k = self._normed(q, self.query_norm), self._normed(k, self.key_norm)
        self.keys[:, :, length] = _rotated(k, *angles)
        self.values[:, :, length] = v
        seen = slots <= length
        if self.window is not None:
            seen = seen & (slots > length - self.window)
        found = F.scaled_dot_product_attention(
            _rotated(q, *angles), self.keys, self.values, attn_mask=seen[None, None, None], enable_gqa=True
        )
        return found.reshape(len(x), -1)

    def _normed(self, x: Tensor, gain: Tensor) -> Tensor:
        return _rms_norm(x, gain, self.shape.norm_epsilon)


def _rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """RMSNorm over the last dimension, rounded where transformers rounds."""
    wide = x.float()
    return gain * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Heads x (batch, heads, 1, head_dim) turned by the angles (1, head_dim) of its position."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def _joined(in_place: bool, *linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weights (total out, in) and biases in one tensor each; `in_place`: the layers' own become rows of it."""
    weight = linears[0].weight.data
    if len(linears) > 1:
        weight = torch.cat([linear.weight.data for linear in linears])
        rows = weight.split([linear.out_features for linear in linears])
        for linear, own in zip(linears if in_place else (), rows, strict=False):
            linear.weight.data = own
    biases = [linear.bias for linear in linears]
    return weight, None if biases[0] is None else torch.cat(biases)
