"""Which implementation of the CPU kernels a test runs; what needs a compiler is skipped where there is none."""

import pytest
from wisparse.kernels.cpu_build import NoCompilerError
from wisparse.kernels.cpu_gemv import choose_backend


def choose_or_skip(name: str) -> None:
    try:
        choose_backend(name)
    except NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["c++", "torch"])
def implementation(request):
    choose_or_skip(request.param)
    yield request.param
    choose_backend("automatic")


@pytest.fixture
def compiled():
    choose_or_skip("c++")
    yield
    choose_backend("automatic")
