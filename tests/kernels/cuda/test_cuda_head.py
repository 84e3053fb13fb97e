"""Final norm and lm_head in one launch: the CUDA source, emulated on a CPU, and compiled on a GPU."""

import pytest
import torch
from wisparse.kernels.cuda.head import cuda_head
from wisparse.kernels.errors import KernelError

from ..triton_cases import DEVICE
from .test_cuda_product import assert_close, drawn, normed

pytestmark = pytest.mark.usefixtures("cuda_kernels_run")


@pytest.mark.parametrize(("channels", "rows"), [(264, 75), (2056, 5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_behind_the_final_norm(channels: int, rows: int, dtype: torch.dtype) -> None:
    """Rows that warps share unevenly or that are fewer than warps, columns that fill no vector of all lanes."""
    source, x = normed(channels, dtype)
    weight = drawn(rows, channels, seed=4, dtype=dtype) * channels**-0.5
    logits = torch.full((1, rows), 7.0, device=DEVICE)
    length = torch.full((1,), 5, dtype=torch.int32, device=DEVICE)
    cuda_head(source, weight, length, logits, blocks=3)
    assert_close(logits, x.double() @ weight.double().T, 8e-3 if dtype is torch.bfloat16 else 1e-3)
    assert torch.equal(logits, logits.to(dtype).float())
    assert length.item() == 6


def test_what_does_not_fit_is_refused() -> None:
    source, _ = normed(264, torch.bfloat16)
    length, logits = torch.zeros(1, dtype=torch.int32, device=DEVICE), torch.zeros(1, 4, device=DEVICE)
    for weight, message in (
        (drawn(4, 264), "in bfloat16 or float16"),
        (drawn(264, 4, dtype=torch.bfloat16).T, "contiguous"),
        (drawn(4, 256, dtype=torch.bfloat16), "x has shape"),
        (drawn(5, 264, dtype=torch.bfloat16), "logits has shape"),
    ):
        with pytest.raises(KernelError, match=message):
            cuda_head(source, weight, length, logits, blocks=3)
