"""How many examples are drawn: few, the same ones in a test run and new ones in each round of `make fuzz`."""

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
    """Settings of a test that draws so few examples: in a test run the same ones, in a longer run new ones."""
    profile = settings.get_profile("longer" if os.environ.get(LONGER) else "tests")
    return settings(profile, max_examples=few)


@pytest.fixture(autouse=True)
def _few_threads():
    """One thread: what is drawn is too small for two to share."""
    torch.set_num_threads(1)
