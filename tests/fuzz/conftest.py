"""How many examples are drawn: few and always the same ones in a test run, many and new ones by `make fuzz`."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

LONGER = "WISPARSE_FUZZ"
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": False, "database": None}
settings.register_profile("tests", **COMMON, derandomize=True, phases=(Phase.explicit, Phase.generate))
settings.register_profile(
    "longer", **COMMON, derandomize=False, phases=(Phase.explicit, Phase.generate, Phase.shrink)
)


def examples(few: int) -> settings:
    """Settings of a test that draws few examples in a test run, and five times as many in a longer one."""
    name, times = ("longer", 5) if os.environ.get(LONGER) else ("tests", 1)
    return settings(settings.get_profile(name), max_examples=few * times)


@pytest.fixture(autouse=True)
def _few_threads():
    """One thread: what is drawn is too small for two to share."""
    torch.set_num_threads(1)
