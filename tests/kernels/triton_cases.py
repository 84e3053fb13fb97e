"""What tests of the Triton kernels share: where they run, how exact each dtype is, and small tiles."""

import torch
from wisparse.kernels.gpu.step_tiles import StepTiles
from wisparse.kernels.triton.attention.general import AttentionTile
from wisparse.kernels.triton.gemv_tiles import Tile

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Sums are in float32 whatever the dtype; the interpreter cuts bfloat16 off where a GPU rounds.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SMALL_TILES = StepTiles.uniform(
    Tile(64, 16, share=64, stages=1),
    attention=AttentionTile(step=16, splits=2),
    list_block=32,
    up_rows=Tile(64, 16, stages=1),
)


def random(*shape, seed=0, dtype=torch.float32, scale=1.0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return (values * scale).to(DEVICE, dtype)


def relative_error(value, exact):
    return ((value.double() - exact).abs().max() / exact.abs().max()).item()
